"""What checks say when an answer is not the one that the contract asks for."""

from __future__ import annotations

from google.protobuf.message import Message
from google.rpc import status_pb2

from onecontainer.driver.conformance.model import Failed
from onecontainer.driver.conformance.wire import Answer, bad_fields, error_info
from onecontainer.errors import BY_REASON, DOMAIN, Code, Reason

MAX_ERROR_BYTES = 8 * 1024
"""Peers drop trailers beyond it, and the status with them."""
UNTYPED = (Code.UNKNOWN, Code.INTERNAL)
FREE_CODES = frozenset({Reason.BACKEND_EXECUTION_FAILED})
"""Reasons whose code is the backend's own."""


def require(condition: object, sent: str, came: str, todo: str = "") -> None:
    """Raises Failed unless the condition holds."""
    if not condition:
        raise Failed(sent, came, todo)


def refused(answer: Answer, sent: str, code: Code, *reasons: Reason) -> None:
    """The call must have been refused in this way. Raises Failed."""
    wanted = " or ".join(reason.value for reason in reasons)
    require(answer.is_(code, *(reason.value for reason in reasons)), sent, f"{answer}; wanted {code.name} / {wanted}")


def names_field(answer: Answer, sent: str, *paths: str) -> None:
    """The error's BadRequest must have one of these paths. Raises Failed."""
    require(
        any(path in answer.fields for path in paths),
        sent,
        f"{answer}, with the fields {answer.fields or 'none'}; wanted BadRequest with {' or '.join(paths)}",
    )


def error_problem(answer: Answer) -> str:
    """What is wrong with an error as the contract has it; empty: nothing, or it is no error."""
    if answer.ok:
        return ""
    problem = status_problem(answer.status, answer.code)
    if not problem and answer.trailing_bytes > MAX_ERROR_BYTES:
        problem = f"its trailers have {answer.trailing_bytes} bytes, more than {MAX_ERROR_BYTES}"
    return problem


def status_problem(status: status_pb2.Status | None, code: Code) -> str:
    """What is wrong with a status; empty: nothing."""
    if status is None:
        return "it has no google.rpc.Status in its details"
    if status.code != code:
        return f"its status says {Code(status.code).name if status.code in tuple(Code) else status.code}, the call {code.name}"
    info = error_info(status)
    if info is None:
        return "it has no google.rpc.ErrorInfo"
    if info.domain != DOMAIN:
        return f"the domain of its ErrorInfo is {info.domain!r}, not {DOMAIN!r}"
    if info.reason not in Reason.__members__:
        return f"its reason {info.reason!r} is none of error.v1.Reason"
    reason = Reason(info.reason)
    if reason not in FREE_CODES and BY_REASON[reason].default_code is not code:
        return f"its reason {reason.value} goes with {BY_REASON[reason].default_code.name}, not with {code.name}"
    if code is Code.INVALID_ARGUMENT and reason not in FREE_CODES and not bad_fields(status):
        return "it has no google.rpc.BadRequest with the fields that are wrong"
    return ""


def has_unknown_fields(message: Message) -> bool:
    """Whether there is something in it that its type does not have, which is how another message's bytes show."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    if len(UnknownFieldSet(message)):
        return True
    for field, value in message.ListFields():
        kind = field.message_type
        if kind is None:
            continue
        if kind.GetOptions().map_entry:
            inner = kind.fields_by_name["value"]
            values = list(value.values()) if inner.type == inner.TYPE_MESSAGE else []
        else:
            values = list(value) if field.is_repeated else [value]
        if any(has_unknown_fields(one) for one in values):
            return True
    return False
