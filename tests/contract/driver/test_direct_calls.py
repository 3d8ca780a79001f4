"""Direct calls: every call shape, async and blocking; every way in which a call ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from onecontainer import errors
from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.rpc.status import from_rpc_error
from tests.contract.driver.conftest import ATTACH, Calls
from tests.contract.driver.echo import EchoDriver, EchoRequest, in_time, thread_event, until

DEADLINES = (1.0, 3.0, 10.0, 30.0)
"""Seconds. On a busy machine a client may give up by itself before the sidecar's answer is there: then more is tried."""


async def error_of(awaitable: Any) -> errors.OneContainerError:
    with pytest.raises(grpc.RpcError) as caught:
        await in_time(awaitable)
    return from_rpc_error(caught.value)


async def all_of(stream: Any) -> list[Any]:
    return [response async for response in stream]


async def requests_of(*requests: Any) -> AsyncIterator[Any]:
    for request in requests:
        yield request


@pytest.mark.parametrize("kind", ["", "Blocking"])
async def test_all_four_shapes(calls: Calls, kind: str) -> None:
    unary, count, total, chat = (getattr(calls, name + kind) for name in ("Echo", "Count", "Sum", "Chat"))
    assert (await unary(EchoRequest(service="services/echo-1", text="hi", number=3))).number == 3
    assert [r.number for r in await all_of(count(EchoRequest(number=4)))] == [0, 1, 2, 3]
    assert (await total(requests_of(EchoRequest(number=1), EchoRequest(number=2)))).number == 3
    assert [r.text for r in await all_of(chat(requests_of(EchoRequest(text="a"), EchoRequest(text="b"))))] == ["a", "b"]


async def test_a_blocking_handler_runs_in_a_thread_of_its_own(calls: Calls) -> None:
    response = await calls.EchoBlocking(EchoRequest(text="hi"))
    assert response.text == "hi in handler-echo_blocking"


@pytest.mark.parametrize("name", ["Absent", "AbsentStream"])
async def test_what_the_driver_does_not_override_is_unimplemented(calls: Calls, name: str) -> None:
    if name == "Absent":
        error = await error_of(calls.Absent(EchoRequest()))
    else:
        error = await error_of(all_of(calls.AbsentStream(requests_of(EchoRequest()))))
    assert (error.reason, error.code) == (errors.Reason.CAPABILITY_MISSING, errors.Code.UNIMPLEMENTED)
    assert error.metadata["hop"] == "sidecar"
    assert error.metadata["driver"] == "echo"


async def test_an_unknown_method_is_unimplemented_with_a_reason(calls: Calls) -> None:
    error = await error_of(calls.channel.unary_unary("/no.such.Service/Method")(b""))
    assert error.reason is errors.Reason.METHOD_UNKNOWN


async def test_a_long_running_method_needs_the_gateway(calls: Calls) -> None:
    assert (await error_of(calls.Work(EchoRequest()))).reason is errors.Reason.NEEDS_GATEWAY


async def test_before_attach_it_is_not_attached(detached: Calls) -> None:
    assert (await error_of(detached.Echo(EchoRequest()))).reason is errors.Reason.NOT_ATTACHED


async def test_a_request_for_another_service_is_refused(calls: Calls) -> None:
    error = await error_of(calls.Echo(EchoRequest(service="services/other")))
    assert error.reason is errors.Reason.WRONG_INSTANCE
    for key in ("onecontainer-service", "onecontainer-instance"):
        error = await error_of(calls.Echo(EchoRequest(), metadata=((key, "services/other"),)))
        assert error.reason is errors.Reason.WRONG_INSTANCE
    error = await error_of(calls.Sum(requests_of(EchoRequest(service="services/other"), EchoRequest())))
    assert error.reason is errors.Reason.WRONG_INSTANCE
    # The first message brings the call here: what a later one names is no question of the address.
    error = await error_of(calls.Sum(requests_of(EchoRequest(), EchoRequest(service="services/other"))))
    assert error.reason is errors.Reason.FIELD_INVALID
    assert [violation.field for violation in error.violations] == ["service"]


async def test_typed_errors_pass(calls: Calls) -> None:
    error = await error_of(calls.Echo(EchoRequest(text="typed")))
    assert isinstance(error, errors.BackendExecutionFailed)
    assert (error.code, error.message) == (errors.Code.RESOURCE_EXHAUSTED, "the backend said no")
    assert error.metadata["hop"] == "backend"
    assert error.metadata["service"] == "services/echo-1"


@pytest.mark.parametrize(
    "shape", ["Echo", "Count", "Sum", "Chat", "EchoBlocking", "CountBlocking", "SumBlocking", "ChatBlocking"]
)
async def test_an_unforeseen_error_stays_in_the_log(calls: Calls, shape: str, caplog: pytest.LogCaptureFixture) -> None:
    call, request = getattr(calls, shape), EchoRequest(text="unforeseen")
    argument = requests_of(request) if shape.startswith(("Sum", "Chat")) else request
    stream = shape.startswith(("Count", "Chat"))
    error = await error_of(all_of(call(argument)) if stream else call(argument))
    assert error.reason is errors.Reason.DRIVER_EXECUTION_FAILED
    assert "password" not in error.message
    assert "Traceback" not in error.message
    assert error.metadata["log_reference"] in caplog.text
    assert "a password is in here" in caplog.text


@pytest.mark.parametrize("text", ["exit", "cancelled", "wrong type", "nothing"])
async def test_a_handler_that_breaks_the_contract_gets_a_typed_answer(calls: Calls, text: str) -> None:
    error = await error_of(calls.Echo(EchoRequest(text=text)))
    expected = {"wrong type": errors.Reason.DRIVER_MISIMPLEMENTED, "nothing": errors.Reason.DRIVER_MISIMPLEMENTED}
    assert error.reason is expected.get(text, errors.Reason.DRIVER_EXECUTION_FAILED)
    assert (await calls.Echo(EchoRequest(text="and it lives on"))).text == "and it lives on"


async def test_a_stop_iteration_of_a_thread_is_not_lost(calls: Calls) -> None:
    error = await error_of(calls.EchoBlocking(EchoRequest(text="stop iteration")))
    assert error.reason is errors.Reason.DRIVER_EXECUTION_FAILED


async def test_bytes_that_do_not_decode(calls: Calls) -> None:
    raw = calls.channel.unary_unary("/onecontainer.test.sdk.v1.EchoService/Echo")
    assert (await error_of(raw(b"\xff\xff\xff"))).reason is errors.Reason.DATA_INVALID


@pytest.mark.parametrize("shape", ["Echo", "Count", "Sum", "Chat"])
async def test_a_cancelled_error_from_within_does_not_hang_the_caller(calls: Calls, shape: str) -> None:
    request = EchoRequest(text="cancelled")
    argument = requests_of(request) if shape in ("Sum", "Chat") else request
    call = getattr(calls, shape)(argument)
    error = await error_of(call if shape in ("Echo", "Sum") else all_of(call))
    assert error.reason is errors.Reason.DRIVER_EXECUTION_FAILED


@pytest.mark.parametrize("shape", ["Echo", "Count", "Sum", "Chat"])
async def test_the_callers_cancel_reaches_an_async_handler(calls: Calls, driver: EchoDriver, shape: str) -> None:
    async def open_ended() -> AsyncIterator[Any]:
        yield EchoRequest(text="wait")
        await driver.release.wait()

    call = getattr(calls, shape)(open_ended() if shape in ("Sum", "Chat") else EchoRequest(text="wait"))
    # A stream's call begins to be read, as a real caller does.
    if shape in ("Count", "Chat"):
        reading = in_time(all_of(call))
        reader = asyncio.ensure_future(reading)
    await in_time(driver.entered.wait())
    call.cancel()
    await in_time(driver.left.wait())
    assert driver.contexts[-1].cancelled
    assert "end of requests" not in driver.received
    if shape in ("Count", "Chat"):
        with pytest.raises((grpc.RpcError, asyncio.CancelledError)):
            await reader
        await until(lambda: "stream closed" in driver.received)


@pytest.mark.parametrize("shape", ["Echo", "Count", "Sum", "Chat"])
async def test_the_callers_cancel_reaches_a_blocking_handler(calls: Calls, driver: EchoDriver, shape: str) -> None:
    async def open_ended() -> AsyncIterator[Any]:
        yield EchoRequest(text="wait")
        await driver.release.wait()

    name = shape + "Blocking"
    call = getattr(calls, name)(open_ended() if shape in ("Sum", "Chat") else EchoRequest(text="wait"))
    await thread_event(driver.thread_entered)
    call.cancel()
    await thread_event(driver.thread_left)
    assert driver.contexts[-1].cancelled


@pytest.mark.parametrize("text", ["wait", "stubborn"])
async def test_the_deadline_says_in_which_process_it_passed(calls: Calls, driver: EchoDriver, text: str) -> None:
    async def call(shape: str, deadline: float) -> errors.OneContainerError:
        request = EchoRequest(text=text)
        argument = requests_of(request) if shape in ("Sum", "Chat") else request
        made = getattr(calls, shape)(argument, timeout=deadline)
        return await error_of(made if shape in ("Echo", "Sum") else all_of(made))

    hops = []
    for deadline in DEADLINES:
        found = await asyncio.gather(*(call(shape, deadline) for shape in ("Echo", "Count", "Sum", "Chat")))
        assert {error.reason for error in found} == {errors.Reason.DEADLINE_EXCEEDED}
        hops = [error.metadata.get("hop") for error in found]
        if hops == ["sidecar"] * 4:
            break
    assert hops == ["sidecar"] * 4
    driver.release.set()


async def test_the_deadline_of_a_blocking_handler(calls: Calls, driver: EchoDriver) -> None:
    for deadline in DEADLINES:
        error = await error_of(calls.EchoBlocking(EchoRequest(text="stubborn"), timeout=deadline))
        assert error.reason is errors.Reason.DEADLINE_EXCEEDED
        if error.metadata.get("hop") == "sidecar":
            break
    assert error.metadata.get("hop") == "sidecar"
    driver.thread_release.set()


async def test_the_context_tells_of_the_call(calls: Calls, driver: EchoDriver) -> None:
    metadata = (
        ("onecontainer-principal", "ada"),
        ("x-request-id", "r-1"),
        ("traceparent", "00-1"),
        ("x-mine", "yes"),
        ("authorization", "Bearer secret"),
    )
    await calls.Echo(EchoRequest(), metadata=metadata, timeout=300)
    context = driver.contexts[-1]
    assert (context.service, context.principal, context.request_id) == ("services/echo-1", "ada", "r-1")
    assert context.traceparent == "00-1"
    assert context.metadata["x-mine"] == "yes"
    assert "authorization" not in context.metadata
    remaining = context.time_remaining()
    assert remaining is not None
    assert 200 < remaining <= 301
    assert context.job is None
    await calls.Echo(EchoRequest())
    assert driver.contexts[-1].time_remaining() is None


async def test_scratch_is_removed_after_the_call(calls: Calls, driver: EchoDriver) -> None:
    await calls.Echo(EchoRequest(text="scratch"))
    assert not Path(driver.received[-1]).exists()


async def test_a_message_over_the_limit_names_the_limit(calls: Calls, server: Any) -> None:
    limit = server.sidecar.settings.max_message_bytes
    too_large = EchoRequest(text="y" * limit)
    for call in (
        calls.Echo(EchoRequest(text="large", number=limit)),
        calls.Echo(too_large),
        calls.Sum(requests_of(EchoRequest(), too_large)),
    ):
        error = await error_of(call)
        assert isinstance(error, errors.MessageTooLarge)
        assert error.metadata["limit_bytes"] == str(limit)
        assert "artifact" in error.message


async def test_after_attach_options_are_not_in_the_log(calls: Calls, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await calls.driver.Detach(driver_pb2.DetachRequest())
    request = type(ATTACH)()
    request.CopyFrom(ATTACH)
    request.options.update({"password": "hunter2"})
    await calls.driver.Attach(request)
    assert "hunter2" not in caplog.text
