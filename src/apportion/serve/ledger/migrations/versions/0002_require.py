"""Keys and teams say `require` and `routing`, too, inside their definitions.

What is stored already has neither and stands for what it stood for. The number itself matters: a program that knows
only the tables before would pass over both, and send what may only go to some endpoints to others. It does not start.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say it where the database keeps comments."""
    if not op.get_bind().dialect.supports_comments:
        return
    op.alter_column(
        "keys", "definition", comment="JSON: models, endpoints, require, routing, tags, limits, budget"
    )
    op.alter_column(
        "teams", "definition", comment="JSON: models, endpoints, require, routing, limits, budget"
    )
