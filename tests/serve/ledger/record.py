"""A database with a clock that tests set, also on PostgreSQL, whose own cannot be."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Select, delete, select

from apportion.core.budget import Account
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.definitions import decode
from apportion.serve.ledger.schema import LEDGER, accounts, entries

START = 1_800_000_000.0


class Clock:
    """Unix seconds that move when they are told to."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class Record:
    """The database at ``url``, emptied."""

    def __init__(self, url: str, **more: Any) -> None:
        self.clock = Clock()
        self.url = url
        self.more = more
        self.all: list[Database] = []
        self.database = self.another()
        self.empty()

    def another(self) -> Database:
        """What another process has."""
        database = Database(self.url, clock=self.clock, **self.more)
        store: Any = database._store
        if database.engine.dialect.name == "postgresql":
            store.now_us = lambda c, clock_us: clock_us
        self.all.append(database)
        return database

    def empty(self) -> None:
        with self.database.engine.begin() as c:
            for table in LEDGER:
                c.execute(delete(table))

    def dispose(self) -> None:
        for database in self.all:
            database.dispose()

    def rows(self, *columns: Any) -> list[tuple[Any, ...]]:
        return self.rows_of(select(*columns))

    def rows_of(self, statement: Select[Any]) -> list[tuple[Any, ...]]:
        with self.database.reading.connect() as c:
            return [tuple(row) for row in c.execute(statement)]

    def account(self, id: str) -> Account:
        with self.database.reading.connect() as c:
            row = c.execute(select(accounts).where(accounts.c.id == id)).one()
        return Account.load(decode(row.definition), json.loads(row.state))

    def kinds(self, reservation: str) -> list[int]:
        """What is written of a reservation, in the order of the kinds."""
        with self.database.reading.connect() as c:
            of_it = entries.c.reservation == reservation
            return list(c.execute(select(entries.c.kind).where(of_it).order_by(entries.c.kind)).scalars())

    def right(self) -> None:
        assert self.database.verify() == []
