"""The service's option `secrets`: what a request may refer to as `secrets/{secret}`, and nobody else may see."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onecontainer.driver import errors

HIDDEN = "***"
MOST_BYTES = 64 * 1024
# As the names of the gateway's secrets are.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PREFIX = "secrets/"
# A text that short is in every other line: hiding it would tell it.
_LEAST_HIDDEN = 4


@dataclass(frozen=True)
class Secrets:
    """Text by name. The texts are in no `repr`."""

    _texts: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_option(cls, value: Mapping[str, Any] | None) -> Secrets:
        """The option: name in requests → text; the SDK has replaced `secrets/NAME` by the gateway's secret already.

        FieldInvalid for a name that no request could say, and for a text that is none, empty or too long; no text is in the message.
        """
        for name, text in (value or {}).items():
            at = f"options.secrets.{name}"
            if not _NAME.fullmatch(name):
                raise errors.FieldInvalid("options.secrets", f"{name[:128]!r} is no name [A-Za-z0-9][A-Za-z0-9._-]*")
            if not isinstance(text, str) or not text:
                raise errors.FieldInvalid(at, "must be text that is not empty; give it as `secrets/NAME`")
            if len(text.encode()) > MOST_BYTES:
                raise errors.FieldInvalid(at, f"is longer than {MOST_BYTES} bytes")
        return cls(dict(value or {}))

    def lookup(self, reference: str, at: str) -> str:
        """The text of `secrets/{secret}`; `at` is the full path of the request's field that has the reference.

        FieldInvalid if it is no reference, SourceNotAllowed if the operator has given this service no such secret: a request cannot
        reach the gateway's other secrets.
        """
        name = reference.removeprefix(_PREFIX)
        if not reference.startswith(_PREFIX) or not _NAME.fullmatch(name):
            raise errors.FieldInvalid(at, "is no reference of the form `secrets/{secret}`")
        text = self._texts.get(name)
        if text is None:
            raise errors.SourceNotAllowed(
                at, f"this service has no secret {name!r} for requests; the operator gives them by the option `secrets`"
            )
        return text

    def hide(self, text: str) -> str:
        """The text with each secret in it replaced by `***`, for what a child says."""
        for secret in sorted(self._texts.values(), key=len, reverse=True):
            if len(secret) >= _LEAST_HIDDEN:
                text = text.replace(secret, HIDDEN)
        return text
