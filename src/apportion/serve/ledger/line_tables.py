"""Tables that are used only where something else than the database lends (`redis_bank`)."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Table, Text

from apportion.serve.ledger.schema import metadata

lines = Table(
    "lines",
    metadata,
    Column("account", Text, primary_key=True),
    Column("holder", Text, primary_key=True),
    Column("units", BigInteger, nullable=False, comment="it never has more of the account"),
    Column("presumed", BigInteger, nullable=False, comment="of that, charged since it died"),
    Column("dead", Boolean, nullable=False, comment="whether that it died was noticed here"),
    Index("lines_holder", "holder"),
    postgresql_with={"fillfactor": 70},
    comment="the most that each worker may have been lent by Redis; written before it is",
)

stale = Table(
    "stale",
    metadata,
    Column("account", Text, primary_key=True),
    Column("version", BigInteger, nullable=False, comment="another number after each change"),
    comment="accounts that something has changed besides the batches of living workers, as Redis must learn",
)
