"""Results as they come over the wire: cells are bytes, which the columns' codecs read.

cassandra-driver would make Python objects of them, which lose what Python has not (dates of large years, a duration's months) and
cost more than what is made of them in the end.
"""

from __future__ import annotations

import struct
from typing import Any

from cassandra.protocol import ResultMessage, _ProtocolHandler

_INT = struct.Struct(">i")
Cell = bytes | None


class Rows:
    """A page of rows, which are cut into cells when they are asked for."""

    __slots__ = ("_count", "_data", "names", "paging_state")

    def __init__(self, names: tuple[str, ...], count: int, data: bytes, paging_state: bytes | None) -> None:
        self.names = names
        self.paging_state = paging_state
        self._count = count
        self._data = data

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._data)

    def cells(self) -> list[list[Cell]]:
        data, width, at = self._data, range(len(self.names)), 0
        length = _INT.unpack_from
        rows: list[list[Cell]] = []
        for _ in range(self._count):
            row: list[Cell] = []
            for _ in width:
                (size,) = length(data, at)
                at += 4
                if size < 0:
                    row.append(None)
                else:
                    row.append(data[at : at + size])
                    at += size
            rows.append(row)
        return rows


class _RawResult(ResultMessage):  # type: ignore[misc]
    def recv_results_rows(
        self, f: Any, protocol_version: int, user_type_map: Any, result_metadata: Any, column_encryption_policy: Any
    ) -> None:
        self.recv_results_metadata(f, user_type_map)
        metadata = self.column_metadata or result_metadata
        (count,) = _INT.unpack(f.read(4))
        self.column_names = [column[2] for column in metadata]
        self.column_types = [column[3] for column in metadata]
        self.parsed_rows = Rows(tuple(self.column_names), count, f.read(), self.paging_state)


class RawProtocolHandler(_ProtocolHandler):  # type: ignore[misc]
    """The session's protocol handler."""

    message_types_by_opcode = _ProtocolHandler.message_types_by_opcode | {_RawResult.opcode: _RawResult}
