"""Where live sinks may send to: the service's option `sink_hosts`, and the one look-up of a name."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from dataclasses import dataclass, field

from onecontainer.driver import errors
from onecontainer_driver_ffmpeg.egress import HostRules

_HOST = re.compile(r"[A-Za-z0-9_:]([A-Za-z0-9._:-]{0,251}[A-Za-z0-9_:.])?")
_LOOKUP_TIMEOUT = 10.0

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class SinkRules:
    """The option `sink_hosts`: `host`, `host:port` or `*.domain`; without a port all ports are meant."""

    hosts: HostRules = field(default_factory=lambda: HostRules(()))

    def check_host(self, host: str, port: int, at: str) -> None:
        """`at` is the path of the sink's `host`. FieldRequired, FieldInvalid, or SourceNotAllowed if the operator has not allowed it."""
        if not host:
            raise errors.FieldRequired(at)
        if not _HOST.fullmatch(host):
            raise errors.FieldInvalid(at, "is no host name and no address")
        if not self.hosts.allow(host, port, any_port=True):
            raise errors.SourceNotAllowed(
                at, f"{host}:{port} is not a receiver that this service allows (option sink_hosts)"
            )

    def check_listener(self, host: str, port: int, at: str) -> None:
        """An address to listen on: loopback always, another one only if the operator has allowed that very address."""
        address = _literal(host)
        if address is None:
            raise errors.FieldInvalid(at, "is no address; a listener takes one of its own machine, not a name")
        if not address.is_loopback and not self.hosts.allow(host, port, any_port=True):
            raise errors.SourceNotAllowed(
                at, f"this service may listen on loopback only; {host}:{port} has to be in its option sink_hosts"
            )

    async def resolve(self, host: str, port: int, at: str) -> str:
        """The address that the stream goes to. It is looked up here, once, so that no later answer of a name server leads elsewhere.

        A name leads to no address of this machine, no link-local and no multicast address, unless the operator has allowed the
        address itself (`localhost` is loopback). BackendUnreachable if nobody knows the name, SourceNotAllowed for such an address.
        """
        literal = _literal(host)
        if literal is not None:
            return str(literal)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_LOOKUP_TIMEOUT):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError) as error:
            raise errors.BackendUnreachable(
                f"{at}: {host} cannot be looked up: {str(error) or 'no answer'}",
                violations=[errors.FieldViolation(at, "cannot be looked up")],
                retry_after=5.0,
            ) from error
        addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
        addresses.sort(key=lambda address: address.version)  # stable: the resolver's own order within IPv4 and IPv6
        for address in addresses:
            if self.hosts.may_lead_to(host, str(address), port, any_port=True):
                return str(address)
        raise errors.SourceNotAllowed(
            at, f"{host} leads to {addresses[0]}, which this service does not send to (option sink_hosts)"
        )


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
