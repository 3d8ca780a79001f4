"""Parts of writes that are the same for all of them: options that SQL has not, and what to return."""

from __future__ import annotations

from collections.abc import Sequence

from onecontainer.api.db.v1 import record_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import Column
from onecontainer.driver.records.requests import check_options, chosen_columns
from onecontainer_driver_sql.model import TableInfo


def refuse_options(options: record_pb2.WriteOptions, path: str, *, conditional: bool, delete: bool) -> None:
    """None of WriteOptions is SQL's. What no backend allows is told first."""
    check_options(options, path, conditional=conditional, delete=delete)
    for name in ("ttl", "timestamp"):
        if options.HasField(name):
            raise errors.BackendCapabilityMissing(f"{path}.{name}", f"SQL has no {name} of a write; leave it away")
    for name in ("consistency", "serial_consistency"):
        if getattr(options, name):
            raise errors.BackendCapabilityMissing(f"{path}.{name}", "SQL has no consistency levels; leave it away")


def returned_columns(table: TableInfo, names: Sequence[str], path: str) -> list[Column]:
    if list(names) == ["*"]:
        return list(table.columns.values())
    return chosen_columns(table, names, path)
