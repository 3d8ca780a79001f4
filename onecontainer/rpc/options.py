"""Options of drivers: how a driver declares one, and the check of a service's options against them.

Catalog and driver SDK both need it, and neither may import the other: this is their common ground.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from onecontainer.errors import FieldViolation

OPTION_NAME_PATTERN = r"^[a-z][a-z0-9_]{0,62}$"
SECRET_PATTERN = re.compile(r"^secrets/([A-Za-z0-9][A-Za-z0-9._-]{0,127})$")
DURATION_PATTERN = re.compile(r"^([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h)$")
DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

OptionKind = Literal["string", "int", "float", "bool", "duration", "list", "map"]


class Strict(BaseModel):
    # A misspelt key in metadata.json is an error, not something that is silently without effect.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def _of_the_type(value: Any, info: ValidationInfo) -> Any:
    """A value of the option's own type; with a type that is wrong there is nothing to say of it."""
    kind = info.data.get("type")
    problem = "" if value is None or kind is None else _check_kind(kind, value)
    if problem:
        raise ValueError(f"{json.dumps(value)}: {problem}")
    return value


_VALUES: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "duration": {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": DURATION_PATTERN.pattern}]},
    "list": {"type": "array"},
    "map": {"type": "object"},
}
"""JSON schema of a value of each type; `_check_kind` says the same of Python values."""


def _option_schema(schema: dict[str, Any]) -> None:
    """Adds what depends on an option's type."""
    schema["allOf"] = [
        {
            "if": {"properties": {"type": {"const": kind}}, "required": ["type"]},
            "then": {
                "properties": {
                    "default": {"anyOf": [value, {"type": "null"}]},
                    "allowed_values": {"items": {"anyOf": [value, {"type": "null"}]}},
                }
            },
        }
        for kind, value in _VALUES.items()
    ]
    schema["allOf"].append(
        {
            "if": {"properties": {"required": {"const": True}}, "required": ["required"]},
            "then": {"properties": {"default": {"type": "null"}}},
        }
    )


OfTheType = Annotated[Any, AfterValidator(_of_the_type)]


class Option(Strict):
    """One option of a driver. Durations are seconds (float) once they are resolved."""

    model_config = ConfigDict(json_schema_extra=_option_schema)

    name: Annotated[str, Field(pattern=OPTION_NAME_PATTERN)]
    """Its name in a service's options."""
    type: OptionKind
    """Type of its values; a duration is seconds, or text such as `1.5s`, `200ms`, `5m`."""
    description: Annotated[str, Field(min_length=1)]
    """What it does, for people."""
    default: OfTheType = None
    """Value when a service does not set it."""
    sensitive: bool = False
    """Whether its value is never shown; give it as `secrets/NAME`."""
    required: bool = False
    """Whether a service has to set it."""
    allowed_values: list[OfTheType] = Field(default_factory=list)
    """The only values it may have; none listed: all of its type."""

    @field_validator("required")
    @classmethod
    def _required_has_no_default(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("default") is not None:
            raise ValueError("a required option has no default")
        return value


def secret_name(value: object) -> str | None:
    """NAME of a reference `secrets/NAME`, None of any other value."""
    match = SECRET_PATTERN.match(value) if isinstance(value, str) else None
    return match.group(1) if match else None


def secret_names(value: object) -> set[str]:
    """Names of all secrets that an option value refers to, lists and maps included."""
    if isinstance(value, Mapping):
        return set().union(*(secret_names(item) for item in value.values()))
    if isinstance(value, list | tuple):
        return set().union(*(secret_names(item) for item in value))
    name = secret_name(value)
    return set() if name is None else {name}


def option_violations(
    declared: Sequence[Option], options: Mapping[str, Any], root: str = "options"
) -> list[FieldViolation]:
    """All that is wrong with a service's options, none if they are right. Values are what JSON has.

    `root` is the path before the option's name: `options` in Attach, `service.options` in CreateService.
    """
    known = {option.name: option for option in declared}
    violations = []
    for name, value in options.items():
        option = known.get(name)
        if option is None:
            names = ", ".join(sorted(known)) or "none"
            violations.append(FieldViolation(f"{root}.{name}", f"the driver has no such option; it has: {names}"))
            continue
        if value is None:
            continue  # JSON null stands for "not set"
        problem = _check_kind(option.type, value)
        if not problem and option.allowed_values and not _is_secret_text(option, value):
            allowed = [_coerce(option.type, one) for one in option.allowed_values]
            if _coerce(option.type, value) not in allowed:
                problem = f"must be one of {', '.join(json.dumps(one) for one in option.allowed_values)}"
        if problem:
            violations.append(FieldViolation(f"{root}.{name}", problem))
    violations += [
        FieldViolation(f"{root}.{option.name}", "is required")
        for option in declared
        if option.required and options.get(option.name) is None
    ]
    return violations


def resolve_options(
    declared: Sequence[Option], options: Mapping[str, Any], secrets: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Valid options as Python values, defaults filled in: int, float (durations in seconds), str, bool, list, dict.

    With `secrets` (NAME → text) references become the secret's text; a name that is not there raises KeyError.
    Options without value and default are None, so a driver need not ask whether a key is there.
    """
    resolved: dict[str, Any] = {}
    for option in declared:
        value = options.get(option.name)
        value = option.default if value is None else value
        if value is not None and secrets is not None:
            value = _with_secrets(value, secrets)
        resolved[option.name] = None if value is None else _coerce(option.type, value)
    return resolved


def _with_secrets(value: Any, secrets: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_secrets(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_secrets(item, secrets) for item in value]
    name = secret_name(value)
    return value if name is None else secrets[name]


def _is_secret_text(option: Option, value: object) -> bool:
    return option.type == "string" and secret_name(value) is not None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_kind(kind: str, value: object) -> str:
    """What is wrong with the value, empty if nothing. A Struct has doubles only: 4.0 is a whole number here."""
    match kind:
        case "string":
            fits, what = isinstance(value, str), "text"
        case "int":
            fits, what = _is_number(value) and float(value).is_integer(), "a whole number"
        case "float":
            fits, what = _is_number(value), "a number"
        case "bool":
            fits, what = isinstance(value, bool), "true or false"
        case "duration":
            fits = (_is_number(value) and value >= 0) or (
                isinstance(value, str) and DURATION_PATTERN.match(value) is not None
            )
            what = "seconds as a number, or text such as `1.5s`, `200ms`, `5m`"
        case "list":
            fits, what = isinstance(value, list | tuple), "a list"
        case _:
            fits, what = isinstance(value, Mapping), "an object"
    return "" if fits else f"must be {what}"


def _coerce(kind: str, value: Any) -> Any:
    match kind:
        case "int":
            return int(value)
        case "float":
            return float(value)
        case "duration":
            return parse_duration(value)
        case "list":
            return list(value)
        case "map":
            return dict(value)
        case _:
            return value


def parse_duration(value: float | str) -> float:
    """Seconds of `1.5`, `"1.5s"`, `"200ms"`, `"5m"`, `"2h"`. Raises ValueError."""
    if isinstance(value, str):
        match = DURATION_PATTERN.match(value)
        if match is None:
            raise ValueError(f"not a duration: {value!r}")
        return float(match.group(1)) * DURATION_UNITS[match.group(2)]
    return float(value)
