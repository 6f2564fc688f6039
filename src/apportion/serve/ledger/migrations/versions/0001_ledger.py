"""The first tables. Until they are released they are simply those of the metadata; then they are written out here,
and every change is a migration of its own.
"""

from __future__ import annotations

from alembic import op

from apportion.serve.ledger import line_tables, people_tables  # noqa: F401 - their tables join the metadata
from apportion.serve.ledger.schema import metadata

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make all tables."""
    metadata.create_all(op.get_bind())
