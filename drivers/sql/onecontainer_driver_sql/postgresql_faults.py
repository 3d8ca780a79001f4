"""PostgreSQL's errors as typed ones (Appendix A of its manual: error codes)."""

from __future__ import annotations

from typing import Any

import asyncpg
from sqlalchemy import exc

from onecontainer.driver import errors

RETRY_AFTER = 1.0

_UNREACHABLE = ("08", "57P01", "57P02", "57P03", "57P05", "53300")
_CODES: tuple[tuple[str, errors.Code], ...] = (
    ("42501", errors.Code.PERMISSION_DENIED),
    ("28", errors.Code.PERMISSION_DENIED),
    ("40", errors.Code.ABORTED),
    ("55P03", errors.Code.ABORTED),
    ("53", errors.Code.RESOURCE_EXHAUSTED),
    ("54", errors.Code.RESOURCE_EXHAUSTED),
    ("23", errors.Code.FAILED_PRECONDITION),
    ("2BP01", errors.Code.FAILED_PRECONDITION),
    ("3D000", errors.Code.FAILED_PRECONDITION),
    ("3F000", errors.Code.FAILED_PRECONDITION),
    ("25", errors.Code.FAILED_PRECONDITION),
    ("55", errors.Code.FAILED_PRECONDITION),
    ("44", errors.Code.FAILED_PRECONDITION),
    ("428C9", errors.Code.FAILED_PRECONDITION),
    ("42P", errors.Code.INVALID_ARGUMENT),
    ("42", errors.Code.INVALID_ARGUMENT),
)


def translate(error: BaseException) -> errors.OneContainerError | None:
    cause = _cause(error)
    if isinstance(cause, asyncpg.PostgresError):
        return _server_error(cause)
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return _unreachable(f"the connection to PostgreSQL was lost: {cause}")
    if isinstance(cause, asyncpg.DataError | asyncpg.InterfaceError) and "invalid input for query argument" in str(
        cause
    ):
        return errors.DataInvalid("", str(cause)[:500])
    if isinstance(cause, asyncpg.InterfaceError | asyncpg.InternalClientError):
        return _unreachable(f"the connection to PostgreSQL failed: {cause}")
    if isinstance(error, exc.TimeoutError):
        return errors.LimitExceeded("every connection of the pool is busy; raise `pool_size`", retry_after=RETRY_AFTER)
    if isinstance(cause, OSError | EOFError):
        return _unreachable(f"PostgreSQL cannot be reached: {str(cause) or type(cause).__name__}")
    return None


def _cause(error: BaseException) -> BaseException:
    """asyncpg's own error, which SQLAlchemy wraps twice."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, asyncpg.PostgresError | asyncpg.InterfaceError | asyncpg.InternalClientError | OSError):
            return seen
        below = seen.orig if isinstance(seen, exc.DBAPIError) else None
        seen = below or seen.__cause__
    return error


def _unreachable(message: str) -> errors.OneContainerError:
    return errors.BackendUnreachable(message[:1000], retry_after=RETRY_AFTER, hop="backend")


def _server_error(error: Any) -> errors.OneContainerError:
    state = error.sqlstate or ""
    message = " ".join(
        filter(None, (f"PostgreSQL: {error.args[0]}", error.detail and f"({error.detail})", error.hint))
    )[:1000]
    metadata = {"backend_code": state}
    if error.constraint_name:
        metadata["constraint"] = error.constraint_name
    common: dict[str, Any] = {"metadata": metadata, "hop": "backend"}
    if state.startswith(_UNREACHABLE):
        return errors.BackendUnreachable(message, retry_after=RETRY_AFTER, **common)
    if state == "23505" or state in ("42P07", "42710"):
        return errors.ResourceConflict(message, **common)
    if state == "42P01":
        return errors.ResourceNotFound(message, **common)
    if state.startswith("22"):
        return errors.DataInvalid("", message, **common)
    if state == "23502":
        return errors.DataInvalid(error.column_name or "", message, **common)
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return errors.BackendExecutionFailed(message, code=errors.Code.ABORTED, **common)
    if state.startswith("0A"):
        return errors.BackendCapabilityMissing("", message, **common)
    if state == "57014":
        return errors.DeadlineExceeded(message, **common)
    for prefix, code in _CODES:
        if state.startswith(prefix):
            return errors.BackendExecutionFailed(message, code=code, **common)
    return errors.BackendExecutionFailed(message, code=errors.Code.INTERNAL, **common)
