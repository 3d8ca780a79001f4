"""Typed errors ⇄ ``google.rpc.Status`` ⇄ gRPC: the one place that names ``grpc.StatusCode``."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable
from typing import Any, NoReturn
from urllib.parse import quote

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
from onecontainer.rpc.texts import sendable

log = logging.getLogger(__name__)

MAX_RETRY_SECONDS = 86400.0

STATUS_DETAILS_KEY = "grpc-status-details-bin"
MAX_STATUS_BYTES = 5 * 1024
"""Bound of a serialised status: peers drop HTTP/2 trailers over 8 KiB, and the status with them, and there it is base64."""
MAX_JOB_STATUS_BYTES = 256 * 1024
"""Bound of the status that a job keeps as its error: that is no trailer, and has room for a message of the method's own."""
MAX_MESSAGE_BYTES = 2048
MAX_INFO_BYTES = 2048
"""Bound of the ErrorInfo where a status is too large: the fields that are wrong are to have room too."""
MAX_GRPC_MESSAGE_BYTES = 768
"""Bound of the text beside the status, percent-encoded; the status has it in full."""

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
    error: BaseException,
    *,
    hop: str = "gateway",
    metadata: dict[str, str] | None = None,
    most: int = MAX_STATUS_BYTES,
) -> status_pb2.Status:
    """The status of an error, at most ``most`` bytes when serialised.

    ``metadata`` is added where the error does not have the key. An error that is not of our tree becomes INTERNAL with a
    reference under which it is in the log; its text does not leave the process. Texts are made sendable: a driver says what it
    likes.
    """
    if not isinstance(error, OneContainerError):
        error = _unforeseen(error)
    info = error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN)
    info.metadata["hop"] = sendable(error.hop or hop)
    if error.legacy_code is not None:
        info.metadata["legacy_code"] = str(error.legacy_code)
    for source in (error.metadata, metadata or {}):
        for key, value in source.items():
            name = sendable(key)
            if name not in info.metadata:
                info.metadata[name] = sendable(value)[:512]
    details: list[Message] = [info]
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(max(0.0, min(error.retry_after, MAX_RETRY_SECONDS)) * 1e9))
        details.append(retry)
    if error.resource is not None:
        kind, resource = map(sendable, error.resource)
        details.append(error_details_pb2.ResourceInfo(resource_type=kind, resource_name=resource[:512]))
    if error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=sendable(v.field)[:512], description=sendable(v.description)[:512]
                    )
                    for v in error.violations
                ]
            )
        )
    status = status_pb2.Status(code=int(error.code), message=_cut(sendable(error.message), MAX_MESSAGE_BYTES))
    for detail in (*details, *error.details):
        if isinstance(detail, any_pb2.Any):
            status.details.append(detail)
        else:
            # Map fields in a fixed order: the same error is the same bytes.
            status.details.add().Pack(detail, deterministic=True)
    return bounded(status, most)


def brief(status: status_pb2.Status) -> status_pb2.Status:
    """The status without a method's own details, at most MAX_STATUS_BYTES: for lists, attempts, dead letters and events."""
    short = status_pb2.Status(code=status.code, message=status.message)
    short.details.extend(detail for detail in status.details if _is_common(detail))
    return bounded(short)


def bounded(status: status_pb2.Status, most: int = MAX_STATUS_BYTES) -> status_pb2.Status:
    """The same status if it is within so many bytes; else a shorter text, the ErrorInfo, and of the other details what has room."""
    if status.ByteSize() <= most:
        return status
    small = status_pb2.Status(code=status.code, message=_cut(status.message, 1024))
    # What programs decide by comes first, and is shortened rather than left out.
    for detail in sorted(status.details, key=_weight):
        room = most - small.ByteSize() - 64
        if _is(detail, error_details_pb2.ErrorInfo):
            room = min(room, MAX_INFO_BYTES)
        kept = detail if detail.ByteSize() <= room else _shortened(detail, room)
        if kept.ByteSize() <= room:
            small.details.append(kept)
    return small


def _is(detail: any_pb2.Any, kind: type[Message]) -> bool:
    # As Any.Is, whose type and that of google.rpc's descriptors do not go together.
    return detail.TypeName() == kind.DESCRIPTOR.full_name


def _weight(detail: any_pb2.Any) -> int:
    return 0 if _is(detail, error_details_pb2.ErrorInfo) else 1 if _is_common(detail) else 2


def _is_common(detail: any_pb2.Any) -> bool:
    """Whether it is one of the kinds that every error may have, and not a message of the method's own."""
    return detail.TypeName().startswith("google.rpc.")


def _shortened(detail: any_pb2.Any, room: int) -> any_pb2.Any:
    """The detail with less in it, if it is of a kind that can have less; what is left out is said."""
    packed = any_pb2.Any()
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    room -= 128
    try:
        if detail.Unpack(info):
            if info.domain != DOMAIN:
                return detail
            for key in sorted(info.metadata, key=lambda key: len(key) + len(info.metadata[key]), reverse=True):
                if info.ByteSize() <= room:
                    break
                del info.metadata[key]
            packed.Pack(info, deterministic=True)
        elif detail.Unpack(bad):
            total = len(bad.field_violations)
            while bad.field_violations and bad.ByteSize() > room:
                del bad.field_violations[len(bad.field_violations) // 2 :]
            bad.field_violations.add(field="", description=f"and {total - len(bad.field_violations)} more")
            packed.Pack(bad)
        else:
            return detail
    except DecodeError:
        return detail
    return packed


def _cut(text: str, most: int, encode: Callable[[str], bytes] = lambda text: text.encode("utf-8", "replace")) -> str:
    """The text, or as much of its begin as is at most ``most`` bytes when encoded."""
    if len(encode(text)) <= most:
        return text
    low, high = 0, min(len(text), most)
    while low < high:
        middle = (low + high + 1) // 2
        if len(encode(text[:middle] + "…")) <= most:
            low = middle
        else:
            high = middle - 1
    return text[:low] + "…"


def _encoded(text: str) -> bytes:
    """As gRPC sends the text of a status: percent-encoded but for printable ASCII."""
    return quote(text, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}").encode()


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
    own = [detail for detail in status.details if not _is_common(detail)]
    for detail in status.details:
        for kind in (
            error_details_pb2.ErrorInfo,
            error_details_pb2.BadRequest,
            error_details_pb2.RetryInfo,
            error_details_pb2.ResourceInfo,
        ):
            if not _is(detail, kind):
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
    return error.with_details(*own)


def status_of(error: grpc.RpcError) -> status_pb2.Status:
    """The status that a failed call ended with; built from code and text if the peer sent no details."""
    rich = details_of(error.trailing_metadata() or ()) if hasattr(error, "trailing_metadata") else None
    if rich is not None:
        return rich
    code = error.code() if callable(getattr(error, "code", None)) else grpc.StatusCode.UNKNOWN
    text = error.details() if callable(getattr(error, "details", None)) else str(error)
    if code is grpc.StatusCode.CANCELLED and isinstance(error, grpc.aio.AioRpcError):
        # Not by us, for that is an asyncio.CancelledError: so ends gRPC's server the calls that reach it while it stops.
        code, text = grpc.StatusCode.UNAVAILABLE, "the server ended the call, as one does that is stopping"
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
    status = bounded(status)
    await context.abort(code, _cut(status.message, MAX_GRPC_MESSAGE_BYTES, _encoded), trailers(status))
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
