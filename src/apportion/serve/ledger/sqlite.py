"""SQLite as a durable record: write-ahead log, synced at every commit, one writer at a time."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from apportion.core.errors import ParameterError
from apportion.serve.ledger.schema import accounts
from apportion.serve.ledger.store import COLUMNS, READS, AccountRow, HolderRow

_BUSY_S: Final = 10.0
_OLDEST: Final = (3, 35)
"""The first version with everything used here."""

_HOLDER: Final = """
SELECT batch, opened_us, seen_us, oldest_us, dead_us, (SELECT count(*) FROM holders WHERE dead_us IS NULL)
FROM holders WHERE holder = ?
"""
_ACCOUNTS: Final = """
SELECT a.id, a.budget, a.subject, a.definition, a.defined_us, a.state, a.at_us, a.opened_us, a.recall_us,
    l.free, l.reserved, (SELECT count(*) FROM leases x WHERE x.account = a.id)
FROM accounts a LEFT JOIN leases l ON l.account = a.id AND l.holder = ?
WHERE a.id IN (SELECT value FROM json_each(?)) ORDER BY a.id
"""
_ENTRIES: Final = "INSERT INTO entries ({}) VALUES ({})".format(
    ", ".join(f'"{name}"' for name in COLUMNS), ", ".join("?" * len(COLUMNS))
)
_LEND: Final = """
INSERT INTO leases (account, holder, free, reserved) VALUES (?, ?, ?, ?)
ON CONFLICT (account, holder) DO UPDATE SET free = excluded.free, reserved = excluded.reserved
"""


class SQLite:
    """A file, or with ``path`` None a database in memory that only this object knows."""

    def __init__(self, path: Path | None) -> None:
        if sqlite3.sqlite_version_info < _OLDEST:
            raise ParameterError(
                f"SQLite {sqlite3.sqlite_version} is too old for the ledger.",
                field="ledger.url",
                fix="Use a Python that was built with SQLite 3.35 or newer, or PostgreSQL.",
            )
        self._in_memory = path is None
        if path is not None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Digests of keys and names of end users are in it: it is this user's alone.
            path.touch(mode=0o600)
        self.engine: Engine = create_engine(
            URL.create("sqlite+pysqlite", database=None if path is None else str(path)),
            connect_args={"timeout": _BUSY_S, "isolation_level": None, "check_same_thread": False},
            poolclass=QueuePool,
            # A database in memory is its connection: the only one, never given up, shared in turns.
            pool_size=1 if path is None else 4,
            max_overflow=0 if path is None else 16,
            pool_timeout=_BUSY_S,
            hide_parameters=True,
        )
        event.listen(self.engine, "connect", self._connected)
        event.listen(self.engine, "begin", _begin)

    def _connected(self, connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        if not self._in_memory:
            _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    def lock(self, c: Connection) -> None:
        """The transaction is the only one that writes."""

    def patient(self, c: Connection) -> None:
        """Nothing ends a statement here."""

    def holder(self, c: Connection, holder: str) -> HolderRow | None:
        found = c.exec_driver_sql(_HOLDER, (holder,)).first()
        return None if found is None else HolderRow._make(found)

    def accounts(self, c: Connection, holder: str, ids: Sequence[str]) -> list[AccountRow]:
        found = c.exec_driver_sql(_ACCOUNTS, (holder, json.dumps(ids)))
        return [AccountRow._make(row) for row in found]

    def now_us(self, c: Connection, clock_us: int) -> int:
        last = c.exec_driver_sql("SELECT max(at_us) FROM entries").scalar()
        return clock_us if last is None else max(clock_us, int(last) + 1)

    def insert_entries(self, c: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        c.exec_driver_sql(_ENTRIES, list(rows))

    def insert_accounts(self, c: Connection, rows: Sequence[dict[str, Any]]) -> None:
        c.execute(insert(accounts).on_conflict_do_nothing(), list(rows))

    def save(self, c: Connection, now_us: int, rows: Sequence[tuple[str, int, str]]) -> None:
        c.exec_driver_sql(
            "UPDATE accounts SET state = ?, recall_us = ?, at_us = ? WHERE id = ?",
            [(state, recall_us, now_us, id) for state, recall_us, id in rows],
        )

    def lend(self, c: Connection, holder: str, rows: Sequence[tuple[str, int, int]]) -> None:
        c.exec_driver_sql(_LEND, [(account, holder, free, reserved) for account, free, reserved in rows])

    def unlend(self, c: Connection, holder: str, accounts: Sequence[str]) -> None:
        c.exec_driver_sql(
            "DELETE FROM leases WHERE account = ? AND holder = ?", [(account, holder) for account in accounts]
        )

    def seen(self, c: Connection, holder: str, batch: int, now_us: int, oldest_us: int | None) -> None:
        c.exec_driver_sql(
            "UPDATE holders SET batch = ?, seen_us = ?, oldest_us = ? WHERE holder = ?",
            (batch, now_us, oldest_us, holder),
        )

    def again(self, error: BaseException) -> bool:
        """Busy, after all the time that SQLite itself has waited: only a deadlock of two readers is."""
        cause = error.orig if isinstance(error, DBAPIError) else error
        return getattr(cause, "sqlite_errorname", None) == "SQLITE_BUSY_SNAPSHOT"


def _begin(connection: Connection) -> None:
    reads = connection.get_execution_options().get(READS, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _write_ahead(cursor: Any) -> None:
    """Switch the file to write-ahead logging. For that moment SQLite wants it alone, and does not wait for it."""
    until_s = time.monotonic() + _BUSY_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.01)
