"""ExecuteBatch: one request to Cassandra, LOGGED, UNLOGGED or of counters."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from cassandra.query import BatchStatement, BatchType

from onecontainer.api.db.v1 import database_pb2, record_pb2
from onecontainer.driver import errors
from onecontainer.driver.records import requests
from onecontainer_driver_cassandra import options, writes
from onecontainer_driver_cassandra.database import Database
from onecontainer_driver_cassandra.writes import Write
from onecontainer_driver_cassandra.writing import Cells, affected, current, lightweight, refused, shown, statement

_KINDS = {
    database_pb2.BATCH_KIND_UNSPECIFIED: BatchType.LOGGED,
    database_pb2.BATCH_KIND_LOGGED: BatchType.LOGGED,
    database_pb2.BATCH_KIND_UNLOGGED: BatchType.UNLOGGED,
    database_pb2.BATCH_KIND_COUNTER: BatchType.COUNTER,
}


async def execute_batch(
    database: Database, request: database_pb2.ExecuteBatchRequest
) -> database_pb2.ExecuteBatchResponse:
    if request.kind == database_pb2.BATCH_KIND_TRANSACTION:
        raise errors.BackendCapabilityMissing(
            "kind", "Cassandra has no transactions; LOGGED is all or nothing in the end"
        )
    if request.kind not in _KINDS:
        raise errors.FieldInvalid("kind", f"{request.kind} is not a kind of batch")
    requests.check_batch(request)
    found: list[list[Write]] = []
    for index in range(len(request.statements)):
        try:
            found.append(await _writes(database, request, index))
        except errors.OneContainerError as error:
            error.metadata["statement"] = str(index)
            raise
    every = [write for one in found for write in one]
    _check_together(request, every)
    batch = await _batch(database, request, every)
    failed: tuple[Write, Cells | None] | None = None
    if request.dry_run:
        failed = await _would_fail(database, every)
    elif every:
        async with database.contended(every):
            rows = await database.session.run(batch)
        if any(write.condition for write in every):
            answers = lightweight(rows)
            if not all(applied for applied, _ in answers):
                failed = _failed(every, [cells for _, cells in answers])
    return _response(request, found, failed)


async def _writes(database: Database, request: database_pb2.ExecuteBatchRequest, index: int) -> list[Write]:
    inner, at = requests.batch_statement(request, index)
    table = await database.table(inner.table, f"{at}table")
    for name in ("consistency", "serial_consistency"):
        if getattr(inner.options, name):
            raise errors.FieldInvalid(f"{at}options.{name}", "is set for the whole batch, not for a statement")
    if request.options.HasField("timestamp") and not inner.options.HasField("timestamp"):
        inner = copy.deepcopy(inner)
        inner.options.timestamp.CopyFrom(request.options.timestamp)
    if isinstance(inner, database_pb2.InsertRecordsRequest):
        return writes.inserts(table, inner, at)
    if isinstance(inner, requests.Update):
        return [writes.update(table, inner, at)]
    write = writes.delete(table, inner, at)
    if write is None:
        raise errors.BackendCapabilityMissing(f"{at}all_records", "a batch cannot empty a table; use DeleteRecords")
    return [] if write.never else [write]


def _check_together(request: database_pb2.ExecuteBatchRequest, every: Sequence[Write]) -> None:
    counters = request.kind == database_pb2.BATCH_KIND_COUNTER
    if any(write.counter != counters for write in every):
        raise errors.BackendCapabilityMissing(
            "kind", "counters are changed in batches of kind COUNTER, and nothing else is; make two batches"
        )
    seen: set[tuple[str, tuple[bytes, ...]]] = set()
    for write in every:
        if write.key is None or counters or "TIMESTAMP ?" in write.options.using:
            continue
        if (write.table.id, write.key) in seen:
            raise errors.BackendCapabilityMissing(
                write.path,
                "writes a record that the batch writes already: Cassandra gives both one time, and has no order of them;"
                " set `options.timestamp` of each, or send two batches",
            )
        seen.add((write.table.id, write.key))
    if any(write.condition for write in every) and len({(write.table.id, write.partition) for write in every}) > 1:
        raise errors.BackendCapabilityMissing(
            "statements", "with a condition, all statements must be of one partition of one table"
        )


async def _batch(
    database: Database, request: database_pb2.ExecuteBatchRequest, every: Sequence[Write]
) -> BatchStatement:
    given = options.write_options(request.options, "options", conditional=False)
    if request.options.HasField("ttl"):
        raise errors.BackendCapabilityMissing("options.ttl", "is of a statement, not of a batch; set it there")
    batch = BatchStatement(_KINDS[request.kind])
    if given.consistency is not None:
        batch.consistency_level = given.consistency
    if given.serial_consistency is not None:
        batch.serial_consistency_level = given.serial_consistency
    for write in every:
        batch.add(await statement(database, write))
    return batch


async def _would_fail(database: Database, every: Sequence[Write]) -> tuple[Write, Cells | None] | None:
    for write in every:
        if write.condition is not None:
            there = await current(database, write)
            if not write.condition.holds(there):
                return write, there
    return None


def _failed(every: Sequence[Write], there: Sequence[Cells]) -> tuple[Write, Cells | None]:
    """Which of the conditions did not hold: Cassandra shows the records, and leaves that to whoever asked."""
    conditional = [write for write in every if write.condition is not None]
    for write in conditional:
        found = _of_key(write, there)
        assert write.condition is not None
        try:
            if not write.condition.holds(found):
                return write, found
        except KeyError:  # not a column that it shows
            continue
    return conditional[0], _of_key(conditional[0], there)


def _of_key(write: Write, there: Sequence[Cells]) -> Cells | None:
    key = write.table.primary_key[: len(write.key or ())]
    if len(there) == 1 and not all(name in there[0] for name in key):
        return there[0] or None
    return next((cells for cells in there if tuple(cells.get(name) for name in key) == write.key), None)


def _response(
    request: database_pb2.ExecuteBatchRequest,
    found: Sequence[Sequence[Write]],
    failed: tuple[Write, Cells | None] | None,
) -> database_pb2.ExecuteBatchResponse:
    response = database_pb2.ExecuteBatchResponse(applied=failed is None)
    for index, one in enumerate(found):
        which = request.statements[index].WhichOneof("statement")
        here = failed is not None and any(write is failed[0] for write in one)
        there = None
        if here and failed is not None and failed[1]:
            there = shown(failed[0].table, failed[1]) if request.dry_run else refused(failed[0], failed[1])
        if which == "insert":
            response.results.add(insert=_insert_response(one, failed[0] if here and failed else None, there))
        elif which == "update":
            made = database_pb2.UpdateRecordsResponse(
                applied=not here, affected=affected(one[0], not here), current=there
            )
            response.results.add(update=made)
        else:
            deleted = affected(one[0], not here) if one else 0
            response.results.add(
                delete=database_pb2.DeleteRecordsResponse(applied=not here, affected=deleted, current=there)
            )
        if here:
            break
    return response


def _insert_response(
    found: Sequence[Write], failed: Write | None, there: record_pb2.Record | None
) -> database_pb2.InsertRecordsResponse:
    results = [
        database_pb2.InsertResult(applied=write is not failed, current=there if write is failed else None)
        for write in found
    ]
    written = sum(result.applied for result in results)
    return database_pb2.InsertRecordsResponse(applied=failed is None, affected=written, results=results)
