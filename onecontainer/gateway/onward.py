"""What goes on with a relayed call to the sidecar, and what comes back with its answer."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.rpc import status_pb2

from onecontainer.errors import (
    Code,
    DeadlineExceeded,
    DriverExecutionFailed,
    DriverMisimplemented,
    DriverUnreachable,
    MessageTooLarge,
    OneContainerError,
    Reason,
)
from onecontainer.jobs.directory import Entry
from onecontainer.rpc import status
from onecontainer.rpc.server import STRANGERS_KEY, Context, header
from onecontainer.sidecars.model import Endpoint

# Not passed on: credentials are for this hop only, and the keys that this hop itself sets must not be the caller's to choose.
_DROPPED = frozenset(
    {
        "authorization",
        "user-agent",
        "onecontainer-service",
        "onecontainer-instance",
        "onecontainer-principal",
        "onecontainer-forwarded-by",
        STRANGERS_KEY,
        "te",
        "content-type",
    }
)
_EXPLAINED_BY_CODE: dict[Code, type[OneContainerError]] = {
    Code.UNAVAILABLE: DriverUnreachable,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.RESOURCE_EXHAUSTED: MessageTooLarge,
    Code.INTERNAL: DriverExecutionFailed,
    Code.UNKNOWN: DriverExecutionFailed,
    # Ours was not cancelled, so the connection to the sidecar was.
    Code.CANCELLED: DriverUnreachable,
}
FORWARDED_KEY = "onecontainer-forwarded-by"
"""The gateway that has sent a call on to the one that owns the service's sidecar."""
# Between gateways the caller's credentials go on, and that it may need some: the owner authenticates the caller itself.
_HOP_ONLY = _DROPPED - {"authorization", STRANGERS_KEY}
RETRY_AFTER = 0.5
"""Seconds after which a call that met a dead sidecar may be sent again: its supervisor restarts it meanwhile."""


def time_left(context: Context) -> float | None:
    """Seconds to the caller's deadline; None: it has set none. (The type stubs do not know the latter.)"""
    return context.time_remaining()


def shortened(remaining: float, margin: float) -> float:
    """The deadline that is passed on, in seconds: a little less, so that the deepest process tells what timed out."""
    return max(0.0, remaining - min(margin, remaining * 0.1))


def metadata(received: Any, endpoint: Endpoint, service: str, principal: str) -> tuple[tuple[str, str | bytes], ...]:
    """The caller's metadata, with what the sidecar has to know of the hop."""
    if endpoint.forwards:
        return (*forwarded(received), *endpoint.metadata, ("onecontainer-service", service))
    passed = [(key, value) for key, value in received if key not in _DROPPED and not key.startswith("grpc-")]
    return (
        *passed,
        *endpoint.metadata,
        ("onecontainer-service", service),
        ("onecontainer-principal", principal),
    )


def forwarded(received: Any) -> tuple[tuple[str, str | bytes], ...]:
    """The caller's metadata as it goes on to another gateway."""
    return tuple((key, value) for key, value in received if key not in _HOP_ONLY and not key.startswith("grpc-"))


def refuse_second_hop(received: Any) -> None:
    """Raises DriverUnreachable for a call that another gateway has sent here, and that would have to go on."""
    sender = header(received, FORWARDED_KEY)
    if sender:
        raise DriverUnreachable(
            f"the sidecar is just changing hands: {sender} took this gateway for its owner", retry_after=RETRY_AFTER
        )


async def pass_initial(context: Context, rpc: Any) -> None:
    """Gives the caller the initial metadata of the sidecar; before the first response."""
    initial = await rpc.initial_metadata()
    if initial:
        await context.send_initial_metadata(tuple(initial))


async def pass_trailing(context: Context, rpc: Any) -> None:
    """Gives the caller the trailing metadata that the sidecar sent with a success."""
    trailing = await rpc.trailing_metadata()
    if trailing:
        context.set_trailing_metadata(tuple(trailing))


async def abort(context: Context, error: grpc.aio.AioRpcError, entry: Entry, endpoint: Endpoint) -> NoReturn:
    """Ends the call as the sidecar did; an end without a typed status, which is gRPC's own, is explained."""
    trailing = tuple(error.trailing_metadata() or ())
    sent = status.details_of(trailing)
    if sent is not None and 0 < sent.code <= 16:
        if sent.code == Code.UNAVAILABLE and status.from_status(sent).reason is Reason.BACKEND_UNREACHABLE:
            endpoint.doubt.set()
        kept = tuple((key, value) for key, value in trailing if key != status.STATUS_DETAILS_KEY)
        await context.abort(error.code(), sent.message, (*kept, *status.trailers(sent)))
    await status.abort_with_status(context, explained(error, entry, endpoint))


def explained(error: grpc.aio.AioRpcError, entry: Entry, endpoint: Endpoint) -> status_pb2.Status:
    """A typed status for a call that ended without one."""
    code = Code(error.code().value[0])
    text = error.details() or code.name
    facts = {"service": entry.name, "driver": entry.driver, "sidecar": endpoint.instance}
    cls = _EXPLAINED_BY_CODE.get(code, DriverMisimplemented)
    if cls is DriverUnreachable:
        message = f"the sidecar of {entry.name} broke off or cannot be reached; its supervisor is at it ({text})"
        typed: OneContainerError = DriverUnreachable(message, metadata=facts, retry_after=RETRY_AFTER, hop="sidecar")
    elif cls is DeadlineExceeded:
        message = f"{entry.name} did not answer before the deadline"
        typed = DeadlineExceeded(message, metadata=facts, hop="sidecar")
    elif cls is MessageTooLarge:
        message = f"{text}: pass large data as artifacts"
        typed = MessageTooLarge(
            message, metadata=facts | {"limit_bytes": str(endpoint.max_message_bytes)}, hop="sidecar"
        )
    elif cls is DriverExecutionFailed:
        message = f"the driver of {entry.name} failed without a typed error ({text}); see StreamSidecarLogs"
        typed = DriverExecutionFailed(message, metadata=facts, hop="sidecar")
    else:
        message = f"the driver of {entry.name} ended the call with {code.name} without a typed error ({text})"
        typed = DriverMisimplemented(message, metadata=facts, hop="sidecar")
    return status.to_status(typed)
