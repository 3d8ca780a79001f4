"""The ledger's tables. Times are microseconds since 1970-01-01 UTC; 0 stands for "none", so that comparisons need no NULLs."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from onecontainer.jobs.model import LEASED, TERMINAL, State

metadata = sa.MetaData()

# SQLite counts rows by INTEGER PRIMARY KEY only, PostgreSQL by BIGINT.
POSITION = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_MICROS = sa.BigInteger


def _micros(name: str) -> sa.Column[int]:
    return sa.Column(name, _MICROS, nullable=False, server_default="0")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default="")


def _int(name: str, default: int = 0) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, server_default=str(default))


jobs = sa.Table(
    "jobs",
    metadata,
    # Its place in the queue: jobs of one lane are started in this order.
    sa.Column("position", POSITION, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("service", sa.Text, nullable=False),
    sa.Column("service_uid", sa.Text, nullable=False),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("result_type", sa.Text, nullable=False),
    sa.Column("principal", sa.Text, nullable=False),
    sa.Column("options", sa.LargeBinary, nullable=False),
    sa.Column("payload", sa.LargeBinary),
    _text("payload_artifact"),
    _text("request_id"),
    _text("traceparent"),
    _text("retry_of"),
    sa.Column("idempotent", sa.Boolean, nullable=False),
    sa.Column("finishable", sa.Boolean, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    _int("priority", 2),
    _int("attempt", 1),
    sa.Column("fence", sa.BigInteger, nullable=False, server_default="1"),
    _int("releases"),
    _int("cancel_mode"),
    sa.Column("ended_early", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("sequence", sa.BigInteger, nullable=False, server_default="1"),
    _text("instance"),
    # The gateway whose end is the end of the instance too (process sidecars); empty for those that outlive it.
    _text("gateway"),
    _micros("create_time"),
    _micros("start_time"),
    _micros("attempt_start_time"),
    _micros("end_time"),
    _micros("due_time"),
    # When this fence was brought to the broker; 0: it is not there. Without a broker always 0.
    _micros("published_time"),
    _micros("queue_deadline"),
    _micros("total_deadline"),
    _micros("attempt_deadline"),
    _micros("lease_expiry"),
    _micros("progress_time"),
    _micros("expire_time"),
    # When the sweeper has to look at an ended job next: its result goes, then its record. 0: never.
    _micros("tidy_time"),
    sa.Column("progress", sa.LargeBinary),
    sa.Column("resume", sa.LargeBinary),
    sa.Column("result", sa.LargeBinary),
    _text("result_artifact"),
    sa.Column("result_expired", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("error", sa.LargeBinary),
)


def _in(states: frozenset[State]) -> sa.ColumnElement[bool]:
    return jobs.c.state.in_([sa.literal_column(str(int(state))) for state in sorted(states)])


# SQLite uses a partial index only if the query says the same as the index, in literals and not in parameters.
NONE = sa.literal_column("0", sa.BigInteger)
QUEUED = jobs.c.state == sa.literal_column(str(int(State.QUEUED)))
WAITING = jobs.c.state == sa.literal_column(str(int(State.RETRY_WAIT)))
IN_LEASE = _in(LEASED)
LIVE = _in(frozenset(State) - TERMINAL)
# Each job passes through RUNNING, and few are there at a time: those are found by their leases.
NOT_RUNNING = jobs.c.state != sa.literal_column(str(int(State.RUNNING)))


def _partial(name: str, *columns: sa.ColumnElement[object] | sa.Column[object], where: sa.ColumnElement[bool]) -> None:
    condition = sa.text(where.compile(compile_kwargs={"literal_binds": True}).string.replace("jobs.", ""))
    sa.Index(name, *columns, sqlite_where=condition, postgresql_where=condition)


_partial("jobs_ready", jobs.c.service_uid, jobs.c.priority.desc(), jobs.c.position, where=QUEUED)
_partial(
    "jobs_published", jobs.c.service_uid, jobs.c.published_time, where=sa.and_(QUEUED, jobs.c.published_time > NONE)
)
_partial("jobs_leased", jobs.c.service_uid, where=IN_LEASE)
_partial("jobs_due", jobs.c.due_time, where=WAITING)
_partial("jobs_queue_deadline", jobs.c.queue_deadline, where=sa.and_(QUEUED, jobs.c.queue_deadline > NONE))
_partial("jobs_total_deadline", jobs.c.total_deadline, where=LIVE)
_partial("jobs_tidy", jobs.c.tidy_time, where=jobs.c.tidy_time > NONE)
_partial("jobs_retry_of", jobs.c.retry_of, where=jobs.c.retry_of != sa.literal_column("''"))
# Lists are newest first, of a service or of a state.
sa.Index("jobs_service", jobs.c.service, jobs.c.position)
_partial("jobs_state", jobs.c.state, jobs.c.position, where=NOT_RUNNING)


class rarely(FunctionElement[int]):  # noqa: N801 - used as SQL functions are
    """A condition that few rows meet. SQLite, which counts nothing by itself, then takes the index for it."""

    # Not Boolean: SQLAlchemy would write `= 1` behind it.
    type = sa.Integer()
    inherit_cache = True


@compiles(rarely)
def _as_it_is(element: rarely, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(element.clauses, **options)


@compiles(rarely, "sqlite")
def _with_likelihood(element: rarely, compiler: SQLCompiler, **options: Any) -> str:
    return f"likelihood({compiler.process(element.clauses, **options)}, 0.000001)"


events = sa.Table(
    "job_events",
    metadata,
    # Transitions that have yet to be told to the broker, in their order. Without a broker it stays empty.
    sa.Column("position", POSITION, primary_key=True, autoincrement=True),
    # Those of one transaction, as event.v1.JobEvents.
    sa.Column("events", sa.LargeBinary, nullable=False),
)

attempts = sa.Table(
    "attempts",
    metadata,
    # Attempts that have ended; the one that runs, or that ended the job, is in the job's own row.
    sa.Column("job", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("fence", sa.BigInteger, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    _text("instance"),
    _micros("start_time"),
    _micros("end_time"),
    sa.Column("error", sa.LargeBinary),
)

labels = sa.Table(
    "job_labels",
    metadata,
    sa.Column("job", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sa.Index("job_labels_value", "key", "value"),
)

inputs = sa.Table(
    "job_inputs",
    metadata,
    # Artifacts that a live job's request names.
    sa.Column("job", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("artifact", sa.Text, primary_key=True),
    sa.Index("job_inputs_artifact", "artifact"),
)

request_ids = sa.Table(
    "job_request_ids",
    metadata,
    sa.Column("principal", sa.Text, primary_key=True),
    sa.Column("method", sa.Text, primary_key=True),
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Column("job", sa.Text, nullable=False),
    _micros("expire_time"),
    sa.Index("job_request_ids_expire", "expire_time"),
)

dead_letters = sa.Table(
    "dead_letters",
    metadata,
    sa.Column("position", POSITION, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("service", sa.Text, nullable=False),
    _text("job"),
    sa.Column("error", sa.LargeBinary, nullable=False),
    sa.Column("origin", sa.LargeBinary),
    _micros("create_time"),
    _text("redriven_as"),
    sa.Index("dead_letters_job", "job"),
)

facts = sa.Table(
    "ledger_facts",
    metadata,
    # Single values, such as the time of the last sweep.
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
