"""Parts of writes that are the same for all of them: options that SQL has not, and what to return."""

from __future__ import annotations

from collections.abc import Sequence

from onecontainer.api.db.v1 import record_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import Column
from onecontainer.driver.records.requests import check_options, chosen_columns
from onecontainer_driver_sql.model import EXPIRY, TableInfo


def refuse_options(
    table: TableInfo, options: record_pb2.WriteOptions, path: str, *, conditional: bool = False, delete: bool = False
) -> None:
    """Of WriteOptions SQL has `ttl` alone, in tables made for it. What no backend allows is told first."""
    check_options(options, path, conditional=conditional, delete=delete)
    if options.HasField("ttl") and not table.expires:
        raise errors.BackendCapabilityMissing(
            f"{path}.ttl",
            f"table {table.id!r} has no column for it; create it with `expires`, or add the column {EXPIRY} of type TIMESTAMP",
        )
    refuse_replicas(options, path)


def refuse_replicas(options: record_pb2.WriteOptions, path: str) -> None:
    """What only databases of many replicas have."""
    if options.HasField("timestamp"):
        raise errors.BackendCapabilityMissing(f"{path}.timestamp", "SQL has no timestamp of a write; leave it away")
    for name in ("consistency", "serial_consistency"):
        if getattr(options, name):
            raise errors.BackendCapabilityMissing(f"{path}.{name}", "SQL has no consistency levels; leave it away")


def returned_columns(table: TableInfo, names: Sequence[str], path: str) -> list[Column]:
    if list(names) == ["*"]:
        return list(table.columns.values())
    return chosen_columns(table, names, path)
