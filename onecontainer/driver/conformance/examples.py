"""Requests that a driver's author gives: what the kit cannot make up for a service that it has never seen."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from onecontainer.driver.conformance.contract import Method, with_service
from onecontainer.driver.conformance.servicer import Desk
from onecontainer.errors import DataInvalid, FieldViolation, Reason

FILE = "examples.json"
KEYS = frozenset({"request", "requests", "response", "error", "slow", "same"})


@dataclass(frozen=True, slots=True)
class Example:
    """One call.

    Attributes:
        requests: as JSON, in the order in which they are sent.
        response: what must come, as JSON. None: anything of the method's type.
        error: reason of the error that must come. Empty: it must work.
        slow: it lasts until it is stopped, ten seconds at the least.
        same: it has no side effects, and gives the same answer each time.
    """

    requests: Sequence[Mapping[str, Any]]
    response: Mapping[str, Any] | None = None
    error: str = ""
    slow: bool = False
    same: bool = False

    def messages(self, method: Method, service: str) -> list[Message]:
        """The requests as messages. Raises DataInvalid."""
        return [with_service(_parse(value, method.request, method.name), service) for value in self.requests]

    def wanted(self, kind: type[Message], method: str) -> Message | None:
        """The response that must come. Raises DataInvalid."""
        return None if self.response is None else _parse(self.response, kind, method)


def _parse(value: Mapping[str, Any], kind: type[Message], method: str) -> Message:
    try:
        return json_format.ParseDict(dict(value), kind())
    except json_format.ParseError as error:
        raise DataInvalid(f"examples.{method}", f"no {kind.DESCRIPTOR.full_name}: {error}") from error


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples by full method name, and files that stand for artifacts: `artifacts/NAME` in a request."""

    calls: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    artifacts: Mapping[str, Path] = field(default_factory=dict)

    def of(self, method: str) -> Sequence[Example]:
        return self.calls.get(method, ())

    def lend(self, desk: Desk) -> None:
        """Puts the artifacts on the desk, under their own names."""
        for name, path in self.artifacts.items():
            kept = desk.keep(path.read_bytes(), path.name, mimetypes.guess_type(path.name)[0] or "")
            artifact, data = desk.artifacts.pop(kept)
            artifact.name = f"artifacts/{name}"
            desk.artifacts[artifact.name] = (artifact, data)


def read_examples(path: Path) -> Examples:
    """Reads a file of examples: `{"package.Service/Method": [{"request": {…}, "response": {…}}], "artifacts": {"NAME": "FILE"}}`.

    Files are relative to the file's folder. Raises DataInvalid.
    """
    values = read_object(path)
    files = values.pop("artifacts", {})
    artifacts = {name: path.parent / str(file) for name, file in files.items()}
    missing = [str(file) for file in artifacts.values() if not file.is_file()]
    if missing:
        raise DataInvalid("artifacts", f"there is no file {', '.join(missing)}")
    return Examples(
        {method: [_example(method, one) for one in _list(ones)] for method, ones in values.items()}, artifacts
    )


def examples_of(folder: Path) -> Examples:
    """Those that a driver's folder comes with, in its `examples.json`. Raises DataInvalid."""
    path = folder / FILE
    return read_examples(path) if path.is_file() else Examples()


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file with an object in it. Raises DataInvalid."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataInvalid(str(path), f"cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise DataInvalid(str(path), "must be a JSON object")
    return values


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _example(method: str, value: Any) -> Example:
    where = f"examples.{method}"
    if not isinstance(value, dict):
        raise DataInvalid(where, "must be an object, or a list of objects")
    strange = sorted(value.keys() - KEYS)
    if strange:
        raise DataInvalid(
            violations=[FieldViolation(f"{where}.{key}", f"is none of {', '.join(sorted(KEYS))}") for key in strange]
        )
    error = value.get("error", "")
    if error and error not in Reason.__members__:
        raise DataInvalid(f"{where}.error", f"{error!r} is none of error.v1.Reason")
    requests = value.get("requests", [value.get("request", {})])
    slow, same = bool(value.get("slow")), bool(value.get("same"))
    return Example(requests, value.get("response"), error, slow, same)
