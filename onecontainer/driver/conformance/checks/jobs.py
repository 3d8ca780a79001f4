"""Jobs as the sidecar's own worker runs them: it polls the kit, which stands in for the gateway."""

from __future__ import annotations

from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.driver.conformance.checks.calls import GARBAGE
from onecontainer.driver.conformance.checks.runs import runnable, slow_job
from onecontainer.driver.conformance.expect import require, status_problem
from onecontainer.driver.conformance.model import Failed, Skipped, check
from onecontainer.driver.conformance.session import PROMPT_SECONDS, Session
from onecontainer.driver.conformance.wire import Answer
from onecontainer.errors import Code, Reason

POLL_SECONDS = 10.0
PARALLEL = 8


@check(
    "jobs.polls",
    "Its worker asks for jobs",
    proves="A service that is attached with a source of jobs gets them.",
    todo="Call PollJobs at `job_source.internal_target` with the instance token, from Attach on; or have `oca worker` beside it.",
    attached=True,
)
async def polls(session: Session) -> None:
    if not runnable(session):
        raise Skipped("it has no method that can be run as a job")
    if await session.desk.wait(lambda: session.desk.polls > 0, POLL_SECONDS):
        return
    if not session.info.sdk_version:
        raise Skipped("it has no worker of its own: run `oca worker` beside it")
    raise Failed(f"Attach with job_source {session.desk.target}", f"no PollJobs within {POLL_SECONDS:g} s")


async def job(session: Session, grant: lease_pb2.Grant) -> lease_pb2.Report:
    """The outcome of a job. Raises Failed if there is none in time."""
    desk = session.desk
    await desk.submit(grant)
    await desk.wait(lambda: desk.outcome(grant.job) is not None, session.timeout)
    outcome = desk.outcome(grant.job)
    if outcome is None:
        told = ", ".join(str(report.WhichOneof("event")) for report in desk.of(grant.job)) or "nothing"
        raise Failed(f"a job of {grant.method}", f"no outcome within {session.timeout:g} s; reported: {told}")
    return outcome


def succeeded(outcome: lease_pb2.Report, sent: str) -> lease_pb2.Succeeded:
    """Raises Failed unless it is a success."""
    kind = outcome.WhichOneof("event")
    if kind == "succeeded":
        return outcome.succeeded
    error = outcome.failed if kind == "failed" else outcome.stopped.error
    raise Failed(sent, f"{kind}: {Answer(sent, Code(error.code), error.message, status=error)}")


@check(
    "jobs.result",
    "A job's result is what Run gives",
    proves="The same work, whoever brings it: the sidecar's own worker or `oca worker`.",
    todo="Let the worker enter the same handler as Run, and report `succeeded` with job, attempt and fence of the grant.",
    needs=("jobs.polls", "run.result"),
    after=("transports.same",),
    attached=True,
)
async def result(session: Session) -> None:
    tried = False
    for sample in session.samples[:2]:
        tried = True
        sent = f"a job of {session.told(sample.method, sample.request)}"
        wanted = sample.normal(await session.result(sample.method, sample.request))
        outcome = await job(session, session.grant(sample.method.name, sample.request))
        got = sample.normal(session.decoded(sample.method, succeeded(outcome, sent), sent))
        require(got == wanted, sent, f"{got!r}; over Run it was {wanted!r}")
    for method, request in session.jobs:
        tried = True
        sent = f"a job of {session.told(method, request)}"
        outcome = await job(session, session.grant(method.name, request))
        session.decoded(method, succeeded(outcome, sent), sent)
    if not tried:
        raise Skipped("no request of a method that can be a job is known; give --examples")


@check(
    "jobs.failure",
    "A job that cannot be done fails with a typed error",
    proves="The ledger decides by the error whether it is tried again.",
    todo="Report `failed` with the status, also for what goes wrong before the handler begins.",
    needs=("jobs.polls",),
    attached=True,
)
async def failure(session: Session) -> None:
    method = runnable(session)[0]
    sent = f"a job of {method.short} with bytes that do not decode"
    outcome = await job(session, session.grant(method.name, GARBAGE))
    require(outcome.WhichOneof("event") == "failed", sent, str(outcome.WhichOneof("event")))
    status = outcome.failed
    told = Answer(method.name, Code(status.code), status.message, status=status)
    problem = status_problem(status, told.code)
    require(not problem, sent, f"{told}: {problem}")
    require(told.is_(Code.INVALID_ARGUMENT, Reason.DATA_INVALID.value), sent, str(told))


@check(
    "jobs.parallel",
    "Several jobs at once each get their own result",
    proves="Slots are used, and no job's result is reported for another one.",
    todo="Keep what belongs to an attempt in the attempt; report with the job and fence of its grant.",
    needs=("jobs.result",),
    attached=True,
)
async def parallel(session: Session) -> None:
    samples = session.samples
    if not samples:
        raise Skipped("no request is known whose result is always the same; give --examples")
    desk = session.desk
    grants = {}
    for number in range(PARALLEL):
        sample = samples[number % len(samples)]
        grant = session.grant(sample.method.name, sample.request)
        grants[grant.job] = sample
        await desk.submit(grant)
    done = await desk.wait(lambda: all(desk.outcome(name) is not None for name in grants), session.timeout)
    require(done, f"{PARALLEL} jobs at once", f"not all ended within {session.timeout:g} s")
    for name, sample in grants.items():
        outcome = desk.outcome(name)
        assert outcome is not None
        sent = f"a job of {session.told(sample.method, sample.request)} beside {PARALLEL - 1} others"
        got = sample.normal(session.decoded(sample.method, succeeded(outcome, sent), sent))
        alone = sample.normal(await session.ask_one(sample.method, sample.request))
        require(got == alone, sent, f"{got!r}; called directly it was {alone!r}")


@check(
    "jobs.heartbeat",
    "A job that runs gives signs of life, and ends when it is cancelled",
    proves="Its lease is renewed while it works; a cancel reaches it in about a second.",
    todo="Send heartbeats in the grant's interval; on the command `cancel` end the handler and report `stopped`.",
    needs=("jobs.polls",),
    attached=True,
)
async def heartbeat(session: Session) -> None:
    slow = slow_job(session)
    desk = session.desk
    if slow.held:
        desk.held.clear()
    try:
        grant = session.grant(slow.method.name, slow.request)
        sent = f"a job of {session.told(slow.method, slow.request)}"
        await desk.submit(grant)

        def alive() -> bool:
            kinds = [report.WhichOneof("event") for report in desk.of(grant.job)]
            return kinds.count("heartbeat") >= 2

        require(await desk.wait(alive, POLL_SECONDS), sent, f"less than two heartbeats within {POLL_SECONDS:g} s")
        command = lease_pb2.Command(
            job=grant.job, attempt=grant.attempt, fence=grant.fence, cancel=job_pb2.CANCEL_MODE_ABORT
        )
        await desk.command(command)
        await desk.wait(lambda: desk.outcome(grant.job) is not None, PROMPT_SECONDS)
        outcome = desk.outcome(grant.job)
        told = "no outcome" if outcome is None else str(outcome.WhichOneof("event"))
        require(told == "stopped", f"{sent}, cancelled", f"{told} within {PROMPT_SECONDS:g} s")
    finally:
        desk.held.set()


@check(
    "jobs.protocol",
    "Its worker keeps to the protocol of leases",
    proves="The ledger's fences mean something: no report is for what is not held, sequences rise.",
    todo="Report each attempt with the job, attempt and fence of its grant, numbered by a sequence that only rises.",
    needs=("jobs.polls",),
    attached=True,
)
async def protocol(session: Session) -> None:
    require(not session.desk.strange, "all jobs so far", "; ".join(session.desk.strange))


CHECKS = (polls, result, failure, parallel, heartbeat, protocol)
