"""Routes of calls whose contract is somebody else's: the service is named by the text field that the method's option `route` tells.

Only that field is read, as `relay.py` reads field 1 of our own requests; everything else stays bytes (docs/adr/0019).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from onecontainer.catalog.methods import MethodRoute
from onecontainer.errors import DataInvalid, FieldRequired

SERVICES = "services/"


def service_of(rule: MethodRoute, request: bytes | None) -> str:
    """`services/{service}`, of a request whose field says `SERVICE`, `SERVICE/…` or `services/SERVICE/…`.

    Raises FieldRequired if it names none, DataInvalid if it does not decode.
    """
    text = ""
    if rule.field and request is not None:
        try:
            found: Any = _reader(rule.field).FromString(request)
        except DecodeError:
            raise DataInvalid("", "the request does not decode") from None
        text = found.text
    service = text.removeprefix(SERVICES).partition("/")[0]
    if not service:
        raise FieldRequired(
            "service", "is required: as metadata onecontainer-service, or where this contract names what is asked"
        )
    return SERVICES + service


@cache
def _reader(number: int) -> type[Message]:
    """A message with one text field of that number: the last one on the wire wins, as protobuf has it."""
    file = descriptor_pb2.FileDescriptorProto(name="reader.proto", package="reader", syntax="proto3")
    field = file.message_type.add(name="Reader").field.add(name="text", number=number)
    field.type, field.label = field.TYPE_STRING, field.LABEL_OPTIONAL
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("reader.Reader"))
