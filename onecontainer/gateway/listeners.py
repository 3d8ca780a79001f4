"""The two listeners: the public one, and the internal one for sidecars."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from pathlib import Path

import grpc

from onecontainer.errors import StateInvalid
from onecontainer.rpc.channel import server_options
from onecontainer.rpc.server import Authenticator, StaticTokens
from onecontainer.rpc.tls import KeyPair, system_roots
from onecontainer.settings import Settings, is_loopback, reachable
from onecontainer.sidecars.authority import Authority

LOCAL_PRINCIPAL = "local"
"""Whoever calls on loopback without credentials."""


def public_authenticator(settings: Settings) -> Authenticator:
    """Who may call the public listener: on loopback everybody, as `local`; elsewhere only who has a token (or a certificate)."""
    anonymous = LOCAL_PRINCIPAL if is_loopback(settings.listen) else None
    return StaticTokens(settings.bearer_tokens(), anonymous)


def new_server(settings: Settings, handlers: Sequence[grpc.GenericRpcHandler]) -> grpc.aio.Server:
    """A server with our options; handlers are asked in this order."""
    server = grpc.aio.server(options=server_options(settings.max_message_bytes))
    server.add_generic_rpc_handlers(tuple(handlers))
    return server


def check_free(address: str) -> None:
    """Whether the public listener can have its address; asked before anything is made or migrated.

    Raises:
        StateInvalid: somebody else listens there, or it is not of this machine.
    """
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _name, place in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
    except OSError as error:
        why = "somebody else listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise StateInvalid(f"cannot listen on {address}: {why}; choose another address (--listen)") from None


def bind_public(server: grpc.aio.Server, settings: Settings) -> str:
    """Binds the public listener, with TLS if that is set; returns its address with the real port.

    Raises:
        StateInvalid: the address is taken or not of this machine.
    """
    try:
        if settings.tls_cert_file is not None and settings.tls_key_file is not None:
            pair = KeyPair.read(settings.tls_cert_file, settings.tls_key_file)
            port = server.add_secure_port(settings.listen, pair.server_credentials())
        else:
            port = server.add_insecure_port(settings.listen)
    except (RuntimeError, ValueError) as error:
        raise StateInvalid(f"cannot listen on {settings.listen}: {error}") from None
    if port == 0:
        raise StateInvalid(f"cannot listen on {settings.listen}: is the port taken?")
    host = settings.listen.rpartition(":")[0]
    return f"{host}:{port}"


def bind_internal(server: grpc.aio.Server, settings: Settings, authority: Authority) -> str:
    """Binds the internal listener and returns where sidecars reach it; off loopback it serves TLS.

    A socket left by a gateway that was killed is replaced (the data folder's lock is ours). Raises StateInvalid.
    """
    target = settings.internal_listen
    if target.startswith("unix:"):
        path = Path(target.removeprefix("unix:"))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _bind_socket(server, path)
        return target
    credentials = None if is_loopback(target) else authority.issue(internal_names(settings)).server_credentials()
    port = _bind(server, target, credentials)
    return settings.internal_advertise or reachable(f"{target.rpartition(':')[0]}:{port}")


def bind_for_containers(server: grpc.aio.Server, path: Path, address: str, certificate: KeyPair | None) -> None:
    """Binds the internal listener a second time, at a socket in a folder of its own, which containers are given; or, if there is a
    certificate, by TLS at an address.

    The folder stays when the gateway goes: containers that outlive it find the next one's socket there.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if certificate is None:
        _bind_socket(server, path)
    else:
        _bind(server, address, certificate.server_credentials())


def _bind_socket(server: grpc.aio.Server, path: Path) -> None:
    path.unlink(missing_ok=True)
    _bind(server, f"unix:{path}")
    path.chmod(0o600)


def _bind(server: grpc.aio.Server, target: str, credentials: grpc.ServerCredentials | None = None) -> int:
    try:
        port = server.add_insecure_port(target) if credentials is None else server.add_secure_port(target, credentials)
    except RuntimeError as error:
        raise StateInvalid(f"cannot listen on {target}: {error}") from None
    if not port:
        raise StateInvalid(f"cannot listen on {target}: is the address taken?")
    return port


def internal_names(settings: Settings) -> list[str]:
    """The hosts by which the internal listener is reached: what its certificate is for."""
    listen = settings.internal_listen
    addresses = [settings.internal_advertise, reachable(listen)]
    # What listens on all addresses is reached from its own host as well.
    addresses += [listen] if reachable(listen) == listen else ["localhost:0", "127.0.0.1:0", "[::1]:0"]
    return [address.rpartition(":")[0].strip("[]") for address in addresses if address]


def sidecar_roots(settings: Settings, authority: Authority) -> bytes:
    """The authorities (PEM) whose certificates of sidecars on TCP are accepted."""
    more = system_roots() if settings.sidecar_ca_file is None else settings.sidecar_ca_file.read_bytes()
    return authority.ca_pem() + more
