"""DriverService over the wire: identity, attach and detach, probe, Run, StopRun, drain, credentials."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import wrappers_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from onecontainer import errors
from onecontainer.api.driver.v1 import driver_pb2 as pb
from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.driver import ProbeResult
from onecontainer.driver.serve import SidecarServer, serving
from onecontainer.driver.settings import SidecarSettings
from onecontainer.rpc.channel import open_channel
from onecontainer.rpc.status import from_status
from tests.contract.driver.conftest import ATTACH, Calls
from tests.contract.driver.echo import (
    MANIFEST,
    SERVICE,
    EchoDriver,
    EchoRequest,
    EchoResponse,
    WorkResult,
    in_time,
    thread_event,
)
from tests.contract.driver.test_direct_calls import all_of, error_of

WORK, WORK_BLOCKING = f"{SERVICE.full_name}/Work", f"{SERVICE.full_name}/WorkBlocking"


def attach(**changes: Any) -> pb.AttachRequest:
    request = pb.AttachRequest()
    request.CopyFrom(ATTACH)
    options = changes.pop("options", None)
    for name, value in changes.items():
        setattr(request, name, value)
    if options is not None:
        request.options.update(options)
    return request


def grant(method: str = WORK, *, fence: int = 1, payload: bytes | None = None, **more: Any) -> lease_pb2.Grant:
    text = more.pop("text", "")
    number = more.pop("number", 0)
    return lease_pb2.Grant(
        job="jobs/1",
        attempt=1,
        fence=fence,
        service=ATTACH.service,
        method=method,
        request=EchoRequest(text=text, number=number).SerializeToString() if payload is None else payload,
        **more,
    )


def reason(status: status_pb2.Status) -> errors.Reason:
    return from_status(status).reason


# --- identity --------------------------------------------------------------------------------------------------------


async def test_info_works_before_attach_and_announces_only_what_is_implemented(detached: Calls) -> None:
    info = await detached.driver.GetDriverInfo(pb.GetDriverInfoRequest())
    assert (info.manifest.name, info.manifest.scope, info.contract_version) == ("echo", "hpc", "1.0")
    assert f"{SERVICE.full_name}/Echo" in info.methods
    assert WORK in info.methods
    assert not [method for method in info.methods if "Absent" in method]
    assert info.max_message_bytes == 64 * 1024 * 1024
    assert (info.service, info.instance) == ("", "")
    await detached.driver.Attach(ATTACH)
    info = await detached.driver.GetDriverInfo(pb.GetDriverInfoRequest())
    assert (info.service, info.instance) == ("services/echo-1", "sidecars/echo-1")


async def test_reflection_and_health_are_served(detached: Calls) -> None:
    async def ask() -> Any:
        yield ServerReflectionRequest(list_services="")

    async for answer in ServerReflectionStub(detached.channel).ServerReflectionInfo(ask()):
        names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE.full_name, "onecontainer.api.driver.v1.DriverService", "grpc.health.v1.Health"} <= names
    health = health_pb2_grpc.HealthStub(detached.channel)
    for name in ("", SERVICE.full_name):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


# --- attach ----------------------------------------------------------------------------------------------------------


async def test_attach_is_idempotent_and_holds_one_service(detached: Calls, driver: EchoDriver) -> None:
    await detached.driver.Attach(ATTACH)
    await detached.driver.Attach(ATTACH)
    assert driver.events == ["attach"]
    for other in (attach(service="services/other"), attach(options={"greeting": "bye"})):
        assert (await error_of(detached.driver.Attach(other))).reason is errors.Reason.STATE_INVALID
    await detached.driver.Detach(pb.DetachRequest())
    await detached.driver.Detach(pb.DetachRequest())
    assert driver.events == ["attach", "detach"]
    await detached.driver.Attach(attach(service="services/other"))


async def test_attach_gives_checked_options(detached: Calls, driver: EchoDriver, settings: SidecarSettings) -> None:
    await detached.driver.Attach(attach(options={"patience": "200ms"}))
    assert driver.attachment is not None
    assert driver.attachment.options == {"greeting": "hello", "password": None, "patience": 0.2, "mode": None}
    assert driver.attachment.state_dir == settings.state_dir
    assert "hello" not in repr(driver.attachment)


@pytest.mark.parametrize(
    ("request_", "reason_", "field"),
    [
        (pb.AttachRequest(), errors.Reason.FIELD_REQUIRED, "service"),
        (attach(service="echo-1"), errors.Reason.FIELD_INVALID, "service"),
        (attach(options={"greeting": 1}), errors.Reason.FIELD_INVALID, "options.greeting"),
        (attach(options={"unknown": 1}), errors.Reason.FIELD_INVALID, "options.unknown"),
        (attach(options={"mode": "shrill"}), errors.Reason.FIELD_INVALID, "options.mode"),
        (attach(options={"password": "secrets/none"}), errors.Reason.FIELD_INVALID, "options.password"),
    ],
)
async def test_what_is_wrong_with_attach_is_told_by_field(
    detached: Calls, driver: EchoDriver, request_: pb.AttachRequest, reason_: errors.Reason, field: str
) -> None:
    error = await error_of(detached.driver.Attach(request_))
    assert error.reason is reason_
    assert field in [violation.field for violation in error.violations]
    assert driver.events == []


async def test_an_unknown_option_lists_those_that_there_are(detached: Calls) -> None:
    error = await error_of(detached.driver.Attach(attach(options={"greting": "x"})))
    assert "greeting" in error.message


async def test_a_secret_is_resolved(folder: Path, driver: EchoDriver) -> None:
    (folder / "secrets").mkdir()
    (folder / "secrets" / "pw").write_text("hunter2\n")
    settings = SidecarSettings(listen=f"unix:{folder}/x", secrets_dir=folder / "secrets")
    async with serving(driver, MANIFEST, settings) as server, open_channel(server.target) as channel:
        await Calls(channel).driver.Attach(attach(options={"password": "secrets/pw"}))
        assert driver.attachment is not None
        assert driver.attachment.options["password"] == "hunter2"


async def test_exclusive_state_has_one_user_and_other_state_is_shared(settings: SidecarSettings, folder: Path) -> None:
    first, second = (settings.model_copy(update={"listen": f"unix:{folder}/{name}"}) for name in ("first", "second"))
    for exclusive in (True, False):
        manifest = MANIFEST.model_copy(update={"exclusive_state": exclusive})
        async with (
            serving(EchoDriver(), manifest, first) as old_server,
            serving(EchoDriver(), manifest, second) as new_server,
            open_channel(old_server.target) as old_channel,
            open_channel(new_server.target) as new_channel,
        ):
            old, new = Calls(old_channel), Calls(new_channel)
            await old.driver.Attach(ATTACH)
            if exclusive:
                error = await error_of(new.driver.Attach(ATTACH))
                assert error.reason is errors.Reason.RESOURCE_IN_USE
                await old.driver.Detach(pb.DetachRequest())
            await new.driver.Attach(ATTACH)


async def test_an_attach_that_fails_leaves_nothing(detached: Calls, driver: EchoDriver) -> None:
    driver.attach_error = errors.FieldInvalid("options.greeting", "is not polite")
    error = await error_of(detached.driver.Attach(ATTACH))
    assert [v.field for v in error.violations] == ["options.greeting"]
    driver.attach_error = KeyError("secret text")
    error = await error_of(detached.driver.Attach(ATTACH))
    assert error.reason is errors.Reason.DRIVER_EXECUTION_FAILED
    assert "secret text" not in error.message
    assert driver.events == ["attach", "detach"] * 2
    driver.attach_error = None
    await detached.driver.Attach(ATTACH)


async def test_another_instance_than_the_starter_named_is_refused(folder: Path) -> None:
    settings = SidecarSettings(listen=f"unix:{folder}/x", instance="sidecars/mine")
    async with serving(EchoDriver(), MANIFEST, settings) as server, open_channel(server.target) as channel:
        error = await error_of(Calls(channel).driver.Attach(ATTACH))
        assert error.reason is errors.Reason.WRONG_INSTANCE
        await Calls(channel).driver.Attach(attach(instance="sidecars/mine"))


# --- probe -----------------------------------------------------------------------------------------------------------


async def test_probe_has_three_answers(detached: Calls, driver: EchoDriver) -> None:
    assert (await error_of(detached.driver.Probe(pb.ProbeRequest()))).reason is errors.Reason.NOT_ATTACHED
    await detached.driver.Attach(ATTACH)
    answer = await detached.driver.Probe(pb.ProbeRequest())
    assert (answer.ready, answer.message, dict(answer.details)) == (True, "fine", {"who": "me"})
    driver.probe_answer = ProbeResult(ready=False, message="loading")
    assert not (await detached.driver.Probe(pb.ProbeRequest())).ready
    driver.probe_answer = errors.BackendUnreachable("nobody at home", retry_after=2)
    error = await error_of(detached.driver.Probe(pb.ProbeRequest()))
    assert (error.reason, error.retry_after) == (errors.Reason.BACKEND_UNREACHABLE, 2)
    driver.probe_answer = "yes"
    error = await error_of(detached.driver.Probe(pb.ProbeRequest()))
    assert error.reason is errors.Reason.DRIVER_MISIMPLEMENTED


# --- run -------------------------------------------------------------------------------------------------------------


async def run(calls: Calls, grant_: lease_pb2.Grant) -> list[pb.RunResponse]:
    return await in_time(all_of(calls.driver.Run(pb.RunRequest(grant=grant_))))  # type: ignore[no-any-return]


async def test_run_gives_the_bytes_of_a_direct_call(calls: Calls) -> None:
    request = EchoRequest(text="same", number=5)
    direct = await calls.Echo(request)
    [event] = await run(calls, grant(f"{SERVICE.full_name}/Echo", payload=request.SerializeToString()))
    assert event.succeeded.result == direct.SerializeToString()
    assert EchoResponse.FromString(event.succeeded.result).text == "same"


async def test_run_of_a_long_running_method_gives_its_result_type(calls: Calls, driver: EchoDriver) -> None:
    resume = wrappers_pb2.Int64Value(value=41)
    grant_ = grant(number=1000, principal="ada", request_id="r")
    grant_.resume_details.Pack(resume)
    events = await run(calls, grant_)
    assert WorkResult.FromString(events[-1].succeeded.result).number == 41
    progress = [event.progress for event in events if event.HasField("progress")]
    # A burst: the first or the last of it at once, the last one before the outcome.
    assert 1 <= len(progress) <= 20
    assert (progress[-1].done, progress[-1].total, progress[-1].unit) == (1000, 1000, "steps")
    context = driver.contexts[-1]
    assert context.job is not None
    assert (context.job.name, context.job.attempt, context.job.fence) == ("jobs/1", 1, 1)
    assert (context.principal, context.request_id) == ("ada", "r")


async def test_run_declares_before_it_goes_on(calls: Calls, driver: EchoDriver) -> None:
    for method in (WORK, WORK_BLOCKING):
        events = await run(calls, grant(method, text="declare"))
        assert events[0].started.idempotent is False
        assert events[0].started.HasField("idempotent")
        assert events[-1].HasField("succeeded")
    assert driver.received == ["declared", "declared"]


@pytest.mark.parametrize(
    ("grant_", "expected"),
    [
        (grant("onecontainer.test.sdk.v1.EchoService/Absent"), errors.Reason.CAPABILITY_MISSING),
        (grant("onecontainer.test.sdk.v1.EchoService/Chat"), errors.Reason.CAPABILITY_MISSING),
        (grant("no.Such/Method"), errors.Reason.CAPABILITY_MISSING),
        (grant(payload=b"\xff\xff"), errors.Reason.DATA_INVALID),
        (lease_pb2.Grant(), errors.Reason.FIELD_REQUIRED),
    ],
)
async def test_run_refuses_what_cannot_begin(calls: Calls, grant_: lease_pb2.Grant, expected: errors.Reason) -> None:
    assert (await error_of(run(calls, grant_))).reason is expected


async def test_run_of_an_error(calls: Calls) -> None:
    [event] = await run(calls, grant(text="typed"))
    error = from_status(event.failed)
    assert error.reason is errors.Reason.BACKEND_EXECUTION_FAILED
    assert (error.metadata["job"], error.metadata["attempt"]) == ("jobs/1", "1")


async def test_the_same_attempt_runs_once(calls: Calls, driver: EchoDriver) -> None:
    first = asyncio.ensure_future(run(calls, grant(text="wait")))
    await in_time(driver.entered.wait())
    assert (await error_of(run(calls, grant(text="wait")))).reason is errors.Reason.RESOURCE_CONFLICT
    driver.release.set()
    assert (await first)[-1].HasField("succeeded")


async def test_stop_run_aborts(calls: Calls, driver: EchoDriver) -> None:
    running = asyncio.ensure_future(run(calls, grant(text="wait")))
    await in_time(driver.entered.wait())
    stop = pb.StopRunRequest(job="jobs/1", attempt=1, fence=1)
    assert (await calls.driver.StopRun(stop)).found
    [event] = await running
    assert reason(event.stopped.error) is errors.Reason.CANCELLED
    assert not (await calls.driver.StopRun(stop)).found


async def test_stop_run_lets_finish(calls: Calls, driver: EchoDriver) -> None:
    running = asyncio.ensure_future(run(calls, grant(text="finish")))
    await in_time(driver.entered.wait())
    stop = pb.StopRunRequest(job="jobs/1", attempt=1, fence=1, mode=job_pb2.CANCEL_MODE_FINISH)
    assert (await calls.driver.StopRun(stop)).found
    [event] = await running
    assert event.succeeded.ended_early
    assert WorkResult.FromString(event.succeeded.result).text == "finished early"


async def test_finish_of_what_cannot_end_early(calls: Calls, driver: EchoDriver) -> None:
    running = asyncio.ensure_future(run(calls, grant(WORK_BLOCKING, text="wait")))
    await thread_event(driver.thread_entered)
    stop = pb.StopRunRequest(job="jobs/1", attempt=1, fence=1, mode=job_pb2.CANCEL_MODE_FINISH)
    assert (await error_of(calls.driver.StopRun(stop))).reason is errors.Reason.NOT_FINISHABLE
    driver.thread_release.set()
    assert (await running)[-1].HasField("succeeded")


async def test_the_end_of_runs_call_is_an_abort(calls: Calls, driver: EchoDriver) -> None:
    call = calls.driver.Run(pb.RunRequest(grant=grant(text="wait")))
    reading = asyncio.ensure_future(all_of(call))
    await in_time(driver.entered.wait())
    call.cancel()
    await in_time(driver.left.wait())
    assert driver.contexts[-1].cancelled
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_a_stopped_thread_is_reported_when_it_has_really_ended(calls: Calls, driver: EchoDriver) -> None:
    running = asyncio.ensure_future(run(calls, grant(WORK_BLOCKING, text="stubborn")))
    await thread_event(driver.thread_entered)
    await calls.driver.StopRun(pb.StopRunRequest(job="jobs/1", attempt=1, fence=1))
    # Still there: a second stop finds it, and its stream goes on.
    assert (await calls.driver.StopRun(pb.StopRunRequest(job="jobs/1", attempt=1, fence=1))).found
    assert not running.done()
    driver.thread_release.set()
    assert (await in_time(running))[-1].HasField("succeeded")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("run_timeout", errors.Reason.ATTEMPT_TIMEOUT), ("stall_timeout", errors.Reason.STALLED)],
)
async def test_timeouts_are_kept_here(calls: Calls, limit: str, expected: errors.Reason) -> None:
    [event] = await run(calls, grant(text="wait", **{limit: Duration(nanos=50_000_000)}))
    assert reason(event.failed) is expected


async def test_a_cancel_that_was_asked_before_the_grant(calls: Calls) -> None:
    [event] = await run(calls, grant(text="wait", cancel_mode=job_pb2.CANCEL_MODE_ABORT))
    assert reason(event.stopped.error) is errors.Reason.CANCELLED
    [event] = await run(calls, grant(text="finish", cancel_mode=job_pb2.CANCEL_MODE_FINISH))
    assert event.succeeded.ended_early


# --- drain and detach ------------------------------------------------------------------------------------------------


async def test_drain_waits_then_aborts_and_takes_nothing_new(calls: Calls, driver: EchoDriver) -> None:
    call = calls.Echo(EchoRequest(text="wait"))
    waiting = asyncio.ensure_future(error_of(call))
    await in_time(driver.entered.wait())
    draining = asyncio.ensure_future(calls.driver.Drain(pb.DrainRequest(timeout=Duration(nanos=200_000_000))))
    health = health_pb2_grpc.HealthStub(calls.channel)
    async for answer in health.Watch(health_pb2.HealthCheckRequest()):
        if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
            break
    assert (await error_of(calls.Echo(EchoRequest()))).reason is errors.Reason.DRAINING
    assert (await error_of(run(calls, grant()))).reason is errors.Reason.DRAINING
    assert (await in_time(draining)).aborted_count == 1
    error = await waiting
    assert error.reason is errors.Reason.DRAINING
    assert error.retry_after is not None
    assert (await calls.driver.Drain(pb.DrainRequest())).aborted_count == 0


async def test_drain_lets_running_calls_end(calls: Calls, driver: EchoDriver) -> None:
    waiting = asyncio.ensure_future(calls.Echo(EchoRequest(text="wait")))
    await in_time(driver.entered.wait())
    draining = asyncio.ensure_future(calls.driver.Drain(pb.DrainRequest()))
    driver.release.set()
    assert (await in_time(draining)).aborted_count == 0
    assert (await waiting).text == "wait"


async def test_detach_aborts_what_runs_beyond_its_deadline(
    calls: Calls, driver: EchoDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half a second for what runs, and the rest to answer in: a machine that stands still for a moment needs that.
    monkeypatch.setattr("onecontainer.driver.servicer.DETACH_MARGIN", 0.99)
    waiting = asyncio.ensure_future(error_of(calls.Echo(EchoRequest(text="wait"))))
    await in_time(driver.entered.wait())
    await calls.driver.Detach(pb.DetachRequest(), timeout=50)
    assert (await waiting).reason is errors.Reason.DRAINING
    assert driver.events == ["attach", "detach"]
    assert (await error_of(calls.Echo(EchoRequest()))).reason is errors.Reason.NOT_ATTACHED
    await calls.driver.Attach(ATTACH)
    driver.release.set()
    assert (await calls.Echo(EchoRequest(text="again"))).text == "again"


# --- credentials -----------------------------------------------------------------------------------------------------


async def test_every_call_but_health_needs_the_instance_token(folder: Path) -> None:
    (folder / "token").write_text("s3cret\n")
    settings = SidecarSettings(listen=f"unix:{folder}/x", token_file=folder / "token")
    good = (("authorization", "Bearer s3cret"),)
    async with serving(EchoDriver(), MANIFEST, settings) as server, open_channel(server.target) as channel:
        calls = Calls(channel)
        for bad in ((), (("authorization", "Bearer s3creT"),), (("authorization", "Basic s3cret"),)):
            for call in (
                calls.driver.GetDriverInfo(pb.GetDriverInfoRequest(), metadata=bad),
                calls.Echo(EchoRequest(), metadata=bad),
                all_of(calls.Count(EchoRequest(), metadata=bad)),
                all_of(calls.driver.Run(pb.RunRequest(grant=grant()), metadata=bad)),
            ):
                assert (await error_of(call)).reason is errors.Reason.CREDENTIALS_INVALID
        await calls.driver.Attach(ATTACH, metadata=good)
        assert (await calls.Echo(EchoRequest(text="in"), metadata=good)).text == "in"
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())


def test_a_listener_for_others_needs_tls_and_a_token() -> None:
    with pytest.raises(ValueError, match="not loopback"):
        SidecarSettings(listen="0.0.0.0:0")


async def test_an_empty_token_file_is_not_an_open_door(folder: Path) -> None:
    (folder / "token").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        SidecarServer(EchoDriver(), MANIFEST, SidecarSettings(token_file=folder / "token"))


async def test_error_details_stay_within_their_bound(calls: Calls, driver: EchoDriver) -> None:
    driver.probe_answer = errors.FieldInvalid(
        violations=[errors.FieldViolation(f"field[{i}]", "wrong " * 50) for i in range(500)]
    )
    with pytest.raises(grpc.RpcError) as caught:
        await calls.driver.Probe(pb.ProbeRequest())
    trailers = dict(caught.value.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.ByteSize() <= 6 * 1024
    assert any(detail.Is(error_details_pb2.BadRequest.DESCRIPTOR) for detail in status.details)
