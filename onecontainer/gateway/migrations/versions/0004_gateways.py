"""Several gateways on one database: who lives, and whose sidecar is whose."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "gateways",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("expire_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "sidecar_owners",
        sa.Column("service_uid", sa.String(36), nullable=False),
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("view", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("service_uid"),
    )


def downgrade() -> None:
    op.drop_table("sidecar_owners")
    op.drop_table("gateways")
