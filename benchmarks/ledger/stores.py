"""The stores under test: each a bank for the ledger, and the bare statement that is its best possible."""

from __future__ import annotations

import sqlite3
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar

from tests.servers import Postgres, Redis, Server, drop_database

from apportion.serve.ledger.bank import Bank
from apportion.serve.ledger.database import Database

UPDATE = "UPDATE bare SET n = n - 1 WHERE id = 1"


class Bare(ABC):
    """One counter in one row of the store."""

    @abstractmethod
    def one(self) -> None:
        """Take one, durably: a transaction of its own."""

    @abstractmethod
    def many(self, count: int) -> None:
        """Take one ``count`` times in one durable transaction, a statement each."""


class BareSqlite(Bare):
    """The standard library's module, WAL, synchronous=FULL as the ledger has it."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("CREATE TABLE bare (id INTEGER PRIMARY KEY, n INTEGER)")
        self._db.execute("INSERT INTO bare VALUES (1, 0)")

    def one(self) -> None:
        self._db.execute(UPDATE)

    def many(self, count: int) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        for _ in range(count):
            self._db.execute(UPDATE)
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()


class BarePostgres(Bare):
    """psycopg, the statement prepared, many of them pipelined."""

    def __init__(self, url: str) -> None:
        import psycopg

        self._db = psycopg.connect(url, autocommit=True, prepare_threshold=0)
        self._db.execute("CREATE TABLE bare (id int PRIMARY KEY, n bigint)")
        self._db.execute("INSERT INTO bare VALUES (1, 0)")

    def one(self) -> None:
        self._db.execute(UPDATE)

    def many(self, count: int) -> None:
        with self._db.transaction(), self._db.pipeline():
            for _ in range(count):
                self._db.execute(UPDATE)

    def close(self) -> None:
        self._db.close()


class BareRedis(BarePostgres):
    """A decrement in Redis before the update in PostgreSQL: one for the promise, one for the record."""

    def __init__(self, url: str, redis_url: str) -> None:
        import redis

        super().__init__(url)
        self._redis = redis.Redis.from_url(redis_url)

    def one(self) -> None:
        self._redis.decr("bare")
        super().one()

    def many(self, count: int) -> None:
        with self._redis.pipeline(transaction=False) as pipeline:
            for _ in range(count):
                pipeline.decr("bare")
            pipeline.execute()
        super().many(count)

    def close(self) -> None:
        self._redis.close()
        super().close()


class Store(ABC):
    """Makes fresh, empty books on one kind of store."""

    name: ClassVar[str]
    title: ClassVar[str]
    servers: ClassVar[tuple[type[Server], ...]] = ()

    def missing(self) -> str | None:
        """Why it cannot be measured here, or None."""
        return next((reason for server in self.servers if (reason := server.missing())), None)

    @abstractmethod
    def start(self, stack: ExitStack, directory: Path) -> None:
        """Start its servers; they end with the stack."""

    @abstractmethod
    def fresh(self) -> tuple[Bank, Bare, str, str | None]:
        """A bank on an empty database, the bare counter, and the URLs of the database and of Redis."""

    @contextmanager
    def opened(self) -> Iterator[tuple[Bank, Bare]]:
        """`fresh`, closed and removed at the end."""
        bank, bare, url, _ = self.fresh()
        try:
            yield bank, bare
        finally:
            bank.dispose()
            bare.close()  # type: ignore[attr-defined]
            if url.startswith("postgresql"):
                drop_database(url)


class Sqlite(Store):
    name = "sqlite"
    title = "SQLite (WAL, synchronous=FULL)"

    def start(self, stack: ExitStack, directory: Path) -> None:
        self._directory = directory

    def fresh(self) -> tuple[Bank, Bare, str, str | None]:
        own = Path(tempfile.mkdtemp(prefix="sqlite-", dir=self._directory))
        url = f"sqlite:///{own / 'ledger.db'}"
        return Database(url), BareSqlite(own / "bare.db"), url, None


class Postgresql(Store):
    name = "postgresql"
    title = "PostgreSQL (fsync=on)"
    servers = (Postgres,)

    def start(self, stack: ExitStack, directory: Path) -> None:
        self._postgres = Postgres()
        stack.callback(self._postgres.remove)
        self._postgres.start()

    def fresh(self) -> tuple[Bank, Bare, str, str | None]:
        url = self._postgres.create()
        return Database(url), BarePostgres(url), url, None


class RedisPostgresql(Postgresql):
    name = "redis"
    title = "Redis + PostgreSQL (fsync=on)"
    servers = (Postgres, Redis)

    def start(self, stack: ExitStack, directory: Path) -> None:
        super().start(stack, directory)
        self._redis = Redis()
        stack.callback(self._redis.remove)
        self._redis.start()

    def fresh(self) -> tuple[Bank, Bare, str, str | None]:
        from apportion.serve.ledger.redis_bank import RedisBank

        self._redis.flush()
        url = self._postgres.create()
        return (
            RedisBank(Database(url), self._redis.url),
            BareRedis(url, self._redis.url),
            url,
            self._redis.url,
        )


STORES: tuple[type[Store], ...] = (Sqlite, Postgresql, RedisPostgresql)
