"""Cassandra's errors as typed ones (CQL binary protocol v5, section 9: error codes)."""

from __future__ import annotations

import re
from typing import Any

import cassandra
from cassandra import connection, protocol
from cassandra.cluster import NoHostAvailable

from onecontainer.driver import errors

RETRY_AFTER = 1.0
INVALID = "0x2200"
Code = errors.Code

_NO_TABLE = re.compile(r"unconfigured table|(table|keyspace) .*(does not exist|doesn't exist)", re.IGNORECASE)

_EXECUTION: tuple[tuple[tuple[type[BaseException], ...], str, errors.Code], ...] = (
    ((cassandra.Unauthorized, protocol.UnauthorizedErrorMessage), "0x2100", Code.PERMISSION_DENIED),
    ((cassandra.AuthenticationFailed, protocol.BadCredentials), "0x0100", Code.PERMISSION_DENIED),
    ((protocol.OverloadedErrorMessage,), "0x1001", Code.RESOURCE_EXHAUSTED),
    ((cassandra.InvalidRequest, protocol.InvalidRequestException), INVALID, Code.INVALID_ARGUMENT),
    ((cassandra.ConfigurationException, protocol.ConfigurationException), "0x2300", Code.FAILED_PRECONDITION),
    (
        (cassandra.CoordinationFailure, protocol.ReadFailureMessage, protocol.WriteFailureMessage),
        "0x1300",
        Code.INTERNAL,
    ),
    ((cassandra.FunctionFailure,), "0x1400", Code.INTERNAL),
    ((cassandra.CDCWriteFailure,), "0x1600", Code.RESOURCE_EXHAUSTED),
    ((protocol.TruncateError,), "0x1003", Code.INTERNAL),
    ((protocol.SyntaxException,), "0x2000", Code.INTERNAL),
    ((cassandra.DriverException, protocol.ErrorMessage), "", Code.INTERNAL),
)


def translate(error: BaseException) -> errors.OneContainerError | None:
    """The typed error of what cassandra-driver raised. None: not one of its."""
    if isinstance(error, NoHostAvailable):
        return _no_host(error)
    if isinstance(error, cassandra.OperationTimedOut):
        return errors.DeadlineExceeded("Cassandra did not answer in time; a write may have happened", hop="backend")
    if isinstance(error, cassandra.Timeout):
        message = f"Cassandra: the replicas did not answer in time; a write may have happened: {_text(error)}"
        return errors.DeadlineExceeded(message, metadata={"backend_code": "0x1100"}, hop="backend")
    if isinstance(error, cassandra.Unavailable):
        return _unreachable(f"Cassandra has too few replicas up for this consistency: {_text(error)}", "0x1000")
    if isinstance(error, protocol.IsBootstrappingErrorMessage):
        return _unreachable(f"Cassandra is starting: {_text(error)}", "0x1002")
    if isinstance(error, cassandra.AlreadyExists | protocol.AlreadyExistsException):
        return errors.ResourceConflict(f"Cassandra: {_text(error)}", metadata={"backend_code": "0x2400"}, hop="backend")
    if isinstance(
        error, connection.ConnectionException | connection.ConnectionBusy | cassandra.UnresolvableContactPoints
    ):
        return _unreachable(f"the connection to Cassandra failed: {_text(error)}")
    for kinds, backend_code, code in _EXECUTION:
        if isinstance(error, kinds):
            return _refused(error, backend_code, code)
    if isinstance(error, OSError):
        return _unreachable(f"Cassandra cannot be reached: {_text(error)}")
    return None


def _refused(error: BaseException, backend_code: str, code: errors.Code) -> errors.OneContainerError:
    message = f"Cassandra: {_text(error)}"
    common: dict[str, Any] = {"metadata": {"backend_code": backend_code} if backend_code else {}, "hop": "backend"}
    if backend_code == INVALID and _NO_TABLE.search(message):
        return errors.ResourceNotFound(message, **common)
    return errors.BackendExecutionFailed(message, code=code, **common)


def _no_host(error: NoHostAvailable) -> errors.OneContainerError:
    found = list(error.errors.values()) if isinstance(error.errors, dict) else []
    for one in found:
        # What a node answered tells more than that none is left to ask.
        if isinstance(
            one, cassandra.AuthenticationFailed | cassandra.RequestExecutionException | protocol.ErrorMessage
        ):
            translated = translate(one)
            if translated is not None:
                return translated
    nodes = "; ".join(f"{node}: {_text(one)}" for node, one in error.errors.items()) if found else _text(error)
    return _unreachable(f"no node of Cassandra can be reached: {nodes}")


def _unreachable(message: str, backend_code: str = "") -> errors.OneContainerError:
    metadata = {"backend_code": backend_code} if backend_code else {}
    return errors.BackendUnreachable(message[:1000], metadata=metadata, retry_after=RETRY_AFTER, hop="backend")


def _text(error: BaseException) -> str:
    message = getattr(error, "message", None)
    return str(message if isinstance(message, str) else error)[:800] or type(error).__name__
