"""Typed errors ⇄ ``google.rpc.Status`` ⇄ gRPC: the one place that names ``grpc.StatusCode``."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from onecontainer.errors import (
    BY_REASON,
    DOMAIN,
    BackendExecutionFailed,
    Cancelled,
    Code,
    CredentialsInvalid,
    DeadlineExceeded,
    DriverUnreachable,
    FieldViolation,
    InternalError,
    MessageTooLarge,
    MethodUnknown,
    OneContainerError,
    PermissionDenied,
    Reason,
    ResourceConflict,
    ResourceNotFound,
    StateInvalid,
)

log = logging.getLogger(__name__)

STATUS_DETAILS_KEY = "grpc-status-details-bin"
MAX_STATUS_BYTES = 6 * 1024
"""Bound of a serialised status: HTTP/2 trailers over 8 KiB are dropped by peers, and the status with them."""
MAX_MESSAGE_CHARS = 2048

GRPC_CODES: dict[Code, grpc.StatusCode] = {Code(code.value[0]): code for code in grpc.StatusCode}

_CODE_CLASSES: dict[Code, type[OneContainerError]] = {
    Code.CANCELLED: Cancelled,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.NOT_FOUND: ResourceNotFound,
    Code.ALREADY_EXISTS: ResourceConflict,
    Code.PERMISSION_DENIED: PermissionDenied,
    Code.RESOURCE_EXHAUSTED: MessageTooLarge,
    Code.FAILED_PRECONDITION: StateInvalid,
    Code.UNIMPLEMENTED: MethodUnknown,
    Code.UNAVAILABLE: DriverUnreachable,
    Code.UNAUTHENTICATED: CredentialsInvalid,
}


def to_status(
    error: BaseException, *, hop: str = "gateway", metadata: dict[str, str] | None = None
) -> status_pb2.Status:
    """The status of an error, at most MAX_STATUS_BYTES when serialised.

    ``metadata`` is added where the error does not have the key. An error that is not of our tree becomes INTERNAL with a
    reference under which it is in the log; its text does not leave the process.
    """
    if not isinstance(error, OneContainerError):
        error = _unforeseen(error)
    info = error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN)
    info.metadata["hop"] = error.hop or hop
    if error.legacy_code is not None:
        info.metadata["legacy_code"] = str(error.legacy_code)
    for source in (error.metadata, metadata or {}):
        for key, value in source.items():
            if key not in info.metadata:
                info.metadata[key] = value[:512]
    details: list[Message] = [info]
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(max(0, int(error.retry_after * 1e9)))
        details.append(retry)
    if error.resource is not None:
        details.append(
            error_details_pb2.ResourceInfo(resource_type=error.resource[0], resource_name=error.resource[1][:512])
        )
    if error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=v.field[:512], description=v.description[:512])
                    for v in error.violations
                ]
            )
        )
    status = status_pb2.Status(code=int(error.code), message=error.message[:MAX_MESSAGE_CHARS])
    for detail in details:
        status.details.add().Pack(detail)
    return bounded(status)


def bounded(status: status_pb2.Status) -> status_pb2.Status:
    """The same status if it is within MAX_STATUS_BYTES, else one with fewer violations, then without details but the first."""
    if status.ByteSize() <= MAX_STATUS_BYTES:
        return status
    small = status_pb2.Status(code=status.code, message=status.message[:1024])
    for detail in status.details:
        room = MAX_STATUS_BYTES - small.ByteSize() - 64
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            total = len(bad.field_violations)
            while bad.field_violations and bad.ByteSize() > room - 128:
                del bad.field_violations[len(bad.field_violations) // 2 :]
            left_out = total - len(bad.field_violations)
            if left_out:
                bad.field_violations.add(field="", description=f"and {left_out} more")
            packed = any_pb2.Any()
            packed.Pack(bad)
            small.details.append(packed)
        elif detail.ByteSize() <= room:
            small.details.append(detail)
    return small


def _unforeseen(error: BaseException) -> InternalError:
    reference = uuid.uuid4().hex[:12]
    log.error("unforeseen error, reference %s", reference, exc_info=error)
    return InternalError(
        f"an unforeseen error; the log has it under the reference {reference}", metadata={"log_reference": reference}
    )


def from_status(status: status_pb2.Status) -> OneContainerError:
    """The typed error of a status; one without an ErrorInfo of our domain gets the class that fits its code best."""
    code = Code(status.code) if 0 <= status.code <= 16 else Code.UNKNOWN
    metadata: dict[str, str] = {}
    violations: list[FieldViolation] = []
    retry_after: float | None = None
    resource: tuple[str, str] | None = None
    cls: type[OneContainerError] | None = None
    for detail in status.details:
        for kind in (
            error_details_pb2.ErrorInfo,
            error_details_pb2.BadRequest,
            error_details_pb2.RetryInfo,
            error_details_pb2.ResourceInfo,
        ):
            if not detail.Is(kind.DESCRIPTOR):
                continue
            found = kind()
            try:
                detail.Unpack(found)
            except DecodeError:
                continue
            if isinstance(found, error_details_pb2.ErrorInfo):
                metadata.update(found.metadata)
                if found.domain == DOMAIN and found.reason in Reason.__members__:
                    cls = BY_REASON[Reason(found.reason)]
            elif isinstance(found, error_details_pb2.BadRequest):
                violations += [FieldViolation(v.field, v.description) for v in found.field_violations]
            elif isinstance(found, error_details_pb2.RetryInfo):
                retry_after = found.retry_delay.ToNanoseconds() / 1e9
            else:
                resource = (found.resource_type, found.resource_name)
    if cls is None:
        cls = _CODE_CLASSES.get(code, BackendExecutionFailed)
    error = cls.__new__(cls)
    OneContainerError.__init__(
        error,
        status.message,
        metadata=metadata,
        violations=violations,
        retry_after=retry_after,
        resource=resource,
        hop=metadata.get("hop"),
        code=code,
    )
    return error


def status_of(error: grpc.RpcError) -> status_pb2.Status:
    """The status that a failed call ended with; built from code and text if the peer sent no details."""
    rich = details_of(error.trailing_metadata() or ()) if hasattr(error, "trailing_metadata") else None
    if rich is not None:
        return rich
    code = error.code() if callable(getattr(error, "code", None)) else grpc.StatusCode.UNKNOWN
    text = error.details() if callable(getattr(error, "details", None)) else str(error)
    return status_pb2.Status(code=code.value[0], message=text or code.name)


def details_of(trailing: Iterable[Any]) -> status_pb2.Status | None:
    """The rich status in trailing metadata, if there is one that decodes."""
    for key, value in trailing:
        if key == STATUS_DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
            except DecodeError:
                return None
    return None


def from_rpc_error(error: grpc.RpcError) -> OneContainerError:
    """The typed error of a failed call."""
    return from_status(status_of(error))


def trailers(status: status_pb2.Status) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata that carries a status."""
    return ((STATUS_DETAILS_KEY, status.SerializeToString()),)


async def abort_with_status(context: grpc.aio.ServicerContext[Any, Any], status: status_pb2.Status) -> NoReturn:
    """Ends the call with this status."""
    code = GRPC_CODES[Code(status.code)] if 0 < status.code <= 16 else grpc.StatusCode.UNKNOWN
    await context.abort(code, status.message, trailers(status))
    raise AssertionError("abort returned")


async def abort(
    context: grpc.aio.ServicerContext[Any, Any],
    error: BaseException,
    *,
    hop: str = "gateway",
    metadata: dict[str, str] | None = None,
) -> NoReturn:
    """Ends the call with this error."""
    await abort_with_status(context, to_status(error, hop=hop, metadata=metadata))


def duration(seconds: float) -> duration_pb2.Duration:
    """Seconds as a Duration."""
    result = duration_pb2.Duration()
    result.FromNanoseconds(int(seconds * 1e9))
    return result
