"""`isolation: process`: handlers in children that are killed with all they started, over the wire like any other handler."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf import wrappers_pb2
from google.protobuf.duration_pb2 import Duration

from onecontainer import errors
from onecontainer.api.driver.v1 import driver_pb2 as pb
from onecontainer.api.job.v1 import job_pb2
from onecontainer.driver import Attachment
from onecontainer.driver.processes.pool import ProcessPool
from onecontainer.driver.processes.recipe import Recipe
from onecontainer.driver.serve import SidecarServer, serving
from onecontainer.driver.settings import SidecarSettings
from onecontainer.rpc.channel import open_channel
from onecontainer.rpc.status import from_status
from tests.contract.driver.conftest import ATTACH, Calls
from tests.contract.driver.echo import MANIFEST, SERVICE, EchoRequest, WorkResult, in_time, until
from tests.contract.driver.isolated import IsolatedDriver
from tests.contract.driver.test_direct_calls import all_of, error_of
from tests.contract.driver.test_driver_service import attach, grant, run
from tests.contract.driver.test_worker import grant as leased_grant
from tests.fakes.lease import FakeGateway

WORK_BLOCKING = f"{SERVICE.full_name}/WorkBlocking"
STOP = pb.StopRunRequest(job="jobs/1", attempt=1, fence=1)


@pytest.fixture
async def server(settings: SidecarSettings) -> AsyncIterator[SidecarServer]:
    """As the one of other tests, with the driver whose handlers are isolated."""
    async with serving(IsolatedDriver(in_sidecar=True), MANIFEST, settings) as server:
        yield server


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def told(folder: Path) -> list[int]:
    """The numbers of the processes, once the handler runs."""
    path = folder / "pids"
    await until(path.exists)
    return [int(pid) for pid in path.read_text().split()]


async def where(calls: Calls) -> list[int]:
    """(process that ran it, process that made its driver, runs of that driver)."""
    return [int(number) for number in (await calls.EchoBlocking(EchoRequest(text="where"))).text.split()]


# --- running ---------------------------------------------------------------------------------------------------------


async def test_a_handler_runs_in_a_child_with_a_driver_of_its_own(calls: Calls) -> None:
    ran, made, _ = await where(calls)
    assert ran == made != os.getpid()
    assert os.getpgid(ran) == ran


async def test_a_child_that_ended_well_runs_the_next_one_too(calls: Calls) -> None:
    first, _, runs = await where(calls)
    second, _, again = await where(calls)
    assert (second, again) == (first, runs + 1)


async def test_handlers_run_side_by_side_up_to_the_limit(settings: SidecarSettings, folder: Path) -> None:
    two = settings.model_copy(update={"max_isolated": 2})
    async with serving(IsolatedDriver(), MANIFEST, two) as server, open_channel(server.target) as channel:
        calls = Calls(channel)
        await calls.driver.Attach(ATTACH)
        folders = [folder / str(number) for number in range(3)]
        running = []
        for one in folders:
            one.mkdir()
            running.append(asyncio.ensure_future(error_of(calls.EchoBlocking(EchoRequest(text=f"block {one}")))))
        await until(lambda: sum((one / "pids").exists() for one in folders) == 2)
        await until(lambda: server.sidecar.running == 3)  # the third call may still be on its way
        [waiting] = [number for number, one in enumerate(folders) if not (one / "pids").exists()]
        assert len({pid for one in folders if (one / "pids").exists() for pid in await told(one)}) == 2
        for number, one in enumerate(folders):
            if number != waiting:
                os.kill((await told(one))[0], signal.SIGKILL)
        [third] = await told(folders[waiting])
        os.kill(third, signal.SIGKILL)
        assert {error.reason for error in await asyncio.gather(*running)} == {errors.Reason.DRIVER_UNREACHABLE}


async def test_a_burst_leaves_one_child_behind(folder: Path) -> None:
    attachment = Attachment("services/echo-1", "echo", "1.0", {}, {"mode": None}, folder, MANIFEST)
    recipe = Recipe.of(IsolatedDriver(), attachment, log_level="info", max_message_bytes=1 << 20, gateway=None)
    pool = ProcessPool(recipe, limit=4, idle_seconds=0.1)
    try:
        children = [await in_time(pool.take()) for _ in range(2)]
        for child in children:
            pool.give_back(child)
        await until(lambda: [child.alive for child in children].count(True) == 1)
        [kept] = [child for child in children if child.alive]
        assert await in_time(pool.take()) is kept
        pool.give_back(kept)
    finally:
        await in_time(pool.close())
    assert not kept.alive


async def test_a_run_that_is_stopped_before_its_child_is_ready_harms_nobody(calls: Calls) -> None:
    call = calls.EchoBlocking(EchoRequest(text="where"))
    await calls.driver.Probe(pb.ProbeRequest())  # the call has arrived before this one
    call.cancel()
    ran, made, _ = await where(calls)
    assert ran == made


async def test_a_class_that_no_child_could_find_is_refused_at_the_start(settings: SidecarSettings) -> None:
    class Hidden(IsolatedDriver):
        pass

    with pytest.raises(errors.DriverMisimplemented, match="at the top of a module"):
        serving(Hidden(), MANIFEST, settings)


async def test_a_childs_driver_is_attached_as_the_sidecars(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A child that has not detached by then is killed.
    monkeypatch.setattr("onecontainer.driver.processes.pool.DETACH_SECONDS", 120.0)
    (folder / "secrets").mkdir()
    (folder / "secrets" / "pass").write_text("s3cret\n")
    settings = SidecarSettings(listen=f"unix:{folder}/x", state_dir=folder / "state", secrets_dir=folder / "secrets")
    async with serving(IsolatedDriver(), MANIFEST, settings) as server, open_channel(server.target) as channel:
        calls = Calls(channel)
        request = attach(options={"patience": "200ms", "greeting": "hi", "password": "secrets/pass"})
        request.endpoints["a"] = "host:1"
        await calls.driver.Attach(request)
        answer = await calls.EchoBlocking(EchoRequest(text="options"))
        assert answer.text == "services/echo-1 hi 0.2 s3cret {'a': 'host:1'}"
        [child, *_] = await where(calls)
        for file in ("cmdline", "environ"):
            assert b"s3cret" not in Path(f"/proc/{child}/{file}").read_bytes()
        await calls.driver.Detach(pb.DetachRequest())
        # Both: the child's own driver, and the sidecar's.
        assert (folder / "state" / "detached").read_text().split() == [str(child), str(os.getpid())]
        await until(lambda: not is_there(child))


async def test_an_attach_that_fails_in_the_child_is_the_handlers_error(detached: Calls) -> None:
    await detached.driver.Attach(attach(options={"mode": "soft"}))
    for _ in range(2):
        error = await error_of(detached.EchoBlocking(EchoRequest(text="where")))
        assert error.reason is errors.Reason.FIELD_INVALID
        assert error.violations[0].field == "options.mode"


# --- context ---------------------------------------------------------------------------------------------------------


async def test_an_attempt_tells_and_is_told(calls: Calls) -> None:
    grant_ = grant(number=1000, principal="ada", request_id="r")
    grant_.resume_details.Pack(wrappers_pb2.Int64Value(value=41))
    events = await run(calls, grant_)
    result = WorkResult.FromString(events[-1].succeeded.result)
    assert (result.text, result.number) == ("ada r jobs/1", 41)
    progress = [event.progress for event in events if event.HasField("progress")]
    assert 1 <= len(progress) <= 20
    assert (progress[-1].done, progress[-1].total, progress[-1].unit) == (1000, 1000, "steps")


async def test_a_checkpoint_is_told_at_once(calls: Calls, tmp_path: Path) -> None:
    call = calls.driver.Run(pb.RunRequest(grant=grant(text=f"checkpoint {tmp_path}")))
    event = await in_time(call.read())
    value = wrappers_pb2.Int64Value()
    assert event.checkpoint.Unpack(value)
    assert value.value == 41
    call.cancel()
    [child] = await told(tmp_path)
    await until(lambda: not is_there(child))


async def test_a_failure_tells_what_there_is_nevertheless(calls: Calls) -> None:
    (event,) = await run(calls, grant(text="partial artifacts/a"))
    assert list(event.kept_artifacts) == ["artifacts/a"]
    told = from_status(event.failed)
    assert told.reason is errors.Reason.DATA_INVALID
    assert told.detail(wrappers_pb2.StringValue) == wrappers_pb2.StringValue(value="x" * 20_000)


async def test_a_declaration_is_recorded_before_the_handler_goes_on(calls: Calls) -> None:
    events = await run(calls, grant(text="declare"))
    assert events[0].started.idempotent is False
    assert events[0].started.HasField("idempotent")
    assert events[-1].HasField("succeeded")


async def test_finish_reaches_the_child(calls: Calls, tmp_path: Path) -> None:
    running = asyncio.ensure_future(run(calls, grant(text=f"finish {tmp_path}")))
    await told(tmp_path)
    stop = pb.StopRunRequest(job="jobs/1", attempt=1, fence=1, mode=job_pb2.CANCEL_MODE_FINISH)
    assert (await calls.driver.StopRun(stop)).found
    [event] = await running
    assert event.succeeded.ended_early
    assert WorkResult.FromString(event.succeeded.result).text == "finished early"


async def test_a_child_has_the_gateways_artifacts(folder: Path, settings: SidecarSettings) -> None:
    (folder / "token").write_text("s3cret\n")
    settings = settings.model_copy(update={"token_file": folder / "token"})
    good = (("authorization", "Bearer s3cret"),)
    async with FakeGateway(folder) as gateway, serving(IsolatedDriver(), MANIFEST, settings) as server:
        request = attach()
        request.job_source.internal_target = gateway.target
        request.job_source.slots = 1
        request.job_source.embedded.SetInParent()
        async with open_channel(server.target) as channel:
            calls = Calls(channel)
            await calls.driver.Attach(request, metadata=good)
            await gateway.submit(leased_grant(text="artifact"))
            outcome = await gateway.outcome("jobs/1")
            await gateway.submit(leased_grant("2", text="partial"))
            failure = await gateway.outcome("jobs/2")
        name = WorkResult.FromString(outcome.succeeded.result).text
        artifact, data = gateway.artifacts[name]
        assert (artifact.media_type, data) == ("text/plain", b"made by an attempt")
        assert (gateway.uploads[0].attempt.job, gateway.uploads[0].attempt.fence) == ("jobs/1", 1)
        (kept,) = failure.kept_artifacts
        assert gateway.artifacts[kept][1] == b"made before it failed"
        own = from_status(failure.failed).detail(wrappers_pb2.StringValue)
        assert own == wrappers_pb2.StringValue(value="x" * 20_000), "more than a call's error could carry"


async def test_the_deadline_is_known_and_kept(calls: Calls, tmp_path: Path) -> None:
    answer = await calls.EchoBlocking(EchoRequest(text="limits"), timeout=120)
    assert 0 < float(answer.text) <= 121
    assert (await calls.EchoBlocking(EchoRequest(text="limits"))).text == "none"
    for timeout in (2, 10, 60):  # as long as it takes this machine to begin with it
        error = await error_of(calls.EchoBlocking(EchoRequest(text=f"block {tmp_path}"), timeout=timeout))
        assert error.reason is errors.Reason.DEADLINE_EXCEEDED
        if (tmp_path / "pids").exists():
            break
    [child] = await told(tmp_path)
    await until(lambda: not is_there(child))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("run_timeout", errors.Reason.ATTEMPT_TIMEOUT), ("stall_timeout", errors.Reason.STALLED)],
)
async def test_the_timeouts_of_an_attempt_kill(
    calls: Calls, tmp_path: Path, limit: str, expected: errors.Reason
) -> None:
    await where(calls)  # it is warm now: the handler begins before its time is over
    for seconds in (1, 10, 60):  # as long as it takes this machine to begin with it
        bound = {limit: Duration(seconds=seconds)}
        [event] = await run(calls, grant(WORK_BLOCKING, text=f"block {tmp_path}", **bound))
        assert from_status(event.failed).reason is expected
        if (tmp_path / "pids").exists():
            break
    [child] = await told(tmp_path)
    # The outcome is told when the process has gone, not when it was decided.
    assert not is_there(child)


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["block", "hold-the-interpreter", "family", "hang-up"])
async def test_an_abort_ends_whatever_blocks_and_all_that_it_started(calls: Calls, tmp_path: Path, what: str) -> None:
    running = asyncio.ensure_future(run(calls, grant(WORK_BLOCKING, text=f"{what} {tmp_path}")))
    pids = await told(tmp_path)
    assert all(map(is_there, pids))
    if what != "hang-up":  # that one is ended because it closed the socket
        assert (await calls.driver.StopRun(STOP)).found
    [event] = await running
    assert [pid for pid in pids if is_there(pid)] == []
    if what != "hang-up":
        assert from_status(event.stopped.error).reason is errors.Reason.CANCELLED
    else:
        assert from_status(event.failed).reason is errors.Reason.DRIVER_UNREACHABLE
    replaced, _, runs = await where(calls)
    assert (replaced != pids[0], runs) == (True, 1)


@pytest.mark.parametrize("what", ["wait", "block-the-loop"])
async def test_an_async_handler_gets_time_for_its_finally(
    detached: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    if what == "wait":
        # A machine that stands still for a moment takes that from the child's time, and its children are made by Attach.
        monkeypatch.setattr("onecontainer.driver.processes.warded.GRACE_SECONDS", 120.0)
    await detached.driver.Attach(ATTACH)
    call = detached.Echo(EchoRequest(text=f"{what} {tmp_path}"))
    [child] = await told(tmp_path)
    call.cancel()
    await until(lambda: not is_there(child))
    assert (tmp_path / "finally").exists() == (what == "wait")


async def test_the_scratch_folder_goes_with_a_killed_child(calls: Calls, tmp_path: Path) -> None:
    running = asyncio.ensure_future(run(calls, grant(WORK_BLOCKING, text=f"scratch {tmp_path}")))
    await told(tmp_path)
    path = tmp_path / "scratch"
    await until(lambda: path.exists() and path.read_text())
    assert Path(path.read_text()).is_dir()
    await calls.driver.StopRun(STOP)
    await running
    assert not Path(path.read_text()).exists()


async def test_the_call_of_run_that_ends_is_an_abort(calls: Calls, tmp_path: Path) -> None:
    call = calls.driver.Run(pb.RunRequest(grant=grant(WORK_BLOCKING, text=f"block {tmp_path}")))
    reading = asyncio.ensure_future(all_of(call))
    [child] = await told(tmp_path)
    call.cancel()
    await until(lambda: not is_there(child))
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_drain_aborts_an_isolated_handler_for_good(
    calls: Calls, server: SidecarServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is not gone by then is left behind.
    monkeypatch.setattr("onecontainer.driver.lifecycle.ABORT_SECONDS", 120.0)
    waiting = asyncio.ensure_future(error_of(calls.EchoBlocking(EchoRequest(text=f"block {tmp_path}"))))
    [child] = await told(tmp_path)
    drain = pb.DrainRequest(timeout=Duration(nanos=50_000_000))
    assert (await in_time(calls.driver.Drain(drain))).aborted_count == 1
    assert (await waiting).reason is errors.Reason.DRAINING
    assert not is_there(child)
    assert server.sidecar.running == 0


async def test_processes_that_a_handler_leaves_behind_end_with_its_run(calls: Calls) -> None:
    before, _, _ = await where(calls)
    left = int((await calls.EchoBlocking(EchoRequest(text="leave-behind"))).text)
    after, _, _ = await where(calls)
    assert before != after
    assert [pid for pid in (before, left) if is_there(pid)] == []


# --- errors ----------------------------------------------------------------------------------------------------------


async def test_a_typed_error_crosses_whole(calls: Calls) -> None:
    error = await error_of(calls.EchoBlocking(EchoRequest(text="typed")))
    assert isinstance(error, errors.BackendExecutionFailed)
    assert (error.message, error.code, error.retry_after) == (
        "the backend said no",
        errors.Code.RESOURCE_EXHAUSTED,
        7.0,
    )
    assert (error.hop, error.metadata["why"], error.metadata["driver"]) == ("backend", "full", "echo")


async def test_an_error_with_the_name_of_a_file_that_is_not_utf_8_crosses_too(calls: Calls) -> None:
    error = await error_of(calls.EchoBlocking(EchoRequest(text="surrogate")))
    assert isinstance(error, errors.DataInvalid)
    assert error.violations == (errors.FieldViolation("inputs", "a\\udc80b is no image"),)


async def test_an_error_that_cannot_be_told_is_an_outcome(calls: Calls) -> None:
    error = await in_time(error_of(calls.EchoBlocking(EchoRequest(text="misshapen"))))
    assert error.reason is errors.Reason.DRIVER_EXECUTION_FAILED
    assert error.metadata["log_reference"] in error.message


async def test_what_the_driver_did_not_foresee_is_in_the_sidecars_log(
    calls: Calls, capfd: pytest.CaptureFixture[str]
) -> None:
    error = await error_of(calls.EchoBlocking(EchoRequest(text="unforeseen")))
    assert error.reason is errors.Reason.DRIVER_EXECUTION_FAILED
    assert "password" not in error.message
    logged = ""

    def is_logged() -> bool:
        nonlocal logged
        logged += capfd.readouterr().err
        return error.metadata["log_reference"] in logged and "a password is in here" in logged

    await until(is_logged)


async def test_a_handler_that_exits_takes_nobody_with_it(calls: Calls) -> None:
    first, _, _ = await where(calls)
    error = await error_of(calls.EchoBlocking(EchoRequest(text="exit")))
    assert error.reason is errors.Reason.DRIVER_EXECUTION_FAILED
    assert "sys.exit(7)" in error.message
    assert (await where(calls))[0] == first


async def test_another_message_than_the_methods_is_refused(calls: Calls) -> None:
    [event] = await run(calls, grant(WORK_BLOCKING, text="where"))
    error = from_status(event.failed)
    assert error.reason is errors.Reason.DRIVER_MISIMPLEMENTED
    assert "EchoResponse" in error.message


@pytest.mark.parametrize(
    ("what", "facts", "told_"),
    [
        ("crash", {"signal": "SIGSEGV"}, "about to read what is not there"),
        ("starve", {"signal": "SIGKILL"}, "memory"),
        ("stop", {"exit_code": "3"}, "exited with code 3"),
    ],
)
async def test_a_child_that_dies_says_how_and_may_be_tried_again(
    calls: Calls, what: str, facts: dict[str, str], told_: str
) -> None:
    error = await error_of(calls.EchoBlocking(EchoRequest(text=what)))
    assert isinstance(error, errors.DriverUnreachable)
    assert (error.hop, error.retry_after) == ("sidecar", 1.0)
    assert facts.items() <= error.metadata.items()
    assert told_ in error.message
    assert "in onecontainer.test.sdk.v1.EchoService/EchoBlocking" in error.message
    assert (await where(calls))[0] != os.getpid()


async def test_a_child_that_died_while_it_was_idle_is_nobodys_error(calls: Calls) -> None:
    first, _, _ = await where(calls)
    os.kill(first, signal.SIGKILL)
    await until(lambda: not Path(f"/proc/{first}").exists())
    assert (await where(calls))[0] != first
