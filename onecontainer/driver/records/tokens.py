"""Page tokens: opaque to the caller, and of no use to any other query than the one they were written for."""

from __future__ import annotations

import base64
import binascii
import hashlib

from onecontainer.api.db.v1 import query_pb2
from onecontainer.errors import FieldInvalid

_DIGEST_BYTES = 16


def write_token(service: str, table_id: str, query: query_pb2.Query, payload: bytes) -> str:
    return base64.urlsafe_b64encode(_digest(service, table_id, query, payload) + payload).decode().rstrip("=")


def read_token(service: str, table_id: str, query: query_pb2.Query, token: str) -> bytes:
    """The payload. Raises FieldInvalid of ``page_token`` for anything that `write_token` did not write for this very query."""
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise not_of_this_query() from None
    digest, payload = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if digest != _digest(service, table_id, query, payload):
        raise not_of_this_query()
    return payload


def _digest(service: str, table_id: str, query: query_pb2.Query, payload: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in (service.encode(), table_id.encode(), query.SerializeToString(deterministic=True), payload):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()[:_DIGEST_BYTES]


def not_of_this_query() -> FieldInvalid:
    return FieldInvalid("page_token", "is not a token of this query of this table; start without it")


def write_list_token(last: str) -> str:
    """The token of ListTables for the tables behind ``last``."""
    return base64.urlsafe_b64encode(f"after:{last}".encode()).decode()


def read_list_token(token: str) -> str:
    """The id behind which the list goes on; empty: from the start. Raises FieldInvalid of ``page_token``."""
    if not token:
        return ""
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    if not text.startswith("after:"):
        raise FieldInvalid("page_token", "is not a token of ListTables; start without it")
    return text.removeprefix("after:")
