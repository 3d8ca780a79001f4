"""The option `route`: what the catalog takes of it, and what it refuses."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2

import onecontainer
from onecontainer.api.options.v1 import options_pb2
from onecontainer.catalog.contracts import own_descriptor_set
from onecontainer.catalog.methods import MethodTable
from onecontainer.errors import DataInvalid
from onecontainer.rpc.descriptors import with_dependencies

FIELD = descriptor_pb2.FieldDescriptorProto
OIP = "inference.GRPCInferenceService"


def contract(*, field: str = "", answer: str = "", service: bool = False, streams: bool = False) -> bytes:
    """A service of one method, whose request has the fields `model` (text) and `count` (a number)."""
    files = descriptor_pb2.FileDescriptorSet()
    for one in with_dependencies([options_pb2.DESCRIPTOR]):
        one.CopyToProto(files.file.add())
    file = files.file.add(
        name="theirs.proto", package="theirs", syntax="proto3", dependency=[options_pb2.DESCRIPTOR.name]
    )
    request = file.message_type.add(name="Request")
    request.field.add(
        name="service" if service else "model", number=1, type=FIELD.TYPE_STRING, label=FIELD.LABEL_OPTIONAL
    )
    request.field.add(name="count", number=2, type=FIELD.TYPE_INT32, label=FIELD.LABEL_OPTIONAL)
    request.field.add(name="all", number=3, type=FIELD.TYPE_STRING, label=FIELD.LABEL_REPEATED)
    response = file.message_type.add(name="Response")
    response.field.add(name="text", number=1, type=FIELD.TYPE_STRING, label=FIELD.LABEL_OPTIONAL)
    method = file.service.add(name="Theirs").method.add(
        name="Ask", input_type=".theirs.Request", output_type=".theirs.Response", server_streaming=streams
    )
    method.options.Extensions[options_pb2.route].CopyFrom(options_pb2.MethodRoute(field=field, answer=answer))
    return files.SerializeToString()


def test_the_field_is_known_by_its_number_and_the_answer_by_its_bytes() -> None:
    (method,) = MethodTable(contract(field="model")).methods.values()
    assert method.route is not None
    assert (method.route.field, method.route.answer) == (1, None)
    (method,) = MethodTable(contract(answer='{"text": "{gateway_version}"}')).methods.values()
    assert method.route is not None
    version = onecontainer.__version__.encode()
    assert method.route.answer == b"\x0a" + bytes([len(version)]) + version
    (method,) = MethodTable(contract()).methods.values()
    assert method.route is not None
    assert (method.route.field, method.route.answer) == (0, None)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"field": "none"}, "no text field 'none'"),
        ({"field": "count"}, "no text field 'count'"),
        ({"field": "all"}, "no text field 'all'"),
        ({"field": "model", "answer": "{}"}, "without `field`"),
        ({"answer": "{}", "streams": True}, "for unary methods"),
        ({"answer": '{"words": 1}'}, "is no theirs.Response"),
        ({"field": "service", "service": True}, "for requests of others"),
    ],
)
def test_routes_that_cannot_be_are_refused(told: dict[str, object], words: str) -> None:
    with pytest.raises(DataInvalid) as caught:
        MethodTable(contract(**told))  # type: ignore[arg-type]
    assert words in caught.value.message


def test_a_contract_of_others_that_comes_along_need_not_be_shipped() -> None:
    found = own_descriptor_set([OIP])
    assert found is not None
    methods = MethodTable(found, [OIP]).methods
    routes = {name.rpartition("/")[2]: method.route for name, method in methods.items()}
    assert all(route is not None for route in routes.values())
    answered = {name for name, route in routes.items() if route is not None and route.answer is not None}
    assert answered == {"ServerLive", "ServerReady", "ServerMetadata"}
    assert own_descriptor_set(["nobody.Knows"]) is None
    assert own_descriptor_set(["Bare"]) is None
