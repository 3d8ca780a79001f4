"""Drivers that are broken in one way each, and the check that is meant for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from google.rpc import status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from onecontainer import errors
from onecontainer.api.driver.v1 import driver_pb2 as pb
from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.driver.conformance.checks.calls import GARBAGE
from onecontainer.driver.conformance.session import DRIVER_SERVICE, OTHER_SERVICE, SERVICE
from onecontainer.rpc.status import to_status
from tests.contract.conformance.proxy import Faults, Told
from tests.contract.conformance.reference import ECHO, LIMIT, TOKEN

Answer = errors.OneContainerError | status_pb2.Status | Sequence[bytes] | None
INTERNAL = errors.DriverExecutionFailed("it broke")
HEALTH = "grpc.health.v1.Health/Check"
EMPTY_ECHO = b"\x0a" + bytes([len(SERVICE)]) + SERVICE.encode()


class Fault(Faults):
    """Follows the life of the driver behind it, so that a fault can be about one part of it."""

    check: ClassVar[str]
    """The check that is meant for it."""
    inner: ClassVar[bool] = False
    """It is about what the driver's worker says."""

    def __init__(self) -> None:
        self.attached: pb.AttachRequest | None = None
        self.was_attached = False
        self.drained = False
        self.runs: set[tuple[str, int]] = set()
        """Attempts that were asked for by Run."""

    def instead(self, told: Told) -> Answer:
        answer = self.answer(told)
        if answer is None:
            self._follow(told)
        return answer

    def _follow(self, told: Told) -> None:
        if told.method == f"{DRIVER_SERVICE}/Attach":
            self._asked = pb.AttachRequest.FromString(told.first)
        elif told.method == f"{DRIVER_SERVICE}/Run":
            grant = pb.RunRequest.FromString(told.first).grant
            self.runs.add((grant.job, grant.fence))

    def responses(self, told: Told, data: bytes) -> Sequence[bytes]:
        if told.method == f"{DRIVER_SERVICE}/Attach":
            self.attached, self.was_attached = self._asked, True
        elif told.method == f"{DRIVER_SERVICE}/Detach":
            self.attached = None
        elif told.method == f"{DRIVER_SERVICE}/Drain":
            self.drained = True
        return self.changed(told, data)

    def answer(self, told: Told) -> Answer:
        """Like `instead`."""
        return None

    def changed(self, told: Told, data: bytes) -> Sequence[bytes]:
        """Like `responses`."""
        return (data,)


FAULTS: dict[str, Callable[[], Fault]] = {}
"""By a name that tells what is wrong."""


def fault(check: str, *, inner: bool = False) -> Callable[[type[Fault]], type[Fault]]:
    def add(kind: type[Fault]) -> type[Fault]:
        kind.check, kind.inner = check, inner
        FAULTS[f"{kind.__name__}-{check}"] = kind
        return kind

    return add


def edited(kind: type[Any], data: bytes, change: Callable[[Any], object]) -> Sequence[bytes]:
    message = kind.FromString(data)
    change(message)
    return (message.SerializeToString(),)


def is_driver(told: Told, method: str) -> bool:
    return told.method == f"{DRIVER_SERVICE}/{method}"


def grant_of(told: Told) -> lease_pb2.Grant:
    return pb.RunRequest.FromString(told.first).grant


def answers(method: str, answer: Answer, when: Callable[[Fault, Told], bool] = lambda _fault, _told: True) -> Any:
    """A fault class's `answer`: this answer to calls of a method."""

    def answer_of(self: Fault, told: Told) -> Answer:
        return answer if told.method == method and when(self, told) else None

    return answer_of


def info(change: Callable[[Any], object], when: Callable[[Fault], bool] = lambda _fault: True) -> Any:
    """A fault class's `changed`: another GetDriverInfo."""

    def changed(self: Fault, told: Told, data: bytes) -> Sequence[bytes]:
        wrong = is_driver(told, "GetDriverInfo") and when(self)
        return edited(pb.GetDriverInfoResponse, data, change) if wrong else (data,)

    return changed


def _rename(message: Any, path: str, value: str) -> None:
    *way, last = path.split(".")
    for name in way:
        message = getattr(message, name)
    setattr(message, last, value)


# --- who it is ---------------------------------------------------------------------------------------------------------


@fault("identity.answers")
class SilentAboutItself(Fault):
    answer = answers(f"{DRIVER_SERVICE}/GetDriverInfo", errors.MethodUnknown("no"))


@fault("identity.answers")
class AttachedAlready(Fault):
    changed = info(lambda told: _rename(told, "service", "services/mine"), lambda self: not self.was_attached)


@fault("identity.manifest")
class VersionIsNone(Fault):
    changed = info(lambda told: _rename(told, "manifest.version", "latest"))


@fault("identity.manifest")
class AppWithTag(Fault):
    changed = info(lambda told: _rename(told, "manifest.app", "echo:latest"))


@fault("identity.methods")
class ClaimsTooMuch(Fault):
    changed = info(lambda told: told.methods.append(f"{ECHO}/Nothing"))


@fault("identity.contract")
class NoContractVersion(Fault):
    changed = info(lambda told: _rename(told, "contract_version", ""))


@fault("health.serving")
class NeverServing(Fault):
    NOT = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING).SerializeToString()
    answer = answers(HEALTH, (NOT,))


@fault("health.serving")
class HealthNeedsToken(Fault):
    answer = answers(HEALTH, errors.CredentialsInvalid("no"), lambda _self, told: "authorization" not in told.metadata)


@fault("reflection.services")
class NoReflection(Fault):
    def answer(self, told: Told) -> Answer:
        return errors.MethodUnknown("no") if "ServerReflection" in told.method else None


@fault("reflection.services")
class ListsNothing(Fault):
    def changed(self, told: Told, data: bytes) -> Sequence[bytes]:
        if "ServerReflection" not in told.method:
            return (data,)
        return edited(
            reflection_pb2.ServerReflectionResponse, data, lambda one: one.list_services_response.ClearField("service")
        )


# --- before Attach -----------------------------------------------------------------------------------------------------


@fault("credentials.required")
class LetsEverybodyIn(Fault):
    def metadata(self, told: Told) -> dict[str, str]:
        return {**told.metadata, "authorization": f"Bearer {TOKEN}"}


@fault("credentials.required")
class GuardsItsServiceOnly(Fault):
    def metadata(self, told: Told) -> dict[str, str]:
        ours = told.method.startswith("onecontainer.api.driver")
        return {**told.metadata, "authorization": f"Bearer {TOKEN}"} if ours else told.metadata


def before(self: Fault, _told: Told) -> bool:
    return not self.was_attached


@fault("unattached.probe")
class StartingForNobody(Fault):
    answer = answers(f"{DRIVER_SERVICE}/Probe", (b"",), before)


@fault("unattached.calls")
class CallsBeforeAttach(Fault):
    answer = answers(
        f"{ECHO}/Echo",
        (b"",),
        lambda self, told: before(self, told) and "authorization" in told.metadata and bool(told.first),
    )


@fault("unattached.run")
class RunsBeforeAttach(Fault):
    answer = answers(f"{DRIVER_SERVICE}/Run", (), before)


@fault("unattached.detach")
class NothingToDetach(Fault):
    answer = answers(f"{DRIVER_SERVICE}/Detach", errors.NotAttached("no"), before)


@fault("methods.unclaimed")
class MissingIsBroken(Fault):
    answer = answers(f"{ECHO}/Missing", INTERNAL)


@fault("methods.unknown")
class KnowsEverything(Fault):
    answer = answers(f"{ECHO}/NoSuchMethod", (b"",))


@fault("errors.unattached")
class TwoCodes(Fault):
    def error(self, told: Told, status: status_pb2.Status) -> status_pb2.Status:
        if is_driver(told, "Probe"):
            status.code = int(errors.Code.NOT_FOUND)
        return status


# --- Attach ------------------------------------------------------------------------------------------------------------


@fault("attach.fields")
class NoFieldPaths(Fault):
    def error(self, told: Told, status: status_pb2.Status) -> status_pb2.Status:
        if is_driver(told, "Attach") and not pb.AttachRequest.FromString(told.first).service:
            del status.details[1:]
        return status


class DropsOption(Fault):
    def wrong(self, name: str, value: Any) -> bool:
        raise NotImplementedError

    def request(self, told: Told, data: bytes) -> bytes:
        if not is_driver(told, "Attach"):
            return data
        request = pb.AttachRequest.FromString(data)
        for name in [name for name, value in request.options.fields.items() if self.wrong(name, value)]:
            del request.options.fields[name]
        return request.SerializeToString()


@fault("attach.unknown-option")
class IgnoresUnknownOptions(DropsOption):
    def wrong(self, name: str, value: Any) -> bool:
        return name not in ("greeting", "broken", "mode")


@fault("attach.option-types")
class IgnoresTypes(DropsOption):
    def wrong(self, name: str, value: Any) -> bool:
        return name == "broken" and value.WhichOneof("kind") != "bool_value"


@fault("attach.option-values")
class IgnoresAllowedValues(DropsOption):
    def wrong(self, name: str, value: Any) -> bool:
        return name == "mode" and value.WhichOneof("kind") == "string_value"


@fault("attach.works")
class ForgetsItsService(Fault):
    changed = info(lambda told: _rename(told, "service", ""))


@fault("attach.again")
class AttachesOnce(Fault):
    def answer(self, told: Told) -> Answer:
        same = is_driver(told, "Attach") and self.attached == pb.AttachRequest.FromString(told.first)
        return errors.StateInvalid("attached already") if same else None


@fault("attach.other-settings")
class ChangesUnderWay(Fault):
    def answer(self, told: Told) -> Answer:
        if not is_driver(told, "Attach") or self.attached is None:
            return None
        other = pb.AttachRequest.FromString(told.first)
        return (b"",) if other != self.attached and other.service == self.attached.service else None


@fault("attach.other-service")
class ServesTwo(Fault):
    def answer(self, told: Told) -> Answer:
        if not is_driver(told, "Attach") or self.attached is None:
            return None
        return (b"",) if pb.AttachRequest.FromString(told.first).service != self.attached.service else None


@fault("probe.ready")
class NeverReady(Fault):
    answer = answers(f"{DRIVER_SERVICE}/Probe", (b"",), lambda self, _told: self.attached is not None)


@fault("detach.works")
class ProbesAfterDetach(Fault):
    answer = answers(
        f"{DRIVER_SERVICE}/Probe",
        (pb.ProbeResponse(ready=True).SerializeToString(),),
        lambda self, _told: self.was_attached and self.attached is None,
    )


@fault("detach.works")
class DetachesOnce(Fault):
    answer = answers(
        f"{DRIVER_SERVICE}/Detach",
        errors.NotAttached("no"),
        lambda self, _told: self.was_attached and self.attached is None,
    )


@fault("detach.other-service")
class OneServiceForLife(Fault):
    def answer(self, told: Told) -> Answer:
        if not is_driver(told, "Attach") or self.attached is not None:
            return None
        other = pb.AttachRequest.FromString(told.first).service == OTHER_SERVICE
        return errors.StateInvalid("it was another service's") if other else None


@fault("probe.broken")
class StartsForEver(Fault):
    def error(self, told: Told, status: status_pb2.Status) -> status_pb2.Status | Sequence[bytes]:
        broken = self.attached is not None and self.attached.options.fields["broken"].bool_value
        return (b"",) if is_driver(told, "Probe") and broken else status


@fault("probe.broken")
class WaitsForItsBackend(Fault):
    def answer(self, told: Told) -> Answer:
        if not is_driver(told, "Attach"):
            return None
        broken = pb.AttachRequest.FromString(told.first).options.fields["broken"].bool_value
        return errors.BackendUnreachable("it does not answer") if broken else None


@fault("instance.named")
class AnswersForOthers(Fault):
    def metadata(self, told: Told) -> dict[str, str]:
        return {key: value for key, value in told.metadata.items() if key != "onecontainer-instance"}


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


def attached(self: Fault, _told: Told) -> bool:
    return self.attached is not None and not self.drained


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
