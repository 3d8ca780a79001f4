"""Errors as a person sees them, and as exit codes."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click

from onecontainer.errors import Code, FieldViolation, OneContainerError, Reason
from onecontainer.rpc.texts import sendable

EXIT_CODES: Mapping[Code, int] = {
    Code.INVALID_ARGUMENT: 2,
    Code.OUT_OF_RANGE: 2,
    Code.NOT_FOUND: 3,
    Code.UNAVAILABLE: 4,
    Code.DEADLINE_EXCEEDED: 5,
    Code.CANCELLED: 130,
}
"""All others are 1."""

HINTS: Mapping[Reason, str] = {
    Reason.RESOURCE_CONFLICT: "Choose another name, or get and update the one that is there.",
    Reason.RESOURCE_NOT_FOUND: "List what there is: `oca service list`, `oca job list`, `oca artifact list`, `oca driver list`.",
    Reason.FIELD_REQUIRED: "Give the missing value; `--help` shows how.",
    Reason.FIELD_INVALID: "Correct the value and run it again.",
    Reason.DATA_INVALID: "Correct what is named above; the same data again gives the same answer.",
    Reason.ETAG_MISMATCH: "Somebody else changed it. Get it again and repeat the change.",
    Reason.REQUEST_ID_REUSED: "Take a new --request-id.",
    Reason.RESOURCE_IN_USE: "Wait until nothing uses it, or end what does.",
    Reason.MESSAGE_TOO_LARGE: "Upload it with `oca artifact upload`, and pass the artifact's name.",
    Reason.LIMIT_EXCEEDED: "A bound of this installation is reached; wait a little, or ask for less.",
    Reason.CREDENTIALS_INVALID: "Give a valid token: --token or ONECONTAINER_TOKEN.",
    Reason.PERMISSION_DENIED: "Ask the operator for the right to do this.",
    Reason.DRIVER_NOT_AVAILABLE: "See which drivers fit and why others do not: `oca driver match SERVICE`; then `oca service assign`.",
    Reason.DRIVER_UNREACHABLE: "The driver cannot be reached. Look: `oca service get NAME`, `oca sidecar logs NAME`.",
    Reason.DRIVER_EXECUTION_FAILED: "Read what the driver said: `oca sidecar logs SERVICE`.",
    Reason.DRIVER_MISIMPLEMENTED: "The driver breaks its contract; tell its author.",
    Reason.CAPABILITY_MISSING: "This service's driver does not do that; `oca driver get NAME` lists what it does.",
    Reason.METHOD_UNKNOWN: "Check the spelling: `oca call` without arguments lists all services.",
    Reason.DRAINING: "The gateway is stopping; run it again when it is back.",
    Reason.QUEUE_UNREACHABLE: "The gateway's database cannot be used at the moment; run it again.",
    Reason.OUTCOME_UNKNOWN: "It may have taken effect. Check the backend, then `oca job retry NAME`.",
    Reason.NOT_FINISHABLE: "It cannot end early: cancel it without --finish.",
    Reason.RESULT_EXPIRED: "Run the job again: `oca job retry NAME`.",
    Reason.DEADLINE_EXCEEDED: "Give it more time: --timeout.",
    Reason.BACKEND_UNREACHABLE: "Ask each layer: `oca service heartbeat NAME`.",
    Reason.MODEL_NOT_FOUND: "See which models there are: `oca ai models SERVICE`.",
    Reason.MODEL_NOT_READY: "Wait for it: `oca ai models SERVICE` shows its state.",
    Reason.SOURCE_NOT_ALLOWED: "Upload it as an artifact, or let the operator allow it in the service's options.",
    Reason.BACKEND_CAPABILITY_MISSING: "The backend itself cannot do that, whichever way it is asked.",
    Reason.INTERNAL: "This is a defect. Please report it, with the reference in the message.",
}


SCOPED: Mapping[tuple[str, Reason], str] = {
    (
        "media",
        Reason.BACKEND_CAPABILITY_MISSING,
    ): "This build cannot do that; `oca media capabilities` lists what it can.",
    (
        "db",
        Reason.BACKEND_CAPABILITY_MISSING,
    ): "This database cannot do that; `oca driver get NAME -o json` lists under `backends` what each one can.",
    ("db", Reason.RESOURCE_NOT_FOUND): "List the tables that there are: `oca db tables SERVICE`.",
}
"""Of commands of one group, where more can be said than the reason alone tells."""


CHILDS_END = frozenset({"signal", "exit_code"})
"""Metadata by which a DRIVER_UNREACHABLE says that the process of an isolated handler died, not the sidecar."""
CHILD_DIED = "The process that ran it died; the next call gets a new one. What it printed: `oca sidecar logs NAME`."

LISTED = frozenset({"service", "driver", "sidecar", "job", "artifact"})
"""Kinds of resources that have a `list` command."""


def report(error: BaseException, *, as_json: bool, address: str, group: str = "") -> int | None:
    """Writes the error to stderr and returns the exit code. None: not an error that is meant for people. `group` is of the command."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        click.echo(f"Error: {error.strerror}{where}", err=True)
        return 1
    if not isinstance(error, OneContainerError):
        return None
    if as_json:
        click.echo(json.dumps({"error": as_dict(error)}, ensure_ascii=False), err=True)
    else:
        for line in lines(error, address, group):
            click.echo(line, err=True)
    return exit_code(error)


def exit_code(error: OneContainerError) -> int:
    return EXIT_CODES.get(error.code, 1)


def is_gateway_away(error: OneContainerError) -> bool:
    """Whether nobody answered at all: then no hop has put itself into the error."""
    return error.code is Code.UNAVAILABLE and error.hop is None


def lines(error: OneContainerError, address: str, group: str = "") -> list[str]:
    """Reason and message, what is wrong with which field, and what to do next."""
    if is_gateway_away(error):
        return [
            click.style("Error: ", fg="red", bold=True) + f"no gateway answers at {address or 'that address'}",
            f"  {error.message}",
            "  → Start one with `oca up --detach`, or say where it is: --address or ONECONTAINER_ADDRESS.",
        ]
    found = [click.style(f"Error: {error.reason.value}", fg="red", bold=True) + f": {sendable(error.message)}"]
    found += [
        f"  {field_line(violation)}"
        for violation in error.violations
        if field_line(violation) not in sendable(error.message)
    ]
    facts = [f"{key} {error.metadata[key]}" for key in ("service", "driver", "job", "attempt") if key in error.metadata]
    if error.hop:
        facts.insert(0, f"from the {error.hop}")
    if facts:
        found.append(f"  ({', '.join(facts)})")
    hint = hint_of(error, group)
    return [*found, f"  → {hint}"] if hint else found


def hint_of(error: OneContainerError, group: str = "") -> str:
    """What to do next. A command that knows more of it than the reason tells has put it into a note of the error's."""
    if notes := getattr(error, "__notes__", None):
        return str(notes[-1])
    if error.reason is Reason.DRIVER_UNREACHABLE and CHILDS_END & error.metadata.keys():
        return CHILD_DIED
    kind = error.resource[0].rpartition("/")[2].lower() if error.resource is not None else ""
    if error.reason is Reason.RESOURCE_NOT_FOUND and kind in LISTED:
        return f"List what there is: `oca {kind} list`."
    return SCOPED.get((group, error.reason)) or HINTS.get(error.reason, "")


def field_line(violation: FieldViolation) -> str:
    # Once more: a driver that is not written with the SDK may send what it likes.
    return sendable(f"{violation.field}: {violation.description}" if violation.field else violation.description)


def as_dict(error: OneContainerError) -> dict[str, object]:
    """The error for programs."""
    return {
        "reason": error.reason.value,
        "code": error.code.name,
        "message": error.message,
        "violations": [{"field": v.field, "description": v.description} for v in error.violations],
        "metadata": error.metadata,
        "retry_after": error.retry_after,
    }
