"""Settings of the gateway and of the command line, from `ONECONTAINER_…` variables or keyword arguments.

Durations are in seconds, sizes in bytes. The text under a setting is its documentation: `docs/reference/settings.md` is made from it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIB = 1024 * 1024
UNIX_PATH_LIMIT = 107
"""Longest path of a UNIX socket on Linux, in bytes (`sun_path` is 108 with its closing zero)."""


def _default_data_dir() -> Path:
    # Imported here: the base install (client, driver SDK) goes without platformdirs and has no data folder.
    from platformdirs import user_data_path

    return user_data_path("onecontainer", appauthor=False)


class Settings(BaseSettings):
    """All settings. Raises pydantic.ValidationError, which names the setting, if one is wrong."""

    model_config = SettingsConfigDict(
        env_prefix="ONECONTAINER_", extra="ignore", frozen=True, use_attribute_docstrings=True, validate_default=True
    )

    # --- where ---------------------------------------------------------------------------------------------------------

    data_dir: Path = Field(default_factory=_default_data_dir)
    """Folder of everything that must survive a restart. Default: the user's data folder (`~/.local/share/onecontainer`
    on Linux)."""

    listen: str = "127.0.0.1:50051"
    """Address of the public listener, `HOST:PORT`; port 0 picks a free one. Elsewhere than on loopback it needs TLS
    and a principal. Default: `127.0.0.1:50051`."""

    internal_listen: str = Field(
        default_factory=lambda data: (
            f"unix:{socket_path(data['data_dir'], 'internal.sock')}" if "data_dir" in data else ""
        )
    )
    """Address of the listener for sidecars: `unix:PATH` or `HOST:PORT`. Elsewhere than on loopback it serves TLS, with a certificate
    of the authority in `ca_dir`. Default: `internal.sock` in the data folder, or, where that path has more than 107 bytes, in the
    data folder's runtime folder."""

    internal_advertise: str = ""
    """Address, `HOST:PORT`, at which sidecars and workers elsewhere reach the internal listener; its certificate has this host
    too. Default: that of `internal_listen`, with the machine's name if it listens on all addresses."""

    database_url: str = Field(
        default_factory=lambda data: f"sqlite:///{data['data_dir'] / 'onecontainer.db'}" if "data_dir" in data else ""
    )
    """SQLAlchemy URL of the database. PostgreSQL (`postgresql+psycopg://…`) when several gateways run. Default:
    SQLite, `onecontainer.db` in the data folder."""

    artifact_url: str = Field(
        default_factory=lambda data: (data["data_dir"] / "artifacts").as_uri() if "data_dir" in data else ""
    )
    """Where the bytes of artifacts are: `file:///FOLDER`. Default: `artifacts` in the data folder."""

    secrets_dir: Path = Field(
        default_factory=lambda data: data["data_dir"] / "secrets" if "data_dir" in data else Path()
    )
    """Folder with one file per secret, for `secrets/NAME` in a service's options; its files must be readable by the
    owner only. Default: `secrets` in the data folder."""

    state_dir: Path = Field(default_factory=lambda data: data["data_dir"] / "state" if "data_dir" in data else Path())
    """Folder of what drivers keep for their services. Gateways on one PostgreSQL share it, so that a service finds its own
    when another gateway takes over. Default: `state` in the data folder."""

    registration_token_file: Path = Field(
        default_factory=lambda data: data["data_dir"] / "registration.token" if "data_dir" in data else Path()
    )
    """File with the token with which workers (`oca worker`) register, readable by the owner only; made if it is not there. The
    same text for several gateways on one database. Default: `registration.token` in the data folder."""

    driver_paths: Annotated[list[Path], NoDecode] = Field(default_factory=list)
    """Folders with further drivers, each a folder with a `metadata.json`; as a variable separated by `:`. The bundled
    drivers are always there. Default: none."""

    plugin_uploads: bool = True
    """Whether a driver may be installed from an uploaded archive, as `oca driver install FOLDER` does. Whoever may call the
    gateway can then run code as its user. Default: `true`."""

    plugin_folders: Annotated[list[Path], NoDecode] = Field(default_factory=list)
    """Folders on the gateway's machine from which, and from below which, drivers may be installed; as a variable separated
    by `:`. Default: none."""

    plugin_git_urls: Annotated[list[str], NoDecode] = Field(default_factory=list)
    """URLs (`https://HOST/…`) of git repositories from which drivers may be installed; each allows all below it. As a variable
    separated by blanks. Default: none."""

    plugin_git_timeout: float = Field(default=60.0, gt=0)
    """Seconds that the fetch of a git repository may take. Default: 60."""

    plugin_max_bytes: int = Field(default=64 * MIB, gt=0)
    """Largest plug-in driver, packed and unpacked: it is kept in the database. Default: 67108864 (64 MiB)."""

    # --- who may -------------------------------------------------------------------------------------------------------

    tls_cert_file: Path | None = None
    """PEM file with the public listener's certificate chain. Default: none, no TLS."""

    tls_key_file: Path | None = None
    """PEM file with the private key of `tls_cert_file`. Default: none."""

    ca_dir: Path = Field(default_factory=lambda data: data["data_dir"] / "ca" if "data_dir" in data else Path())
    """Folder of the installation's own certificate authority, for the internal listener and for sidecars on TCP: `ca.pem`, which
    those who connect need, and `ca.key`, the owner's alone. It is made when it is needed first. Gateways on one PostgreSQL share
    it. Default: `ca` in the data folder."""

    sidecar_ca_file: Path | None = None
    """PEM file with further authorities whose certificates of attached sidecars are accepted. Default: those that the system
    trusts. The authority in `ca_dir` always is."""

    peer_ca_file: Path | None = None
    """PEM file with the authority that signed the certificates of the other gateways on the same PostgreSQL. Default: the
    system's authorities."""

    tokens: dict[str, str] = Field(default_factory=dict, repr=False)
    """Static bearer tokens, token to principal; as a variable in JSON. Default: none."""

    tokens_file: Path | None = None
    """File with more of them: a line `PRINCIPAL TOKEN` each, `#` begins a comment; readable by the owner only.
    Default: none."""

    # --- calls ---------------------------------------------------------------------------------------------------------

    max_message_bytes: int = Field(default=64 * MIB, ge=4 * MIB, le=1024 * MIB)
    """Largest message of a call, everywhere; what is larger goes as an artifact. Default: 67108864 (64 MiB)."""

    unary_timeout: float = Field(default=60.0, gt=0)
    """Seconds that a unary call gets if its client sets no deadline. Default: 60."""

    deadline_margin: float = Field(default=0.05, ge=0)
    """Seconds by which a hop shortens the deadline that it passes on, so that the deepest process tells what timed
    out. Default: 0.05."""

    keepalive_interval: float = Field(default=20.0, gt=0)
    """Seconds between keepalive pings on idle connections. Default: 20."""

    gateway_drain_timeout: float = Field(default=30.0, ge=0)
    """Seconds that running calls get when the gateway is told to stop. Default: 30."""

    # --- jobs ----------------------------------------------------------------------------------------------------------

    dispatch_url: str = "embedded://"
    """How jobs reach workers: `embedded://` (they poll the gateway), or `kafka://HOST:PORT,HOST:PORT`. Default: `embedded://`."""

    kafka_partitions: int = Field(default=4, ge=1)
    """Partitions of each service's topic; no more workers than that read it at once. Default: 4."""

    kafka_replication_factor: int = Field(default=1, ge=1)
    """Replicas of each topic; 3 where the cluster has as many brokers. Default: 1."""

    kafka_client: dict[str, str] = Field(default_factory=dict)
    """Settings of the Kafka clients, in JSON: `security_protocol`, `sasl_mechanism`, `sasl_plain_username`, `sasl_plain_password`,
    `ssl_cafile`, `ssl_certfile`, `ssl_keyfile`. A value `secrets/NAME` stands for the secret. Default: none."""

    lease_duration: float = Field(default=30.0, ge=0.2)
    """Seconds without a heartbeat after which an attempt is lost. Default: 30."""

    job_sweep_interval: float = Field(default=1.0, gt=0)
    """Seconds between two looks for leases, timeouts and retries that are due. Default: 1."""

    result_ttl: float = Field(default=3600.0, ge=0)
    """Seconds that a job's result and the artifacts it made are kept after its end, unless the job says otherwise.
    Default: 3600."""

    job_retention: float = Field(default=7 * 86400.0, gt=0)
    """Seconds that an ended job's record is kept. Default: 604800 (7 days)."""

    request_id_retention: float = Field(default=7 * 86400.0, gt=0)
    """Seconds that a request_id is remembered. Default: 604800 (7 days)."""

    inline_request_bytes: int = Field(default=256 * 1024, ge=0)
    """Largest job request kept in the ledger; a larger one goes to the artifact store. Default: 262144 (256 KiB)."""

    # --- several gateways ----------------------------------------------------------------------------------------------

    advertise: str = ""
    """Address, `HOST:PORT`, at which the other gateways on the same PostgreSQL reach this one's public listener. Default: that of
    `listen`, with the machine's name if it listens on all addresses."""

    gateway_lease_duration: float = Field(default=10.0, ge=0.5)
    """Seconds without a sign of life after which another gateway on the same PostgreSQL takes over a gateway's
    sidecars. Default: 10."""

    # --- artifacts -----------------------------------------------------------------------------------------------------

    max_artifact_bytes: int = Field(default=1024 * 1024 * MIB, gt=0)
    """Largest artifact. Default: 1099511627776 (1 TiB)."""

    artifact_sweep_interval: float = Field(default=60.0, gt=0)
    """Seconds between two looks for artifacts that have expired, and for bytes that nobody owns. Default: 60."""

    # --- sidecars ------------------------------------------------------------------------------------------------------

    sidecar_start_timeout: float = Field(default=60.0, gt=0)
    """Seconds from the start of a sidecar until it answers GetDriverInfo; later it is restarted. Default: 60."""

    drain_timeout: float = Field(default=600.0, ge=0)
    """Seconds that running attempts get on a switch to another driver; then they are aborted and queued again.
    Default: 600 (10 minutes)."""

    probe_interval: float = Field(default=5.0, gt=0)
    """Seconds between two probes of a sidecar and its backend. Default: 5."""

    probe_timeout: float = Field(default=10.0, gt=0)
    """Seconds that one probe may take. Default: 10."""

    restart_backoff_initial: float = Field(default=0.2, gt=0)
    """Seconds before the first restart of a sidecar that has died; doubled each time. Default: 0.2."""

    restart_backoff_max: float = Field(default=30.0, gt=0)
    """Longest wait before a restart, in seconds. Default: 30."""

    runtime: Literal["process", "docker"] = "process"
    """Where sidecars run of services that do not say: `process` or `docker`. Default: `process`."""

    # --- sidecars in containers ----------------------------------------------------------------------------------------

    docker_base_image: str = "python:3.13-slim"
    """Image that the driver SDK's image is built on; it has Python 3.11 or newer, with `venv`. Default: `python:3.13-slim`."""

    docker_listen: str = ""
    """Address, `HOST:PORT`, at which containers reach the gateway by TLS (as `host.docker.internal`), and then are themselves reached
    by TLS at ports of loopback: where they cannot share UNIX sockets with the gateway, as with Docker in a virtual machine. The
    port must stay the same. Default: none, UNIX sockets."""

    docker_build_timeout: float = Field(default=1800.0, gt=0)
    """Seconds that the build of an image may take. Default: 1800 (30 minutes)."""

    docker_memory_bytes: int = Field(default=1024 * MIB, ge=16 * MIB)
    """Memory of a container, unless the service or its driver says otherwise. Default: 1073741824 (1 GiB)."""

    docker_cpus: float = Field(default=2.0, ge=0.01)
    """Processors of a container, unless the service or its driver says otherwise. Default: 2."""

    docker_pids: int = Field(default=512, ge=16)
    """Processes and threads of a container, unless the service or its driver says otherwise. Default: 512."""

    # --- REST ----------------------------------------------------------------------------------------------------------

    rest_listen: str = ""
    """Address, `HOST:PORT`, at which `oca up` serves the API as REST too (docs/rest.md); port 0 takes a free one. Default:
    none, no REST."""

    rest_program: Path | None = None
    """The program that serves REST, `onecontainer-rest`, one that was built elsewhere for instance. Default: the one on PATH, else
    one that is built from the sources, where Go is installed."""

    # --- backends ------------------------------------------------------------------------------------------------------

    backends: Annotated[list[str], NoDecode] = Field(default_factory=list)
    """Backends of the catalog that `oca up` starts and registers (`oca backend list`); as a variable separated by `,`; `all`
    stands for each. Default: none."""

    backend_catalog: Path | None = None
    """JSON file with further backends; one with the name of a bundled one replaces it. Default: none."""

    backend_images: dict[str, str] = Field(default_factory=dict)
    """Other images for backends, in JSON, name to image: for places without a registry. Default: those of the catalog."""

    backend_ports: dict[str, Annotated[int, Field(ge=1, le=65535)]] = Field(default_factory=dict)
    """Other ports on this host for backends, in JSON, `NAME.PORT` to number: `{"cassandra.cql": 9043}`. Default: those of
    the catalog."""

    backend_base_image: str = ""
    """What the images of backends that are built here stand on, a Debian. Default: what their Dockerfiles say."""

    # --- log -----------------------------------------------------------------------------------------------------------

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages that are logged. Default: `info`."""

    log_format: Literal["text", "json"] = "text"
    """How messages are written: for people or, one object a line, for machines. Default: `text`."""

    @field_validator(
        "data_dir",
        "secrets_dir",
        "state_dir",
        "registration_token_file",
        "tls_cert_file",
        "tls_key_file",
        "ca_dir",
        "sidecar_ca_file",
        "peer_ca_file",
        "tokens_file",
        "backend_catalog",
        "rest_program",
    )
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("plugin_git_urls", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        return value.split() if isinstance(value, str) else value

    @field_validator("driver_paths", "plugin_folders", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("backends", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("dispatch_url")
    @classmethod
    def _known_dispatch(cls, value: str) -> str:
        if value != "embedded://" and not kafka_servers(value):
            raise ValueError("is neither embedded:// nor kafka://HOST:PORT,HOST:PORT")
        return value

    @field_validator("listen")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        if not is_host_and_port(value):
            raise ValueError("is not HOST:PORT")
        return value

    @field_validator("internal_listen")
    @classmethod
    def _socket_or_host_and_port(cls, value: str) -> str:
        if value and not value.startswith("unix:") and not is_host_and_port(value):
            raise ValueError("is neither unix:PATH nor HOST:PORT")
        return value

    @field_validator("internal_advertise", "docker_listen", "rest_listen")
    @classmethod
    def _nothing_or_host_and_port(cls, value: str) -> str:
        if value and not is_host_and_port(value):
            raise ValueError(f"{value!r} is not HOST:PORT with a port from 0 to 65535, as in 127.0.0.1:8000")
        return value

    @model_validator(mode="after")
    def _public_listener_is_safe(self) -> Settings:
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            raise ValueError("tls_cert_file and tls_key_file go together")
        principals = bool(self.tokens or self.tokens_file)
        if not is_loopback(self.listen) and not (self.tls_cert_file and principals):
            raise ValueError(
                f"listen is {self.listen}, not loopback: that needs tls_cert_file and tls_key_file, "
                "and tokens or tokens_file"
            )
        return self

    def socket_path(self, name: str) -> Path:
        """Path of the UNIX socket `name`: see the function of the same name."""
        return socket_path(self.data_dir, name)

    def bearer_tokens(self) -> dict[str, str]:
        """Token to principal, of `tokens` and `tokens_file`. Raises ValueError if the file is readable by others or a line is wrong."""
        found = dict(self.tokens)
        if self.tokens_file is not None:
            if self.tokens_file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ValueError(f"{self.tokens_file} can be read by others than its owner: chmod 600")
            for number, line in enumerate(self.tokens_file.read_text().splitlines(), 1):
                words = line.split("#", 1)[0].split()
                if words and len(words) != 2:
                    raise ValueError(f"{self.tokens_file}, line {number}: not `PRINCIPAL TOKEN`")
                if words:
                    found[words[1]] = words[0]
        return found


def kafka_servers(dispatch_url: str) -> tuple[str, ...]:
    """The `HOST:PORT`s of `kafka://HOST:PORT,HOST:PORT`; none if it is another URL or one of them is not that."""
    scheme, separator, rest = dispatch_url.partition("://")
    servers = tuple(rest.rstrip("/").split(","))
    well_formed = all(host and port.isdigit() for host, _, port in (server.rpartition(":") for server in servers))
    return servers if scheme == "kafka" and separator and well_formed else ()


def is_host_and_port(address: str) -> bool:
    """Whether it is `HOST:PORT`, with a port that there is; an IPv6 address stands in brackets."""
    host, _, port = address.rpartition(":")
    named = bool(host) and (":" not in host or (host[0] == "[" and host[-1] == "]"))
    return named and port.isascii() and port.isdigit() and int(port) <= 65535


def reachable(address: str) -> str:
    """The address for others: a listener on all addresses is reached by the machine's name."""
    host, _, port = address.rpartition(":")
    return f"{socket.gethostname()}:{port}" if host.strip("[]") in ("0.0.0.0", "::", "") else address  # noqa: S104


def is_loopback(address: str) -> bool:
    """Whether `HOST:PORT` or `unix:PATH` can be reached from this host only; of `ipv4:HOST:PORT,HOST:PORT`, gRPC's way to write
    several, whether all can. A name other than localhost is taken as reachable from outside."""
    if address.startswith("unix:"):
        return True
    places = address.removeprefix("ipv4:").removeprefix("ipv6:").split(",")
    return all(_is_loopback_host(place.rpartition(":")[0].strip("[]")) for place in places)


def _is_loopback_host(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def runtime_dir(data_dir: Path) -> Path:
    """The short folder that stands in for a data folder whose path is too long for sockets.

    It is named by the data folder's digest, so that all processes find the same one, and is in `$XDG_RUNTIME_DIR`, else in the
    temporary folder. Only paths are made here: `private_folder` creates it.
    """
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    parent = Path(runtime) if runtime and Path(runtime).is_dir() else Path(tempfile.gettempdir())
    return parent / f"onecontainer-{os.getuid()}-{digest}"


def socket_path(data_dir: Path, name: str) -> Path:
    """Path of the UNIX socket `name`: in the data folder if the path has at most 107 bytes, else in its runtime
    folder."""
    path = data_dir / name
    return path if len(os.fsencode(path)) <= UNIX_PATH_LIMIT else runtime_dir(data_dir) / name


def private_folder(path: Path) -> Path:
    """Makes a folder that only its owner can enter, with its parents, and returns it.

    Raises PermissionError if it is there already and belongs to somebody else: in a shared temporary folder that is an attack.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{path} is not a folder of this user")
    path.chmod(0o700)
    return path
