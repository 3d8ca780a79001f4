"""Broken drivers: who they say they are, and how they are attached and let go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.rpc import status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from onecontainer import errors
from onecontainer.api.driver.v1 import driver_pb2 as pb
from onecontainer.driver.conformance.session import DRIVER_SERVICE, OTHER_SERVICE
from tests.contract.conformance.fault import (
    HEALTH,
    INTERNAL,
    Answer,
    Fault,
    answers,
    edited,
    fault,
    info,
    is_driver,
    rename,
)
from tests.contract.conformance.proxy import Told
from tests.contract.conformance.reference import ECHO, TOKEN

# --- who it is ---------------------------------------------------------------------------------------------------------


@fault("identity.answers")
class SilentAboutItself(Fault):
    answer = answers(f"{DRIVER_SERVICE}/GetDriverInfo", errors.MethodUnknown("no"))


@fault("identity.answers")
class AttachedAlready(Fault):
    changed = info(lambda told: rename(told, "service", "services/mine"), lambda self: not self.was_attached)


@fault("identity.manifest")
class VersionIsNone(Fault):
    changed = info(lambda told: rename(told, "manifest.version", "latest"))


@fault("identity.manifest")
class AppWithTag(Fault):
    changed = info(lambda told: rename(told, "manifest.app", "echo:latest"))


@fault("identity.methods")
class ClaimsTooMuch(Fault):
    changed = info(lambda told: told.methods.append(f"{ECHO}/Nothing"))


@fault("identity.contract")
class NoContractVersion(Fault):
    changed = info(lambda told: rename(told, "contract_version", ""))


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
    changed = info(lambda told: rename(told, "service", ""))


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
