"""The tables of the durable record, the same on SQLite and PostgreSQL. Times are Unix microseconds.

Amounts are whole numbers of the smallest part of a resource. Those of one entry fit 64 bits; sums of them need not
(see `sums`). What can be larger is kept as text: the saved state of an account.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, SmallInteger, Table, Text

metadata = MetaData()
"""Everything the database has; the first migration makes it, a test compares it with what the migrations make."""

_BUSY: Final = {"fillfactor": 70}
"""Room in each page for the next versions of rows that change with every batch."""

entries = Table(
    "entries",
    metadata,
    Column("reservation", Text, primary_key=True, comment="one attempt at one endpoint"),
    Column(
        "kind",
        SmallInteger,
        primary_key=True,
        autoincrement=False,
        comment="0 reserve, 1 settle, 2 release, 3 presume, 4 correct; spent is the sum of 1, 3 and 4",
    ),
    Column("request", Text, nullable=False, comment="the decision the client was told; attempts share it"),
    Column("attempt", Integer, nullable=False),
    Column("organisation", Text, nullable=False),
    Column("team", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("session", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("upstream_model", Text, nullable=False),
    Column("api", Text, nullable=False),
    Column("tags", Text, nullable=False, comment="JSON object; empty without"),
    Column("status", Text, nullable=False, comment="ok, failed, timeout, cancelled, crashed; empty: reserve"),
    Column("mark", Text, nullable=False, comment="measured, estimated, presumed, unknown"),
    Column("tokens", BigInteger, nullable=False),
    Column("usd", BigInteger, comment="pico-dollars; null: no price is known"),
    Column("server_seconds", BigInteger, nullable=False, comment="nanoseconds of a server"),
    Column("joules", BigInteger, comment="micro-joules; null: not known"),
    Column("gco2", BigInteger, comment="micro-grams; null: not known"),
    Column("requests", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("duration_us", BigInteger, nullable=False),
    Column("at_us", BigInteger, nullable=False, comment="when it was written down, by the record's clock"),
    Column("holder", Text, nullable=False, comment="the worker process that reported it"),
    Column(
        "charged",
        Text,
        nullable=False,
        comment="names of the budgets it was charged to, each between commas; whose is in the columns",
    ),
    Index("entries_at", "at_us"),
    comment="append-only: what was reserved and what it did cost, each at most once",
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", Text, primary_key=True, comment="BUDGET@SUBJECT"),
    Column("budget", Text, nullable=False, comment="its name"),
    Column("subject", Text, nullable=False, comment="all, team:NAME, key:NAME, ..."),
    Column("definition", Text, nullable=False, comment="JSON: the budget as it is kept now"),
    Column("defined_us", BigInteger, nullable=False, comment="since when that definition holds"),
    Column("state", Text, nullable=False, comment="JSON: the saved book (core.budget.Account)"),
    Column("at_us", BigInteger, nullable=False, comment="last change"),
    Column("opened_us", BigInteger, nullable=False),
    Column("base_us", BigInteger, nullable=False, comment="later entries are not in `base`"),
    Column("base", Text, nullable=False, comment="JSON: the book when it was opened or last redefined"),
    Column("recall_us", BigInteger, nullable=False, comment="until then, others are asked to give back"),
    Index("accounts_subject", "subject"),
    postgresql_with=_BUSY,
    comment="one budget for one subject; derived from entries and leases, and checked against them",
)

leases = Table(
    "leases",
    metadata,
    Column("account", Text, primary_key=True),
    Column("holder", Text, primary_key=True),
    Column("free", BigInteger, nullable=False, comment="units it may promise without asking"),
    Column("reserved", BigInteger, nullable=False, comment="units it has promised"),
    Index("leases_holder", "holder"),
    postgresql_with=_BUSY,
    comment="what of an account is lent to whom; none where both are zero",
)

holders = Table(
    "holders",
    metadata,
    Column("holder", Text, primary_key=True),
    Column("machine", Text, nullable=False),
    Column("batch", BigInteger, nullable=False, comment="the last that was applied"),
    Column("opened_us", BigInteger, nullable=False),
    Column("seen_us", BigInteger, nullable=False),
    Column(
        "oldest_us", BigInteger, comment="when the oldest of its open reservations was written; null: none"
    ),
    Column("dead_us", BigInteger, comment="when it was given up; null: alive"),
    postgresql_with=_BUSY,
    comment="worker processes that have leases, or had when they were last seen",
)

known_budgets = Table(
    "known_budgets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("scope", Text, primary_key=True, comment="all, team, key, user, ...: the kind of subject"),
    Column("definition", Text, nullable=False, comment="JSON: as it was then"),
    Column("since_us", BigInteger, nullable=False),
    Column("window_us", BigInteger, nullable=False, comment="begin of the window in which that was"),
    comment="since when a budget is kept: whoever has no account of it has spent nothing since",
)

rollups = Table(
    "rollups",
    metadata,
    Column("scope", Text, primary_key=True, comment="all, team, key, user, ..."),
    Column("resource", Text, primary_key=True),
    Column("since_us", BigInteger, primary_key=True, autoincrement=False, comment="begin of a window"),
    Column("until_us", BigInteger, nullable=False, comment="what was written down later is not in it"),
    comment="sums of a window, made when a budget becomes known in the midst of it",
)

rollup_sums = Table(
    "rollup_sums",
    metadata,
    Column("scope", Text, primary_key=True),
    Column("resource", Text, primary_key=True),
    Column("since_us", BigInteger, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True, comment="of the team, key, user, ...; empty: all"),
    Column("high", BigInteger, nullable=False, comment="units spent, in multiples of 2**32"),
    Column("low", BigInteger, nullable=False, comment="units spent, the rest"),
    comment="what each subject had spent in that time",
)

prices = Table(
    "prices",
    metadata,
    Column("scope", Text, primary_key=True),
    Column("saved", Text, nullable=False, comment="JSON: a saved pricer"),
    Column("at_us", BigInteger, nullable=False),
    comment="shadow prices of budgets, as the workers last learned them",
)

LEDGER: Final = (entries, accounts, leases, holders, known_budgets, rollups, rollup_sums, prices)
