"""Tables of keys, teams and budgets that were made with the command line or the admin API.

They are in the one schema of the database (`schema.metadata`), so that its migrations make them. No secret is in
them: of a key there is a keyed hash, made with a pepper that is elsewhere.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, String, Table, Text

from apportion.serve.ledger.schema import metadata

_ID = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts up by itself only in a column that is called INTEGER."""

keys = Table(
    "keys",
    metadata,
    Column("id", String(12), primary_key=True, comment="public part of the key, 12 hexadecimal digits"),
    Column("name", String(100), nullable=False, unique=True, comment="how entries call it"),
    Column("team", String(100), nullable=False, comment="empty without"),
    Column("digest", String(64), nullable=False, comment="HMAC-SHA256 of the whole key, hexadecimal"),
    Column("pepper", String(16), nullable=False, comment="fingerprint of the pepper it was made with"),
    Column("previous_digest", String(64), comment="of the key before the last rotation"),
    Column("previous_until_us", BigInteger, comment="until when that one is still accepted"),
    Column("admin", Boolean, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("expires_us", BigInteger, comment="from when it is refused; null: never"),
    Column(
        "definition",
        Text,
        nullable=False,
        comment="JSON: models, endpoints, require, routing, tags, limits, budget",
    ),
    Column("created_us", BigInteger, nullable=False),
    Column("changed_us", BigInteger, nullable=False),
    Index("keys_team", "team"),
    comment="keys made with the command line or the admin API; those of the configuration are not here",
)
teams = Table(
    "teams",
    metadata,
    Column("name", String(100), primary_key=True),
    Column(
        "definition",
        Text,
        nullable=False,
        comment="JSON: models, endpoints, require, routing, limits, budget",
    ),
    Column("created_us", BigInteger, nullable=False),
    Column("changed_us", BigInteger, nullable=False),
    comment="teams made with the command line or the admin API",
)
budgets = Table(
    "budgets",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("definition", Text, nullable=False, comment="JSON: as an entry of `budgets` in the configuration"),
    Column("created_us", BigInteger, nullable=False),
    Column("changed_us", BigInteger, nullable=False),
    comment="budgets made with the command line or the admin API",
)
settings = Table(
    "settings",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("value", Text, comment="of `pepper`: hexadecimal; only where no better place was configured"),
    Column("number", BigInteger, comment="of `people`: counts the changes of keys, teams and budgets"),
    comment="what belongs to the whole installation",
)
audit = Table(
    "audit",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("at_us", BigInteger, nullable=False),
    Column("actor", String(200), nullable=False, comment="key:NAME of an admin key, or cli:USER"),
    Column("action", String(20), nullable=False, comment="create, change, rotate, delete"),
    Column("object", String(220), nullable=False, comment="key:NAME, team:NAME, budget:NAME"),
    Column("detail", Text, nullable=False, comment="JSON: what was set; never a secret or its hash"),
    Index("audit_object", "object"),
    comment="who changed keys, teams and budgets, and how",
)
