"""PostgreSQL as a durable record: the rows of a batch go as arrays, one statement a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar, cast

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from apportion.serve.ledger.schema import accounts, entries
from apportion.serve.ledger.store import COLUMNS, READS, AccountRow, HolderRow

_CONNECT_S: Final = 3
_STATEMENT_MS: Final = 5000
_SILENCE_S: Final = 3.0
"""So much longer than the server's own limit is waited for it."""
_PATIENT_MS: Final = 600_000
_PATIENT: Final = "SELECT " + ", ".join(
    f"set_config('{name}', '{_PATIENT_MS}', true)"
    for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
)
"""`SET LOCAL` of all three in one round trip."""
_LOCK: Final = 0x6170706F7274
"""Key of the advisory lock around changes of tables."""
_AGAIN: Final = frozenset(("40001", "40P01"))
"""SQLSTATEs of a serialization failure and a deadlock."""

_HOLDER: Final = """
SELECT batch, opened_us, seen_us, oldest_us, dead_us, (SELECT count(*) FROM holders WHERE dead_us IS NULL)
FROM holders WHERE holder = %s FOR UPDATE
"""
_ACCOUNTS: Final = """
SELECT a.id, a.budget, a.subject, a.definition, a.defined_us, a.state, a.at_us, a.opened_us, a.recall_us,
    l.free, l.reserved, (SELECT count(*) FROM leases x WHERE x.account = a.id)
FROM accounts a LEFT JOIN leases l ON l.account = a.id AND l.holder = %s
WHERE a.id = ANY(%b::text[]) ORDER BY a.id FOR UPDATE OF a
"""
_NOW: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_ENTRIES: Final = "COPY entries ({}) FROM STDIN (FORMAT BINARY)".format(
    ", ".join(f'"{name}"' for name in COLUMNS)
)
_TYPES: Final = [
    {"TEXT": "text", "SMALLINT": "int2", "INTEGER": "int4", "BIGINT": "int8"}[entries.c[name].type.compile()]
    for name in COLUMNS
]
_SAVE: Final = """
UPDATE accounts a SET state = n.state, recall_us = n.recall_us, at_us = %s
FROM unnest(%b::text[], %b::bigint[], %b::text[]) AS n (state, recall_us, id) WHERE a.id = n.id
"""
_LEND: Final = """
INSERT INTO leases (account, holder, free, reserved)
SELECT n.account, %s, n.free, n.reserved
FROM unnest(%b::text[], %b::bigint[], %b::bigint[]) AS n (account, free, reserved)
ON CONFLICT (account, holder) DO UPDATE SET free = excluded.free, reserved = excluded.reserved
"""

_R = TypeVar("_R")


class PostgreSQL:
    """A server by URL, with psycopg."""

    def __init__(self, url: URL) -> None:
        self.engine: Engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            isolation_level="READ COMMITTED",
            pool_size=2,
            max_overflow=8,
            pool_timeout=10,
            pool_use_lifo=True,
            hide_parameters=True,
            connect_args={
                "connect_timeout": _CONNECT_S,
                "application_name": "apportion",
                # A peer that vanished without a word is noticed: unsent data and silence both end a connection.
                "tcp_user_timeout": _STATEMENT_MS,
                "keepalives_idle": 3,
                "keepalives_interval": 1,
                "keepalives_count": 3,
            },
        )
        event.listen(self.engine, "do_connect", _connect)
        event.listen(self.engine, "connect", _connected)
        event.listen(self.engine, "begin", _begin)

    def patient(self, c: Connection) -> None:
        _take_time(c)

    def lock(self, c: Connection) -> None:
        self.patient(c)
        c.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))

    def holder(self, c: Connection, holder: str) -> HolderRow | None:
        found = c.exec_driver_sql(_HOLDER, (holder,)).first()
        return None if found is None else HolderRow._make(found)

    def accounts(self, c: Connection, holder: str, ids: Sequence[str]) -> list[AccountRow]:
        found = c.exec_driver_sql(_ACCOUNTS, (holder, list(ids)))
        return [AccountRow._make(row) for row in found]

    def now_us(self, c: Connection, clock_us: int) -> int:
        return int(c.exec_driver_sql(_NOW).scalar_one())

    def insert_entries(self, c: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        # Measured, 200 entries with commit: binary COPY 1.2 ms, JSON 2.4 ms, arrays and executemany 4.7 ms.
        try:
            driver = cast(_Connection, c.connection.driver_connection)
            with driver.cursor() as cursor, cursor.copy(_ENTRIES) as copy:
                copy.set_types(_TYPES)
                for row in rows:
                    copy.write_row(row)
        except psycopg.Error as error:
            raise _wrapped(error) from error

    def insert_accounts(self, c: Connection, rows: Sequence[dict[str, Any]]) -> None:
        c.execute(insert(accounts).on_conflict_do_nothing(), list(rows))

    def save(self, c: Connection, now_us: int, rows: Sequence[tuple[str, int, str]]) -> None:
        states, recalls, ids = map(list, zip(*rows, strict=True))
        c.exec_driver_sql(_SAVE, (now_us, states, recalls, ids))

    def lend(self, c: Connection, holder: str, rows: Sequence[tuple[str, int, int]]) -> None:
        ids, free, reserved = map(list, zip(*rows, strict=True))
        c.exec_driver_sql(_LEND, (holder, ids, free, reserved))

    def unlend(self, c: Connection, holder: str, accounts: Sequence[str]) -> None:
        c.exec_driver_sql(
            "DELETE FROM leases WHERE holder = %s AND account = ANY(%b::text[])", (holder, list(accounts))
        )

    def seen(self, c: Connection, holder: str, batch: int, now_us: int, oldest_us: int | None) -> None:
        c.exec_driver_sql(
            "UPDATE holders SET batch = %s, seen_us = %s, oldest_us = %s WHERE holder = %s",
            (batch, now_us, oldest_us, holder),
        )

    def again(self, error: BaseException) -> bool:
        cause = error.orig if isinstance(error, DBAPIError) else error
        return getattr(cause, "sqlstate", None) in _AGAIN


class _Connection(psycopg.Connection[Any]):
    """Gives up when the server does not answer at all, as one whose machine is frozen; its own limits are the
    server's to keep, and end a statement before that.
    """

    limit_s = _SILENCE_S + _STATEMENT_MS / 1000.0

    def wait(self, gen: PQGen[_R], interval: float = 0.1, timeout: float | None = None) -> _R:
        try:
            return super().wait(gen, interval, self.limit_s if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.pgconn.finish()  # what it says later is nobody's any more
            raise


def _connect(dialect: object, entry: object, arguments: list[Any], options: dict[str, Any]) -> _Connection:
    return _Connection.connect(*arguments, **options)


def _begin(c: Connection) -> None:
    cast(_Connection, c.connection.driver_connection).limit_s = _Connection.limit_s
    if c.get_execution_options().get(READS, False):
        _take_time(c)


def _take_time(c: Connection) -> None:
    cast(_Connection, c.connection.driver_connection).limit_s = _SILENCE_S + _PATIENT_MS / 1000.0
    c.exec_driver_sql(_PATIENT).close()


def _wrapped(error: psycopg.Error) -> DBAPIError:
    """An error of the driver as SQLAlchemy would have raised it."""
    kinds = ((psycopg.IntegrityError, IntegrityError), (psycopg.DataError, DataError))
    kind = next((ours for theirs, ours in kinds if isinstance(error, theirs)), OperationalError)
    return kind(None, None, error)


def _connected(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
    """Nothing may hang, and what is acknowledged is on disk whatever the server's own setting."""
    cursor = connection.cursor()
    cursor.execute(f"SET statement_timeout = {_STATEMENT_MS}")
    cursor.execute(f"SET lock_timeout = {_STATEMENT_MS}")
    cursor.execute(f"SET idle_in_transaction_session_timeout = {2 * _STATEMENT_MS}")
    cursor.execute("SHOW synchronous_commit")
    if cursor.fetchone()[0] == "off":  # type: ignore[index]
        cursor.execute("SET synchronous_commit = on")
    cursor.close()
    connection.commit()
