"""Tables as they are known: read from the backend, believed for a while, read again when something does not fit."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from onecontainer.errors import BackendExecutionFailed, DataInvalid, FieldInvalid, FieldRequired, ResourceNotFound

KNOWN_FOR = 30.0
"""Seconds that a table's definition is believed. What the driver changes, and what the backend complains of, is read again at once."""
T = TypeVar("T")
R = TypeVar("R")


class KnownTables(Generic[T]):
    def __init__(
        self, stale: Callable[[BackendExecutionFailed], bool], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """``stale`` tells whether the backend's error is one of statements that do not fit the table."""
        self._stale = stale
        self._monotonic = monotonic
        self._tables: dict[str, tuple[float, T]] = {}

    def get(self, table_id: str) -> T | None:
        known = self._tables.get(table_id)
        return known[1] if known is not None and self._monotonic() - known[0] < KNOWN_FOR else None

    def found(self, table_id: str, table: T | None) -> T:
        """Keeps what the backend has. Raises ResourceNotFound if that is nothing."""
        if table is None:
            self.forget(table_id)
            raise ResourceNotFound(f"there is no table {table_id!r}", resource=("onecontainer.dev/Table", table_id))
        self._tables[table_id] = (self._monotonic(), table)
        return table

    def forget(self, table_id: str) -> None:
        self._tables.pop(table_id, None)

    def clear(self) -> None:
        self._tables.clear()

    async def with_fresh(self, table_ids: Sequence[str], call: Callable[[], Awaitable[R]]) -> R:
        """Makes the call; if it fails as it would with a table that was changed behind our back, once more with what is there now.

        What failed so must have left nothing.
        """
        if not any(table_id in self._tables for table_id in table_ids):
            return await call()
        try:
            return await call()
        except (FieldInvalid, FieldRequired, DataInvalid, ResourceNotFound):
            pass
        except BackendExecutionFailed as error:
            if not self._stale(error):
                raise
        for table_id in table_ids:
            self.forget(table_id)
        return await call()
