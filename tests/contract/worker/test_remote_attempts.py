"""What a worker makes of each way in which a driver may answer Run: a driver that is scripted, on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import wrappers_pb2
from google.rpc import code_pb2, status_pb2

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.type.v1 import progress_pb2
from onecontainer.driver import remote, remote_attempts
from onecontainer.driver.artifacts import ArtifactLink
from onecontainer.driver.remote import RemoteDriver
from onecontainer.driver.remote_attempts import RemoteAttempts
from onecontainer.errors import (
    BackendUnreachable,
    Cancelled,
    CapabilityMissing,
    Draining,
    NotAttached,
    OneContainerError,
    Reason,
    WrongInstance,
)
from onecontainer.rpc.channel import open_channel, server_options
from onecontainer.rpc.server import Context, StaticTokens, service_handler
from onecontainer.rpc.status import MAX_JOB_STATUS_BYTES, duration, from_status, to_status

Run = Callable[[lease_pb2.Grant, Context], AsyncIterator[driver_pb2.RunResponse]]
PROGRESS = driver_pb2.RunResponse(progress=progress_pb2.Progress(done=1))
DONE = driver_pb2.RunResponse(succeeded=lease_pb2.Succeeded(result=b"done"))


class ScriptedDriver:
    """Serves Run as the test says."""

    def __init__(self) -> None:
        self.script: Run = self.nothing
        self.stops: list[driver_pb2.StopRunRequest] = []
        self.running = 0
        self.stopped = asyncio.Event()
        self.heeds_stop_run = True

    async def nothing(self, grant: lease_pb2.Grant, context: Context) -> AsyncIterator[driver_pb2.RunResponse]:
        return
        yield

    async def until_stopped(self, grant: lease_pb2.Grant, context: Context) -> AsyncIterator[driver_pb2.RunResponse]:
        yield PROGRESS
        await self.stopped.wait()
        yield driver_pb2.RunResponse(stopped=lease_pb2.Stopped())

    async def GetDriverInfo(self, request: object, context: Context) -> driver_pb2.GetDriverInfoResponse:
        return driver_pb2.GetDriverInfoResponse(manifest={"name": "echo"}, service="services/echo")

    async def Run(self, request: driver_pb2.RunRequest, context: Context) -> AsyncIterator[driver_pb2.RunResponse]:
        self.running += 1
        try:
            async for event in self.script(request.grant, context):
                yield event
        finally:
            self.running -= 1

    async def StopRun(self, request: driver_pb2.StopRunRequest, context: Context) -> driver_pb2.StopRunResponse:
        self.stops.append(request)
        if not self.heeds_stop_run:
            raise CapabilityMissing("StopRun is not served")
        found = self.running > 0
        self.stopped.set()
        return driver_pb2.StopRunResponse(found=found)


class Events:
    """An EventSink, and the outcome."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.begun = asyncio.Event()
        self.ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def progress(self, progress: progress_pb2.Progress) -> None:
        self.told.append(progress.done)
        self.begun.set()

    def checkpoint(self, details: object) -> None:
        self.told.append(details)

    async def started(self, started: lease_pb2.Started) -> None:
        self.told.append(started)
        # Never acknowledged: the gateway is away.
        await asyncio.Event().wait()

    def outcome(self, _attempt: object, outcome: Any) -> None:
        self.ended.set_result(outcome)

    async def end(self) -> Any:
        async with asyncio.timeout(120):
            return await self.ended


class Bench:
    """Attempts at the scripted driver."""

    def __init__(self, attempts: RemoteAttempts, driver: ScriptedDriver) -> None:
        self.attempts = attempts
        self.driver = driver
        self.events = Events()

    def start(self, **fields: Any) -> Any:
        grant = lease_pb2.Grant(
            job="jobs/a", attempt=1, fence=7, service="services/echo", method="x.Y/Z", request=b"", **fields
        )
        attempt = self.attempts.attempt(grant, self.events, self.events.outcome)
        attempt.start()
        return attempt

    async def outcome(self, script: Run, **fields: Any) -> Any:
        self.driver.script = script
        self.start(**fields)
        return await self.events.end()


def raising(error: OneContainerError, *events: driver_pb2.RunResponse) -> Run:
    async def script(_grant: lease_pb2.Grant, _context: Context) -> AsyncIterator[driver_pb2.RunResponse]:
        for event in events:
            yield event
        raise error

    return script


def telling(*events: driver_pb2.RunResponse) -> Run:
    async def script(_grant: lease_pb2.Grant, _context: Context) -> AsyncIterator[driver_pb2.RunResponse]:
        for event in events:
            yield event

    return script


@pytest.fixture
async def bench(folder: Path) -> AsyncIterator[Bench]:
    driver = ScriptedDriver()
    server = grpc.aio.server(options=server_options())
    service = driver_pb2.DESCRIPTOR.services_by_name["DriverService"]
    server.add_generic_rpc_handlers((service_handler(driver, service, StaticTokens({}, "anybody"), hop="sidecar"),))
    server.add_insecure_port(f"unix:{folder}/driver.sock")
    await server.start()
    async with open_channel(f"unix:{folder}/driver.sock") as channel:
        remote = RemoteDriver(channel, "services/echo", None)
        await remote.identify()
        remote.ready.set()
        yield Bench(RemoteAttempts(remote, ArtifactLink(lambda: channel, ())), driver)
        driver.stopped.set()
    await server.stop(None)


async def test_events_are_passed_on_and_the_last_one_is_the_outcome(bench: Bench) -> None:
    started = driver_pb2.RunResponse(started=lease_pb2.Started(idempotent=False))
    outcome = await bench.outcome(telling(started, PROGRESS, DONE))
    assert outcome.result == b"done"
    assert [type(one).__name__ for one in bench.events.told] == ["Started", "float"]
    assert not bench.attempts.running


@pytest.mark.parametrize("error", [Draining("ends"), NotAttached("not yet"), WrongInstance("another")])
async def test_a_refusal_before_the_beginning_gives_it_back(bench: Bench, error: OneContainerError) -> None:
    outcome = await bench.outcome(raising(error))
    assert isinstance(outcome, lease_pb2.Released)
    # No more jobs before the driver has been asked again.
    assert not bench.attempts.driver.ready.is_set()


async def test_the_same_as_a_last_event_gives_it_back(bench: Bench) -> None:
    failed = driver_pb2.RunResponse(failed=to_status(Draining("ends"), hop="sidecar"))
    assert isinstance(await bench.outcome(telling(failed)), lease_pb2.Released)


async def test_after_the_beginning_it_is_a_failure(bench: Bench) -> None:
    outcome = await bench.outcome(raising(Draining("ends"), PROGRESS))
    assert from_status(outcome.error).reason is Reason.DRAINING


async def test_a_driver_that_is_not_there_gives_it_back(bench: Bench, folder: Path) -> None:
    async with open_channel(f"unix:{folder}/nobody.sock") as channel:
        bench.attempts.driver = RemoteDriver(channel, "services/echo", None)
        outcome = await bench.outcome(telling(DONE))
    assert isinstance(outcome, lease_pb2.Released)


async def test_a_missing_method_fails_it(bench: Bench) -> None:
    outcome = await bench.outcome(raising(CapabilityMissing("no such method")))
    assert from_status(outcome.error).reason is Reason.CAPABILITY_MISSING


async def test_typed_failures_keep_their_reason_and_say_of_which_job_they_are(bench: Bench) -> None:
    error = to_status(BackendUnreachable("away", retry_after=3.0), hop="backend")
    told = from_status((await bench.outcome(telling(driver_pb2.RunResponse(failed=error)))).error)
    assert (told.reason, told.retry_after, told.hop) == (Reason.BACKEND_UNREACHABLE, 3.0, "backend")
    assert (told.metadata["job"], told.metadata["attempt"], told.metadata["driver"]) == ("jobs/a", "1", "echo")


async def test_a_failure_tells_what_there_is_nevertheless(bench: Bench) -> None:
    own = wrappers_pb2.StringValue(value="x" * 20_000)
    error = to_status(BackendUnreachable("away").with_details(own), most=MAX_JOB_STATUS_BYTES)
    outcome = await bench.outcome(telling(driver_pb2.RunResponse(failed=error, kept_artifacts=["artifacts/a"])))
    assert (outcome.kept_artifacts, from_status(outcome.error).detail(wrappers_pb2.StringValue)) == (
        ("artifacts/a",),
        own,
    )


async def test_a_failure_without_a_reason_gets_that_of_its_code(bench: Bench) -> None:
    plain = status_pb2.Status(code=code_pb2.NOT_FOUND, message="nothing there")
    told = from_status((await bench.outcome(telling(driver_pb2.RunResponse(failed=plain)))).error)
    assert (told.reason, told.message) == (Reason.RESOURCE_NOT_FOUND, "nothing there")


@pytest.mark.parametrize("events", [(), (PROGRESS,), (driver_pb2.RunResponse(failed=status_pb2.Status()),)])
async def test_a_run_without_an_outcome_is_the_drivers_defect(bench: Bench, events: Any) -> None:
    assert from_status((await bench.outcome(telling(*events))).error).reason is Reason.DRIVER_MISIMPLEMENTED


async def test_cancel_is_told_by_stop_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # It is told once more where a machine that stands still lets its grace pass.
    monkeypatch.setattr(remote_attempts, "STOP_GRACE", 120.0)
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 120.0)
    bench.driver.script = bench.driver.until_stopped
    attempt = bench.start()
    await bench.events.begun.wait()
    attempt.cancel()
    outcome = await bench.events.end()
    assert isinstance(outcome, lease_pb2.Stopped)
    assert from_status(outcome.error).reason is Reason.CANCELLED
    assert [(stop.job, stop.attempt, stop.fence) for stop in bench.driver.stops] == [("jobs/a", 1, 7)]


async def test_a_driver_without_stop_run_is_told_by_the_end_of_the_call(bench: Bench) -> None:
    bench.driver.heeds_stop_run = False
    bench.driver.script = bench.driver.until_stopped
    attempt = bench.start()
    await bench.events.begun.wait()
    attempt.cancel()
    assert isinstance(await bench.events.end(), lease_pb2.Stopped)
    async with asyncio.timeout(120):
        while bench.driver.running:  # noqa: ASYNC110 - the fake has no event for it
            await asyncio.sleep(0)


async def test_what_is_cancelled_before_it_is_sent_is_not_sent(bench: Bench) -> None:
    bench.driver.script = telling(DONE)
    outcome = await bench.outcome(telling(DONE), cancel_mode=job_pb2.CANCEL_MODE_ABORT)
    assert isinstance(outcome, lease_pb2.Stopped)


async def test_what_is_not_sent_is_given_back(bench: Bench) -> None:
    bench.driver.script = telling(DONE)
    attempt = bench.start()
    attempt.give_back()
    assert isinstance(await bench.events.end(), lease_pb2.Released)


async def test_what_runs_is_not_given_back_but_by_a_drain(bench: Bench) -> None:
    bench.driver.script = bench.driver.until_stopped
    attempt = bench.start()
    await bench.events.begun.wait()
    attempt.give_back()
    assert bench.driver.stops == []
    attempt.drain()
    outcome = await bench.events.end()
    assert isinstance(outcome, lease_pb2.Stopped)
    assert from_status(outcome.error).reason is Reason.DRAINING


async def test_a_stop_without_a_reason_is_a_stop(bench: Bench) -> None:
    outcome = await bench.outcome(telling(driver_pb2.RunResponse(stopped=lease_pb2.Stopped())))
    assert isinstance(outcome, lease_pb2.Stopped)
    assert from_status(outcome.error).reason is Reason.CANCELLED


async def test_a_driver_that_stops_it_by_itself_says_why(bench: Bench) -> None:
    stopped = lease_pb2.Stopped(error=to_status(Draining("the driver ends"), hop="sidecar"))
    outcome = await bench.outcome(telling(PROGRESS, driver_pb2.RunResponse(stopped=stopped)))
    assert isinstance(outcome, lease_pb2.Stopped)
    assert from_status(outcome.error).reason is Reason.DRAINING


@pytest.mark.parametrize("kind", ["stopped", "failed"])
async def test_why_it_was_stopped_is_the_workers_word(bench: Bench, kind: str) -> None:
    cancelled = to_status(Cancelled("the job was cancelled"), hop="sidecar")
    last = {"stopped": {"stopped": lease_pb2.Stopped(error=cancelled)}, "failed": {"failed": cancelled}}[kind]

    async def script(_grant: lease_pb2.Grant, _context: Context) -> AsyncIterator[driver_pb2.RunResponse]:
        yield PROGRESS
        await bench.driver.stopped.wait()
        yield driver_pb2.RunResponse(**last)

    bench.driver.script = script
    attempt = bench.start()
    await bench.events.begun.wait()
    attempt.drain()
    outcome = await bench.events.end()
    assert isinstance(outcome, lease_pb2.Stopped)
    assert from_status(outcome.error).reason is Reason.DRAINING


async def test_a_lost_lease_stops_it_and_has_no_outcome(bench: Bench) -> None:
    bench.driver.script = bench.driver.until_stopped
    attempt = bench.start()
    await bench.events.begun.wait()
    attempt.lose()
    assert await bench.events.end() is None
    assert bench.driver.stops


@pytest.mark.parametrize(
    ("limit", "reason"), [("run_timeout", Reason.ATTEMPT_TIMEOUT), ("stall_timeout", Reason.STALLED)]
)
async def test_the_worker_keeps_the_time(bench: Bench, limit: str, reason: Reason) -> None:
    outcome = await bench.outcome(bench.driver.until_stopped, **{limit: duration(0.2)})
    assert from_status(outcome.error).reason is reason
