"""The first tables, as they were when databases began to be upgraded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_BUSY = {"fillfactor": 70}
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make all tables."""
    _books()
    _people()
    _lines()


def _books() -> None:
    """What was spent, and what of every budget is lent to whom."""
    op.create_table(
        "entries",
        sa.Column("reservation", sa.Text(), nullable=False, comment="one attempt at one endpoint"),
        sa.Column(
            "kind",
            sa.SmallInteger(),
            autoincrement=False,
            nullable=False,
            comment="0 reserve, 1 settle, 2 release, 3 presume, 4 correct; spent is the sum of 1, 3 and 4",
        ),
        sa.Column(
            "request",
            sa.Text(),
            nullable=False,
            comment="the decision the client was told; attempts share it",
        ),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("organisation", sa.Text(), nullable=False),
        sa.Column("team", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("session", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("upstream_model", sa.Text(), nullable=False),
        sa.Column("api", sa.Text(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False, comment="JSON object; empty without"),
        sa.Column(
            "status",
            sa.Text(),
            nullable=False,
            comment="ok, failed, timeout, cancelled, crashed; empty: reserve",
        ),
        sa.Column("mark", sa.Text(), nullable=False, comment="measured, estimated, presumed, unknown"),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("usd", sa.BigInteger(), comment="pico-dollars; null: no price is known"),
        sa.Column("server_seconds", sa.BigInteger(), nullable=False, comment="nanoseconds of a server"),
        sa.Column("joules", sa.BigInteger(), comment="micro-joules; null: not known"),
        sa.Column("gco2", sa.BigInteger(), comment="micro-grams; null: not known"),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_write_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=False),
        sa.Column("duration_us", sa.BigInteger(), nullable=False),
        sa.Column(
            "at_us",
            sa.BigInteger(),
            nullable=False,
            comment="when it was written down, by the record's clock",
        ),
        sa.Column("holder", sa.Text(), nullable=False, comment="the worker process that reported it"),
        sa.Column(
            "charged",
            sa.Text(),
            nullable=False,
            comment="names of the budgets it was charged to, each between commas; whose is in the columns",
        ),
        sa.PrimaryKeyConstraint("reservation", "kind"),
        comment="append-only: what was reserved and what it did cost, each at most once",
    )
    op.create_index("entries_at", "entries", ["at_us"])
    op.create_table(
        "accounts",
        sa.Column("id", sa.Text(), nullable=False, comment="BUDGET@SUBJECT"),
        sa.Column("budget", sa.Text(), nullable=False, comment="its name"),
        sa.Column("subject", sa.Text(), nullable=False, comment="all, team:NAME, key:NAME, ..."),
        sa.Column("definition", sa.Text(), nullable=False, comment="JSON: the budget as it is kept now"),
        sa.Column("defined_us", sa.BigInteger(), nullable=False, comment="since when that definition holds"),
        sa.Column("state", sa.Text(), nullable=False, comment="JSON: the saved book (core.budget.Account)"),
        sa.Column("at_us", sa.BigInteger(), nullable=False, comment="last change"),
        sa.Column("opened_us", sa.BigInteger(), nullable=False),
        sa.Column("base_us", sa.BigInteger(), nullable=False, comment="later entries are not in `base`"),
        sa.Column(
            "base", sa.Text(), nullable=False, comment="JSON: the book when it was opened or last redefined"
        ),
        sa.Column(
            "recall_us", sa.BigInteger(), nullable=False, comment="until then, others are asked to give back"
        ),
        sa.PrimaryKeyConstraint("id"),
        comment="one budget for one subject; derived from entries and leases, and checked against them",
        postgresql_with=_BUSY,
    )
    op.create_index("accounts_subject", "accounts", ["subject"])
    op.create_table(
        "leases",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("free", sa.BigInteger(), nullable=False, comment="units it may promise without asking"),
        sa.Column("reserved", sa.BigInteger(), nullable=False, comment="units it has promised"),
        sa.PrimaryKeyConstraint("account", "holder"),
        comment="what of an account is lent to whom; none where both are zero",
        postgresql_with=_BUSY,
    )
    op.create_index("leases_holder", "leases", ["holder"])
    op.create_table(
        "holders",
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("machine", sa.Text(), nullable=False),
        sa.Column("batch", sa.BigInteger(), nullable=False, comment="the last that was applied"),
        sa.Column("opened_us", sa.BigInteger(), nullable=False),
        sa.Column("seen_us", sa.BigInteger(), nullable=False),
        sa.Column(
            "oldest_us",
            sa.BigInteger(),
            comment="when the oldest of its open reservations was written; null: none",
        ),
        sa.Column("dead_us", sa.BigInteger(), comment="when it was given up; null: alive"),
        sa.PrimaryKeyConstraint("holder"),
        comment="worker processes that have leases, or had when they were last seen",
        postgresql_with=_BUSY,
    )
    op.create_table(
        "known_budgets",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "scope", sa.Text(), nullable=False, comment="all, team, key, user, ...: the kind of subject"
        ),
        sa.Column("definition", sa.Text(), nullable=False, comment="JSON: as it was then"),
        sa.Column("since_us", sa.BigInteger(), nullable=False),
        sa.Column(
            "window_us", sa.BigInteger(), nullable=False, comment="begin of the window in which that was"
        ),
        sa.PrimaryKeyConstraint("name", "scope"),
        comment="since when a budget is kept: whoever has no account of it has spent nothing since",
    )
    op.create_table(
        "rollups",
        sa.Column("scope", sa.Text(), nullable=False, comment="all, team, key, user, ..."),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column(
            "since_us", sa.BigInteger(), autoincrement=False, nullable=False, comment="begin of a window"
        ),
        sa.Column(
            "until_us", sa.BigInteger(), nullable=False, comment="what was written down later is not in it"
        ),
        sa.PrimaryKeyConstraint("scope", "resource", "since_us"),
        comment="sums of a window, made when a budget becomes known in the midst of it",
    )
    op.create_table(
        "rollup_sums",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("since_us", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="of the team, key, user, ...; empty: all"),
        sa.Column("high", sa.BigInteger(), nullable=False, comment="units spent, in multiples of 2**32"),
        sa.Column("low", sa.BigInteger(), nullable=False, comment="units spent, the rest"),
        sa.PrimaryKeyConstraint("scope", "resource", "since_us", "name"),
        comment="what each subject had spent in that time",
    )
    op.create_table(
        "prices",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("saved", sa.Text(), nullable=False, comment="JSON: a saved pricer"),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope"),
        comment="shadow prices of budgets, as the workers last learned them",
    )


def _people() -> None:
    """Keys, teams and budgets of the command line and the admin API."""
    op.create_table(
        "keys",
        sa.Column(
            "id",
            sa.String(length=12),
            nullable=False,
            comment="public part of the key, 12 hexadecimal digits",
        ),
        sa.Column("name", sa.String(length=100), nullable=False, comment="how entries call it"),
        sa.Column("team", sa.String(length=100), nullable=False, comment="empty without"),
        sa.Column(
            "digest",
            sa.String(length=64),
            nullable=False,
            comment="HMAC-SHA256 of the whole key, hexadecimal",
        ),
        sa.Column(
            "pepper",
            sa.String(length=16),
            nullable=False,
            comment="fingerprint of the pepper it was made with",
        ),
        sa.Column("previous_digest", sa.String(length=64), comment="of the key before the last rotation"),
        sa.Column("previous_until_us", sa.BigInteger(), comment="until when that one is still accepted"),
        sa.Column("admin", sa.Boolean(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), comment="from when it is refused; null: never"),
        sa.Column(
            "definition", sa.Text(), nullable=False, comment="JSON: models, endpoints, tags, limits, budget"
        ),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("changed_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
        comment="keys made with the command line or the admin API; those of the configuration are not here",
    )
    op.create_index("keys_team", "keys", ["team"])
    op.create_table(
        "teams",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("definition", sa.Text(), nullable=False, comment="JSON: models, limits, budget"),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("changed_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        comment="teams made with the command line or the admin API",
    )
    op.create_table(
        "budgets",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column(
            "definition",
            sa.Text(),
            nullable=False,
            comment="JSON: as an entry of `budgets` in the configuration",
        ),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("changed_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        comment="budgets made with the command line or the admin API",
    )
    op.create_table(
        "settings",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column(
            "value", sa.Text(), comment="of `pepper`: hexadecimal; only where no better place was configured"
        ),
        sa.Column(
            "number", sa.BigInteger(), comment="of `people`: counts the changes of keys, teams and budgets"
        ),
        sa.PrimaryKeyConstraint("name"),
        comment="what belongs to the whole installation",
    )
    op.create_table(
        "audit",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column(
            "actor", sa.String(length=200), nullable=False, comment="key:NAME of an admin key, or cli:USER"
        ),
        sa.Column("action", sa.String(length=20), nullable=False, comment="create, change, rotate, delete"),
        sa.Column(
            "object", sa.String(length=220), nullable=False, comment="key:NAME, team:NAME, budget:NAME"
        ),
        sa.Column(
            "detail", sa.Text(), nullable=False, comment="JSON: what was set; never a secret or its hash"
        ),
        sa.PrimaryKeyConstraint("id"),
        comment="who changed keys, teams and budgets, and how",
    )
    op.create_index("audit_object", "audit", ["object"])


def _lines() -> None:
    """What only serves where Redis lends."""
    op.create_table(
        "lines",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False, comment="it never has more of the account"),
        sa.Column("presumed", sa.BigInteger(), nullable=False, comment="of that, charged since it died"),
        sa.Column("dead", sa.Boolean(), nullable=False, comment="whether that it died was noticed here"),
        sa.PrimaryKeyConstraint("account", "holder"),
        comment="the most that each worker may have been lent by Redis; written before it is",
        postgresql_with=_BUSY,
    )
    op.create_index("lines_holder", "lines", ["holder"])
    op.create_table(
        "stale",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False, comment="another number after each change"),
        sa.PrimaryKeyConstraint("account"),
        comment="accounts that something has changed besides the batches of living workers, as Redis must learn",
    )
