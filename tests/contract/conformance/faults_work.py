"""Broken drivers: calls, attempts, jobs, and the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from google.rpc import status_pb2
from grpc_health.v1 import health_pb2

from onecontainer import errors
from onecontainer.api.driver.v1 import driver_pb2 as pb
from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.driver.conformance.checks.calls import GARBAGE
from onecontainer.driver.conformance.session import DRIVER_SERVICE
from onecontainer.rpc.status import to_status
from tests.contract.conformance.fault import (
    EMPTY_ECHO,
    HEALTH,
    INTERNAL,
    Answer,
    Fault,
    answers,
    attached,
    edited,
    fault,
    grant_of,
    is_driver,
)
from tests.contract.conformance.proxy import Told
from tests.contract.conformance.reference import ECHO, LIMIT

# --- calls -------------------------------------------------------------------------------------------------------------


@fault("works.EchoService.Echo")
class Mishears(Fault):
    def changed(self, told: Told, data: bytes) -> Sequence[bytes]:
        return (data.replace(b"bb", b"bc"),) if told.method == f"{ECHO}/Echo" else (data,)


@fault("works.EchoService.Down")
class BreaksOff(Fault):
    answer = answers(
        f"{ECHO}/Down", INTERNAL, lambda self, told: self.attached is not None and b"a" in told.first[len(EMPTY_ECHO) :]
    )


@fault("errors.garbage")
class GarbageIsInternal(Fault):
    answer = answers(f"{ECHO}/EchoOnce", INTERNAL, lambda _self, told: told.first == GARBAGE)


@fault("errors.typed")
class EmptyIsInternal(Fault):
    answer = answers(f"{ECHO}/Echo", INTERNAL, lambda self, told: attached(self, told) and told.first == EMPTY_ECHO)


@fault("errors.typed")
class SaysNothingOfWhy(Fault):
    def answer(self, told: Told) -> Answer:
        empty = told.method == f"{ECHO}/Echo" and told.first == EMPTY_ECHO and attached(self, told)
        return errors.DataInvalid("payload", "x") if empty else None

    def instead(self, told: Told) -> Answer:
        answer = super().instead(told)
        if isinstance(answer, errors.DataInvalid):
            answer.violations = ()
        return answer


@fault("errors.bounded")
class RepeatsEverything(Fault):
    def answer(self, told: Told) -> Answer:
        if told.method != f"{ECHO}/Echo" or not 5000 < len(told.first) < 50_000:
            return None
        status = to_status(errors.DataInvalid("payload", "is too long"), hop="sidecar")
        status.message = "x" * 9000
        return status


@fault("limits.message")
class TakesEverything(Fault):
    answer = answers(f"{ECHO}/Echo", (b"",), lambda _self, told: len(told.first) > LIMIT)


@fault("limits.run")
class RunTakesLess(Fault):
    answer = answers(f"{DRIVER_SERVICE}/Run", errors.MessageTooLarge("no"), lambda _self, told: len(told.first) > LIMIT)


@fault("concurrency.answers")
class MixesCallersUp(Fault):
    PAYLOAD = EMPTY_ECHO + b"\x1a"

    def __init__(self) -> None:
        super().__init__()
        self._under_way: list[bytes] = []
        """Payloads that were asked for and not answered, with their length before them."""

    def _payload(self, told: Told) -> bytes:
        asked = told.method == f"{ECHO}/Echo" and told.first.startswith(self.PAYLOAD) and len(told.first) < 100
        return told.first[len(self.PAYLOAD) :] if asked else b""

    def answer(self, told: Told) -> Answer:
        if payload := self._payload(told):
            self._under_way.append(payload)
        return None

    def changed(self, told: Told, data: bytes) -> Sequence[bytes]:
        payload = self._payload(told)
        if not payload:
            return (data,)
        self._under_way.remove(payload)
        others = [one for one in self._under_way if one != payload]
        return (b"\x0a" + others[0],) if others else (data,)


def run_of(told: Told, method: str) -> bool:
    return is_driver(told, "Run") and grant_of(told).method == f"{ECHO}/{method}"


def run_events(method: str, change: Callable[[pb.RunResponse], Sequence[pb.RunResponse]]) -> Any:
    """A fault class's `changed`: other events of a method's Run."""

    def changed(self: Fault, told: Told, data: bytes) -> Sequence[bytes]:
        if not (run_of(told, method) if method else is_driver(told, "Run")):
            return (data,)
        return [event.SerializeToString() for event in change(pb.RunResponse.FromString(data))]

    return changed


def _with_result(event: pb.RunResponse, change: Callable[[bytes], bytes]) -> Sequence[pb.RunResponse]:
    if event.WhichOneof("event") == "succeeded":
        event.succeeded.result = change(event.succeeded.result)
    return (event,)


@fault("transports.same")
class JobsAreOtherwise(Fault):
    changed = run_events("Echo", lambda event: _with_result(event, lambda result: result + b"\x0a\x01z"))


@fault("long.direct")
class HoldsTheConnection(Fault):
    answer = answers(f"{ECHO}/Work", (b"",), attached)


@fault("cancel.calls")
class NeverLetsGo(Fault):
    def lives_on(self, told: Told, *, late: bool) -> bool:
        return not late and told.method.startswith(ECHO)


@fault("deadline.calls")
class IgnoresDeadlines(Fault):
    def lives_on(self, told: Told, *, late: bool) -> bool:
        return late and told.method.startswith(ECHO)


# --- Run ---------------------------------------------------------------------------------------------------------------


@fault("run.garbage")
class GarbageRuns(Fault):
    FAILED = pb.RunResponse(failed=to_status(INTERNAL, hop="sidecar")).SerializeToString()
    answer = answers(f"{DRIVER_SERVICE}/Run", (FAILED,), lambda _self, told: grant_of(told).request == GARBAGE)


NOT_THERE = (f"{ECHO}/Missing", "onecontainer.conformance.Nothing/Nothing")


@fault("run.missing")
class RunOfNothing(Fault):
    answer = answers(f"{DRIVER_SERVICE}/Run", INTERNAL, lambda _self, told: grant_of(told).method in NOT_THERE)


@fault("run.events")
class EndsTwice(Fault):
    changed = run_events("", lambda event: (event, event) if event.WhichOneof("event") == "succeeded" else (event,))


@fault("run.events")
class GoesOnAfterTheEnd(Fault):
    MORE = pb.RunResponse(started=lease_pb2.Started())
    changed = run_events(
        "Work", lambda event: (event, GoesOnAfterTheEnd.MORE) if event.WhichOneof("event") == "succeeded" else (event,)
    )


def _without_reason(event: pb.RunResponse) -> Sequence[pb.RunResponse]:
    if event.WhichOneof("event") == "failed":
        del event.failed.details[:]
    return (event,)


@fault("run.failure")
class FailsWithoutReason(Fault):
    changed = run_events("Echo", _without_reason)


@fault("run.result")
class OtherMessage(Fault):
    changed = run_events("WorkOnce", lambda event: _with_result(event, lambda result: result + b"\x9a\x06\x01z"))


def _back(event: pb.RunResponse) -> Sequence[pb.RunResponse]:
    if event.WhichOneof("event") != "succeeded":
        return (event,)
    steps = [pb.RunResponse(), pb.RunResponse()]
    steps[0].progress.done, steps[1].progress.done = 2, 1
    return (*steps, event)


@fault("run.progress")
class GoesBack(Fault):
    changed = run_events("WorkOnce", _back)


@fault("run.duplicate")
class RunsTwice(Fault):
    def error(self, told: Told, status: status_pb2.Status) -> status_pb2.Status:
        if is_driver(told, "Run") and status.code == int(errors.Code.ALREADY_EXISTS):
            return to_status(errors.StateInvalid("no"), hop="sidecar")
        return status


@fault("run.cancelled")
class RunsOn(Fault):
    def lives_on(self, told: Told, *, late: bool) -> bool:
        return is_driver(told, "Run")


def stop_of(told: Told) -> pb.StopRunRequest:
    return pb.StopRunRequest.FromString(told.first)


FOUND = pb.StopRunResponse(found=True).SerializeToString()


class SaysItStops(Fault):
    mode: ClassVar[job_pb2.CancelMode.ValueType]

    def answer(self, told: Told) -> Answer:
        if not is_driver(told, "StopRun"):
            return None
        stop = stop_of(told)
        key = (stop.job, stop.fence)
        if stop.mode == self.mode and key in self.runs:
            self.runs.discard(key)  # said once: the kit asks until it is gone
            return (FOUND,)
        return None


@fault("run.abort")
class OnlySaysItStops(SaysItStops):
    mode = job_pb2.CANCEL_MODE_ABORT


@fault("run.finish")
class OnlySaysItFinishes(SaysItStops):
    mode = job_pb2.CANCEL_MODE_FINISH


@fault("run.stop-missing")
class NothingToStop(Fault):
    answer = answers(
        f"{DRIVER_SERVICE}/StopRun",
        errors.ResourceNotFound("no"),
        lambda self, told: (stop_of(told).job, stop_of(told).fence) not in self.runs,
    )


# --- jobs --------------------------------------------------------------------------------------------------------------


@fault("jobs.polls")
class NeverPolls(Fault):
    def request(self, told: Told, data: bytes) -> bytes:
        if not is_driver(told, "Attach"):
            return data
        request = pb.AttachRequest.FromString(data)
        request.job_source.ClearField("dispatch")
        return request.SerializeToString()


class Reports(Fault):
    """Changes what the worker reports."""

    def report(self, report: lease_pb2.Report) -> bool:
        """Changes it; False: it is not sent."""
        raise NotImplementedError

    def request(self, told: Told, data: bytes) -> bytes:
        if not told.method.endswith("/ReportJobs"):
            return data
        request = lease_pb2.ReportJobsRequest.FromString(data)
        kept = [report for report in request.reports if self.report(report)]
        return lease_pb2.ReportJobsRequest(reports=kept).SerializeToString()


@fault("jobs.result", inner=True)
class ReportsSomethingElse(Reports):
    def report(self, report: lease_pb2.Report) -> bool:
        if report.WhichOneof("event") == "succeeded":
            report.succeeded.result += b"\x0a\x01z"
        return True


@fault("jobs.failure", inner=True)
class ReportsNoReason(Reports):
    def report(self, report: lease_pb2.Report) -> bool:
        if report.WhichOneof("event") == "failed":
            del report.failed.details[:]
        return True


@fault("jobs.parallel", inner=True)
class MixesJobsUp(Reports):
    def __init__(self) -> None:
        super().__init__()
        self._results: list[bytes] = []

    def report(self, report: lease_pb2.Report) -> bool:
        if report.WhichOneof("event") == "succeeded":
            self._results.append(report.succeeded.result)
            if len(self._results) > 4:  # behind the jobs that come one by one
                report.succeeded.result = self._results[-2]
        return True


@fault("jobs.heartbeat", inner=True)
class NoSignOfLife(Reports):
    def report(self, report: lease_pb2.Report) -> bool:
        return report.WhichOneof("event") != "heartbeat"


@fault("jobs.heartbeat", inner=True)
class DeafToCommands(Fault):
    def changed(self, told: Told, data: bytes) -> Sequence[bytes]:
        if not told.method.endswith("/ReportJobs"):
            return (data,)
        return edited(lease_pb2.ReportJobsResponse, data, lambda one: one.ClearField("commands"))


@fault("jobs.protocol", inner=True)
class CountsWrong(Reports):
    def report(self, report: lease_pb2.Report) -> bool:
        report.attempt += 1
        return True


# --- the end -----------------------------------------------------------------------------------------------------------


@fault("drain.answers")
class DrainsOnce(Fault):
    answer = answers(f"{DRIVER_SERVICE}/Drain", errors.StateInvalid("no"), lambda self, _told: self.drained)


def drained(self: Fault, _told: Told) -> bool:
    return self.drained


@fault("drain.calls")
class AnswersWhileDraining(Fault):
    answer = answers(f"{ECHO}/Echo", (b"",), drained)


@fault("drain.run")
class RunsWhileDraining(Fault):
    answer = answers(f"{DRIVER_SERVICE}/Run", errors.StateInvalid("no"), drained)


@fault("drain.health")
class HealthyWhileDraining(Fault):
    WELL = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()
    answer = answers(HEALTH, (WELL,), drained)
