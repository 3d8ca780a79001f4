"""BulkInsert: many small batches on their way at once; of a batch that Cassandra refuses each row is sent by itself.

The rows of one batch go to the same replicas, so that it costs no more than one row would. None of a chunk's batches has two rows of
one key: they would have the same time, and which one stays would be left to chance.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

from cassandra.query import BatchStatement, BatchType, BoundStatement, PreparedStatement, Statement

from onecontainer.api.db.v1 import database_pb2, record_pb2
from onecontainer.driver import errors, to_status
from onecontainer.driver.records import bulk
from onecontainer.driver.records.bulk import NOT_TRIED, Chunk, Outcome, Request, TooManyFailures, is_of_a_row
from onecontainer.driver.records.model import Column
from onecontainer_driver_cassandra import pump, writes
from onecontainer_driver_cassandra.conditions import Condition
from onecontainer_driver_cassandra.database import Database
from onecontainer_driver_cassandra.model import TableInfo
from onecontainer_driver_cassandra.options import Options, write_options
from onecontainer_driver_cassandra.session import bound
from onecontainer_driver_cassandra.wire import Cell
from onecontainer_driver_cassandra.writing import lightweight

# Cassandra warns of batches of more than 5 KiB, and of unlogged ones of more than 10 partitions.
BATCH_ROWS, BATCH_BYTES = 10, 4096
BATCHES_AT_ONCE, ROWS_AT_ONCE = 32, 128

Row = Sequence[Cell]
Result = errors.OneContainerError | bool
"""Of a row: its error, or whether it was left alone."""


async def bulk_insert(database: Database, requests: AsyncIterator[Request]) -> database_pb2.BulkInsertResponse:
    first, max_failures = await bulk.first_message(requests)
    table = await database.fresh_table(first.table)
    writes.check_insertable(table, "table")
    condition = writes.insert_condition(first.mode, "mode")
    options = write_options(first.options, "options", conditional=condition is not None)
    writer = Writer(database, table, condition, options, fails=first.mode == record_pb2.INSERT_MODE_FAIL)
    writer.max_failures = max_failures
    return await bulk.insert_all(table, first, requests, writer)


class Writer:
    """Writes chunks into one table and keeps the outcome of every row."""

    max_failures = bulk.DEFAULT_FAILURES

    def __init__(
        self, database: Database, table: TableInfo, condition: Condition | None, options: Options, *, fails: bool
    ) -> None:
        self._database = database
        self._table = table
        self._condition = condition
        self._options = options
        self._fails = fails
        self.outcome = Outcome()

    async def write(self, chunk: Chunk) -> None:
        names = [column.name for column in chunk.columns]
        for name in self._table.primary_key:
            if name not in names:
                raise errors.FieldRequired("batch.columns", f"must have {name!r}, which is in the primary key")
        cql = writes.insert_cql(self._table, names, self._condition, self._options)
        prepared = await self._database.prepare(cql, "table", "")
        self.outcome.response.received += len(chunk.rows)
        places = [names.index(name) for name in self._table.primary_key]
        results: dict[int, Result] = dict(chunk.failed)
        for segment in self._segments(chunk, places, results):
            if sum(isinstance(one, errors.OneContainerError) for one in results.values()) >= self._failures_left:
                break
            await self._write(prepared, chunk.rows, segment, results)
        self._tell(len(chunk.rows), results)

    @property
    def _failures_left(self) -> int:
        return self.max_failures - self.outcome.response.failed

    def _segments(self, chunk: Chunk, places: Sequence[int], results: dict[int, Result]) -> Iterable[list[int]]:
        """Rows that may be written at once: no key is there twice, so that of two rows of one key the latter stays."""
        segment: list[int] = []
        keys: set[tuple[Cell, ...]] = set()
        for index, row in enumerate(chunk.rows):
            if index in results:
                continue
            key = tuple([row[place] for place in places])
            error = self._key_error(key, chunk.columns, places)
            if error is not None:
                results[index] = error
                continue
            if key in keys:
                yield segment
                segment, keys = [], set()
            keys.add(key)
            segment.append(index)
        if segment:
            yield segment

    def _key_error(
        self, key: tuple[Cell, ...], columns: Sequence[Column], places: Sequence[int]
    ) -> errors.DataInvalid | None:
        if all(cell is not None and 0 < len(cell) <= writes.MAX_KEY_BYTES for cell in key):
            return None
        for cell, place in zip(key, places, strict=True):
            try:
                writes.check_key(self._table, columns[place].name, cell, f"values[{place}]")
            except errors.DataInvalid as error:
                return error
        return None

    async def _write(
        self, prepared: PreparedStatement, rows: Sequence[Row], segment: Sequence[int], results: dict[int, Result]
    ) -> None:
        statements = {index: self._bound(prepared, rows[index]) for index in segment}
        if self._condition is not None:
            await self._one_by_one(statements, results)
            return
        groups = self._groups(statements)
        batches: list[Statement] = [self._batch([statements[index] for index in group]) for group in groups]
        outcomes = await pump.run_all(self._database.session, batches, BATCHES_AT_ONCE, is_of_a_row)
        alone: dict[int, BoundStatement] = {}
        for group, outcome in zip(groups, outcomes, strict=True):
            if not isinstance(outcome, errors.OneContainerError):
                results.update(dict.fromkeys(group, False) if outcome is not None else {})
            elif not is_of_a_row(outcome):
                raise outcome
            elif len(group) == 1:
                results[group[0]] = outcome
            else:
                alone |= {index: statements[index] for index in group}
        await self._one_by_one(alone, results)

    async def _one_by_one(self, statements: dict[int, BoundStatement], results: dict[int, Result]) -> None:
        every = list(statements.values())
        # Conditional writes of one partition are in one another's way in Cassandra: they go one after another.
        lanes = None if self._condition is None else pump.lanes_of([one.routing_key for one in every])
        outcomes = await pump.run_all(self._database.session, every, ROWS_AT_ONCE, is_of_a_row, lanes)
        for index, outcome in zip(statements, outcomes, strict=True):
            if isinstance(outcome, errors.OneContainerError):
                if not is_of_a_row(outcome):
                    raise outcome
                results[index] = outcome
            elif outcome is not None:
                left_alone = self._condition is not None and not lightweight(outcome)[0][0]
                conflict = errors.ResourceConflict("there is a record with this key already")
                results[index] = conflict if left_alone and self._fails else left_alone

    def _bound(self, prepared: PreparedStatement, row: Row) -> BoundStatement:
        return bound(
            prepared,
            [*row, *self._options.values] if self._options.values else row,
            consistency=self._options.consistency,
            serial_consistency=self._options.serial_consistency,
        )

    def _groups(self, statements: dict[int, BoundStatement]) -> list[list[int]]:
        replica_of = self._database.session.replica_of
        open_groups: dict[object, tuple[list[int], int]] = {}
        groups: list[list[int]] = []
        for index, one in statements.items():
            size = sum([len(cell) for cell in one.values if cell is not None])
            replica = replica_of(one.routing_key)
            group, bytes_ = open_groups.get(replica, (None, 0))
            if group is None or len(group) == BATCH_ROWS or bytes_ + size > BATCH_BYTES:
                group, bytes_ = [], 0
                groups.append(group)
            group.append(index)
            open_groups[replica] = (group, bytes_ + size)
        return groups

    def _batch(self, statements: Sequence[BoundStatement]) -> Statement:
        if len(statements) == 1:
            return statements[0]
        batch = BatchStatement(BatchType.UNLOGGED, consistency_level=statements[0].consistency_level)
        for one in statements:
            batch.add(one)
        return batch

    def _tell(self, count: int, results: dict[int, Result]) -> None:
        """Raises `TooManyFailures` when the call is to end. Segments are whole: rows that were not tried come last."""
        for index in range(count):
            self._tell_one(results.get(index))
        if len(results) < count or self._failures_left <= 0:
            self.outcome.response.ended_early = True
            raise TooManyFailures

    def _tell_one(self, result: Result | None) -> None:
        if result is None:
            self.outcome.add(1, status=NOT_TRIED)
        elif isinstance(result, errors.OneContainerError):
            self.outcome.add(1, status=to_status(result))
        else:
            self.outcome.add(1, skipped=result)
