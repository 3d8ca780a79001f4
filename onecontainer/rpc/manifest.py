"""What a driver says of itself: metadata.json, and `DriverManifest` made of it.

Catalog and driver SDK both read manifests, and neither may import the other: this is their common ground.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import Field, ValidationError, field_validator

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.errors import DataInvalid, FieldViolation
from onecontainer.rpc.options import Option, Strict
from onecontainer.rpc.structs import value_from_plain

METADATA_FILE = "metadata.json"
NAME_PATTERN = r"^[a-z][a-z0-9-]{0,62}$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
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


class Resources(Strict):
    """What a container of the driver may use; 0 and empty stand for the runtime's defaults."""

    memory_bytes: Annotated[int, Field(ge=0)] = 0
    """Memory, in bytes."""
    cpus: Annotated[float, Field(ge=0)] = 0.0
    """Processors; 0.5 is half of one."""
    pids: Annotated[int, Field(ge=0)] = 0
    """Processes and threads."""
    devices: list[str] = Field(default_factory=list)
    """Devices that it needs."""


class Backend(Strict):
    """A kind of backend that the driver drives, and what of it can be used."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    """For people, `PostgreSQL`; `probe` says which one a service has."""
    features: list[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.]*$")]] = Field(default_factory=list)
    """What it can do of that which the contracts of its services leave open, `UpdateRecords.returning`; what is not listed is refused."""


class Manifest(Strict):
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
        allowed_values=[value_from_plain(value) for value in option.allowed_values],
    )
    if option.default is not None:
        message.default_value.CopyFrom(value_from_plain(option.default))
    return message
