"""Alembic's environment: runs on the connection that `upgrade` gives it."""

from __future__ import annotations

from alembic import context

from onecontainer.gateway.migrations import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata(),
    render_as_batch=True,
    transactional_ddl=False,  # the transaction is the caller's
)
context.run_migrations()
