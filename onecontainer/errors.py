"""The one error tree of oneContainer.

Raise these; ``onecontainer.rpc.status`` is the one place that translates them to ``google.rpc.Status`` and back. A class
stands for one reason of ``protos/onecontainer/api/error/v1/reason.proto`` (a contract test compares the two), and a reason has one
gRPC code, except BACKEND_EXECUTION_FAILED, whose code is mapped from the backend's own answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

if TYPE_CHECKING:
    from google.protobuf.message import Message

M = TypeVar("M", bound="Message")

DOMAIN = "onecontainer.dev"
MAX_DETAILS_BYTES = 240 * 1024
"""What `with_details` has room for in the error of a job; beside it there are the common details of an error."""


class Code(IntEnum):
    """Canonical RPC codes, numbered as in ``google.rpc.Code``."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Reason(StrEnum):
    """Reasons, named as in ``error.v1.Reason`` without its prefix."""

    RESOURCE_CONFLICT = "RESOURCE_CONFLICT"
    RESOURCE_NOT_FOUND = "RESOURCE_NOT_FOUND"
    FIELD_REQUIRED = "FIELD_REQUIRED"
    FIELD_INVALID = "FIELD_INVALID"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    RESOURCE_IN_USE = "RESOURCE_IN_USE"
    STATE_INVALID = "STATE_INVALID"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"
    DATA_CORRUPT = "DATA_CORRUPT"
    CREDENTIALS_INVALID = "CREDENTIALS_INVALID"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    DRIVER_NOT_AVAILABLE = "DRIVER_NOT_AVAILABLE"
    DRIVER_UNREACHABLE = "DRIVER_UNREACHABLE"
    DRIVER_EXECUTION_FAILED = "DRIVER_EXECUTION_FAILED"
    DRIVER_MISIMPLEMENTED = "DRIVER_MISIMPLEMENTED"
    CAPABILITY_MISSING = "CAPABILITY_MISSING"
    METHOD_UNKNOWN = "METHOD_UNKNOWN"
    NEEDS_GATEWAY = "NEEDS_GATEWAY"
    WRONG_INSTANCE = "WRONG_INSTANCE"
    NOT_ATTACHED = "NOT_ATTACHED"
    DRAINING = "DRAINING"
    QUEUE_UNREACHABLE = "QUEUE_UNREACHABLE"
    QUEUE_CALL_FAILED = "QUEUE_CALL_FAILED"
    QUEUE_JOB_FAILED = "QUEUE_JOB_FAILED"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    LEASE_LOST = "LEASE_LOST"
    QUEUE_TIMEOUT = "QUEUE_TIMEOUT"
    TOTAL_TIMEOUT = "TOTAL_TIMEOUT"
    ATTEMPT_TIMEOUT = "ATTEMPT_TIMEOUT"
    STALLED = "STALLED"
    CANCELLED = "CANCELLED"
    NOT_FINISHABLE = "NOT_FINISHABLE"
    RECORD_INVALID = "RECORD_INVALID"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    RESULT_EXPIRED = "RESULT_EXPIRED"
    DATA_INVALID = "DATA_INVALID"
    BACKEND_EXECUTION_FAILED = "BACKEND_EXECUTION_FAILED"
    BACKEND_UNREACHABLE = "BACKEND_UNREACHABLE"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    MODEL_NOT_READY = "MODEL_NOT_READY"
    SOURCE_NOT_ALLOWED = "SOURCE_NOT_ALLOWED"
    BACKEND_CAPABILITY_MISSING = "BACKEND_CAPABILITY_MISSING"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: its full path (``outputs[0].channels[1].codec``) and what is wrong with it."""

    field: str
    description: str


class OneContainerError(Exception):
    """Root of all errors that oneContainer raises on purpose.

    Attributes:
        message: for a person; says what to do next.
        metadata: facts for programs, of the ErrorInfo.
        violations: wrong fields, of the BadRequest.
        retry_after: seconds to wait before the same call may succeed, of the RetryInfo. None: do not retry on its account.
        resource: (type, name) of the ResourceInfo.
        hop: where it arose: ``gateway``, ``sidecar`` or ``backend``. None: the translator's own hop is filled in.
        code: gRPC code.
        details: messages of the method's own, each as it is or in an Any; see `detail`.
        kept_artifacts: `artifacts/{artifact}` of the attempt that stay if the job fails by this error.
    """

    reason: ClassVar[Reason] = Reason.INTERNAL
    default_code: ClassVar[Code] = Code.INTERNAL
    legacy_code: ClassVar[int | None] = None

    def __init__(
        self,
        message: str = "",
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[FieldViolation] = (),
        retry_after: float | None = None,
        resource: tuple[str, str] | None = None,
        hop: str | None = None,
        code: Code | None = None,
    ) -> None:
        self.message = message or self.reason.value.replace("_", " ").capitalize()
        self.metadata: dict[str, str] = dict(metadata or {})
        self.violations: tuple[FieldViolation, ...] = tuple(violations)
        self.retry_after = retry_after
        self.resource = resource
        self.hop = hop
        self.code = self.default_code if code is None else code
        self.details: tuple[Message, ...] = ()
        self.kept_artifacts: tuple[str, ...] = ()
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    def with_details(self, *details: Message, kept_artifacts: Iterable[str] = ()) -> Self:
        """The same error, which tells what there is nevertheless.

        Args:
            details: go into `Job.error`, which has room for some 250 KiB, or a direct call's status: 4 KiB. What does not fit is left out.
            kept_artifacts: names of artifacts that this attempt has put. If the job is FAILED by this error, or was
                cancelled with mode FINISH, they stay, as long as a result would; if it is tried again they go, as all others.

        Raises TypeError for a name that is no `artifacts/{artifact}`.
        """
        names = tuple(kept_artifacts)
        if wrong := [name for name in names if not str(name).startswith("artifacts/")]:
            raise TypeError(f"{wrong[0]!r} is no name of an artifact")
        self.details = (*self.details, *details)
        self.kept_artifacts = (*self.kept_artifacts, *names)
        return self

    def detail(self, kind: type[M]) -> M | None:
        """The first of `details` of this type; None if there is none that decodes."""
        from google.protobuf.any_pb2 import Any
        from google.protobuf.message import DecodeError

        for found in self.details:
            if isinstance(found, kind):
                return found
            # Not Any.Is: its type and that of other pools do not go together.
            if isinstance(found, Any) and found.TypeName() == kind.DESCRIPTOR.full_name:
                try:
                    return kind.FromString(found.value)
                except DecodeError:
                    continue
        return None


class ResourceConflict(OneContainerError):
    reason, default_code, legacy_code = Reason.RESOURCE_CONFLICT, Code.ALREADY_EXISTS, 100


class ResourceNotFound(OneContainerError):
    reason, default_code, legacy_code = Reason.RESOURCE_NOT_FOUND, Code.NOT_FOUND, 101


class _FieldError(OneContainerError):
    """An error about one field or several; each has its full path."""

    def __init__(
        self,
        field: str = "",
        description: str = "",
        *,
        message: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[FieldViolation] = (),
        retry_after: float | None = None,
        resource: tuple[str, str] | None = None,
        hop: str | None = None,
        code: Code | None = None,
    ) -> None:
        found = tuple(violations) or (FieldViolation(field, description or self.default_description),)
        super().__init__(
            message or "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in found),
            metadata=metadata,
            violations=found,
            retry_after=retry_after,
            resource=resource,
            hop=hop,
            code=code,
        )

    default_description: ClassVar[str] = "is not valid"


class FieldRequired(_FieldError):
    reason, default_code, legacy_code = Reason.FIELD_REQUIRED, Code.INVALID_ARGUMENT, 102
    default_description = "is required"


class FieldInvalid(_FieldError):
    reason, default_code = Reason.FIELD_INVALID, Code.INVALID_ARGUMENT


class DataInvalid(_FieldError):
    reason, default_code, legacy_code = Reason.DATA_INVALID, Code.INVALID_ARGUMENT, 207


class EtagMismatch(OneContainerError):
    reason, default_code, legacy_code = Reason.ETAG_MISMATCH, Code.ABORTED, 100


class RequestIdReused(OneContainerError):
    reason, default_code = Reason.REQUEST_ID_REUSED, Code.ALREADY_EXISTS


class ResourceInUse(OneContainerError):
    reason, default_code = Reason.RESOURCE_IN_USE, Code.FAILED_PRECONDITION


class StateInvalid(OneContainerError):
    reason, default_code = Reason.STATE_INVALID, Code.FAILED_PRECONDITION


class MessageTooLarge(OneContainerError):
    reason, default_code = Reason.MESSAGE_TOO_LARGE, Code.RESOURCE_EXHAUSTED


class LimitExceeded(OneContainerError):
    reason, default_code = Reason.LIMIT_EXCEEDED, Code.RESOURCE_EXHAUSTED


class DataCorrupt(OneContainerError):
    reason, default_code = Reason.DATA_CORRUPT, Code.DATA_LOSS


class CredentialsInvalid(OneContainerError):
    reason, default_code = Reason.CREDENTIALS_INVALID, Code.UNAUTHENTICATED


class PermissionDenied(OneContainerError):
    reason, default_code = Reason.PERMISSION_DENIED, Code.PERMISSION_DENIED


class DriverNotAvailable(OneContainerError):
    reason, default_code, legacy_code = Reason.DRIVER_NOT_AVAILABLE, Code.FAILED_PRECONDITION, 200


class DriverUnreachable(OneContainerError):
    reason, default_code, legacy_code = Reason.DRIVER_UNREACHABLE, Code.UNAVAILABLE, 201


class DriverExecutionFailed(OneContainerError):
    reason, default_code, legacy_code = Reason.DRIVER_EXECUTION_FAILED, Code.INTERNAL, 202


class DriverMisimplemented(OneContainerError):
    reason, default_code, legacy_code = Reason.DRIVER_MISIMPLEMENTED, Code.INTERNAL, 203


class CapabilityMissing(OneContainerError):
    reason, default_code = Reason.CAPABILITY_MISSING, Code.UNIMPLEMENTED


class MethodUnknown(OneContainerError):
    reason, default_code = Reason.METHOD_UNKNOWN, Code.UNIMPLEMENTED


class NeedsGateway(OneContainerError):
    reason, default_code = Reason.NEEDS_GATEWAY, Code.FAILED_PRECONDITION


class WrongInstance(OneContainerError):
    reason, default_code = Reason.WRONG_INSTANCE, Code.FAILED_PRECONDITION


class NotAttached(OneContainerError):
    reason, default_code = Reason.NOT_ATTACHED, Code.FAILED_PRECONDITION


class Draining(OneContainerError):
    reason, default_code = Reason.DRAINING, Code.UNAVAILABLE


class QueueUnreachable(OneContainerError):
    reason, default_code, legacy_code = Reason.QUEUE_UNREACHABLE, Code.UNAVAILABLE, 204


class QueueCallFailed(OneContainerError):
    reason, default_code, legacy_code = Reason.QUEUE_CALL_FAILED, Code.INTERNAL, 205


class QueueJobFailed(OneContainerError):
    reason, default_code, legacy_code = Reason.QUEUE_JOB_FAILED, Code.INTERNAL, 206


class OutcomeUnknown(OneContainerError):
    reason, default_code = Reason.OUTCOME_UNKNOWN, Code.ABORTED


class LeaseLost(OneContainerError):
    reason, default_code = Reason.LEASE_LOST, Code.ABORTED


class DeadlineExceeded(OneContainerError):
    reason, default_code = Reason.DEADLINE_EXCEEDED, Code.DEADLINE_EXCEEDED


class QueueTimeout(OneContainerError):
    reason, default_code = Reason.QUEUE_TIMEOUT, Code.DEADLINE_EXCEEDED


class TotalTimeout(OneContainerError):
    reason, default_code = Reason.TOTAL_TIMEOUT, Code.DEADLINE_EXCEEDED


class AttemptTimeout(OneContainerError):
    reason, default_code = Reason.ATTEMPT_TIMEOUT, Code.DEADLINE_EXCEEDED


class Stalled(OneContainerError):
    reason, default_code = Reason.STALLED, Code.DEADLINE_EXCEEDED


class Cancelled(OneContainerError):
    reason, default_code = Reason.CANCELLED, Code.CANCELLED


class NotFinishable(OneContainerError):
    reason, default_code = Reason.NOT_FINISHABLE, Code.FAILED_PRECONDITION


class RecordInvalid(OneContainerError):
    reason, default_code = Reason.RECORD_INVALID, Code.INVALID_ARGUMENT


class ResultExpired(OneContainerError):
    reason, default_code = Reason.RESULT_EXPIRED, Code.NOT_FOUND


class BackendExecutionFailed(OneContainerError):
    """The backend's own error; pass the ``code`` that its answer maps to (default UNKNOWN)."""

    reason, default_code, legacy_code = Reason.BACKEND_EXECUTION_FAILED, Code.UNKNOWN, 208


class BackendUnreachable(OneContainerError):
    reason, default_code = Reason.BACKEND_UNREACHABLE, Code.UNAVAILABLE


class ModelNotFound(OneContainerError):
    reason, default_code = Reason.MODEL_NOT_FOUND, Code.NOT_FOUND


class ModelNotReady(OneContainerError):
    reason, default_code = Reason.MODEL_NOT_READY, Code.FAILED_PRECONDITION


class SourceNotAllowed(_FieldError):
    reason, default_code = Reason.SOURCE_NOT_ALLOWED, Code.PERMISSION_DENIED
    default_description = "is not on the allow-list"


class BackendCapabilityMissing(_FieldError):
    reason, default_code = Reason.BACKEND_CAPABILITY_MISSING, Code.FAILED_PRECONDITION
    default_description = "is beyond this backend"


class InternalError(OneContainerError):
    reason, default_code = Reason.INTERNAL, Code.INTERNAL


def _tree(root: type[OneContainerError]) -> Iterable[type[OneContainerError]]:
    for child in root.__subclasses__():
        if not child.__name__.startswith("_"):
            yield child
        yield from _tree(child)


BY_REASON: Mapping[Reason, type[OneContainerError]] = {cls.reason: cls for cls in _tree(OneContainerError)}
"""The class of each reason."""
