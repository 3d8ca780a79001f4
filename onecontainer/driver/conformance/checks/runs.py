"""Attempts over DriverService.Run, which `oca worker` and this kit call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.driver.conformance.checks.calls import GARBAGE
from onecontainer.driver.conformance.contract import Method
from onecontainer.driver.conformance.expect import has_unknown_fields, refused, require, status_problem
from onecontainer.driver.conformance.model import Failed, Skipped, check
from onecontainer.driver.conformance.session import PROMPT_SECONDS, SERVICE, TERMINAL, Run, RunEnd, Session, Slow
from onecontainer.driver.conformance.waiting import until
from onecontainer.driver.conformance.wire import Answer
from onecontainer.errors import Code, Reason

RUNNING_SECONDS = 0.5
NO_SLOW = "nothing that it does lasts long enough; give an example of a long-running method that is marked `slow`"


def runnable(session: Session) -> list[Method]:
    """Claimed methods that can be attempts of jobs."""
    return [method for method in session.claimed if method.unary]


def slow_job(session: Session) -> Slow:
    """Raises Skipped if nothing lasts."""
    found = [slow for slow in session.slow if slow.method.unary]
    # A long-running one first: that is what jobs are for.
    found.sort(key=lambda slow: not slow.method.long_running)
    if not found:
        raise Skipped(NO_SLOW)
    return found[0]


@check(
    "run.garbage",
    "Run of bytes that are no request is DATA_INVALID",
    proves="A job that cannot be done fails with the cause, and is not tried again.",
    todo="Decode the request before anything begins: INVALID_ARGUMENT / DATA_INVALID.",
    attached=True,
)
async def garbage(session: Session) -> None:
    found = runnable(session)
    if not found:
        raise Skipped("it has no method that can be run as a job")
    for method in found:
        end = await session.run(session.grant(method.name, GARBAGE))
        sent = f"Run of {method.short} with bytes that do not decode"
        refused(end.answer, sent, Code.INVALID_ARGUMENT, Reason.DATA_INVALID)


@check(
    "run.missing",
    "Run of a method that it does not have is CAPABILITY_MISSING",
    proves="A job for another driver's method fails with that, at once.",
    todo="Answer UNIMPLEMENTED / CAPABILITY_MISSING to Run of what GetDriverInfo does not list.",
    attached=True,
)
async def missing(session: Session) -> None:
    names = [method.name for method in session.unclaimed if method.unary]
    for name in (*names, "onecontainer.conformance.Nothing/Nothing"):
        end = await session.run(session.grant(name, b""))
        refused(end.answer, f"Run of {name}", Code.UNIMPLEMENTED, Reason.CAPABILITY_MISSING)


def _ended_runs(session: Session) -> list[Method]:
    found = runnable(session)
    if not found:
        raise Skipped("it has no method that can be run as a job")
    return found


async def _run_of_each(session: Session) -> list[tuple[str, Method, RunEnd]]:
    """A Run of each method that can be a job, with a request that works as far as the kit knows one. They are run once."""
    requests = {sample.method.name: sample.request for sample in session.samples}
    requests |= {method.name: request for method, request in session.jobs}
    found = []
    for method in _ended_runs(session):
        request = requests.get(method.name, method.empty(SERVICE))
        if method.name not in session.run_ends:
            session.run_ends[method.name] = await session.run(session.grant(method.name, request))
        found.append((f"Run of {session.told(method, request)}", method, session.run_ends[method.name]))
    return found


@check(
    "run.events",
    "A Run ends with one last event, and its stream with OK",
    proves="Whoever holds the lease knows how the attempt ended.",
    todo="Send exactly one of succeeded, failed and stopped, as the last event, and end the stream with OK.",
    attached=True,
)
async def events(session: Session) -> None:
    for sent, _method, end in await _run_of_each(session):
        require(end.answer.ok, sent, str(end))
        ends = [kind for kind in end.kinds if kind in TERMINAL]
        require(len(ends) == 1 and end.kinds[-1] in TERMINAL, sent, str(end))
        require("None" not in end.kinds, sent, f"{end}: an event with nothing in it")


@check(
    "run.failure",
    "A failed Run has a typed error",
    proves="The ledger decides by the error whether a job is tried again.",
    todo="Put the same status into `failed` that a direct call would end with.",
    needs=("run.events",),
    attached=True,
)
async def failure(session: Session) -> None:
    tried = False
    empty = [(method, method.empty(SERVICE)) for method in _ended_runs(session)]
    for method, request in (*session.failing, *empty):
        end = await session.run(session.grant(method.name, request))
        if end.terminal.WhichOneof("event") != "failed":
            continue
        tried = True
        status = end.terminal.failed
        sent = f"Run of {session.told(method, request)}"
        told = Answer(method.name, Code(status.code), status.message, status=status)
        problem = status_problem(status, told.code)
        require(not problem, sent, f"{told}: {problem}")
        require(told.code not in (Code.UNKNOWN, Code.INTERNAL), sent, str(told))
    if not tried:
        raise Skipped("nothing fails: an empty request is right for all of its methods")


@check(
    "run.result",
    "A Run's result is of the type that the method declares",
    proves="`Job.result` can be read by callers.",
    todo="Serialise the message that the method's `result_type` names (other methods: the response), never a Job.",
    needs=("run.events",),
    attached=True,
)
async def result(session: Session) -> None:
    for sent, method, end in await _run_of_each(session):
        if end.terminal.WhichOneof("event") != "succeeded":
            continue
        message = session.decoded(method, end.terminal.succeeded, sent)
        wanted = method.result.DESCRIPTOR.full_name
        require(not has_unknown_fields(message), sent, f"a result with fields that {wanted} does not have")


@check(
    "run.progress",
    "Progress never goes back",
    proves="A bar that people watch, and a stall timeout that can be trusted.",
    todo="Report `done` that only rises, at most `total`.",
    needs=("run.events",),
    attached=True,
)
async def progress(session: Session) -> None:
    tried = False
    for sent, _method, end in await _run_of_each(session):
        last = 0.0
        for event in end.events:
            if event.WhichOneof("event") != "progress":
                continue
            tried = True
            told = event.progress
            require(told.done >= last, sent, f"progress {told.done:g} after {last:g}")
            if told.HasField("total"):
                require(told.done <= told.total, sent, f"progress {told.done:g} of {told.total:g}")
            last = told.done
    if not tried:
        raise Skipped("it reported no progress")


# --- attempts that are stopped -----------------------------------------------------------------------------------------


@asynccontextmanager
async def running(session: Session, slow: Slow) -> AsyncIterator[Run]:
    """An attempt that is running, for as long as the block does."""
    if slow.held:
        session.desk.held.clear()
    run = session.open_run(session.grant(slow.method.name, slow.request), timeout=session.timeout + 60)
    try:
        reading = asyncio.create_task(run.end())
        try:
            done, _ = await asyncio.wait((reading,), timeout=RUNNING_SECONDS)
            if done:
                raise Failed(
                    f"Run of {session.told(slow.method, slow.request)}", f"it ended at once: {reading.result()}"
                )
            run.ending = reading
            yield run
        finally:
            run.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    finally:
        session.desk.held.set()
        await _gone(session, run)
        run.close()


async def _gone(session: Session, run: Run) -> bool:
    """Whether the driver does not have the attempt any more, soon."""

    async def gone() -> bool | None:
        answer = await session.stop_run(run.grant, job_pb2.CANCEL_MODE_ABORT)
        return True if answer.ok and not driver_pb2.StopRunResponse.FromString(answer.message).found else None

    return bool(await until(gone, PROMPT_SECONDS))


async def ended(run: Run, sent: str, seconds: float = PROMPT_SECONDS) -> RunEnd:
    """The end of an attempt that was told to end. Raises Failed if it goes on."""
    assert run.ending is not None
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.shield(run.ending)
    except TimeoutError:
        raise Failed(sent, f"it still runs after {seconds:g} s") from None


@check(
    "run.duplicate",
    "The same attempt twice is refused",
    proves="A job never runs twice at once in one sidecar.",
    todo="Answer ALREADY_EXISTS / RESOURCE_CONFLICT to a Run with job and fence of one that runs.",
    attached=True,
)
async def duplicate(session: Session) -> None:
    slow = slow_job(session)
    async with running(session, slow) as run:
        again = session.open_run(run.grant)
        try:
            async with asyncio.timeout(session.timeout):
                end = await again.end()
        except TimeoutError:
            raise Failed("the same Run again", f"it runs, for {session.timeout:g} s") from None
        finally:
            again.cancel()
        refused(end.answer, "the same Run again", Code.ALREADY_EXISTS, Reason.RESOURCE_CONFLICT)


@check(
    "run.cancelled",
    "Ending the call of Run ends the attempt",
    proves="A worker that dies leaves nothing that runs on.",
    todo="Abort the attempt when the call of Run ends, however it does.",
    needs=("run.duplicate",),
    attached=True,
)
async def aborted(session: Session) -> None:
    slow = slow_job(session)
    async with running(session, slow) as run:
        run.cancel()
        gone = await _gone_by_itself(session, run)
        require(gone, "Run, whose call is then ended", f"the attempt is still there after {PROMPT_SECONDS:g} s")


async def _gone_by_itself(session: Session, run: Run) -> bool:
    """Whether the attempt has ended, asked by what does not end it: its method with mode FINISH, or the same Run again."""

    async def gone() -> bool | None:
        again = session.open_run(run.grant, timeout=PROMPT_SECONDS)
        try:
            reading = asyncio.create_task(again.end())
            done, _ = await asyncio.wait((reading,), timeout=RUNNING_SECONDS)
            again.cancel()
            end = (await asyncio.gather(reading, return_exceptions=True))[0]
            refused_again = bool(done) and isinstance(end, RunEnd) and end.answer.code is Code.ALREADY_EXISTS
            return None if refused_again else True
        finally:
            again.cancel()

    return bool(await until(gone, PROMPT_SECONDS))


@check(
    "run.abort",
    "StopRun with ABORT stops an attempt",
    proves="A cancelled job ends, and says that it was stopped.",
    todo="Answer found=true, end the handler, and end Run with `stopped`.",
    attached=True,
)
async def stop(session: Session) -> None:
    slow = slow_job(session)
    async with running(session, slow) as run:
        answer = await session.stop_run(run.grant, job_pb2.CANCEL_MODE_ABORT)
        _found(answer, "StopRun with ABORT")
        end = await ended(run, "Run, after StopRun with ABORT")
        require(end.terminal.WhichOneof("event") == "stopped", "Run, after StopRun with ABORT", str(end))


def _found(answer: Answer, sent: str) -> None:
    require(answer.ok, sent, str(answer))
    require(driver_pb2.StopRunResponse.FromString(answer.message).found, sent, "found=false, although it runs")


@check(
    "run.finish",
    "StopRun with FINISH ends it early and keeps what is done",
    proves="A recording that is stopped is a recording.",
    todo="Let a finishable handler return what it has, with `ended_early`; answer NOT_FINISHABLE for any other method.",
    attached=True,
)
async def finish(session: Session) -> None:
    slow = [one for one in session.slow if one.method.unary]
    if not slow:
        raise Skipped(NO_SLOW)
    finishable = [one for one in slow if one.method.finishable and one.finishes]
    others = [one for one in slow if not one.method.finishable]
    if not finishable and not others:
        raise Skipped("what lasts cannot come to an early end; give a `slow` example of a finishable method")
    for one in others[:1]:
        async with running(session, one) as run:
            answer = await session.stop_run(run.grant, job_pb2.CANCEL_MODE_FINISH)
            sent = f"StopRun with FINISH of {one.method.short}, which is not finishable"
            refused(answer, sent, Code.FAILED_PRECONDITION, Reason.NOT_FINISHABLE)
    for one in finishable[:1]:
        async with running(session, one) as run:
            answer = await session.stop_run(run.grant, job_pb2.CANCEL_MODE_FINISH)
            _found(answer, f"StopRun with FINISH of {one.method.short}")
            session.desk.held.set()  # what it had begun may come to its end
            sent = f"Run of {one.method.short}, after StopRun with FINISH"
            end = await ended(run, sent, session.timeout)
            require(end.terminal.WhichOneof("event") == "succeeded", sent, str(end))
            require(end.terminal.succeeded.ended_early, sent, f"{end}: `ended_early` is not set")


@check(
    "run.stop-missing",
    "StopRun of what does not run is OK",
    proves="A cancel that comes late is no error.",
    todo="Answer OK with found=false.",
    attached=True,
)
async def stop_missing(session: Session) -> None:
    grant = session.grant("onecontainer.conformance.Nothing/Nothing", b"")
    for mode in (job_pb2.CANCEL_MODE_ABORT, job_pb2.CANCEL_MODE_FINISH):
        answer = await session.stop_run(grant, mode)
        sent = f"StopRun of {grant.job}, which does not run"
        require(answer.ok, sent, str(answer))
        require(not driver_pb2.StopRunResponse.FromString(answer.message).found, sent, "found=true")


CHECKS = (garbage, missing, events, failure, result, progress, duplicate, aborted, stop, finish, stop_missing)
