"""Reports of a worker: up one stream until they are acknowledged, over as many streams as that takes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import grpc

from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.errors import CredentialsInvalid, OneContainerError
from onecontainer.rpc import status

log = logging.getLogger(__name__)

MAX_BATCH_REPORTS = 1000
MAX_BATCH_BYTES = 8 * 1024 * 1024
FIRST_BACKOFF, MAX_BACKOFF = 0.1, 2.0

OnSettled = Callable[[OneContainerError | None], None]
"""Called when a report is in the ledger (None), or was refused."""


class ReportCall(Protocol):
    """A ReportJobs call, as far as it is used here."""

    async def write(self, request: lease_pb2.ReportJobsRequest) -> None: ...

    def __aiter__(self) -> AsyncIterator[lease_pb2.ReportJobsResponse]: ...

    def cancel(self) -> bool: ...


class Listener(Protocol):
    """Who is told what comes down."""

    def command(self, command: lease_pb2.Command) -> None:
        """Does at once what the gateway says."""
        ...

    def refused(self, report: lease_pb2.RefusedReport) -> None:
        """A report was not accepted, mostly since the lease is lost."""
        ...

    def dismissed(self, error: CredentialsInvalid) -> None:
        """The gateway does not know this instance any more."""
        ...


class _Entry:
    __slots__ = ("key", "kind", "report", "settled")

    def __init__(self, report: lease_pb2.Report, kind: str, settled: OnSettled | None) -> None:
        self.report = report
        self.kind = kind
        self.key = (report.job, report.fence, kind)
        self.settled = settled


class Backoff:
    """Waits between tries: doubled up to a bound, with jitter, from the start again after a success."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw
        self._next = FIRST_BACKOFF

    def reset(self) -> None:
        self._next = FIRST_BACKOFF

    async def wait(self, at_least: float | None = None) -> None:
        """Waits a time between half of the backoff and the whole of it; a server's RetryInfo is honoured as the least."""
        seconds = self._next * (0.5 + 0.5 * self._draw())
        self._next = min(self._next * 2, MAX_BACKOFF)
        await asyncio.sleep(max(seconds, at_least or 0.0))


class Reports:
    """A queue of reports and the stream that empties it. Everything in the loop's thread.

    What is queued while a message is being written goes with the next one: no message per report. Of an attempt's heartbeats, progress
    and checkpoints only the latest that was not sent yet is kept.
    """

    def __init__(
        self,
        open_call: Callable[[], ReportCall],
        listener: Listener,
        *,
        max_batch_bytes: int = MAX_BATCH_BYTES,
        backoff: Backoff | None = None,
    ) -> None:
        self._max_batch_bytes = max_batch_bytes
        self._open_call = open_call
        self._listener = listener
        self._backoff = backoff or Backoff()
        self._sequence = 0
        self._unsent: deque[_Entry] = deque()
        self._latest: dict[tuple[str, int, str], _Entry] = {}
        self._again: deque[_Entry] = deque()
        self._unacknowledged: deque[_Entry] = deque()
        self._bell = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def add(self, report: lease_pb2.Report, settled: OnSettled | None = None) -> None:
        """Queues a report; its sequence is set when it is sent. `settled` is called once its fate is known."""
        kind = report.WhichOneof("event") or ""
        entry = _Entry(report, kind, settled)
        if kind in ("heartbeat", "progress", "checkpoint"):
            waiting = self._latest.get(entry.key)
            if waiting is not None:
                waiting.report = report
                return
            self._latest[entry.key] = entry
        self._unsent.append(entry)
        self._empty.clear()
        self._bell.set()

    async def wait_empty(self) -> None:
        """Returns when everything is acknowledged."""
        await self._empty.wait()

    async def run(self) -> None:
        """Keeps a stream to the gateway, until it is cancelled or the gateway dismisses the instance."""
        while True:
            error = await self._one_stream()
            if isinstance(error, CredentialsInvalid):
                self._listener.dismissed(error)
                return
            log.info(
                "the report stream has ended (%s); %d reports wait",
                error,
                len(self._unsent) + len(self._unacknowledged),
            )
            await self._backoff.wait(error.retry_after if error is not None else None)

    async def _one_stream(self) -> OneContainerError | None:
        """One stream from its start to its end; returns why it ended, None for a plain end or a defect of ours."""
        self._send_again()
        call = self._open_call()
        sender = asyncio.create_task(self._send(call))
        try:
            async for response in call:
                self._backoff.reset()
                self._take(response)
        except grpc.RpcError as error:
            return status.from_rpc_error(error)
        except Exception:
            # A defect here must not end all reporting: what waits is sent again on the next stream.
            log.exception("the report stream failed")
        finally:
            sender.cancel()
            call.cancel()
            await asyncio.gather(sender, return_exceptions=True)
        return None

    def _send_again(self) -> None:
        """Puts what was not acknowledged in front, in its order and with its sequences.

        Heartbeats of the past say nothing, and neither does progress that newer progress follows.
        """
        seen: set[tuple[str, int, str]] = set(self._latest)
        kept: deque[_Entry] = deque()
        for entry in reversed((*self._unacknowledged, *self._again)):
            if entry.kind == "heartbeat" or (entry.kind in ("progress", "checkpoint") and entry.key in seen):
                continue
            seen.add(entry.key)
            kept.appendleft(entry)
        self._again = kept
        self._unacknowledged.clear()
        self._note_empty()

    async def _send(self, call: ReportCall) -> None:
        try:
            await call.write(lease_pb2.ReportJobsRequest())  # opens the stream, so that commands come at once
            while True:
                if not self._again and not self._unsent:
                    self._bell.clear()
                    await self._bell.wait()
                await call.write(lease_pb2.ReportJobsRequest(reports=self._batch()))
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            # The call is over; its reader tells why.
            log.debug("the report stream takes no more: %s", error)

    def _batch(self) -> list[lease_pb2.Report]:
        batch: list[lease_pb2.Report] = []
        size = 0
        while (self._again or self._unsent) and len(batch) < MAX_BATCH_REPORTS and size < self._max_batch_bytes:
            if self._again:
                entry = self._again.popleft()
            else:
                entry = self._unsent.popleft()
                self._latest.pop(entry.key, None)
                self._sequence += 1
                entry.report.sequence = self._sequence
            self._unacknowledged.append(entry)
            batch.append(entry.report)
            size += entry.report.ByteSize()
        return batch

    def _take(self, response: lease_pb2.ReportJobsResponse) -> None:
        refused = {report.sequence: report for report in response.refused}
        while self._unacknowledged and self._unacknowledged[0].report.sequence <= response.acknowledged_sequence:
            entry = self._unacknowledged.popleft()
            refusal = refused.get(entry.report.sequence)
            if entry.settled is not None:
                entry.settled(None if refusal is None else status.from_status(refusal.error))
        for refusal in response.refused:
            self._listener.refused(refusal)
        for command in response.commands:
            self._listener.command(command)
        self._note_empty()

    def _note_empty(self) -> None:
        if not (self._unsent or self._again or self._unacknowledged):
            self._empty.set()
