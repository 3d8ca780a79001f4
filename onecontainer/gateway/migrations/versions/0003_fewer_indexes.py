"""What each job costs: fewer indexes move with it, and its events are one row a transaction."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from onecontainer.api.event.v1 import event_pb2

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

IN_LEASE = sa.text("state IN (2, 4, 9)")
PUBLISHED = sa.text("state = 1 AND published_time > 0")
NOT_RUNNING = sa.text("state != 2")
TIDY = sa.text("tidy_time > 0")
EXPIRE = sa.text("expire_time > 0")
ENDED = sa.text("end_time > 0")


def _events_table(*columns: sa.Column[Any]) -> sa.Table:
    op.drop_table("job_events")
    return op.create_table(
        "job_events",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        *columns,
        sa.PrimaryKeyConstraint("position"),
    )


def upgrade() -> None:
    op.add_column("jobs", sa.Column("tidy_time", sa.BigInteger(), server_default="0", nullable=False))
    op.execute(
        sa.text(
            "UPDATE jobs SET tidy_time = CASE WHEN expire_time > 0 THEN expire_time "
            "WHEN state = 5 AND NOT result_expired THEN 0 ELSE end_time END WHERE end_time > 0"
        )
    )
    op.create_index("jobs_tidy", "jobs", ["tidy_time"], sqlite_where=TIDY, postgresql_where=TIDY)
    for name in ("jobs_expire", "jobs_ended", "jobs_lease_expiry", "jobs_state", "jobs_published"):
        op.drop_index(name, "jobs")
    op.create_index(
        *("jobs_published", "jobs", ["service_uid", "published_time"]),
        sqlite_where=PUBLISHED,
        postgresql_where=PUBLISHED,
    )
    op.create_index("jobs_state", "jobs", ["state", "position"], sqlite_where=NOT_RUNNING, postgresql_where=NOT_RUNNING)
    waiting = op.get_bind().execute(sa.text("SELECT event FROM job_events ORDER BY position")).scalars().all()
    table = _events_table(sa.Column("events", sa.LargeBinary(), nullable=False))
    for event in waiting:
        batch = event_pb2.JobEvents(events=[event_pb2.JobEvent.FromString(event)])
        op.get_bind().execute(table.insert().values(events=batch.SerializeToString()))


def downgrade() -> None:
    waiting = op.get_bind().execute(sa.text("SELECT events FROM job_events ORDER BY position")).scalars().all()
    table = _events_table(
        sa.Column("job", sa.Text(), nullable=False), sa.Column("event", sa.LargeBinary(), nullable=False)
    )
    for batch in waiting:
        for event in event_pb2.JobEvents.FromString(batch).events:
            values = {"job": event.job.removeprefix("jobs/"), "event": event.SerializeToString()}
            op.get_bind().execute(table.insert().values(values))
    for name in ("jobs_tidy", "jobs_state", "jobs_published"):
        op.drop_index(name, "jobs")
    op.create_index("jobs_published", "jobs", ["published_time"], sqlite_where=PUBLISHED, postgresql_where=PUBLISHED)
    op.create_index("jobs_state", "jobs", ["state", "position"])
    op.create_index("jobs_expire", "jobs", ["expire_time"], sqlite_where=EXPIRE, postgresql_where=EXPIRE)
    op.create_index("jobs_ended", "jobs", ["end_time"], sqlite_where=ENDED, postgresql_where=ENDED)
    op.create_index("jobs_lease_expiry", "jobs", ["lease_expiry"], sqlite_where=IN_LEASE, postgresql_where=IN_LEASE)
    op.drop_column("jobs", "tidy_time")
