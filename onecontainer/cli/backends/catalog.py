"""The catalog of backends: what each is made of, and which service is registered for it. Pure but for reading files."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from onecontainer.errors import FieldInvalid, FieldViolation, ResourceNotFound
from onecontainer.settings import Settings

ALL = "all"
"""Stands for each backend of the catalog."""
CATALOG_FILE = "catalog.json"
LOOPBACK = "127.0.0.1"
HOST_NAME = "host.docker.internal"
"""By this name sidecars in containers reach the host (docs/backends.md)."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,38}$")]
Size = Annotated[str, StringConstraints(pattern=r"^[1-9]\d*[kmg]$")]
InnerPath = Annotated[str, StringConstraints(pattern=r"^/[^:]+$")]
PortNumber = Annotated[int, Field(ge=1, le=65535)]
Runtime = Literal["process", "docker"]


class Part(BaseModel):
    """What is unknown is a mistake: it would be ignored otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Port(Part):
    container: PortNumber
    """Where the software listens in its container."""
    host: PortNumber
    """Where it is reached on this host, on loopback."""


class Ready(Part):
    """When a container does its work: its port answers, and all else that is given holds."""

    port: Name
    path: Annotated[str, StringConstraints(pattern=r"^/")] | None = None
    """A GET of this path must give 200. Default: a connection is enough."""
    log: str | None = None
    """A text that its log must have since it started."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds it may take."""


class ContainerEntry(Part):
    """How a container is made. It gets no more than what is said here: no capability, and loopback ports only."""

    image: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Image that is pulled if it is not here. Instead: `build`."""
    build: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Folder with a Dockerfile, relative to the catalog's."""
    command: list[str] = []
    """Arguments of its entry point. Default: the image's."""
    ports: Annotated[dict[Name, Port], Field(min_length=1)]
    environment: dict[str, str] = {}
    volumes: dict[Name, InnerPath] = {}
    """What survives the container: name → folder in it."""
    tmpfs: dict[InnerPath, Size] = {}
    """Folders in memory, and how large each may become; with `read_only` all that it can write."""
    memory: Size
    user: str = ""
    """User in the container. Default: the image's."""
    read_only: bool = False
    ready: Ready

    @model_validator(mode="after")
    def _consistent(self) -> ContainerEntry:
        if bool(self.image) == bool(self.build):
            raise ValueError("give either `image` or `build`")
        if self.ready.port not in self.ports:
            raise ValueError(f"ready.port is {self.ready.port!r}, which is none of `ports`")
        return self


class ServiceEntry(Part):
    """The service that is registered. `{PORT}` in an endpoint is the HOST:PORT at which that port of the container is reached."""

    id: Name
    app: Annotated[str, StringConstraints(min_length=1)]
    app_version: str = ""
    endpoints: dict[str, str] = {}
    options: dict[str, JsonValue] = {}
    runtime: Runtime | None = None
    """Where its sidecar runs. Default: `process` if the backend has a container, else as the gateway is set up."""
    description: str = ""


class BackendEntry(Part):
    description: str = ""
    container: ContainerEntry | None = None
    """Default: none; the driver is all it takes."""
    service: ServiceEntry | None = None
    """Default: none; whoever uses it names its address."""

    @model_validator(mode="after")
    def _consistent(self) -> BackendEntry:
        if self.container is None and self.service is None:
            raise ValueError("give a `container`, a `service`, or both")
        if self.service is not None:
            ports = self.container.ports if self.container else {}
            for node, address in self.service.endpoints.items():
                try:
                    used = {
                        field
                        for _text, field, _spec, _conversion in string.Formatter().parse(address)
                        if field is not None
                    }
                except ValueError as error:
                    raise ValueError(f"service.endpoints.{node}: {error}") from None
                if unknown := sorted(used - ports.keys()):
                    raise ValueError(
                        f"service.endpoints.{node} names {unknown[0]!r}, which is none of the container's ports"
                    )
        return self


_CATALOG: TypeAdapter[dict[Name, BackendEntry]] = TypeAdapter(dict[Name, BackendEntry])


@dataclass(frozen=True, slots=True)
class Backend:
    """An entry of the catalog with this installation's settings in it.

    Attributes:
        folder: what `container.build` is relative to.
        base_image: what an image that is built here stands on. Empty: what its Dockerfile says.
    """

    name: str
    description: str
    container: ContainerEntry | None
    service: ServiceEntry | None
    folder: Path
    base_image: str = ""

    @property
    def addresses(self) -> dict[str, str]:
        """Port → HOST:PORT on this host."""
        ports = self.container.ports if self.container else {}
        return {name: f"{LOOPBACK}:{port.host}" for name, port in ports.items()}

    def endpoints(self, runtime: Runtime) -> dict[str, str]:
        """The service's endpoints as a sidecar of that runtime reaches them."""
        if self.service is None:
            return {}
        ports = self.container.ports if self.container else {}
        host = HOST_NAME if runtime == "docker" else LOOPBACK
        places = {name: f"{host}:{port.host}" for name, port in ports.items()}
        return {node: address.format_map(places) for node, address in self.service.endpoints.items()}

    @property
    def build_folder(self) -> Path | None:
        build = self.container.build if self.container else None
        return None if build is None else (self.folder / build).resolve()


def bundled_catalog() -> Path:
    """The catalog that comes with oneContainer: in an installed wheel, else in a source checkout."""
    package = Path(__file__).resolve().parents[2]
    bundled = package / "_bundled" / "backends" / CATALOG_FILE
    return bundled if bundled.is_file() else package.parent / "deploy" / "backends" / CATALOG_FILE


def load(settings: Settings) -> dict[str, Backend]:
    """The bundled catalog, then the user's own over it, by name. Raises FieldInvalid that names file and place."""
    found: dict[str, Backend] = {}
    for path in filter(None, (bundled_catalog(), settings.backend_catalog)):
        for name, entry in _read(path).items():
            found[name] = Backend(
                name, entry.description, entry.container, entry.service, path.parent, settings.backend_base_image
            )
    _check_overrides(found, settings)
    return {name: _overridden(backend, settings) for name, backend in found.items()}


def choose(catalog: Mapping[str, Backend], names: Iterable[str]) -> list[Backend]:
    """The named backends, each once; `all` stands for each. Raises ResourceNotFound."""
    chosen: dict[str, Backend] = {}
    for name in names:
        if name == ALL:
            chosen |= catalog
        elif name in catalog:
            chosen[name] = catalog[name]
        else:
            error = ResourceNotFound(f"there is no backend {name!r}", resource=("onecontainer.dev/Backend", name))
            error.add_note(f"The catalog has {', '.join(sorted(catalog))}; `{ALL}` stands for each of them.")
            raise error
    return list(chosen.values())


def digest_of_folder(folder: Path, *more: str) -> str:
    """Names what an image is built of: each file's place, mode and bytes."""
    digest = hashlib.sha256("\0".join(more).encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            mode = "x" if path.stat().st_mode & 0o100 else "-"
            digest.update(
                f"\0{path.relative_to(folder)}\0{mode}\0".encode() + hashlib.sha256(path.read_bytes()).digest()
            )
    return digest.hexdigest()[:16]


def _read(path: Path) -> dict[str, BackendEntry]:
    try:
        entries = _CATALOG.validate_json(path.read_bytes())
    except OSError as error:
        raise FieldInvalid("backend_catalog", f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise FieldInvalid(
            violations=[
                FieldViolation(
                    ".".join(map(str, item["loc"])) or path.name,
                    f"{item['msg'].removeprefix('Value error, ')} (in {path})",
                )
                for item in error.errors()
            ]
        ) from None
    for name, entry in entries.items():
        if name == ALL:
            raise FieldInvalid(ALL, f"stands for each backend, and is no name for one (in {path})")
        build = entry.container.build if entry.container else None
        if build is not None and not (path.parent / build / "Dockerfile").is_file():
            raise FieldInvalid(f"{name}.container.build", f"there is no {path.parent / build / 'Dockerfile'}")
    return entries


def _check_overrides(found: Mapping[str, Backend], settings: Settings) -> None:
    ports = {
        f"{name}.{port}" for name, backend in found.items() if backend.container for port in backend.container.ports
    }
    images = {name for name, backend in found.items() if backend.container}
    violations = [
        FieldViolation(f"{field}.{key}", f"is not known; there are {', '.join(sorted(known))}")
        for field, keys, known in (
            ("backend_ports", settings.backend_ports, ports),
            ("backend_images", settings.backend_images, images),
        )
        for key in keys
        if key not in known
    ]
    if violations:
        raise FieldInvalid(violations=violations)


def _overridden(backend: Backend, settings: Settings) -> Backend:
    container = backend.container
    if container is None:
        return backend
    ports = {
        name: port.model_copy(update={"host": settings.backend_ports.get(f"{backend.name}.{name}", port.host)})
        for name, port in container.ports.items()
    }
    changes: dict[str, object] = {"ports": ports}
    if image := settings.backend_images.get(backend.name):
        changes |= {"image": image, "build": None}
    return Backend(
        backend.name,
        backend.description,
        container.model_copy(update=changes),
        backend.service,
        backend.folder,
        backend.base_image,
    )
