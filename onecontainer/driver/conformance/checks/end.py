"""Drain: the last thing that is asked of a sidecar, for there is no way back from it."""

from __future__ import annotations

from grpc_health.v1 import health_pb2

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.driver.conformance.checks.identity import HEALTH
from onecontainer.driver.conformance.expect import refused, require
from onecontainer.driver.conformance.model import Skipped, check
from onecontainer.driver.conformance.session import PROMPT_SECONDS, SERVICE, Session
from onecontainer.driver.conformance.waiting import until
from onecontainer.errors import Code, Reason
from onecontainer.rpc.status import duration


@check(
    "drain.answers",
    "Drain answers when nothing runs, and again",
    proves="A gateway that stops a sidecar knows when it may.",
    todo="Answer as soon as running calls have ended; OK again, without effect.",
    attached=True,
)
async def drains(session: Session) -> None:
    for sent in ("Drain, with nothing running", "Drain again"):
        request = driver_pb2.DrainRequest(timeout=duration(PROMPT_SECONDS * 2))
        answer = await session.driver("Drain", request, timeout=PROMPT_SECONDS * 4)
        require(answer.ok, sent, str(answer))
        require(answer.seconds <= PROMPT_SECONDS, sent, f"it took {answer.seconds:.1f} s: something still runs")
        aborted = driver_pb2.DrainResponse.FromString(answer.message).aborted_count
        require(not aborted, sent, f"aborted_count {aborted}")


@check(
    "drain.calls",
    "After Drain calls are refused with DRAINING",
    proves="Callers go to another sidecar, and know that they may.",
    todo="Answer UNAVAILABLE / DRAINING, with RetryInfo, to every new call of the services.",
    needs=("drain.answers",),
)
async def calls(session: Session) -> None:
    for method in [method for method in session.claimed if not method.long_running]:
        answer = await session.call(method.name, method.empty(SERVICE))
        refused(answer, f"{method.short} after Drain", Code.UNAVAILABLE, Reason.DRAINING)


@check(
    "drain.run",
    "After Drain Run is refused with DRAINING",
    proves="An attempt is given back, not lost.",
    todo="Answer UNAVAILABLE / DRAINING to Run.",
    needs=("drain.answers",),
)
async def run(session: Session) -> None:
    found = [method for method in session.claimed if method.unary]
    if not found:
        raise Skipped("it has no method that can be run as a job")
    end = await session.run(session.grant(found[0].name, found[0].empty(SERVICE)))
    refused(end.answer, f"Run of {found[0].short} after Drain", Code.UNAVAILABLE, Reason.DRAINING)


@check(
    "drain.health",
    "After Drain health says NOT_SERVING",
    proves="What balances load takes it out.",
    todo="Set NOT_SERVING for every name when Drain is asked.",
    needs=("drain.answers", "health.serving"),
)
async def health(session: Session) -> None:
    async def told() -> int | None:
        answer = await session.call(HEALTH, health_pb2.HealthCheckRequest(), metadata=())
        if not answer.ok:
            return None
        state = health_pb2.HealthCheckResponse.FromString(answer.message).status
        return state if state == health_pb2.HealthCheckResponse.NOT_SERVING else None

    require(await until(told, PROMPT_SECONDS) is not None, "Health/Check after Drain", "still SERVING")


CHECKS = (drains, calls, run, health)
