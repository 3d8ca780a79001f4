"""Direct calls: errors, limits, concurrency, cancellation, deadlines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.driver.conformance.contract import Method
from onecontainer.driver.conformance.expect import UNTYPED, error_problem, refused, require
from onecontainer.driver.conformance.model import Skipped, check
from onecontainer.driver.conformance.session import PROMPT_SECONDS, SERVICE, Sample, Session
from onecontainer.driver.conformance.wire import Answer, Talk
from onecontainer.errors import Code, Reason

GARBAGE = b"\x0a\xff\xff\xff\xff\x0fnot a message"
"""A field that says it is longer than all that follows."""
LONG_TEXT = "x" * 6000
PADDING_FIELD = 536870911
"""The highest field number: no message has it, so its bytes are only weight."""
MOST_SENT_BYTES = 128 * 1024 * 1024
CALLERS, ROUNDS = 16, 3
FEW_CALLERS, SLOW_SECONDS = 6, 0.1
"""Where a call takes longer than that, fewer show enough."""
HELD_SECONDS, DEADLINE_SECONDS, LATE_SECONDS = 0.3, 0.7, 2.0
DETACH_SECONDS = 20.0
NO_SAMPLES = (
    "there is no call whose answer is always the same; give two --examples with a `response`, or that are marked `same`"
)
NOTHING_TO_HOLD = "no call of it lasts: it has no stream of requests; give an example that is marked `slow`"


def direct(session: Session) -> list[Method]:
    """Claimed methods that can be called directly."""
    return [method for method in session.claimed if not method.long_running]


@check(
    "errors.garbage",
    "Bytes that are no request are DATA_INVALID",
    proves="A caller with other contracts, or a broken one, learns that it is its request that is wrong.",
    todo="Decode the request inside the handler's own error handling, and answer INVALID_ARGUMENT / DATA_INVALID.",
    attached=True,
)
async def garbage(session: Session) -> None:
    found = [method for method in direct(session) if not method.client_streaming]
    if not found:
        raise Skipped("it has no direct method with a single request")
    for method in found:
        answer = await session.call(method.name, GARBAGE)
        refused(answer, f"{method.short} with bytes that do not decode", Code.INVALID_ARGUMENT, Reason.DATA_INVALID)


@check(
    "errors.typed",
    "Empty and wrong requests get typed errors",
    proves="Programs can decide by an error; a wrong request is the caller's mistake, never INTERNAL.",
    todo="Check every field before it is used; errors have an ErrorInfo of ours, and BadRequest with the fields' paths.",
    attached=True,
)
async def typed(session: Session) -> None:
    for method in direct(session):
        answer = await session.call(method.name, method.empty(SERVICE))
        _typed(answer, f"{method.short} with nothing but the service")


def _typed(answer: Answer, sent: str) -> None:
    problem = error_problem(answer)
    require(not problem, sent, f"{answer}: {problem}")
    require(answer.code not in UNTYPED, sent, str(answer))


@check(
    "errors.bounded",
    "Errors stay below 8 KiB, whatever was sent",
    proves="Peers drop larger trailers, and the error with them.",
    todo="Cut what an error repeats of its request.",
    attached=True,
)
async def bounded(session: Session) -> None:
    for method in direct(session):
        request = method.empty(SERVICE)
        fill(request)
        answer = await session.call(method.name, request)
        sent = f"{method.short} with texts of {len(LONG_TEXT)} characters"
        problem = error_problem(answer)
        require(not problem, sent, f"{answer}: {problem}")


def fill(message: Message, depth: int = 2) -> None:
    """Puts a long text into every text field but the route's."""
    for field in message.DESCRIPTOR.fields:
        if field.is_repeated or (field.number == 1 and field.name == "service"):
            continue
        if field.containing_oneof is not None and message.WhichOneof(field.containing_oneof.name) is not None:
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            setattr(message, field.name, LONG_TEXT)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and depth:
            fill(getattr(message, field.name), depth - 1)


def padded(request: Message, size: int) -> bytes:
    """The request's bytes, made `size` long by a field that nobody reads."""
    data = request.SerializeToString()
    tag = _varint(PADDING_FIELD << 3 | 2)
    weight = size - len(data) - len(tag)
    weight -= len(_varint(weight))
    if len(_varint(weight)) + weight + len(tag) + len(data) != size:
        weight += 1
    return data + tag + _varint(weight) + bytes(weight)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


@check(
    "limits.message",
    "A message over the limit is MESSAGE_TOO_LARGE",
    proves="The error names the limit and the way out; gRPC's own cannot.",
    todo="Check the size yourself against max_message_bytes; let gRPC's own limit lie well above it.",
    attached=True,
)
async def too_large(session: Session) -> None:
    limit = session.info.max_message_bytes
    found = [method for method in direct(session) if not method.client_streaming]
    if not found or limit > MOST_SENT_BYTES:
        raise Skipped("no direct method with a single request" if not found else f"its limit is {limit} bytes")
    method = found[0]
    answer = await session.call(method.name, padded(method.empty(SERVICE), limit + 1))
    refused(answer, f"{method.short} with {limit + 1} bytes", Code.RESOURCE_EXHAUSTED, Reason.MESSAGE_TOO_LARGE)


@check(
    "limits.run",
    "Run takes a request as large as the limit",
    proves="A job's request that a direct call would take is not lost on its way through `oca worker`.",
    todo="Let Run's message be 2 MiB larger than max_message_bytes.",
    attached=True,
)
async def large_run(session: Session) -> None:
    limit = session.info.max_message_bytes
    if not session.samples or limit > MOST_SENT_BYTES:
        raise Skipped(NO_SAMPLES if not session.samples else f"its limit is {limit} bytes")
    sample = session.samples[0]
    end = await session.run(session.grant(sample.method.name, padded(sample.request, limit)))
    sent = f"Run of {sample.method.short} with a request of {limit} bytes"
    session.result_of(sample.method, end, sent)


@check(
    "concurrency.answers",
    "Parallel callers get their own answers",
    proves="No batcher and no shared buffer gives one caller another one's answer.",
    todo="Keep what belongs to a call in the call; look at what handlers share through `self` and globals.",
    attached=True,
)
async def concurrency(session: Session) -> None:
    samples = session.samples
    if len({sample.request.SerializeToString() for sample in samples}) < 2:
        raise Skipped(NO_SAMPLES)
    begin = time.monotonic()
    wanted = [await _answer(session, sample) for sample in samples]
    slow = (time.monotonic() - begin) / len(samples) > SLOW_SECONDS
    callers, rounds = (FEW_CALLERS, 1) if slow else (CALLERS, ROUNDS)

    async def caller(number: int) -> None:
        for round_number in range(rounds):
            index = (number + round_number) % len(samples)
            got = await _answer(session, samples[index])
            require(
                got == wanted[index],
                f"{session.told(samples[index].method, samples[index].request)} beside {callers - 1} other calls",
                "another answer than alone: " + (f"that of call {wanted.index(got)}" if got in wanted else str(got)),
            )

    results = await asyncio.gather(*(caller(number) for number in range(callers)), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _answer(session: Session, sample: Sample) -> object:
    return sample.normal(await session.ask_one(sample.method, sample.request))


@check(
    "transports.same",
    "A method gives the same over gRPC and over Run",
    proves="One handler, two transports: a job's result is what the call would have answered.",
    todo="Let direct calls and Run enter the same handler.",
    attached=True,
)
async def same(session: Session) -> None:
    if not session.samples:
        raise Skipped(NO_SAMPLES)
    for sample in session.samples[:4]:
        direct_answer = await _answer(session, sample)
        over_run = sample.normal(await session.result(sample.method, sample.request))
        told = session.told(sample.method, sample.request)
        require(direct_answer == over_run, f"{told}, directly and over Run", f"{direct_answer!r} and {over_run!r}")


# --- calls that are let go ---------------------------------------------------------------------------------------------


def held_calls(session: Session) -> list[tuple[Method, bytes]]:
    """Calls that last until they are ended, each with its first message."""
    slow = [(one.method, one.request.SerializeToString()) for one in session.slow if not one.method.long_running]
    return slow + [(session.contract[name], first) for name, first in session.holding.items()]


@asynccontextmanager
async def _held(session: Session, timeout: float | None) -> AsyncIterator[Sequence[Talk]]:
    """One open call of each kind, which its handler has begun."""
    talks = []
    try:
        for method, first in held_calls(session):
            talk = session.wire.open(method.name, None if method.client_streaming else first, timeout=timeout)
            talks.append(talk)
            if method.client_streaming:
                await talk.write(first)
        await asyncio.sleep(HELD_SECONDS)
        yield talks
    finally:
        for talk in talks:
            talk.cancel()


async def _let_go(session: Session, sent: str) -> None:
    """Nothing runs on in the driver: it answers, and Detach, which waits for running calls, does too."""
    answer = await session.driver("GetDriverInfo", driver_pb2.GetDriverInfoRequest())
    require(answer.ok, f"GetDriverInfo {sent}", str(answer))
    for sample in session.samples[:1]:
        await session.ask_one(sample.method, sample.request, sent=f"{sample.method.short} {sent}")
    answer = await session.detach(DETACH_SECONDS)
    require(
        answer.ok and answer.seconds <= PROMPT_SECONDS,
        f"Detach {sent}, which waits for what still runs",
        f"{answer} after {answer.seconds:.1f} s",
    )


@check(
    "cancel.calls",
    "A cancelled call ends, and the driver keeps answering",
    proves="What nobody waits for any more costs nothing; no call is left behind.",
    todo="Let the cancellation of a call reach its handler, and the backend's work too.",
    needs=("detach.works",),
    attached=True,
)
async def cancelled(session: Session) -> None:
    for method in direct(session):
        for _ in range(5):
            request = method.empty(SERVICE).SerializeToString()
            talk = session.wire.open(method.name, None if method.client_streaming else request, timeout=session.timeout)
            if method.client_streaming:
                await talk.write(request)
            talk.cancel()
    async with _held(session, session.timeout) as talks:
        for talk in talks:
            talk.cancel()
            await talk.end()
    await _let_go(session, "after calls were cancelled")


@check(
    "deadline.calls",
    "A call ends with its deadline, and nothing runs on",
    proves="Every call ends, and the backend does not work for a caller who has gone.",
    todo="Let the deadline of a call end its handler, and the backend's work too.",
    needs=("detach.works",),
    attached=True,
)
async def deadlines(session: Session) -> None:
    if not held_calls(session):
        raise Skipped(NOTHING_TO_HOLD)
    async with _held(session, DEADLINE_SECONDS) as talks:
        for talk in talks:
            answer = await talk.end()
            sent = f"{talk.method} with a deadline of {DEADLINE_SECONDS} s"
            require(answer.code is Code.DEADLINE_EXCEEDED, sent, str(answer))
            require(answer.seconds <= DEADLINE_SECONDS + LATE_SECONDS, sent, f"it ended after {answer.seconds:.1f} s")
    await _let_go(session, "after calls ran into their deadline")


@check(
    "long.direct",
    "A direct call of a long-running method is NEEDS_GATEWAY",
    proves="What takes long is a job: nobody holds a connection for it.",
    todo="Answer FAILED_PRECONDITION / NEEDS_GATEWAY; the handler is reached through Run.",
    attached=True,
)
async def needs_gateway(session: Session) -> None:
    found = [method for method in session.claimed if method.long_running]
    if not found:
        raise Skipped("it has no long-running method")
    for method in found:
        answer = await session.call(method.name, method.empty(SERVICE))
        refused(answer, method.short, Code.FAILED_PRECONDITION, Reason.NEEDS_GATEWAY)


CHECKS = (garbage, typed, bounded, too_large, large_run, concurrency, same, needs_gateway)
LET_GO_CHECKS = (cancelled, deadlines)
