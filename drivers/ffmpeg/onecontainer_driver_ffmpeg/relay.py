"""The way to an RTMP server: a relay on loopback, one per output, that ffmpeg publishes to.

It does what ffmpeg cannot be trusted with. It connects to the one address that was looked up and checked; it speaks TLS with the
server's name and verifies the certificate, whatever library the build has; it knows why a receiver could not be reached; and it puts the
stream key, which ffmpeg is never told, in place of a name of the same length, so that no command line and no log has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from onecontainer_driver_ffmpeg.egress import certificate_authorities, loopback_server

# C0, C1 and C2 of the handshake (RTMP 1.0, section 5.2): random bytes, in which nothing is to be looked for.
_HANDSHAKE = 1 + 1536 + 1536
# A message is cut into chunks, with one such byte between them on the channels below 64 (section 5.3.1.2.4: type 3).
_LEAST_CHUNK_HEAD = 0xC0
_AMF_STRING = b"\x02"
# The command that names the stream for the last time, and how long it is up to there: its name, a number, a null, a chunk's head.
_PUBLISH, _COMMAND = _AMF_STRING + b"\x00\x07publish", 10 + 9 + 1 + 1
_CONNECT_TIMEOUT = 10.0
_HELD_TIMEOUT = 0.2
_CHUNK = 64 * 1024
_LAST_BYTES_TIMEOUT = 3.0
"""For a receiver that is slow to take what ffmpeg has written before it ended."""


@dataclass(frozen=True)
class Receiver:
    """`address` is what is connected to, `host` what the server is called. `key` empty: ffmpeg is told the stream's name itself."""

    address: str
    host: str
    port: int
    tls: bool = False
    key: str = field(default="", repr=False)

    @property
    def stand_in(self) -> str:
        """What ffmpeg is told in place of the key."""
        return "~" * len(self.key)


class KeySwap:
    """Puts the key in place of its stand-in in what a publisher sends, until it has published."""

    def __init__(self, key: str) -> None:
        length = len(key).to_bytes(2, "big")
        self._needle = _AMF_STRING + length + b"~" * len(key)
        self._key = _AMF_STRING + length + key.encode("ascii")
        self._passed = 0
        self._held = b""
        self._recent = b""  # the end of what went on before
        self._done = not key

    @property
    def holds(self) -> bool:
        """Whether bytes are kept back, because the next ones may make them a stand-in."""
        return bool(self._held)

    def flush(self) -> bytes:
        held, self._held = self._held, b""
        return held

    def feed(self, data: bytes) -> bytes:
        """What goes on to the server now."""
        if self._done:
            return self.flush() + data
        out = self._feed(data)
        self._recent = (self._recent + out)[-_COMMAND:]
        return out

    def _feed(self, data: bytes) -> bytes:
        head = data[: max(_HANDSHAKE - self._passed, 0)]
        self._passed += len(data)
        data = self.flush() + data[len(head) :]
        out = bytearray(head)
        position = 0
        while not self._done:
            found = data.find(_AMF_STRING, position)
            if found < 0:
                break
            out += data[position:found]
            end = self._find_end(data, found)
            if end is None:
                out += data[found : found + 1]
                position = found + 1
            elif end < 0:
                self._held = data[found:]
                return bytes(out)
            else:
                # `releaseStream` and `FCPublish` name the stream too; `publish` is the last one before the media.
                self._done = _PUBLISH in (self._recent + out)[-_COMMAND:]
                out += self._swap(data[found:end])
                position = end
        return bytes(out + data[position:])

    def _find_end(self, data: bytes, start: int) -> int | None:
        """Where the needle that begins at `start` ends; None: it does not begin there; -1: more data is needed to tell."""
        position = start
        for number, byte in enumerate(self._needle):
            if number and position < len(data) and data[position] != byte and data[position] >= _LEAST_CHUNK_HEAD:
                position += 1
            if position == len(data):
                return -1
            if data[position] != byte:
                return None
            position += 1
        return position

    def _swap(self, found: bytes) -> bytes:
        """The key's bytes for the needle's; heads of chunks between them stay."""
        out = bytearray()
        number = 0
        for byte in found:
            if byte == self._needle[number : number + 1][0]:
                out.append(self._key[number])
                number += 1
            else:
                out.append(byte)
        return bytes(out)


class Relay:
    """A running relay. `trouble`: why the receiver is not reached, or that it went away; empty: nothing is known of that."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._heard = False
        self.port = 0
        self.trouble = ""

    @property
    def silent(self) -> bool:
        """Whether the receiver has never said anything."""
        return not self._heard

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        receiver = self._receiver
        try:
            context = ssl.create_default_context(cafile=certificate_authorities()) if receiver.tls else None
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                back, upstream = await asyncio.open_connection(
                    receiver.address,
                    receiver.port,
                    ssl=context,
                    server_hostname=receiver.host if receiver.tls else None,
                )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            self.trouble = str(error) or f"no answer in {_CONNECT_TIMEOUT:.0f} s"
            writer.close()
            return
        try:
            there = asyncio.ensure_future(self._send(reader, upstream))
            here = asyncio.ensure_future(self._receive(back, writer))
            try:
                done, _ = await asyncio.wait([there, here], return_when=asyncio.FIRST_COMPLETED)
                if here in done and there not in done:
                    self.trouble = "it closed the connection"
            finally:
                there.cancel()
                here.cancel()
                await asyncio.gather(there, here, return_exceptions=True)
        finally:
            upstream.close()
            writer.close()

    async def _send(self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter) -> None:
        swap = KeySwap(self._receiver.key)
        while True:
            data = b""
            try:
                async with asyncio.timeout(_HELD_TIMEOUT if swap.holds else None):
                    data = await reader.read(_CHUNK)
            except TimeoutError:
                upstream.write(swap.flush())
                continue
            except OSError:
                return
            if not data:
                break
            try:
                upstream.write(swap.feed(data))
                await upstream.drain()
            except OSError as error:
                self.trouble = f"it closed the connection: {error}"
                return
        with contextlib.suppress(OSError):
            # ffmpeg has said that it ends; TLS has no half-closed connections, so this is only sent out.
            await upstream.drain()

    async def _receive(self, back: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await back.read(_CHUNK):
                self._heard = True
                writer.write(data)
                await writer.drain()


@contextlib.asynccontextmanager
async def rtmp_relay(receiver: Receiver) -> AsyncIterator[Relay]:
    """A relay on a free port of loopback. Its connections end with it; what ffmpeg has written goes on before, if all went well."""
    relay = Relay(receiver)
    async with loopback_server(relay.serve, linger=_LAST_BYTES_TIMEOUT) as relay.port:
        yield relay
