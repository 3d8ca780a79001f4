"""What a broker has to be told: when a job was published, and events that wait."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

PUBLISHED = sa.text("state = 1 AND published_time > 0")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("published_time", sa.BigInteger(), server_default="0", nullable=False))
    op.create_index("jobs_published", "jobs", ["published_time"], sqlite_where=PUBLISHED, postgresql_where=PUBLISHED)
    op.create_table(
        "job_events",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("event", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("position"),
    )


def downgrade() -> None:
    op.drop_table("job_events")
    op.drop_index("jobs_published", "jobs")
    op.drop_column("jobs", "published_time")
