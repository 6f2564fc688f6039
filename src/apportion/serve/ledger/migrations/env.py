"""What Alembic runs around the migrations: the connection is the caller's."""

from __future__ import annotations

from alembic import context

from apportion.serve.ledger import line_tables, people_tables  # noqa: F401 - their tables join the metadata
from apportion.serve.ledger.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
