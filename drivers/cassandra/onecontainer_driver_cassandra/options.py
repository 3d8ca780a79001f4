"""Options of reads and writes."""

from __future__ import annotations

from dataclasses import dataclass

from cassandra import ConsistencyLevel

from onecontainer.api.db.v1 import query_pb2, record_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.requests import check_options
from onecontainer_driver_cassandra import codecs
from onecontainer_driver_cassandra.wire import Cell

_INT32, _INT64 = codecs.integer(32), codecs.integer(64)
_SERIAL = (query_pb2.CONSISTENCY_SERIAL, query_pb2.CONSISTENCY_LOCAL_SERIAL)
_PREFIX = "CONSISTENCY_"


@dataclass(frozen=True, slots=True)
class Options:
    """Of one write. ``using`` has the parts of a USING clause; ``values`` what they bind."""

    using: tuple[str, ...]
    values: tuple[Cell, ...]
    consistency: int | None
    serial_consistency: int | None

    @property
    def clause(self) -> str:
        return f" USING {' AND '.join(self.using)}" if self.using else ""


def write_options(given: record_pb2.WriteOptions, path: str, *, conditional: bool, delete: bool = False) -> Options:
    check_options(given, path, conditional=conditional, delete=delete)
    using: list[str] = []
    values: list[Cell] = []
    if given.HasField("ttl"):
        using.append("TTL ?")
        values.append(_INT32.load(given.ttl.seconds))
    if given.HasField("timestamp"):
        using.append("TIMESTAMP ?")
        values.append(timestamp(given, path))
    if given.consistency in _SERIAL:
        raise errors.FieldInvalid(f"{path}.consistency", "is for reads; of a condition set `serial_consistency`")
    if given.serial_consistency and given.serial_consistency not in _SERIAL:
        raise errors.FieldInvalid(f"{path}.serial_consistency", "must be SERIAL or LOCAL_SERIAL")
    return Options(
        tuple(using),
        tuple(values),
        consistency_level(given.consistency, f"{path}.consistency"),
        consistency_level(given.serial_consistency, f"{path}.serial_consistency"),
    )


def timestamp(given: record_pb2.WriteOptions, path: str) -> bytes:
    moment = given.timestamp
    if moment.nanos % 1000 or not 0 <= moment.nanos < 10**9:
        raise errors.FieldInvalid(f"{path}.timestamp", "has more digits than microseconds")
    micros = moment.seconds * 1_000_000 + moment.nanos // 1000
    # The smallest number stands for no timestamp at all in Cassandra.
    if not -(2**63) < micros < 2**63:
        raise errors.FieldInvalid(f"{path}.timestamp", "is out of range")
    made: bytes = _INT64.load(micros)
    return made


def consistency_level(given: query_pb2.Consistency.ValueType, path: str) -> int | None:
    """cassandra-driver's number. None: the service's default."""
    if not given:
        return None
    if given not in query_pb2.Consistency.values():
        raise errors.FieldInvalid(path, f"{given} is not a consistency")
    level: int = ConsistencyLevel.name_to_value[query_pb2.Consistency.Name(given).removeprefix(_PREFIX)]
    return level
