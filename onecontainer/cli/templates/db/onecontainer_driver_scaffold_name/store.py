"""Tables in an SQLite file, each with one key column. One connection, one call at a time."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from onecontainer.api.db.v1 import query_pb2, table_pb2
from onecontainer.driver import errors
from onecontainer_driver_scaffold_name.values import KINDS, Native, to_native

DEFINITIONS = "CREATE TABLE IF NOT EXISTS _definitions (id TEXT PRIMARY KEY, definition BLOB NOT NULL)"
OPERATORS = {
    query_pb2.OPERATOR_UNSPECIFIED: "=",
    query_pb2.OPERATOR_EQUAL: "=",
    query_pb2.OPERATOR_NOT_EQUAL: "<>",
    query_pb2.OPERATOR_LESS: "<",
    query_pb2.OPERATOR_LESS_OR_EQUAL: "<=",
    query_pb2.OPERATOR_GREATER: ">",
    query_pb2.OPERATOR_GREATER_OR_EQUAL: ">=",
}
Row = Sequence[Native]
Condition = tuple[str, list[Native]]
"""An SQL expression and its parameters."""


class Store:
    """The backend. Names are checked by the caller, and quoted here; values are always parameters."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.execute(DEFINITIONS)

    def close(self) -> None:
        self._connection.close()

    def version(self) -> str:
        with self._transaction(write=False) as cursor:
            return str(cursor.execute("SELECT sqlite_version()").fetchone()[0])

    @contextlib.contextmanager
    def _transaction(self, *, write: bool = True, keep: bool = True) -> Iterator[sqlite3.Cursor]:
        """All of it or nothing; with `keep` false nothing, in any case."""
        with self._lock:
            cursor = self._connection.cursor()
            cursor.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield cursor
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT" if keep else "ROLLBACK")

    # --- tables ------------------------------------------------------------------------------------------------------

    def create(self, table_id: str, table: table_pb2.Table, *, keep: bool) -> table_pb2.Table | None:
        """The table that was there already; None: it was created."""
        with self._transaction(keep=keep) as cursor:
            there = _definition(cursor, table_id)
            if there is not None:
                return there
            columns = ", ".join(
                f"{_quoted(column.name)} {KINDS[column.type.kind].sql}"
                + (" NOT NULL" if column.not_null or column.name == table.partition_key[0] else "")
                for column in table.columns
            )
            key = _quoted(table.partition_key[0])
            cursor.execute(f"CREATE TABLE {_quoted(table_id)} ({columns}, PRIMARY KEY ({key})) WITHOUT ROWID")
            cursor.execute("INSERT INTO _definitions VALUES (?, ?)", (table_id, table.SerializeToString()))
        return None

    def table(self, table_id: str) -> table_pb2.Table | None:
        with self._transaction(write=False) as cursor:
            return _definition(cursor, table_id)

    def tables(self, after: str, limit: int) -> list[table_pb2.Table]:
        with self._transaction(write=False) as cursor:
            rows = cursor.execute(
                "SELECT definition FROM _definitions WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
            ).fetchall()
        return [table_pb2.Table.FromString(row[0]) for row in rows]

    def drop(self, table_id: str) -> bool:
        with self._transaction() as cursor:
            if cursor.execute("DELETE FROM _definitions WHERE id = ?", (table_id,)).rowcount == 0:
                return False
            cursor.execute(f"DROP TABLE {_quoted(table_id)}")
        return True

    # --- records -----------------------------------------------------------------------------------------------------

    def insert(
        self, table_id: str, table: table_pb2.Table, rows: Sequence[Row], *, on_conflict: str, keep: bool
    ) -> list[Row | None]:
        """For each row the one that was there and was left alone; None: it was written. Raises sqlite3.IntegrityError."""
        names = [column.name for column in table.columns]
        key = names.index(table.partition_key[0])
        places = ", ".join("?" for _ in names)
        kept: list[Row | None] = []
        with self._transaction(keep=keep) as cursor:
            for row in rows:
                cursor.execute(f"INSERT {on_conflict} INTO {_quoted(table_id)} VALUES ({places})", row)
                if cursor.rowcount:
                    kept.append(None)
                    continue
                where = f"{_quoted(names[key])} = ?"
                found = cursor.execute(f"SELECT * FROM {_quoted(table_id)} WHERE {where}", (row[key],)).fetchone()
                if found is None:
                    raise sqlite3.IntegrityError("a value is null that must not be")
                kept.append(found)
        return kept

    def select(
        self, table_id: str, table: table_pb2.Table, columns: Sequence[str], where: Condition, limit: int
    ) -> list[Row]:
        """Rows in the order of the key; the key is the last value of each."""
        key = _quoted(table.partition_key[0])
        chosen = ", ".join([*map(_quoted, columns), key])
        with self._transaction(write=False) as cursor:
            return cursor.execute(
                f"SELECT {chosen} FROM {_quoted(table_id)} WHERE {where[0]} ORDER BY {key} LIMIT ?", [*where[1], limit]
            ).fetchall()

    def delete(self, table_id: str, where: Condition, *, at_most: int | None, keep: bool) -> int:
        """How many went. Raises StateInvalid, and deletes nothing, if more than `at_most` would."""
        with self._transaction(keep=keep) as cursor:
            gone = cursor.execute(f"DELETE FROM {_quoted(table_id)} WHERE {where[0]}", where[1]).rowcount
            if at_most is not None and gone > at_most:
                raise errors.StateInvalid(
                    f"{gone} records would go, more than max_affected ({at_most}): narrow `where`"
                )
        return gone


def condition(where: query_pb2.Filter, table: table_pb2.Table, path: str) -> Condition:
    """A filter as SQL. Raises FieldInvalid, DataInvalid, and BackendCapabilityMissing for kinds of filter that are not supported."""
    match where.WhichOneof("node"):
        case "comparison":
            comparison = where.comparison
            column = next((one for one in table.columns if one.name == comparison.column), None)
            if column is None:
                raise errors.FieldInvalid(f"{path}.comparison.column", f"the table has no column {comparison.column!r}")
            if comparison.HasField("element"):
                raise errors.BackendCapabilityMissing(f"{path}.comparison.element", "there are no collections here")
            value = to_native(comparison.value, column, f"{path}.comparison.value")
            return f"{_quoted(column.name)} {OPERATORS[comparison.operator]} ?", [value]
        case "all_of":
            parts = [
                condition(one, table, f"{path}.all_of.filters[{index}]")
                for index, one in enumerate(where.all_of.filters)
            ]
            return " AND ".join(["1", *(sql for sql, _ in parts)]), [value for _, values in parts for value in values]
        case None:
            raise errors.FieldRequired(path)
        case kind:
            raise errors.BackendCapabilityMissing(
                f"{path}.{kind}", "this driver has comparisons and `all_of`: choose the rest where you read"
            )


def _definition(cursor: sqlite3.Cursor, table_id: str) -> table_pb2.Table | None:
    row = cursor.execute("SELECT definition FROM _definitions WHERE id = ?", (table_id,)).fetchone()
    return None if row is None else table_pb2.Table.FromString(row[0])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
