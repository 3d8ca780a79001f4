"""Calls as bytes: whatever a driver answers is told as it came, never turned into something better."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from onecontainer.errors import DOMAIN, Code
from onecontainer.rpc.status import details_of
from onecontainer.rpc.writing import write

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Answer:
    """What a call ended with: responses, and code, text and details of its end."""

    method: str
    code: Code
    text: str
    messages: tuple[bytes, ...] = ()
    status: status_pb2.Status | None = None
    trailing_bytes: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.code is Code.OK

    @property
    def message(self) -> bytes:
        """The only response. Empty if there is none."""
        return self.messages[0] if self.messages else b""

    @cached_property
    def info(self) -> error_details_pb2.ErrorInfo | None:
        """Its ErrorInfo, of whatever domain."""
        return error_info(self.status)

    @property
    def reason(self) -> str:
        """The reason of our domain; empty: none."""
        return "" if self.info is None or self.info.domain != DOMAIN else self.info.reason

    @property
    def fields(self) -> list[str]:
        """Paths of the fields in its BadRequest."""
        return bad_fields(self.status)

    def is_(self, code: Code, *reasons: str) -> bool:
        return self.code is code and self.reason in reasons

    def __str__(self) -> str:
        if self.ok:
            return f"OK with {len(self.messages)} message(s), {sum(map(len, self.messages))} bytes"
        return f"{self.code.name} / {self.reason or 'no reason of ours'}: {self.text}"


def error_info(status: status_pb2.Status | None) -> error_details_pb2.ErrorInfo | None:
    """The ErrorInfo of a status, if it has one that decodes."""
    found = error_details_pb2.ErrorInfo()
    return found if _unpack(status, found) else None


def bad_fields(status: status_pb2.Status | None) -> list[str]:
    """Paths of the fields that a status says are wrong."""
    found = error_details_pb2.BadRequest()
    return [violation.field for violation in found.field_violations] if _unpack(status, found) else []


def _unpack(status: status_pb2.Status | None, into: Any) -> bool:
    for detail in () if status is None else status.details:
        try:
            if detail.Unpack(into):
                return True
        except DecodeError:
            continue
    return False


LOST_TEXT = "Internal error from Core"
"""What grpc.aio makes of a call that its peer has ended before a message could be written: the real end is lost."""
TRIES = 5


class Talk:
    """One call, open. One response is a stream of one, so every shape is read alike."""

    def __init__(self, method: str, call: Any) -> None:
        self.method = method
        self._call = call
        self._begin = time.monotonic()
        self.messages: list[bytes] = []
        self._cancelled = False

    async def write(self, request: bytes) -> None:
        """Sends one message; without effect on a call that has ended, whose end tells why."""
        await write(self._call, request)

    async def done(self) -> None:
        """Nothing more will be sent."""
        try:
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return

    async def read(self) -> bytes | None:
        """The next response; None at the end, of whatever kind."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError:
            return None
        except asyncio.CancelledError:
            if self._cancelled:
                return None
            raise
        if message is grpc.aio.EOF:
            return None
        data: bytes = message
        self.messages.append(data)
        return data

    async def end(self) -> Answer:
        """Reads what is left, and how it ended."""
        while await self.read() is not None:
            pass
        code = await self._call.code()
        told: Any = await self._call.trailing_metadata()
        trailing: tuple[Any, ...] = tuple(told or ())
        return Answer(
            self.method,
            Code(code.value[0]),
            await self._call.details() or "",
            tuple(self.messages),
            details_of(trailing),
            sum(len(key) + len(value) for key, value in trailing),
            time.monotonic() - self._begin,
        )

    def cancel(self) -> None:
        self._cancelled = True
        self._call.cancel()


class Wire:
    """A channel to a driver, with the token that it was given."""

    def __init__(self, channel: grpc.aio.Channel, token: str | None) -> None:
        self.channel = channel
        self.token = token

    @property
    def credentials(self) -> Metadata:
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def open(
        self,
        method: str,
        request: bytes | None = None,
        *,
        timeout: float | None,
        metadata: Iterable[tuple[str, str]] | None = None,
    ) -> Talk:
        """Begins a call: of one request, or (None) of a stream of them that is then written.

        `metadata` None: the credentials, and nothing else.
        """
        values = self.credentials if metadata is None else tuple(metadata)
        if request is None:
            streamed: Any = self.channel.stream_stream(f"/{method}")
            return Talk(method, streamed(timeout=timeout, metadata=values))
        single: Any = self.channel.unary_stream(f"/{method}")
        return Talk(method, single(request, timeout=timeout, metadata=values))

    async def call(
        self,
        method: str,
        requests: bytes | Sequence[bytes],
        *,
        timeout: float,
        metadata: Iterable[tuple[str, str]] | None = None,
    ) -> Answer:
        """A whole call: one request, or all of a stream, then all that comes."""
        for _ in range(TRIES - 1):
            answer = await self._once(method, requests, timeout, metadata)
            if answer.text != LOST_TEXT or answer.status is not None:
                return answer
        return await self._once(method, requests, timeout, metadata)

    async def _once(
        self,
        method: str,
        requests: bytes | Sequence[bytes],
        timeout: float,
        metadata: Iterable[tuple[str, str]] | None,
    ) -> Answer:
        single = requests if isinstance(requests, bytes) else None
        talk = self.open(method, single, timeout=timeout, metadata=metadata)
        try:
            if not isinstance(requests, bytes):
                for request in requests:
                    await talk.write(request)
                await talk.done()
            return await talk.end()
        finally:
            talk.cancel()
