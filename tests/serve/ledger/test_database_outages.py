"""The database goes away, hangs or is locked in the midst of it: said in time, and the same batch is right again."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import func, select
from teller import Teller, an_entry

from apportion.core.budget import Budget
from apportion.serve.ledger import postgres as postgres_module
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import BankError, Batch
from apportion.serve.ledger.schema import entries
from servers import Postgres, create_database

TOKENS = Budget("tokens", "tokens", 1000)


def spent(database: Database) -> int:
    with database.reading.connect() as c:
        return int(c.execute(select(func.sum(entries.c.tokens)).where(entries.c.kind == 1)).scalar() or 0)


def test_a_killed_postgresql_has_everything_that_was_acknowledged(postgres: Postgres) -> None:
    database = Database(create_database(postgres.url()))
    it = Teller(database, "one", [TOKENS])
    it.lease({}, 500)
    for number in range(3):
        entry = it.reserve(tokens=100)
        assert entry is not None
        it.say()
        it.settle(entry, tokens=50)
        if number == 2:
            postgres.kill()
            for _ in range(2):
                with pytest.raises(BankError):
                    it.say()
            with pytest.raises(BankError):
                database.prices()
            postgres.start()
        it.say()
    assert spent(database) == 150
    assert database.verify() == []
    database.dispose()


def test_a_restart_between_two_batches_costs_one_try(postgres: Postgres) -> None:
    database = Database(create_database(postgres.url()))
    it = Teller(database, "one", [TOKENS])
    it.lease({}, 500)
    postgres.restart()
    with pytest.raises(BankError):
        it.say()
    it.say()
    assert database.verify() == []
    database.dispose()


def test_a_silent_postgresql_is_given_up(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its machine is there and answers nothing: limits that the server keeps do not help then."""
    database = Database(create_database(postgres.url()))
    it = Teller(database, "one", [TOKENS])
    it.lease({}, 500)
    entry = it.reserve(tokens=100)
    assert entry is not None
    postgres.pause()
    try:
        with monkeypatch.context() as hasty:
            hasty.setattr(postgres_module._Connection, "limit_s", 0.5)
            with pytest.raises(BankError):
                it.say()
    finally:
        postgres.resume()
    it.say()
    it.settle(entry, tokens=40)
    it.say()
    assert spent(database) == 40
    assert database.verify() == []
    database.dispose()


def test_a_lock_that_somebody_keeps_ends_the_wait(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_module, "_STATEMENT_MS", 2000)
    database = Database(postgres_url)
    it = Teller(database, "one", [TOKENS])
    it.lease({}, 500)
    with psycopg.connect(postgres_url) as other:
        other.execute("SELECT * FROM accounts FOR UPDATE")
        with pytest.raises(BankError, match="timeout"):
            it.say()
    it.say()
    database.dispose()


def test_a_locked_file_ends_the_wait(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    database = Database(f"sqlite:///{path}")
    it = Teller(database, "one", [TOKENS])
    it.lease({}, 500)
    with database.engine.begin() as c:
        c.exec_driver_sql("PRAGMA busy_timeout = 20")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BankError, match="locked"):
        it.say()
    other.execute("ROLLBACK")
    other.close()
    it.say()
    assert database.verify() == []
    database.dispose()


def test_readers_lock_nobody_out(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'ledger.db'}")
    it = Teller(database, "one", [TOKENS])
    it.lease({}, 500)
    with database.reading.connect() as c:
        assert c.execute(select(func.count()).select_from(entries)).scalar_one() == 0
        database.commit(Batch("one", 2, [an_entry("r")], []))
        assert c.execute(select(func.count()).select_from(entries)).scalar_one() == 0
    database.dispose()


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"no database at all, but long enough to be read as one" * 100)
    with pytest.raises(BankError):
        Database(f"sqlite:///{path}")
