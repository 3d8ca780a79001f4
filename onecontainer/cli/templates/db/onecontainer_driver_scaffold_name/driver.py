"""What the gateway calls: messages in, messages out. Plain `def` methods block, and run in a thread each."""

from __future__ import annotations

import base64
import hashlib
import re
import sqlite3

from google.protobuf import empty_pb2

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import record_pb2, table_pb2
from onecontainer.api.db.v1.value_pb2 import Value
from onecontainer.driver import Attachment, Context, DatabaseDriver, ProbeResult, errors
from onecontainer.driver.records.requests import check_chosen
from onecontainer_driver_scaffold_name.store import Condition, Row, Store, condition
from onecontainer_driver_scaffold_name.values import KINDS, Native, to_native, to_value

IDENTIFIER = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")
ON_CONFLICT = {
    record_pb2.INSERT_MODE_UNSPECIFIED: "",
    record_pb2.INSERT_MODE_FAIL: "",
    record_pb2.INSERT_MODE_IF_NOT_EXISTS: "OR IGNORE",
    record_pb2.INSERT_MODE_UPSERT: "OR REPLACE",
}
MAX_RECORDS, MAX_PAGE, MAX_TABLES = 1000, 10_000, 1000


class ScaffoldNameDriver(DatabaseDriver):
    """Tables with a key."""

    _opened: Store | None = None

    def attach(self, attachment: Attachment) -> None:
        name = attachment.options["file"]
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise errors.FieldInvalid("options.file", "must be the name of a file, not a path")
        self._opened = Store(attachment.state_dir / name)

    def detach(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def probe(self) -> ProbeResult:
        try:
            return ProbeResult(ready=True, backend_version=self._store.version())
        except sqlite3.Error as error:
            raise errors.BackendExecutionFailed(f"SQLite: {error}") from error

    @property
    def _store(self) -> Store:
        if self._opened is None:
            raise errors.NotAttached("the driver is not attached to a service")
        return self._opened

    # --- tables ------------------------------------------------------------------------------------------------------

    def create_table(self, request: pb.CreateTableRequest, context: Context) -> table_pb2.Table:
        _check_name(request.table_id, "table_id")
        _check_table(request.table)
        table = table_pb2.Table()
        table.CopyFrom(request.table)
        table.name = f"{context.service}/tables/{request.table_id}"
        there = self._store.create(request.table_id, table, keep=not request.validate_only)
        if there is None:
            return table
        if not request.if_not_exists:
            raise errors.ResourceConflict(
                f"the table {request.table_id} is there: choose another id, or set if_not_exists"
            )
        return there

    def get_table(self, request: pb.GetTableRequest, context: Context) -> table_pb2.Table:
        return self._table(request.table)

    def list_tables(self, request: pb.ListTablesRequest, context: Context) -> pb.ListTablesResponse:
        if not 0 <= request.page_size <= MAX_TABLES:
            raise errors.FieldInvalid("page_size", f"must be 1 to {MAX_TABLES}")
        size = request.page_size or 50
        after = _from_token(request.page_token, "tables").text_value if request.page_token else ""
        found = self._store.tables(after, size + 1)
        response = pb.ListTablesResponse(tables=found[:size])
        if len(found) > size:
            last = found[size - 1].name.rpartition("/")[2]
            response.next_page_token = _to_token(Value(text_value=last), "tables")
        return response

    def drop_table(self, request: pb.DropTableRequest, context: Context) -> empty_pb2.Empty:
        _check_name(request.table, "table")
        if not self._store.drop(request.table) and not request.if_exists:
            raise _no_table(request.table)
        return empty_pb2.Empty()

    def _table(self, table_id: str) -> table_pb2.Table:
        _check_name(table_id, "table")
        found = self._store.table(table_id)
        if found is None:
            raise _no_table(table_id)
        return found

    # --- records -----------------------------------------------------------------------------------------------------

    def insert_records(self, request: pb.InsertRecordsRequest, context: Context) -> pb.InsertRecordsResponse:
        table = self._table(request.table)
        if not 1 <= len(request.records) <= MAX_RECORDS:
            raise errors.FieldInvalid("records", f"must be 1 to {MAX_RECORDS}")
        _refuse_fields(request, "options", "returning")
        rows = [_to_row(record, table, f"records[{index}]") for index, record in enumerate(request.records)]
        try:
            kept = self._store.insert(
                request.table, table, rows, on_conflict=ON_CONFLICT[request.mode], keep=not request.dry_run
            )
        except sqlite3.IntegrityError as error:
            raise errors.ResourceConflict(f"nothing was written: {error}") from error
        response = pb.InsertRecordsResponse(applied=True)
        for there in kept:
            result = response.results.add(applied=there is None)
            if there is None:
                response.affected += 1
            else:
                response.applied = False
                result.current.CopyFrom(_to_record(there, table.columns))
        return response

    def select_records(self, request: pb.SelectRecordsRequest, context: Context) -> pb.SelectRecordsResponse:
        table, query = self._table(request.table), request.query
        _refuse_fields(query, "order_by", "limit", "distinct", "consistency", path="query.")
        if not 0 <= request.page_size <= MAX_PAGE:
            raise errors.FieldInvalid("page_size", f"must be 1 to {MAX_PAGE}")
        columns = [_column(table, name, f"query.columns[{index}]") for index, name in enumerate(query.columns)]
        columns = columns or list(table.columns)
        sql, values = condition(query.where, table, "query.where") if query.HasField("where") else ("1", [])
        key = _column(table, table.partition_key[0], "table")
        this = request.table + query.SerializeToString(deterministic=True).hex()
        if request.page_token:
            sql += f' AND "{key.name}" > ?'
            values = [*values, to_native(_from_token(request.page_token, this), key, "page_token")]
        size = request.page_size or 100
        names = [column.name for column in columns]
        rows = self._store.select(request.table, table, names, (sql, values), size + 1)
        response = pb.SelectRecordsResponse(
            columns=[record_pb2.ResultColumn(name=column.name, type=column.type) for column in columns],
            records=[_to_record(row, columns) for row in rows[:size]],
        )
        if len(rows) > size:
            response.next_page_token = _to_token(to_value(rows[size - 1][-1], key), this)
        return response

    def delete_records(self, request: pb.DeleteRecordsRequest, context: Context) -> pb.DeleteRecordsResponse:
        table = self._table(request.table)
        _refuse_fields(request, "columns", "condition", "options", "returning")
        check_chosen(request, "")
        where: Condition = ("1", []) if request.all_records else condition(request.where, table, "where")
        at_most = request.max_affected if request.HasField("max_affected") else None
        gone = self._store.delete(request.table, where, at_most=at_most, keep=not request.dry_run)
        return pb.DeleteRecordsResponse(applied=True, affected=gone)


def _check_name(name: str, path: str) -> None:
    if not name:
        raise errors.FieldRequired(path)
    if not IDENTIFIER.match(name) or name.startswith("_"):
        raise errors.FieldInvalid(path, "must be a letter, then letters, digits and `_`, at most 63 characters")


def _check_table(table: table_pb2.Table) -> None:
    if not table.columns:
        raise errors.FieldRequired("table.columns")
    for index, column in enumerate(table.columns):
        path = f"table.columns[{index}]"
        _check_name(column.name, f"{path}.name")
        if column.type.kind not in KINDS:
            raise errors.BackendCapabilityMissing(
                f"{path}.type.kind", "this driver has bool, int64, double, text and bytes"
            )
        _refuse_fields(column, "default_value", "auto_increment", "is_static", path=f"{path}.")
    names = [column.name.lower() for column in table.columns]
    if len(set(names)) < len(names):
        raise errors.FieldInvalid("table.columns", "has a name twice")
    _refuse_fields(table, "clustering_key", "indexes", "properties", path="table.")
    if len(table.partition_key) != 1:
        raise errors.BackendCapabilityMissing("table.partition_key", "this driver needs exactly one key column")
    _column(table, table.partition_key[0], "table.partition_key[0]")


def _refuse_fields(message: object, *names: str, path: str = "") -> None:
    """A field that is set and that nobody would look at must not be passed over."""
    for descriptor, _value in message.ListFields():  # type: ignore[attr-defined]
        if descriptor.name in names:
            raise errors.BackendCapabilityMissing(
                f"{path}{descriptor.name}", "this driver does not have that: leave it out"
            )


def _column(table: table_pb2.Table, name: str, path: str) -> table_pb2.Column:
    for column in table.columns:
        if column.name == name:
            return column
    raise errors.FieldInvalid(path, f"the table has no column {name!r}")


def _to_row(record: record_pb2.Record, table: table_pb2.Table, path: str) -> list[Native]:
    for name in record.fields:
        _column(table, name, f"{path}.fields.{name}")
    row: list[Native] = []
    for column in table.columns:
        field = f"{path}.fields.{column.name}"
        value = to_native(record.fields[column.name], column, field) if column.name in record.fields else None
        if value is None and (column.not_null or column.name == table.partition_key[0]):
            raise errors.DataInvalid(field, "must not be null")
        row.append(value)
    return row


def _to_record(row: Row, columns: object) -> record_pb2.Record:
    pairs = zip(columns, row, strict=False)  # type: ignore[call-overload]
    return record_pb2.Record(fields={column.name: to_value(value, column) for column, value in pairs})


def _to_token(key: Value, query: str) -> str:
    """Behind which key the next page begins; it belongs to one query only."""
    return base64.urlsafe_b64encode(_mark(query) + key.SerializeToString()).decode()


def _from_token(token: str, query: str) -> Value:
    try:
        data = base64.urlsafe_b64decode(token)
        if data[:8] != _mark(query):
            raise ValueError
        return Value.FromString(data[8:])
    except Exception as error:
        raise errors.FieldInvalid("page_token", "is not one of this query: start without it") from error


def _mark(query: str) -> bytes:
    return hashlib.sha256(query.encode()).digest()[:8]


def _no_table(table_id: str) -> errors.ResourceNotFound:
    return errors.ResourceNotFound(f"there is no table {table_id}; ListTables tells which there are")
