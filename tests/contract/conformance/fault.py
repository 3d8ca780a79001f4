"""A driver that is broken in one way: what all faults have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from google.rpc import status_pb2

from onecontainer import errors
from onecontainer.api.driver.v1 import driver_pb2 as pb
from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.driver.conformance.session import DRIVER_SERVICE, SERVICE
from tests.contract.conformance.proxy import Faults, Told

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


def rename(message: Any, path: str, value: str) -> None:
    *way, last = path.split(".")
    for name in way:
        message = getattr(message, name)
    setattr(message, last, value)


def attached(self: Fault, _told: Told) -> bool:
    return self.attached is not None and not self.drained
