"""What a driver says of itself (metadata.json, `DriverManifest`), and the check of a service's options against it.

Catalog and driver SDK both read manifests, and neither may import the other: this is their common ground.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard

from google.protobuf import json_format, struct_pb2
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.errors import DataInvalid, FieldViolation

METADATA_FILE = "metadata.json"
NAME_PATTERN = r"^[a-z][a-z0-9-]{0,62}$"
OPTION_NAME_PATTERN = r"^[a-z][a-z0-9_]{0,62}$"
SECRET_PATTERN = re.compile(r"^secrets/([A-Za-z0-9][A-Za-z0-9._-]{0,127})$")
DURATION_PATTERN = re.compile(r"^([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h)$")
DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
OptionKind = Literal["string", "int", "float", "bool", "duration", "list", "map"]
Scope = Literal["ai", "db", "media", "hpc"]

_KIND_TO_PROTO: dict[str, driver_pb2.OptionType.ValueType] = {
    "string": driver_pb2.OPTION_TYPE_STRING,
    "int": driver_pb2.OPTION_TYPE_INT,
    "float": driver_pb2.OPTION_TYPE_FLOAT,
    "bool": driver_pb2.OPTION_TYPE_BOOL,
    "duration": driver_pb2.OPTION_TYPE_DURATION,
    "list": driver_pb2.OPTION_TYPE_LIST,
    "map": driver_pb2.OPTION_TYPE_MAP,
}


class _Strict(BaseModel):
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


class Option(_Strict):
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


class Resources(_Strict):
    """What a container of the driver may use; 0 and empty stand for the runtime's defaults."""

    memory_bytes: Annotated[int, Field(ge=0)] = 0
    """Memory, in bytes."""
    cpus: Annotated[float, Field(ge=0)] = 0.0
    """Processors; 0.5 is half of one."""
    pids: Annotated[int, Field(ge=0)] = 0
    """Processes and threads."""
    devices: list[str] = Field(default_factory=list)
    """Devices that it needs."""


class Backend(_Strict):
    """A kind of backend that the driver drives, and what of it can be used."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    """For people, `PostgreSQL`; `probe` says which one a service has."""
    features: list[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.]*$")]] = Field(default_factory=list)
    """What it can do of that which the contracts of its services leave open, `UpdateRecords.returning`; what is not listed is refused."""


class Manifest(_Strict):
    """metadata.json of a driver."""

    name: Name
    """Name of the driver; with the version it is `drivers/{name}-{version}`."""
    version: Annotated[str, Field(max_length=64)]
    """Its own version (PEP 440)."""
    app: Annotated[str, Field(min_length=1, max_length=128)]
    """The software that it drives, as services name it, without an image tag."""
    app_version: str = ""
    """Range of that software's versions (PEP 440 specifiers, such as `>=3.11,<6`); empty: all."""
    scope: Scope
    """The vertical that it belongs to."""
    entry_point: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """Its class, `package.module:Class`."""
    description: str = ""
    """What it does, in a sentence."""
    descriptor_set: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")] = "descriptors.binpb"
    """File with the FileDescriptorSet of its services, imports included; not needed for `onecontainer.api.…` alone."""
    services: Annotated[list[str], Field(min_length=1)]
    """Full names of the gRPC services that it serves."""
    options: list[Option] = Field(default_factory=list)
    """What can be set for a service."""
    replicable: bool = False
    """Whether several sidecars may serve one service."""
    exclusive_state: bool = False
    """Whether the old sidecar has to go before a new one starts, since both would use the state folder."""
    job_slots: Annotated[int, Field(ge=1, le=1024)] = 1
    """How many jobs a sidecar runs at once."""
    resources: Resources = Resources()
    """What a container of it may use."""
    backends: list[Backend] = Field(default_factory=list)
    """What it can do with each kind of backend; none listed: it does not say."""

    @field_validator("version")
    @classmethod
    def _version_is_pep440(cls, value: str) -> str:
        try:
            return str(Version(value))
        except InvalidVersion:
            raise ValueError("not a PEP 440 version") from None

    @field_validator("app_version")
    @classmethod
    def _app_version_is_a_specifier(cls, value: str) -> str:
        try:
            SpecifierSet(value)
        except InvalidSpecifier:
            raise ValueError("not a PEP 440 specifier, such as `>=3.11,<6`") from None
        return value

    @field_validator("app")
    @classmethod
    def _app_has_no_tag(cls, value: str) -> str:
        if bare_app(value) != value:
            raise ValueError(f"write it without an image tag: {bare_app(value)!r}")
        return value

    @field_validator("options", "backends")
    @classmethod
    def _names_differ(cls, value: list[Any]) -> list[Any]:
        names = [one.name for one in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}")
        return value


def bare_app(app: str) -> str:
    """The app without image tag and digest: `library/cassandra:latest@sha256:…` → `library/cassandra`.

    A colon before the last slash is a registry's port and stays.
    """
    app = app.split("@", 1)[0]
    head, slash, tail = app.rpartition("/")
    return head + slash + tail.split(":", 1)[0]


def requirements_of(folder: Path) -> list[str]:
    """What the pyproject.toml of a driver's folder requires, as it is written there; nothing if it cannot be read."""
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except (OSError, tomllib.TOMLDecodeError):
        return []
    return [text for text in project.get("dependencies", []) if isinstance(text, str)]


def metadata_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of metadata.json, for editors and for other languages.

    Beyond it only code can tell: `version` is a PEP 440 version and `app_version` a specifier, `app` has no image tag, and names of
    options and of backends differ.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Manifest.model_json_schema(),
        "title": "metadata.json of a oneContainer driver",
    }


def load_manifest(folder: Path) -> Manifest:
    """Reads metadata.json of a driver's folder. Raises DataInvalid with all violations (`metadata.app`)."""
    path = folder / METADATA_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataInvalid("metadata", f"{METADATA_FILE} cannot be read: {error}") from error
    return parse_manifest(text)


def parse_manifest(text: str) -> Manifest:
    """Checks the text of a metadata.json. Raises DataInvalid with all violations (`metadata.app`)."""
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        violations = [
            FieldViolation(_dotted("metadata", problem["loc"]), problem["msg"].removeprefix("Value error, "))
            for problem in error.errors(include_url=False)
        ]
        raise DataInvalid(violations=violations) from error


def _dotted(root: str, parts: Iterable[str | int]) -> str:
    path = root
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path


# --- options -----------------------------------------------------------------------------------------------------


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


# --- proto -------------------------------------------------------------------------------------------------------


def manifest_to_proto(manifest: Manifest) -> driver_pb2.DriverManifest:
    resources = manifest.resources
    message = driver_pb2.DriverManifest(
        name=manifest.name,
        version=manifest.version,
        app=manifest.app,
        app_version=manifest.app_version,
        scope=manifest.scope,
        description=manifest.description,
        services=manifest.services,
        options=[_option_to_proto(option) for option in manifest.options],
        replicable=manifest.replicable,
        exclusive_state=manifest.exclusive_state,
        job_slots=manifest.job_slots,
        backends=[driver_pb2.DriverBackend(name=one.name, features=one.features) for one in manifest.backends],
    )
    if resources != Resources():
        message.resources.memory_bytes = resources.memory_bytes
        message.resources.cpus = resources.cpus
        message.resources.pids = resources.pids
        message.resources.devices.extend(resources.devices)
    return message


def _option_to_proto(option: Option) -> driver_pb2.DriverOption:
    message = driver_pb2.DriverOption(
        name=option.name,
        type=_KIND_TO_PROTO[option.type],
        description=option.description,
        sensitive=option.sensitive,
        required=option.required,
        allowed_values=[_value_to_proto(value) for value in option.allowed_values],
    )
    if option.default is not None:
        message.default_value.CopyFrom(_value_to_proto(option.default))
    return message


def _value_to_proto(value: Any) -> struct_pb2.Value:
    return json_format.ParseDict(value, struct_pb2.Value())


def struct_to_dict(struct: struct_pb2.Struct) -> dict[str, Any]:
    """A Struct as JSON values; whole numbers become int."""
    return {name: _plain(value) for name, value in struct.fields.items()}


def _plain(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return struct_to_dict(value.struct_value)
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None


def struct_from_dict(values: Mapping[str, Any]) -> struct_pb2.Struct:
    return json_format.ParseDict(dict(values), struct_pb2.Struct())
