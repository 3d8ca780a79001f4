"""A worker as a process of its own, beside a driver that takes no jobs by itself: what `oca worker` runs."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc

from onecontainer.api.driver.v1 import registration_pb2 as pb
from onecontainer.driver.artifacts import ArtifactLink
from onecontainer.driver.auth import INSTANCE_KEY
from onecontainer.driver.registration import Registration
from onecontainer.driver.remote import RemoteDriver, WhileReady
from onecontainer.driver.remote_attempts import RemoteAttempts
from onecontainer.driver.settings import read_secrets
from onecontainer.driver.source import Reject, Source, source_maker
from onecontainer.driver.worker import Worker
from onecontainer.errors import OneContainerError, StateInvalid
from onecontainer.rpc.channel import MAX_MESSAGE_BYTES, open_channel

log = logging.getLogger(__name__)

ABORT_SECONDS = 5.0
"""What attempts that are given back get to end before the worker leaves them behind."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where something listens, and what it takes to be let in."""

    target: str
    token: str | None = None
    ca_file: Path | None = None

    def channel(self, max_message_bytes: int) -> grpc.aio.Channel:
        return open_channel(self.target, max_message_bytes=max_message_bytes, ca_file=self.ca_file)


@dataclass(frozen=True, slots=True)
class _Working:
    """What there is once the gateway has taken the worker in."""

    attempts: RemoteAttempts
    worker: Worker
    registration: Registration


class BesideWorker:
    """Takes jobs of a service and has a driver run them: `run`, until `ask_to_stop`."""

    def __init__(
        self,
        service: str,
        driver: Place,
        gateway: Place,
        *,
        slots: int = 0,
        drain_timeout: float = 10.0,
        secrets_dir: Path | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        say: Callable[[str], None] = log.info,
    ) -> None:
        """``service`` in full, `services/{service}`. ``slots`` 0: as many as the driver's manifest says. ``secrets_dir`` has the
        secrets of the broker's client settings, if there are any. ``say`` is told where it works once it does."""
        self._service = service
        self._driver_place, self._gateway_place = driver, gateway
        self._slots = slots
        self._drain_timeout = drain_timeout
        self._secrets_dir = secrets_dir
        self._max_message_bytes = max_message_bytes
        self._say = say
        # A new one for each process: what another one held must not be taken for ours.
        self._instance_id = f"worker-{secrets.token_hex(8)}"
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._attempts: RemoteAttempts | None = None

    def ask_to_stop(self) -> None:
        """Drains and ends; asked again, it waits no longer for what runs."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def lines(self) -> list[str]:
        """What runs now, for people."""
        return [] if self._attempts is None else [str(attempt) for attempt in self._attempts.running.values()]

    async def run(self) -> None:
        """Works until it is asked to stop, and has drained. Driver and gateway may come and go meanwhile.

        Raises what starting again would not mend: StateInvalid if driver and service do not go together, ResourceNotFound if there
        is no such service (any more), CredentialsInvalid.
        """
        async with AsyncExitStack() as stack:
            working = await first(self._start(stack), self._stop)
            if working is None:
                return
            registration = working.registration
            try:
                await first(registration.wait_end(), self._stop, registration.retired)
            except OneContainerError:
                self._hurry.set()  # nobody takes what would be reported later
                raise
            finally:
                await self._drain(working)
                await working.worker.close()
                await registration.leave()
            if registration.retired.is_set():
                raise StateInvalid(f"{self._service} has another driver now: this worker has ended")

    async def _start(self, stack: AsyncExitStack) -> _Working:
        driver_channel = await stack.enter_async_context(self._driver_place.channel(self._max_message_bytes))
        driver = RemoteDriver(driver_channel, self._service, self._driver_place.token)
        info = await driver.identify()
        channel = await stack.enter_async_context(self._gateway_place.channel(self._max_message_bytes))
        announcement = pb.RegisterRequest(
            service=self._service, manifest=info.manifest, instance_id=self._instance_id, slots=self._slots
        )
        registration = Registration(channel, self._gateway_place.token or "", announcement)
        await stack.enter_async_context(registration)
        welcome = await registration.wait()
        metadata = (("authorization", f"Bearer {welcome.instance_token}"), (INSTANCE_KEY, welcome.sidecar))
        make_source = source_maker(welcome.job_source, channel, metadata, self._service, self._secrets)
        if make_source is None:
            raise StateInvalid(f"{self._service} runs no jobs")

        def source(reject: Reject) -> Source:
            return WhileReady(make_source(reject), driver)

        await stack.enter_async_context(running(driver.watch(), "driver watch"))
        attempts = RemoteAttempts(driver, ArtifactLink(lambda: channel, metadata), self._max_message_bytes)
        worker = Worker(attempts, source, channel, metadata, welcome.job_source.slots)
        self._attempts = attempts
        worker.start()
        self._say(
            f"{welcome.sidecar} takes jobs of {self._service}, {welcome.job_source.slots} at once "
            f"({welcome.job_source.WhichOneof('dispatch')} dispatch), for the driver {info.manifest.name} "
            f"{info.manifest.version} at {self._driver_place.target}"
        )
        return _Working(attempts, worker, registration)

    def _secrets(self, names: set[str]) -> dict[str, str]:
        found = read_secrets(self._secrets_dir, names)
        missing = sorted(names - found.keys())
        if missing:
            raise StateInvalid(
                f"the broker's settings name the secrets {', '.join(missing)}: give their folder to this worker"
            )
        return found

    async def _drain(self, working: _Working) -> None:
        """Takes no more jobs; what runs gets its time, and is then given back."""
        working.worker.stop_claiming()
        attempts = working.attempts
        if attempts.running:
            log.info("draining: %d attempts run", len(attempts.running))
        with suppress(TimeoutError):
            async with asyncio.timeout(self._drain_timeout):
                await first(attempts.wait_idle(), self._hurry)
        left = list(attempts.running.values())
        if not left:
            return
        log.warning("%d attempts are given back", len(left))
        for attempt in left:
            attempt.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(ABORT_SECONDS):
                await attempts.wait_idle()


async def first(work: Coroutine[Any, Any, T], *stops: asyncio.Event) -> T | None:
    """The result of the work; None if one of the events comes first, and then the work is cancelled."""
    task = asyncio.create_task(work)
    waits = [asyncio.create_task(stop.wait()) for stop in stops]
    try:
        await asyncio.wait((task, *waits), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, *waits):
            one.cancel()
        await asyncio.gather(task, *waits, return_exceptions=True)


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Has it run beside the block."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
