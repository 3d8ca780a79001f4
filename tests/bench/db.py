"""make bench-db: rows through a gateway against the databases' own clients, on a real Cassandra and a real PostgreSQL.

Raw is what their users write: cassandra-driver's `execute_concurrent_with_args` and its paged results, SQLAlchemy on asyncpg with
lists of parameters and streamed results. Reconnecting is a connection for each request. Rounds take turns, so that a noisy machine
disturbs all alike; ratios are medians over the rounds' own ratios.

    python -m tests.bench.db [ROUNDS [ROWS]]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from cassandra.cluster import Cluster
from cassandra.concurrent import execute_concurrent_with_args
from sqlalchemy.ext.asyncio import create_async_engine

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, value_pb2
from onecontainer.client import AsyncClient
from tests.bench import figures
from tests.fixtures.cassandra import private_cassandra
from tests.fixtures.postgresql import private_postgresql
from tests.fixtures.processes import GatewayProcess, running

COLUMNS = {"id": "int64", "name": "text", "score": "double", "body": "text"}
BODY = "x" * 64
BATCH = 2000
"""Rows in one message of a bulk insert."""
UNARY, RECONNECTS = 300, 10
"""Requests of one measurement."""
GOALS = {"bulk_over_raw": 0.8, "stream_over_raw": 0.8, "unary_over_reconnect": 5.0}

Row = tuple[int, str, float, str]


def row(index: int) -> Row:
    return index, f"name-{index}", index / 7, BODY


class Raw(Protocol):
    """A database without us."""

    async def prepare(self) -> None: ...

    async def bulk(self, rows: list[Row]) -> None: ...

    async def stream(self) -> int: ...

    async def reconnect(self, index: int) -> None:
        """One insert and one select, each over a connection of its own."""
        ...


class RawCassandra:
    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        self._place = ([host], int(port))
        self._insert = "INSERT INTO bench.raw (id, name, score, body) VALUES (?, ?, ?, ?)"

    def _connect(self) -> tuple[Cluster, Any]:
        cluster = Cluster(self._place[0], port=self._place[1], protocol_version=5)
        return cluster, cluster.connect()

    async def prepare(self) -> None:
        self._cluster, self._session = await asyncio.to_thread(self._connect)
        await asyncio.to_thread(
            self._session.execute,
            "CREATE TABLE bench.raw (id bigint PRIMARY KEY, name text, score double, body text)",
            timeout=60,
        )

    async def bulk(self, rows: list[Row]) -> None:
        statement = self._session.prepare(self._insert)
        await asyncio.to_thread(execute_concurrent_with_args, self._session, statement, rows, 100)

    async def stream(self) -> int:
        def read() -> int:
            return sum(1 for _ in self._session.execute("SELECT id, name, score, body FROM bench.raw", timeout=60))

        return await asyncio.to_thread(read)

    async def reconnect(self, index: int) -> None:
        def once(cql: str, *values: Any) -> None:
            cluster, session = self._connect()
            try:
                session.execute(session.prepare(cql), values)
            finally:
                cluster.shutdown()

        await asyncio.to_thread(once, self._insert, *row(index))
        await asyncio.to_thread(once, "SELECT * FROM bench.raw WHERE id = ?", index)


class RawPostgresql:
    def __init__(self, place: str) -> None:
        self._url = f"postgresql+asyncpg://{place}"
        self._table = sa.Table(
            "raw",
            sa.MetaData(),
            sa.Column("id", sa.BigInteger, primary_key=True),
            sa.Column("name", sa.Text),
            sa.Column("score", sa.Double),
            sa.Column("body", sa.Text),
        )

    async def prepare(self) -> None:
        self._engine = create_async_engine(self._url)
        async with self._engine.begin() as connection:
            await connection.run_sync(self._table.metadata.create_all)

    async def bulk(self, rows: list[Row]) -> None:
        async with self._engine.begin() as connection:
            names = list(COLUMNS)
            for start in range(0, len(rows), BATCH):
                chunk = [dict(zip(names, one, strict=True)) for one in rows[start : start + BATCH]]
                await connection.execute(sa.insert(self._table), chunk)

    async def stream(self) -> int:
        count = 0
        async with self._engine.connect() as connection:
            result = await connection.stream(sa.select(self._table))
            async for _ in result:
                count += 1
        return count

    async def reconnect(self, index: int) -> None:
        for statement in (
            sa.insert(self._table).values(dict(zip(COLUMNS, row(index), strict=True))),
            sa.select(self._table).where(self._table.c.id == index),
        ):
            engine = create_async_engine(self._url)
            async with engine.begin() as connection:
                await connection.execute(statement)
            await engine.dispose()


class Ours:
    """The same table through the gateway, with the contract's own messages: columns, as the contract advises for many rows."""

    def __init__(self, client: AsyncClient, service: str) -> None:
        self._client = client
        self._service = f"services/{service}"

    async def prepare(self) -> None:
        await self._client.db.create_table(self._service, "ours", COLUMNS, key=["id"])

    async def bulk(self, rows: list[Row]) -> None:
        async def requests() -> AsyncIterator[pb.BulkInsertRequest]:
            yield pb.BulkInsertRequest(service=self._service, table="ours")
            for start in range(0, len(rows), BATCH):
                yield pb.BulkInsertRequest(batch=_columns(rows[start : start + BATCH]))

        done = await self._client.db.stub.BulkInsert(requests())
        assert done.inserted == len(rows), done

    async def stream(self) -> int:
        request = pb.StreamRecordsRequest(
            service=self._service, table="ours", encoding=record_pb2.BATCH_ENCODING_COLUMNS, batch_size=5000
        )
        count = 0
        async for response in self._client.db.stub.StreamRecords(request):
            count += len(_rows(response.batch))
        return count

    async def unary(self, index: int) -> None:
        """One insert and one select."""
        identity, name, score, body = row(index)
        fields = {
            "id": value_pb2.Value(int64_value=identity),
            "name": value_pb2.Value(text_value=name),
            "score": value_pb2.Value(double_value=score),
            "body": value_pb2.Value(text_value=body),
        }
        insert = pb.InsertRecordsRequest(
            service=self._service, table="ours", records=[record_pb2.Record(fields=fields)]
        )
        await self._client.db.stub.InsertRecords(insert)
        comparison = query_pb2.Comparison(column="id", value=fields["id"])
        query = query_pb2.Query(where=query_pb2.Filter(comparison=comparison))
        select = pb.SelectRecordsRequest(service=self._service, table="ours", query=query)
        assert len((await self._client.db.stub.SelectRecords(select)).records) == 1


def _columns(rows: list[Row]) -> record_pb2.RecordBatch:
    ids, names, scores, bodies = zip(*rows, strict=True)
    values = record_pb2.ColumnValues
    return record_pb2.RecordBatch(
        columns=list(COLUMNS),
        column_list=record_pb2.ColumnList(
            row_count=len(rows),
            columns=[
                values(int64s=record_pb2.Int64Array(values=ids)),
                values(texts=record_pb2.TextArray(values=names)),
                values(doubles=record_pb2.DoubleArray(values=scores)),
                values(texts=record_pb2.TextArray(values=bodies)),
            ],
        ),
    )


def _rows(batch: record_pb2.RecordBatch) -> list[tuple[Any, ...]]:
    """Rows as Python has them, which the raw clients give, too."""
    columns = batch.column_list.columns
    return list(zip(*(getattr(one, str(one.WhichOneof("data"))).values for one in columns), strict=True))


@dataclass
class Measured:
    """Rows, or requests, a second in each round; and seconds of each request."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    latencies: dict[str, list[float]] = field(default_factory=dict)

    async def timed(self, name: str, count: int, call: Callable[[], Awaitable[Any]]) -> None:
        began = time.perf_counter()
        await call()
        self.rates.setdefault(name, []).append(count / (time.perf_counter() - began))

    async def each(self, name: str, calls: int, call: Callable[[int], Awaitable[None]], first: int) -> None:
        began = time.perf_counter()
        for index in range(first, first + calls):
            start = time.perf_counter()
            await call(index)
            self.latencies.setdefault(name, []).append(time.perf_counter() - start)
        self.rates.setdefault(name, []).append(calls / (time.perf_counter() - began))

    def ratio(self, over: str, under: str) -> float:
        return figures.median_ratio(self.rates[over], self.rates[under])


async def measure(raw: Raw, ours: Ours, rounds: int, count: int) -> Measured:
    await raw.prepare()
    await ours.prepare()
    measured = Measured()
    # Not measured: what is slow the first time only, in the server most of all.
    warm = [row(-1 - index) for index in range(count)]
    await raw.bulk(warm)
    await ours.bulk(warm)
    total = count
    for turn in range(rounds):
        rows = [row(index) for index in range(turn * count, (turn + 1) * count)]
        total += count
        await measured.timed("bulk raw", count, lambda rows=rows: raw.bulk(rows))
        await measured.timed("bulk", count, lambda rows=rows: ours.bulk(rows))
        await measured.timed("stream raw", total, raw.stream)
        await measured.timed("stream", total, ours.stream)
        first = 10**9 + turn * 10**6
        await measured.each("unary", UNARY, ours.unary, first)
        await measured.each("reconnect", RECONNECTS, raw.reconnect, first)
    return measured


def report(name: str, measured: Measured, found: dict[str, float]) -> None:
    ratios = {
        "bulk_over_raw": measured.ratio("bulk", "bulk raw"),
        "stream_over_raw": measured.ratio("stream", "stream raw"),
        "unary_over_reconnect": measured.ratio("unary", "reconnect"),
    }
    rows = []
    for what, rates in measured.rates.items():
        key = what.replace(" ", "_")
        found[f"{name}.{key}.per_second"] = statistics.median(rates)
        latencies = measured.latencies.get(what)
        shown = ["", ""]
        if latencies:
            p50, p99 = (figures.percentile(latencies, share) * 1000 for share in (0.5, 0.99))
            found |= {f"{name}.{key}.p50_ms": p50, f"{name}.{key}.p99_ms": p99}
            shown = [f"{p50:.2f}", f"{p99:.2f}"]
        rows.append([what, f"{statistics.median(rates):,.0f}", *shown])
    found |= {f"{name}.{key}": ratio for key, ratio in ratios.items()}
    goals = {f"{name}.{key}": (ratio, f"≥ {GOALS[key]}") for key, ratio in ratios.items()}
    figures.show(name, ["what", "per second", "p50 ms", "p99 ms"], rows, goals)


async def run(gateway: str, raws: dict[str, Raw], services: dict[str, dict[str, Any]], rounds: int, count: int) -> None:
    found: dict[str, float] = {}
    async with AsyncClient(gateway) as client:
        for name, raw in raws.items():
            await client.services.create(name, **services[name])
            await client.services.wait_ready(name, timeout=120)
            report(name, await measure(raw, Ours(client, name), rounds, count), found)
    print(f"wrote {figures.write('db', found)}")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ocbench-")))
        node = stack.enter_context(private_cassandra(quick_start=False, heap="768m"))
        postgres = stack.enter_context(private_postgresql())
        gateway = GatewayProcess(folder / "data")
        stack.enter_context(running(gateway))
        services = {
            "cassandra": {
                "app": "cassandra",
                "app_version": "5.0.9",
                "endpoints": {"one": node.address},
                "options": {"keyspace": "bench", "request_timeout": "60s"},
            },
            "postgresql": {"app": "sql", "app_version": "15", "options": {"url": f"postgresql://{postgres}"}},
        }
        raws: dict[str, Raw] = {"cassandra": RawCassandra(node.address), "postgresql": RawPostgresql(postgres)}
        asyncio.run(run(gateway.address, raws, services, rounds, count))


if __name__ == "__main__":
    main()
