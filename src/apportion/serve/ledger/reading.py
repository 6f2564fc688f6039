"""A connection that only reads: one view of the books from beginning to end, while workers go on writing."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa

from apportion.serve.ledger.store import READS

_TIMEOUTS: Final = ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")
_STEPS: Final = 100_000
"""Steps of SQLite's machine between two looks at the clock, some milliseconds."""


@contextmanager
def reading(engine: sa.Engine, patience_s: float | None = None) -> Iterator[sa.Connection]:
    """A connection in a transaction that sees nothing of what is written from now on.

    The database gives up a statement after ``patience_s`` (an `OperationalError`); None lets it take its time.
    """
    options: dict[str, Any] = {READS: True}
    if engine.dialect.name != "sqlite":
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect().execution_options(**options) as connection:
        if engine.dialect.name != "sqlite":
            _allow(connection, patience_s)
            yield connection
            return
        connection.scalar(
            sa.text("SELECT count(*) FROM sqlite_schema")
        )  # SQLite's view begins at the first read
        raw: Any = connection.connection.driver_connection
        if patience_s is None or not isinstance(raw, sqlite3.Connection):
            yield connection
            return
        until = time.monotonic() + patience_s
        raw.set_progress_handler(lambda: time.monotonic() > until, _STEPS)
        try:
            yield connection
        finally:
            raw.set_progress_handler(None, 0)


def _allow(connection: sa.Connection, patience_s: float | None) -> None:
    """Until the transaction ends, the limits of a report in place of those of a worker."""
    settings = sa.table("pg_settings", sa.column("name"))
    limit = "0" if patience_s is None else str(max(1, int(patience_s * 1000)))
    connection.execute(
        sa.select(sa.func.set_config(settings.c.name, limit, True)).where(settings.c.name.in_(_TIMEOUTS))
    )
