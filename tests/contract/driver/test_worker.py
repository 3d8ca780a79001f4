"""The worker: jobs from the internal listener, reports up, commands down, over a gateway that comes and goes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf import wrappers_pb2
from google.protobuf.duration_pb2 import Duration

from onecontainer import errors
from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.api.job.v1 import job_lease_service_pb2 as pb
from onecontainer.api.job.v1 import job_pb2
from onecontainer.driver.attempts import Attempt
from onecontainer.driver.context import EventSink
from onecontainer.driver.serve import SidecarServer, serving
from onecontainer.driver.settings import SidecarSettings
from onecontainer.driver.worker import OnOutcome, SidecarAttempts, Worker
from onecontainer.rpc.channel import open_channel
from onecontainer.rpc.status import from_status, to_status
from tests.contract.driver.conftest import ATTACH, Calls
from tests.contract.driver.echo import MANIFEST, EchoDriver, EchoRequest, WorkResult, in_time, thread_event, until
from tests.contract.driver.test_direct_calls import error_of
from tests.contract.driver.test_driver_service import WORK, WORK_BLOCKING
from tests.fakes.lease import FakeGateway

SLOTS = 4
GOOD = (("authorization", "Bearer s3cret"),)


def grant(
    job: str = "1", method: str = WORK, *, text: str = "", number: int = 0, fence: int = 1, **more: Any
) -> pb.Grant:
    result = pb.Grant(
        job=f"jobs/{job}",
        attempt=1,
        fence=fence,
        service=ATTACH.service,
        method=method,
        lease_duration=Duration(seconds=30),
        heartbeat_interval=more.pop("heartbeat_interval", Duration(seconds=10)),
        **more,
    )
    if not result.request_artifact:
        result.request = EchoRequest(text=text, number=number).SerializeToString()
    return result


@pytest.fixture
async def gateway(folder: Path) -> AsyncIterator[FakeGateway]:
    async with FakeGateway(folder) as gateway:
        yield gateway


@pytest.fixture
async def server(
    driver: EchoDriver, settings: SidecarSettings, folder: Path, gateway: FakeGateway
) -> AsyncIterator[SidecarServer]:
    (folder / "token").write_text("s3cret")
    with_token = settings.model_copy(update={"token_file": folder / "token", "stop_timeout": 1.0})
    async with serving(driver, MANIFEST, with_token) as server:
        yield server
        driver.release.set()
        driver.thread_release.set()


@pytest.fixture
async def worker(server: SidecarServer, gateway: FakeGateway) -> AsyncIterator[Calls]:
    """An attached sidecar whose worker polls."""
    request = driver_pb2.AttachRequest()
    request.CopyFrom(ATTACH)
    request.job_source.internal_target = gateway.target
    request.job_source.slots = SLOTS
    request.job_source.embedded.SetInParent()
    async with open_channel(server.target) as channel:
        calls = Calls(channel)
        await calls.driver.Attach(request, metadata=GOOD)
        await gateway.wait_for(lambda: gateway.polls and gateway.streams)
        yield calls


async def test_a_job_runs_and_its_result_is_reported(worker: Calls, gateway: FakeGateway, driver: EchoDriver) -> None:
    await gateway.submit(grant(number=3, principal="ada"))
    report = await gateway.outcome("jobs/1")
    assert WorkResult.FromString(report.succeeded.result).text == "done"
    assert not report.succeeded.ended_early
    [*_, last] = [r.progress for r in gateway.reports if r.HasField("progress")]
    assert (last.done, last.total) == (3, 3)
    assert gateway.kinds("jobs/1")[-1] == "succeeded"
    assert driver.contexts[-1].principal == "ada"


async def test_any_unary_method_is_a_job(worker: Calls, gateway: FakeGateway) -> None:
    await gateway.submit(grant(method="onecontainer.test.sdk.v1.EchoService/EchoBlocking", text="hi"))
    assert (await gateway.outcome("jobs/1")).succeeded.result.startswith(b"\x1a")


async def test_a_grant_that_comes_again_after_its_end_is_not_begun_again(
    server: SidecarServer, worker: Calls, gateway: FakeGateway, driver: EchoDriver
) -> None:
    """A claim that was answered before the outcome was in, and whose answer is here after the outcome's acknowledgement."""
    await gateway.submit(grant("1", text="wait"))
    await until(lambda: driver.contexts)
    await gateway.wait_for(lambda: gateway.polls[-1].held)  # asked while it runs
    driver.release.set()
    await gateway.outcome("jobs/1")
    running = server.sidecar._worker
    assert running is not None
    await until(lambda: not running._held)
    await gateway.submit(grant("1"), grant("2"))
    await gateway.outcome("jobs/2")
    assert [context.job.name for context in driver.contexts] == ["jobs/1", "jobs/2"]


async def test_a_cancel_that_overtakes_its_grant_is_obeyed(
    server: SidecarServer, worker: Calls, gateway: FakeGateway, driver: EchoDriver
) -> None:
    """The claim is in the ledger, so the job can be cancelled, and the answer is still on its way to the worker."""
    running = server.sidecar._worker
    assert running is not None
    gateway.command(pb.Command(job="jobs/1", attempt=1, fence=1, cancel=job_pb2.CANCEL_MODE_ABORT))
    await until(lambda: running._early)
    await gateway.submit(grant("1", text="wait"), grant("2"))
    assert (await gateway.outcome("jobs/1")).HasField("stopped")
    assert (await gateway.outcome("jobs/2")).HasField("succeeded")


async def test_it_polls_only_while_slots_are_free_and_names_what_it_holds(
    worker: Calls, gateway: FakeGateway, driver: EchoDriver
) -> None:
    await gateway.submit(*(grant(str(number), text="wait") for number in range(SLOTS + 1)))
    await until(lambda: len(driver.contexts) == SLOTS)
    polls = len(gateway.polls)
    assert len(gateway.queue) == 1
    driver.release.set()
    for number in range(SLOTS + 1):
        await gateway.outcome(f"jobs/{number}")
    assert gateway.polls[0].max_grants == SLOTS
    assert all(poll.max_grants >= 1 for poll in gateway.polls[polls:])


async def test_reports_are_batched(worker: Calls, gateway: FakeGateway) -> None:
    gateway.acknowledge.clear()
    count = 300
    await gateway.submit(*(grant(str(number), method=WORK) for number in range(count)))
    await gateway.wait_for(lambda: not gateway.queue)
    gateway.acknowledge.set()
    await gateway.wait_for(lambda: len(gateway.outcomes) == count)
    assert gateway.messages < count / 2
    assert gateway.streams == 1


async def test_an_answer_that_got_lost_is_given_again(worker: Calls, gateway: FakeGateway) -> None:
    gateway.lose_answers = 1
    await gateway.submit(grant())
    assert (await gateway.outcome("jobs/1")).HasField("succeeded")


async def test_failures_carry_job_and_attempt(worker: Calls, gateway: FakeGateway) -> None:
    await gateway.submit(
        grant("1", text="typed"),
        grant("2", method="onecontainer.test.sdk.v1.EchoService/Absent"),
        grant("3", method="a.B/C"),
    )
    failed = from_status((await gateway.outcome("jobs/1")).failed)
    assert failed.reason is errors.Reason.BACKEND_EXECUTION_FAILED
    assert (failed.metadata["job"], failed.metadata["attempt"], failed.metadata["hop"]) == ("jobs/1", "1", "backend")
    for job in ("jobs/2", "jobs/3"):
        assert from_status((await gateway.outcome(job)).failed).reason is errors.Reason.CAPABILITY_MISSING


async def test_an_error_with_the_name_of_a_file_that_is_not_utf_8_is_reported(
    worker: Calls, gateway: FakeGateway
) -> None:
    await gateway.submit(grant(text="surrogate"))
    failed = from_status((await gateway.outcome("jobs/1")).failed)
    assert isinstance(failed, errors.DataInvalid)
    assert failed.violations == (errors.FieldViolation("inputs", "a\\udc80b is no image"),)
    [progress] = [report.progress for report in gateway.reports if report.HasField("progress")]
    assert (progress.done, progress.message) == (7, "at a\\udc80b")
    direct = await error_of(worker.Echo(EchoRequest(text="surrogate"), metadata=GOOD))
    assert direct.violations == failed.violations


async def test_an_error_that_cannot_be_told_is_an_outcome_and_frees_the_slot(
    server: SidecarServer, worker: Calls, gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver gave `retry_after` as a text: no status can be made of it."""
    await gateway.submit(*(grant(str(number), text="misshapen") for number in range(SLOTS + 1)))
    for number in range(SLOTS + 1):
        failed = from_status((await gateway.outcome(f"jobs/{number}")).failed)
        assert failed.reason is errors.Reason.DRIVER_EXECUTION_FAILED
        assert (failed.metadata["job"], failed.hop) == (f"jobs/{number}", "sidecar")
        assert failed.metadata["log_reference"] in caplog.text
    await until(lambda: not server.sidecar.running and not server.sidecar.attempts)


class NoOutcome(SidecarAttempts):
    """Whose attempts end in something that no report can hold."""

    def attempt(self, grant: pb.Grant, sink: EventSink, on_outcome: OnOutcome) -> Attempt:
        return super().attempt(grant, sink, lambda attempt, _outcome: on_outcome(attempt, cast(Any, "well")))


async def test_an_outcome_that_cannot_be_reported_is_a_failure(
    worker: Calls, server: SidecarServer, gateway: FakeGateway
) -> None:
    given = grant("odd")
    gateway.leases[given.job, given.fence] = given
    source = GivesAgain(gateway, given)
    async with open_channel(gateway.target) as channel:
        mine = Worker(NoOutcome(server.sidecar), lambda _reject: source, channel, GOOD, SLOTS)
        source.worker = mine
        mine.start()
        failed = from_status((await gateway.outcome(given.job)).failed)
        await until(lambda: not mine._held)
        await mine.close()
    assert failed.reason is errors.Reason.DRIVER_EXECUTION_FAILED
    assert failed.metadata["log_reference"] in failed.message


async def test_heartbeats_come_while_it_runs(worker: Calls, gateway: FakeGateway, driver: EchoDriver) -> None:
    await gateway.submit(grant(text="wait", heartbeat_interval=Duration(nanos=20_000_000)))
    await gateway.wait_for(lambda: gateway.kinds("jobs/1").count("heartbeat") >= 3)
    driver.release.set()
    await gateway.outcome("jobs/1")
    assert gateway.kinds("jobs/1")[-1] == "succeeded"
    assert not gateway.refused


async def test_a_declaration_is_acknowledged_before_the_handler_goes_on(
    worker: Calls, gateway: FakeGateway, driver: EchoDriver
) -> None:
    gateway.acknowledge.clear()
    await gateway.submit(grant(text="declare"))
    await in_time(driver.entered.wait())
    await gateway.wait_for(lambda: gateway.messages == 1)
    assert driver.received == []
    gateway.acknowledge.set()
    await gateway.outcome("jobs/1")
    assert driver.received == ["declared"]
    assert gateway.kinds("jobs/1") == ["started", "succeeded"]
    assert gateway.reports[0].started.idempotent is False


async def test_a_declaration_after_the_lease_was_lost_is_refused(
    worker: Calls, gateway: FakeGateway, driver: EchoDriver
) -> None:
    gateway.acknowledge.clear()
    await gateway.submit(grant(text="declare"))
    await in_time(driver.entered.wait())
    await gateway.take_away(("jobs/1", 1))
    gateway.acknowledge.set()
    await in_time(driver.left.wait())
    assert driver.received == []


async def test_cancel_reaches_an_async_handler(worker: Calls, gateway: FakeGateway, driver: EchoDriver) -> None:
    await gateway.submit(grant(text="wait"))
    await in_time(driver.entered.wait())
    gateway.command(pb.Command(job="jobs/1", attempt=1, fence=1, cancel=job_pb2.CANCEL_MODE_ABORT))
    stopped = (await gateway.outcome("jobs/1")).stopped
    assert from_status(stopped.error).reason is errors.Reason.CANCELLED


async def test_cancel_of_a_thread_is_reported_when_it_has_ended(
    worker: Calls, gateway: FakeGateway, driver: EchoDriver
) -> None:
    await gateway.submit(grant(method=WORK_BLOCKING, text="stubborn"))
    await thread_event(driver.thread_entered)
    gateway.command(pb.Command(job="jobs/1", attempt=1, fence=1, cancel=job_pb2.CANCEL_MODE_ABORT))
    await until(lambda: driver.contexts[-1].cancelled)
    assert gateway.outcomes == {}
    driver.thread_release.set()
    assert (await gateway.outcome("jobs/1")).HasField("succeeded")
    await gateway.submit(grant("2", method=WORK_BLOCKING, text="wait"))
    driver.thread_release.clear()
    await until(lambda: len(driver.contexts) == 2)
    gateway.command(pb.Command(job="jobs/2", attempt=1, fence=1, cancel=job_pb2.CANCEL_MODE_ABORT))
    assert (await gateway.outcome("jobs/2")).HasField("stopped")


async def test_finish_ends_early(worker: Calls, gateway: FakeGateway, driver: EchoDriver) -> None:
    await gateway.submit(grant(text="finish"))
    await in_time(driver.entered.wait())
    gateway.command(pb.Command(job="jobs/1", attempt=1, fence=1, cancel=job_pb2.CANCEL_MODE_FINISH))
    succeeded = (await gateway.outcome("jobs/1")).succeeded
    assert succeeded.ended_early
    assert WorkResult.FromString(succeeded.result).text == "finished early"


async def test_abort_may_follow_finish(worker: Calls, gateway: FakeGateway, driver: EchoDriver) -> None:
    await gateway.submit(grant(text="wait"))
    await in_time(driver.entered.wait())
    gateway.command(pb.Command(job="jobs/1", attempt=1, fence=1, cancel=job_pb2.CANCEL_MODE_FINISH))
    await until(lambda: driver.contexts[-1].finishing)
    gateway.command(pb.Command(job="jobs/1", attempt=1, fence=1, cancel=job_pb2.CANCEL_MODE_ABORT))
    assert (await gateway.outcome("jobs/1")).HasField("stopped")


async def test_abort_reports_the_ledgers_error(worker: Calls, gateway: FakeGateway, driver: EchoDriver) -> None:
    await gateway.submit(grant(text="wait"))
    await in_time(driver.entered.wait())
    total = to_status(errors.TotalTimeout("24 h are over"))
    gateway.command(pb.Command(job="jobs/1", attempt=1, fence=1, abort=total))
    assert (await gateway.outcome("jobs/1")).failed == total


async def test_a_lost_lease_stops_the_handler_and_is_not_reported(
    worker: Calls, gateway: FakeGateway, driver: EchoDriver
) -> None:
    await gateway.submit(grant(text="wait"))
    await in_time(driver.entered.wait())
    await gateway.take_away(("jobs/1", 1))
    gateway.command(pb.Command(job="jobs/1", attempt=1, fence=1, lease_lost=pb.LeaseLostCommand()))
    await in_time(driver.left.wait())
    await gateway.submit(grant("2"))
    await gateway.outcome("jobs/2")
    assert gateway.kinds("jobs/1") == []
    assert gateway.refused == []


async def test_a_refused_report_stops_the_handler(worker: Calls, gateway: FakeGateway, driver: EchoDriver) -> None:
    await gateway.submit(grant(text="wait", heartbeat_interval=Duration(nanos=20_000_000)))
    await in_time(driver.entered.wait())
    await gateway.take_away(("jobs/1", 1))
    await in_time(driver.left.wait())
    assert driver.contexts[-1].cancelled


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("run_timeout", errors.Reason.ATTEMPT_TIMEOUT), ("stall_timeout", errors.Reason.STALLED)],
)
async def test_timeouts(worker: Calls, gateway: FakeGateway, limit: str, expected: errors.Reason) -> None:
    await gateway.submit(grant(text="wait", **{limit: Duration(nanos=50_000_000)}))
    assert from_status((await gateway.outcome("jobs/1")).failed).reason is expected


async def test_a_checkpoint_is_reported_and_given_to_the_next_attempt(
    worker: Calls, gateway: FakeGateway, driver: EchoDriver
) -> None:
    await gateway.submit(grant(text="checkpoint"))
    await gateway.wait_for(lambda: gateway.kinds("jobs/1") == ["checkpoint"])
    driver.release.set()
    await gateway.outcome("jobs/1")
    value = wrappers_pb2.Int64Value()
    assert gateway.reports[0].checkpoint.Unpack(value)
    again = grant("2")
    again.resume_details.CopyFrom(gateway.reports[0].checkpoint)
    await gateway.submit(again)
    assert WorkResult.FromString((await gateway.outcome("jobs/2")).succeeded.result).number == 41


async def test_large_results_and_requests_go_as_artifacts(worker: Calls, gateway: FakeGateway) -> None:
    size = 1024 * 1024 + 1
    request = gateway.keep(EchoRequest(text="large", number=size).SerializeToString())
    await gateway.submit(grant(request_artifact=request.name))
    name = (await gateway.outcome("jobs/1")).succeeded.result_artifact
    artifact, data = gateway.artifacts[name]
    assert WorkResult.FromString(data).text == "y" * size
    assert artifact.media_type == "application/x-protobuf; type=onecontainer.test.sdk.v1.WorkResult"
    [header] = gateway.uploads
    assert (header.attempt.job, header.attempt.attempt, header.attempt.fence) == ("jobs/1", 1, 1)


async def test_an_attempts_artifacts_belong_to_it(worker: Calls, gateway: FakeGateway, driver: EchoDriver) -> None:
    await gateway.submit(grant(text="artifact"))
    await gateway.outcome("jobs/1")
    artifact, data = gateway.artifacts[driver.received[0]]
    assert (artifact.filename, artifact.media_type, data) == ("out.txt", "text/plain", b"made by an attempt")
    assert gateway.uploads[0].attempt.job == "jobs/1"


class GivesAgain:
    """A Source whose second answer was made before the first one's job had ended, and comes after that."""

    def __init__(self, gateway: FakeGateway, given: pb.Grant) -> None:
        self.polls = 0
        self._gateway = gateway
        self._given = given

    async def poll(self, free: int, held: object, *, wait: float = 20.0) -> Sequence[pb.Grant]:
        self.polls += 1
        if self.polls == 1:
            return [self._given]
        if self.polls == 2:
            await self._gateway.outcome(self._given.job)
            await in_time(self.settled())
            return [self._given]
        await asyncio.sleep(wait)
        return []

    async def settled(self) -> None:
        await until(lambda: not self.worker._held)

    async def close(self) -> None:
        """Holds nothing."""

    worker: Worker


async def test_what_is_given_again_after_its_end_is_not_run_again(
    worker: Calls, server: SidecarServer, gateway: FakeGateway, driver: EchoDriver
) -> None:
    given = grant("again", text="quick")
    gateway.leases[given.job, given.fence] = given
    source = GivesAgain(gateway, given)
    async with open_channel(gateway.target) as channel:
        mine = Worker(SidecarAttempts(server.sidecar), lambda _reject: source, channel, GOOD, SLOTS)
        source.worker = mine
        mine.start()
        await in_time(gateway.outcome(given.job))
        await until(lambda: source.polls == 3)
        assert not mine._held
        await mine.close()
    assert gateway.kinds(given.job).count("succeeded") == 1
    assert gateway.refused == []


async def test_an_attempt_that_is_stopped_as_it_starts_has_an_outcome(
    worker: Calls, server: SidecarServer, gateway: FakeGateway
) -> None:
    outcome: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    request = gateway.keep(b"")
    # Its sink is not asked for: no handler begins.
    attempt = Attempt(
        server.sidecar,
        grant(request_artifact=request.name),
        cast(Any, None),
        lambda _attempt, it: outcome.set_result(it),
    )
    attempt.start()
    attempt.give_back()
    assert isinstance(await in_time(outcome), pb.Released)


async def test_a_request_artifact_that_is_not_there(worker: Calls, gateway: FakeGateway) -> None:
    await gateway.submit(grant(request_artifact="artifacts/none"))
    assert from_status((await gateway.outcome("jobs/1")).failed).reason is errors.Reason.RESOURCE_NOT_FOUND


async def test_the_gateway_may_go_away_and_come_back(worker: Calls, gateway: FakeGateway, driver: EchoDriver) -> None:
    await gateway.submit(grant("1", text="wait"), grant("2", text="wait"))
    await until(lambda: len(driver.contexts) == 2)
    await gateway.stop()
    driver.release.set()
    await in_time(driver.left.wait())
    await gateway.start()
    for job in ("jobs/1", "jobs/2"):
        assert (await gateway.outcome(job)).HasField("succeeded")
    await gateway.submit(grant("3"))
    assert (await gateway.outcome("jobs/3")).HasField("succeeded")


async def test_what_was_not_acknowledged_is_sent_again_in_order(worker: Calls, gateway: FakeGateway) -> None:
    gateway.acknowledge.clear()
    await gateway.submit(*(grant(str(number)) for number in range(3)))
    await gateway.wait_for(lambda: gateway.messages >= 1)
    await gateway.stop()
    gateway.acknowledge.set()
    await gateway.start()
    for number in range(3):
        await gateway.outcome(f"jobs/{number}")
    sequences = [report.sequence for report in gateway.reports]
    assert sequences == sorted(set(sequences))


async def test_stop_claiming(worker: Calls, gateway: FakeGateway, driver: EchoDriver) -> None:
    await gateway.submit(grant(text="wait"))
    await in_time(driver.entered.wait())
    gateway.command(pb.Command(stop_claiming=pb.StopClaiming()))
    # A second one behind it tells when the first was read.
    gateway.command(pb.Command(job="jobs/1", attempt=1, fence=1, cancel=job_pb2.CANCEL_MODE_FINISH))
    await until(lambda: driver.contexts[-1].finishing)
    await gateway.submit(grant("2"))
    # The poll that was under way brings it; it is given back unstarted.
    assert (await gateway.outcome("jobs/2")).HasField("released")
    driver.release.set()
    assert (await gateway.outcome("jobs/1")).HasField("succeeded")


@pytest.mark.parametrize("method", [WORK, WORK_BLOCKING])
async def test_drain_stops_what_does_not_end_in_time(
    worker: Calls, gateway: FakeGateway, driver: EchoDriver, method: str
) -> None:
    await gateway.submit(grant(method=method, text="wait"))
    await until(lambda: driver.contexts)
    request = driver_pb2.DrainRequest(timeout=Duration(nanos=100_000_000))
    assert (await worker.driver.Drain(request, metadata=GOOD)).aborted_count == 1
    stopped = from_status((await gateway.outcome("jobs/1")).stopped.error)
    assert stopped.reason is errors.Reason.DRAINING


async def test_what_has_not_begun_is_given_back(worker: Calls, gateway: FakeGateway, driver: EchoDriver) -> None:
    request = gateway.keep(EchoRequest(text="wait").SerializeToString())
    gateway.downloads.clear()
    await gateway.submit(grant("1", request_artifact=request.name), grant("2", text="wait"))
    await in_time(driver.entered.wait())
    gateway.command(pb.Command(stop_claiming=pb.StopClaiming()))
    assert (await gateway.outcome("jobs/1")).HasField("released")
    driver.release.set()
    assert (await gateway.outcome("jobs/2")).HasField("succeeded")


async def test_a_cancel_before_the_handler_begins(worker: Calls, gateway: FakeGateway, driver: EchoDriver) -> None:
    request = gateway.keep(EchoRequest(text="wait").SerializeToString())
    gateway.downloads.clear()
    await gateway.submit(grant("1", request_artifact=request.name), grant("2", text="wait"))
    await in_time(driver.entered.wait())
    gateway.command(pb.Command(job="jobs/1", attempt=1, fence=1, cancel=job_pb2.CANCEL_MODE_ABORT))
    assert (await gateway.outcome("jobs/1")).HasField("stopped")
    assert len(driver.contexts) == 1


async def test_detach_reports_before_it_answers(worker: Calls, gateway: FakeGateway, driver: EchoDriver) -> None:
    await gateway.submit(grant(text="wait"))
    await in_time(driver.entered.wait())
    detaching = asyncio.ensure_future(worker.driver.Detach(driver_pb2.DetachRequest(), metadata=GOOD, timeout=120))
    driver.release.set()
    await in_time(detaching)
    assert gateway.outcomes["jobs/1"].HasField("succeeded")
    assert gateway.leases == {}


async def test_a_worker_that_is_dismissed_stops(worker: Calls, gateway: FakeGateway, driver: EchoDriver) -> None:
    await gateway.submit(grant(text="wait"))
    await in_time(driver.entered.wait())
    await gateway.stop()
    gateway.token = "another"
    await gateway.start()
    await in_time(driver.left.wait())
    assert driver.contexts[-1].cancelled
    assert gateway.outcomes == {}


async def test_kafka_without_its_client_is_refused(
    server: SidecarServer, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("onecontainer.driver.kafka", "onecontainer.rpc.kafka"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "aiokafka", None)
    monkeypatch.setitem(sys.modules, "aiokafka.helpers", None)
    request = driver_pb2.AttachRequest()
    request.CopyFrom(ATTACH)
    request.job_source.internal_target = gateway.target
    request.job_source.slots = 1
    request.job_source.kafka.topic = "t"
    async with open_channel(server.target) as channel:
        error = await error_of(Calls(channel).driver.Attach(request, metadata=GOOD))
    assert [violation.field for violation in error.violations] == ["job_source.kafka"]
