"""How a client reaches a gateway: address, TLS, token."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from onecontainer.errors import FieldInvalid
from onecontainer.rpc.channel import channel_options

DEFAULT_ADDRESS = "127.0.0.1:50051"


@dataclass(frozen=True, slots=True)
class Tls:
    """How to check the gateway and, where it asks for that, how to show who we are.

    Attributes:
        ca_file: PEM file with the certificates to trust. None: those of the system.
        cert_file, key_file: PEM files of the client's own certificate. None: the client shows none.
        server_name: name that the certificate must have, if it is not the one of the address.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None


def open_channel(address: str, *, tls: Tls | None, token: str | None) -> grpc.aio.Channel:
    """A channel to `host:port` or `unix:/path`. It connects on the first call, and again whenever it has to.

    Raises FieldInvalid if the token would cross a network in the clear, or the CA file has no certificate.
    """
    options = channel_options()
    if address.startswith("unix:"):
        options.append(("grpc.default_authority", "localhost"))
    if tls is None:
        if token:
            # Imported here: only this check needs the settings' module, and with it pydantic.
            from onecontainer.settings import is_loopback

            if not is_loopback(address):
                raise FieldInvalid(
                    "tls", f"a token is not sent to {address} in the clear; use TLS (its CA, or system CAs)"
                )
        return grpc.aio.insecure_channel(address, options=options)
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    if tls.ca_file is not None:
        try:
            ssl.create_default_context(cafile=tls.ca_file)
        except ssl.SSLError:
            # gRPC would say no more than that nobody answers.
            raise FieldInvalid("ca_file", f"{tls.ca_file} has no certificate in it (PEM)") from None
    credentials = grpc.ssl_channel_credentials(
        root_certificates=tls.ca_file.read_bytes() if tls.ca_file else None,
        private_key=tls.key_file.read_bytes() if tls.key_file else None,
        certificate_chain=tls.cert_file.read_bytes() if tls.cert_file else None,
    )
    return grpc.aio.secure_channel(address, credentials, options=options)


def call_metadata(token: str | None, extra: Sequence[tuple[str, str]] = ()) -> tuple[tuple[str, str], ...]:
    """Metadata of every call."""
    return ((("authorization", f"Bearer {token}"),) if token else ()) + tuple(extra)
