"""Page sizes and page tokens of the List methods. A token belongs to its method and filter: used with others it is refused."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json

from onecontainer.errors import FieldInvalid

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000


def page_size(asked: int, path: str = "page_size") -> int:
    """How many to return: 0 is the default, more than the most is the most. Raises FieldInvalid if it is negative."""
    if asked < 0:
        raise FieldInvalid(path, "must not be negative")
    return min(asked or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def page_token(method: str, filter_text: str, position: str) -> str:
    """The token that goes on behind `position`, the sort key of the last one returned."""
    data = json.dumps([_binding(method, filter_text), position], separators=(",", ":"))
    return base64.urlsafe_b64encode(data.encode()).decode().rstrip("=")


def page_position(token: str, method: str, filter_text: str, path: str = "page_token") -> str | None:
    """The position of a token, None of an empty one. Raises FieldInvalid if it is not of this method and filter."""
    if not token:
        return None
    try:
        binding, position = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, UnicodeError, ValueError, TypeError):
        raise FieldInvalid(path, "is not a token of ours: pass the last page's next_page_token") from None
    if binding != _binding(method, filter_text) or not isinstance(position, str):
        raise FieldInvalid(path, "belongs to another method or filter: start again without it")
    return position


def _binding(method: str, filter_text: str) -> str:
    return hashlib.sha256(f"{method}\n{filter_text}".encode()).hexdigest()[:16]
