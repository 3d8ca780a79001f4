"""The way out for HTTP sources: a proxy on loopback, one per call, that connects to allowed hosts only.

ffmpeg follows redirects and playlists by itself, and no check of a URL before it starts can foresee where to. So the child gets no
other way to the network than this proxy (`http_proxy` in its environment, a protocol list without anything else), and every
connection, also the tenth of a redirect, is checked here.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import certifi

_DEFAULT_PORTS = {"http": 80, "https": 443}
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
_HEAD_LIMIT = 32 * 1024
_CONNECT_TIMEOUT = 10.0
_HEAD_TIMEOUT = 10.0
_CHUNK = 64 * 1024
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class HostRules:
    """The options `source_hosts` and `sink_hosts`: `host`, `host:port` or `*.domain`."""

    rules: tuple[tuple[str, int | None], ...]

    @classmethod
    def parse(cls, entries: Iterable[str]) -> HostRules:
        """ValueError for an entry that is none of these."""
        rules = []
        for entry in entries:
            parts = urlsplit(f"//{entry}")
            if (
                not parts.hostname
                or parts.path
                or parts.query
                or parts.username is not None
                or "*" in parts.hostname.removeprefix("*.")
            ):
                raise ValueError(f"{entry!r} is neither a host, host:port nor *.domain")
            rules.append((parts.hostname.lower(), parts.port))
        return cls(tuple(rules))

    def allow(self, host: str, port: int, *, any_port: bool = False) -> bool:
        """A rule without a port means 80 and 443, or with `any_port` all."""
        name = host.lower().rstrip(".")
        return any(
            fnmatch.fnmatchcase(name, pattern)
            and (port == number if number else any_port or port in _DEFAULT_PORTS.values())
            for pattern, number in self.rules
        )

    def may_lead_to(self, host: str, address: str, port: int, *, any_port: bool = False) -> bool:
        """Whether the name of an allowed host may stand for this address: a name server must not lead to what is the machine's own,
        or its cloud's, unless the operator has allowed the address itself (`localhost` is loopback)."""
        plain = _plain(ipaddress.ip_address(address.partition("%")[0]))
        if self.allow(str(plain), port, any_port=any_port):
            return True
        if plain.is_loopback:
            return host.lower().rstrip(".") == "localhost"
        return not (plain.is_link_local or plain.is_multicast or plain.is_unspecified or plain == _BROADCAST)

    def allow_url(self, url: str) -> bool:
        """Whether an absolute http(s) URL without credentials points to an allowed host."""
        try:
            parts = urlsplit(url)
            port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
        except ValueError:
            return False
        return bool(
            parts.scheme in _DEFAULT_PORTS
            and parts.hostname
            and parts.username is None
            and self.allow(parts.hostname, port)
        )


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address in one of IPv6 that stands for it."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address
    return address


@dataclass
class EgressGuard:
    """A running proxy. `refused` and `unreachable` keep what went wrong, for the error of the call."""

    rules: HostRules
    address: str = ""
    refused: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """What sends a child's HTTP traffic here. `no_proxy` empty: loopback too."""
        return {"http_proxy": self.address, "no_proxy": "", "SSL_CERT_FILE": certificate_authorities()}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a peer went away, or is no HTTP client: nothing to tell anybody
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_HEAD_TIMEOUT):
            head = await reader.readuntil(b"\r\n\r\n")
        request, _, headers = head.partition(b"\r\n")
        method, _, rest = request.decode("latin-1").partition(" ")
        target, _, version = rest.rpartition(" ")
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        try:
            host, port = parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme, 443)
        except ValueError:
            host, port = "", 0
        fields = [line for line in headers.split(b"\r\n") if line]
        body = _body_bytes(fields)
        if not host or not self.rules.allow(host, port) or (method != "CONNECT" and parts.scheme != "http"):
            self.refused.append(f"{host}:{port}")
            return await _refuse(writer, "403 Forbidden")
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                addresses = await self._addresses(host, port)
                if not addresses:
                    self.refused.append(f"{host}:{port}, an address of this machine or its network")
                    return await _refuse(writer, "403 Forbidden")
                upstream_reader, upstream = await _connect(addresses, port)
        except (OSError, TimeoutError, UnicodeError) as error:
            self.unreachable.append(f"{host}:{port}: {str(error) or 'no answer'}")
            return await _refuse(writer, "502 Bad Gateway")
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                # One request per connection: a second one could name another host, and would not be looked at.
                path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                kept = [line for line in fields if not line.lower().startswith((b"connection:", b"proxy-"))]
                upstream.write(
                    b"\r\n".join(
                        [f"{method} {path} {version}".encode("latin-1"), *kept, b"Connection: close", b"", b""]
                    )
                )
            async with asyncio.TaskGroup() as tasks:
                back = tasks.create_task(_copy(upstream_reader, writer))
                if method == "CONNECT":
                    tasks.create_task(_copy(reader, upstream))
                else:
                    await _copy(reader, upstream, body)
                    await back
        finally:
            upstream.close()

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Where a connection to an allowed host may go. It goes to one of these, and no later look-up leads elsewhere."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [str(entry[4][0]) for entry in found if self.rules.may_lead_to(host, str(entry[4][0]), port)]


async def _connect(addresses: Sequence[str], port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the first that answers. Raises the last one's OSError."""
    for address in addresses[:-1]:
        with contextlib.suppress(OSError):
            return await asyncio.open_connection(address, port)
    return await asyncio.open_connection(addresses[-1], port)


def certificate_authorities() -> str:
    """File of the authorities that HTTPS sources are verified by: the system's, else those of Mozilla."""
    return ssl.get_default_verify_paths().cafile or certifi.where()


def _body_bytes(fields: Iterable[bytes]) -> int:
    """Length of the body that follows; what is sent in chunks has none here, and is cut off."""
    for name, _, value in (line.partition(b":") for line in fields):
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return 0


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None = None) -> None:
    """Passes on what comes until it ends. With `most`, only so many bytes, and the way stays open."""
    try:
        left = most
        while left != 0 and (data := await reader.read(_CHUNK if left is None else min(_CHUNK, left))):
            writer.write(data)
            await writer.drain()
            left = None if left is None else left - len(data)
    except OSError:
        pass
    finally:
        if most is None and writer.can_write_eof() and not writer.is_closing():
            with contextlib.suppress(OSError):
                writer.write_eof()


async def _refuse(writer: asyncio.StreamWriter, line: str) -> None:
    writer.write(f"HTTP/1.1 {line}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    await writer.drain()


@contextlib.asynccontextmanager
async def egress_guard(rules: HostRules) -> AsyncIterator[EgressGuard]:
    """A proxy for one call, on a free port of loopback. Its connections end with it."""
    guard = EgressGuard(rules)
    async with loopback_server(guard.serve, limit=_HEAD_LIMIT) as port:
        guard.address = f"http://127.0.0.1:{port}"
        yield guard


@contextlib.asynccontextmanager
async def loopback_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]],
    *,
    limit: int = 64 * 1024,
    linger: float = 0,
) -> AsyncIterator[int]:
    """Serves on a free port of loopback, which it gives. Its connections end with it. `limit`: of a reader's lines, in bytes.

    `linger`: seconds that connections get to end by themselves if all went well.
    """
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=limit)
    try:
        yield server.sockets[0].getsockname()[1]
        if linger and connections:
            await asyncio.wait(connections, timeout=linger)
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
