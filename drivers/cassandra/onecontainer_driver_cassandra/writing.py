"""InsertRecords, UpdateRecords and DeleteRecords: each statement by itself, as Cassandra writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cassandra.query import BoundStatement

from onecontainer.api.db.v1 import database_pb2, record_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import record
from onecontainer.driver.records.requests import Delete, Update
from onecontainer_driver_cassandra import codecs, pump, writes
from onecontainer_driver_cassandra.database import Database
from onecontainer_driver_cassandra.model import TableInfo, names_in_cql, quoted
from onecontainer_driver_cassandra.session import bound
from onecontainer_driver_cassandra.wire import Cell, Rows
from onecontainer_driver_cassandra.writes import Write

APPLIED = "[applied]"
_WAY_OUT = "Write what CQL has a way for, or select the records and write each by its key."

Cells = Mapping[str, Cell]


async def statement(database: Database, write: Write) -> BoundStatement:
    prepared = await database.prepare(write.cql, write.path, _WAY_OUT)
    return bound(
        prepared,
        write.values,
        consistency=write.options.consistency,
        serial_consistency=write.options.serial_consistency,
    )


# --- conditional writes ------------------------------------------------------------------------------------------


def lightweight(rows: Rows) -> list[tuple[bool, Cells]]:
    """What Cassandra answers to conditional writes: whether they were applied, and what there is."""
    found: list[tuple[bool, Cells]] = []
    for row in rows.cells():
        cells = dict(zip(rows.names, row, strict=True))
        found.append((codecs.BOOL.read(cells.pop(APPLIED)).bool_value, cells))
    return found


def refused(write: Write, there: Cells) -> record_pb2.Record | None:
    """The record as it is, whose key is the request's own; None: there is none."""
    if not there:
        return None
    names = write.table.primary_key[: len(write.key or ())]
    cells = {**there, **dict(zip(names, write.key or (), strict=True))}
    return shown(write.table, cells)


def shown(table: TableInfo, cells: Cells) -> record_pb2.Record:
    columns = [table.columns[name] for name in cells if name in table.columns]
    return record(columns, [cells[column.name] for column in columns])


async def current(database: Database, write: Write) -> Cells | None:
    """The record that the write is about, as it is now."""
    assert write.key is not None
    table = write.table
    names = list(table.columns)
    key = table.primary_key[: len(write.key)]
    clause = " AND ".join(f"{quoted(name)} = ?" for name in key)
    cql = f"SELECT {names_in_cql(names)} FROM {table.cql} WHERE {clause} LIMIT 1"  # noqa: S608
    found = await database.session.ask(cql, *write.key)
    return dict(zip(names, found[0], strict=True)) if found else None


async def would_apply(database: Database, write: Write) -> tuple[bool, record_pb2.Record | None]:
    """What a dry run of a conditional write answers."""
    assert write.condition is not None
    there = await current(database, write)
    applied = write.condition.holds(there)
    return applied, None if applied or there is None else shown(write.table, there)


# --- insert ------------------------------------------------------------------------------------------------------


async def insert_records(
    database: Database, request: database_pb2.InsertRecordsRequest
) -> database_pb2.InsertRecordsResponse:
    table = await database.table(request.table)
    found = writes.inserts(table, request, "")
    statements = [await statement(database, write) for write in found]
    if request.dry_run:
        results = await _would_insert(database, request, found)
    else:
        # Two records of one key are written in their order, so that the latter stays.
        lanes = pump.lanes_of([write.partition if write.condition else write.key for write in found])
        async with database.contended(found):
            outcomes = await pump.run_all(database.session, statements, lanes=lanes)
        results = _inserted(found, outcomes)
    written = sum(result.applied for result in results)
    if request.mode == record_pb2.INSERT_MODE_FAIL and written < len(found):
        index = next(index for index, result in enumerate(results) if not result.applied)
        raise errors.ResourceConflict(
            f"records[{index}]: there is a record with this key already; "
            f"{0 if request.dry_run else written} of {len(found)} were written",
            metadata={"record": str(index)},
        )
    return database_pb2.InsertRecordsResponse(applied=written == len(found), affected=written, results=results)


async def _would_insert(
    database: Database, request: database_pb2.InsertRecordsRequest, found: Sequence[Write]
) -> list[database_pb2.InsertResult]:
    """One after the other: a record that an earlier one of the request would have written is there for a later one."""
    results: list[database_pb2.InsertResult] = []
    written: dict[tuple[bytes, ...], record_pb2.Record] = {}
    for write, given in zip(found, request.records, strict=True):
        assert write.key is not None
        applied, there = True, None
        if write.condition is not None and write.key in written:
            applied, there = False, written[write.key]
        elif write.condition is not None:
            applied, there = await would_apply(database, write)
        if applied:
            written[write.key] = _as_inserted(write.table, given)
        results.append(database_pb2.InsertResult(applied=applied, current=there))
    return results


def _as_inserted(table: TableInfo, given: record_pb2.Record) -> record_pb2.Record:
    """As it would be read."""
    columns = list(table.columns.values())
    cells = [
        column.codec.write(given.fields[column.name]) if column.name in given.fields else None for column in columns
    ]
    return record(columns, cells)


def _inserted(found: Sequence[Write], outcomes: Sequence[pump.Outcome]) -> list[database_pb2.InsertResult]:
    results: list[database_pb2.InsertResult] = []
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, errors.OneContainerError):
            written = sum(isinstance(one, Rows) for one in outcomes)
            if len(outcomes) > 1:
                outcome.message = f"records[{index}]: {outcome.message}; {written} of {len(outcomes)} were written"
            outcome.metadata["record"] = str(index)
            raise outcome
        applied, there = True, None
        if found[index].condition is not None and outcome is not None:
            applied, cells = lightweight(outcome)[0]
            there = None if applied else refused(found[index], cells)
        results.append(database_pb2.InsertResult(applied=applied, current=there))
    return results


# --- update and delete -------------------------------------------------------------------------------------------


async def update_records(database: Database, request: Update) -> database_pb2.UpdateRecordsResponse:
    write = writes.update(await database.table(request.table), request, "")
    applied, there = await _write(database, write, dry_run=request.dry_run)
    return database_pb2.UpdateRecordsResponse(applied=applied, affected=affected(write, applied), current=there)


async def delete_records(database: Database, request: Delete) -> database_pb2.DeleteRecordsResponse:
    table = await database.table(request.table)
    write = writes.delete(table, request, "")
    if write is None:
        if not request.dry_run:
            await database.session.define(f"TRUNCATE TABLE {table.cql}")
        return database_pb2.DeleteRecordsResponse(applied=True)
    if write.never:
        return database_pb2.DeleteRecordsResponse(applied=True, affected=0)
    applied, there = await _write(database, write, dry_run=request.dry_run)
    return database_pb2.DeleteRecordsResponse(applied=applied, affected=affected(write, applied), current=there)


def affected(write: Write, applied: bool) -> int | None:
    """Without a condition Cassandra does not tell."""
    return None if write.condition is None else int(applied)


async def _write(database: Database, write: Write, *, dry_run: bool) -> tuple[bool, record_pb2.Record | None]:
    made = await statement(database, write)
    if dry_run:
        return (True, None) if write.condition is None else await would_apply(database, write)
    async with database.contended([write]):
        rows = await database.session.run(made)
    if write.condition is None:
        return True, None
    applied, cells = lightweight(rows)[0]
    return applied, None if applied else refused(write, cells)
