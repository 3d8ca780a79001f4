"""What a sidecar's starter tells it by environment variables. All else comes by Attach."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from onecontainer.rpc.channel import MAX_MESSAGE_BYTES
from onecontainer.settings import is_loopback


class SidecarSettings(BaseSettings):
    """The sidecar's `ONECONTAINER_…` variables. Raises pydantic.ValidationError, which names the one that is wrong."""

    model_config = SettingsConfigDict(
        env_prefix="ONECONTAINER_", extra="ignore", frozen=True, use_attribute_docstrings=True, env_ignore_empty=True
    )

    listen: str = "127.0.0.1:50061"
    """Address to serve on: `unix:PATH` or `HOST:PORT`. Elsewhere than on loopback it needs TLS and a token."""
    instance: str = ""
    """The instance that this sidecar is, `sidecars/{sidecar}`. Absent: Attach names it."""
    token_file: Path | None = None
    """File with the instance token. Absent: callers need no token."""
    state_dir: Path | None = None
    """Folder that survives restarts. Absent: a temporary one, gone with the sidecar."""
    secrets_dir: Path | None = None
    """Folder with one file per secret. Absent: there are none."""
    scratch_dir: Path | None = None
    """Folder for the temporary files of calls. Absent: the system's."""
    parent_pid: int | None = None
    """Process that this one must not outlive. Absent: it stands for itself."""
    tls_cert_file: Path | None = None
    """PEM file with the certificate chain to serve with."""
    tls_key_file: Path | None = None
    """PEM file with its private key."""
    tls_ca_file: Path | None = None
    """PEM file with the CA of the gateway's internal listener, for a `HOST:PORT` target: `ca/ca.pem` of its data folder."""
    gateway: str = ""
    """The gateway's internal listener, `HOST:PORT` or `unix:PATH`: the sidecar registers itself there. Absent: it waits to be called."""
    service: str = ""
    """The service to register for, `services/{service}`."""
    registration_token_file: Path | None = None
    """File with the gateway's registration token: `registration.token` of its data folder."""
    advertise: str = ""
    """Where the gateway reaches this sidecar, `HOST:PORT` or `unix:PATH`. Absent: as `listen` says, with the machine's name if that is
    all addresses."""
    max_message_bytes: int = Field(default=MAX_MESSAGE_BYTES, ge=1024, le=1024 * 1024 * 1024)
    """Largest message of a call, in bytes."""
    max_isolated: int = Field(default=32, ge=1, le=1024)
    """Isolated handlers that run at the same time, each in a process of its own; further ones wait."""
    stop_timeout: float = Field(default=10.0, ge=0)
    """Seconds that running calls and attempts get after SIGTERM; then they are aborted. For longer: Drain first."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages that are logged."""

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _listener_is_safe(self) -> SidecarSettings:
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            raise ValueError("tls_cert_file and tls_key_file go together")
        if not is_loopback(self.listen) and not (self.tls_cert_file and (self.token_file or self.gateway)):
            raise ValueError(
                f"listen is {self.listen}, not loopback: that needs tls_cert_file, tls_key_file and token_file "
                "(or gateway, where it is given its token)"
            )
        return self

    @model_validator(mode="after")
    def _registration_is_complete(self) -> SidecarSettings:
        if not self.gateway:
            return self
        if not self.service or self.registration_token_file is None:
            raise ValueError("gateway is set: that needs service and registration_token_file too")
        if self.token_file is not None or self.instance:
            raise ValueError(
                "gateway is set: it names the instance and gives the token, so leave out instance and token_file"
            )
        if not is_loopback(self.gateway) and self.tls_ca_file is None:
            raise ValueError(
                f"gateway is {self.gateway}, not loopback: that needs tls_ca_file, a copy of ca/ca.pem in the gateway's data folder"
            )
        return self

    def registration_token(self) -> str:
        """The gateway's registration token. Raises ValueError if the file is empty or cannot be read."""
        assert self.registration_token_file is not None
        return _token_of(self.registration_token_file)

    def token(self) -> str | None:
        """The instance token, None if callers need none. Raises ValueError if the file is empty or cannot be read."""
        return None if self.token_file is None else _token_of(self.token_file)

    def secrets(self, names: set[str]) -> dict[str, str]:
        """The secrets of these names that are there."""
        return read_secrets(self.secrets_dir, names)


def _token_of(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if not token:
        # An empty token must not become "no token needed".
        raise ValueError(f"{path} is empty")
    return token


def read_secrets(folder: Path | None, names: set[str]) -> dict[str, str]:
    """The secrets of these names in a folder, as far as they are there; a last newline, as editors add it, is not part of one."""
    found: dict[str, str] = {}
    if folder is not None:
        for name in names:
            path = folder / Path(name).name
            if path.is_file():
                found[name] = path.read_text().removesuffix("\n")
    return found
