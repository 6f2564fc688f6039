"""`apportion ledger`: the books checked, exported, cleared up."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from apportion.cli.app import app
from apportion.core.budget import Budget
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import RESERVE, SETTLE, Batch, Entry, Move
from apportion.serve.ledger.redis_bank import RedisBank
from apportion.serve.ledger.schema import accounts, entries, holders

DAILY = Budget("daily", "usd", 10.0, window_s=86_400)
COST = 10**11


def entry(reservation: str, kind: int, usd: int) -> Entry:
    status, mark = ("", "") if kind == RESERVE else ("ok", "measured")
    who = ("acme", "red", "k", "", "", "chat", "openai", "gpt", "chat", '{"env":"prod"}')
    return Entry(reservation, kind, "dec_1", 1, *who, status, mark, tokens=5, usd=usd, requests=1)


def worked(path: Path, ago_s: float = 0.0) -> Database:
    """Books in which a worker has settled one request and has another under way."""
    database = Database(f"sqlite:///{path}", clock=lambda: time.time() - ago_s)
    database.open("worker-1", "box")
    database.commit(
        Batch("worker-1", 1, [], [Move("daily@all", DAILY, 0, 0, 0, want=3 * COST, like=5 * COST)])
    )
    told = [entry("r1", RESERVE, 2 * COST), entry("r1", SETTLE, COST), entry("r2", RESERVE, COST)]
    database.commit(Batch("worker-1", 2, told, [Move("daily@all", DAILY, COST, COST, COST)]))
    return database


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the commands look for books."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("APPORTION_LEDGER_URL", raising=False)
    return tmp_path / "state" / "apportion" / "ledger.db"


@pytest.fixture
def books(place: Path) -> Iterator[Database]:
    database = worked(place)
    yield database
    database.dispose()


def ledger(*arguments: str, status: int = 0) -> Result:
    done = CliRunner().invoke(app, ["ledger", *arguments])
    assert done.exit_code == status, done.output
    return done


def silence(database: Database) -> None:
    """Nobody has heard of the worker for two minutes."""
    with database.engine.begin() as connection:
        connection.execute(sa.update(holders).values(seen_us=int((time.time() - 120) * 1e6)))


def test_books_that_are_right(books: Database) -> None:
    assert ledger("verify").stdout == "3 entries, 1 accounts: right\n"
    assert json.loads(ledger("verify", "--json").stdout) == {
        "entries": 3,
        "accounts": 1,
        "right": True,
        "findings": [],
    }


def test_books_that_are_not(books: Database) -> None:
    with books.engine.begin() as connection:
        connection.execute(sa.update(entries).where(entries.c.kind == SETTLE).values(usd=COST // 2))
    done = ledger("verify", status=1)
    assert "What does not agree" in done.stdout
    assert "daily@all" in done.stdout
    assert "right" not in done.stdout
    found = json.loads(ledger("verify", "--json", status=1).stdout)
    assert not found["right"]
    assert any("has spent" in each for each in found["findings"])


def test_a_lost_account_is_found(books: Database) -> None:
    with books.engine.begin() as connection:
        connection.execute(sa.delete(accounts))
    assert "which does not exist" in ledger("verify", status=1).stdout


def test_holders(books: Database) -> None:
    text = ledger("holders").stdout
    for word in ("worker-1", "box", "alive", "0.1"):
        assert word in text
    (holder,) = json.loads(ledger("holders", "--json").stdout)
    assert (holder["holder"], holder["machine"], holder["state"], holder["open"]) == (
        "worker-1",
        "box",
        "alive",
        1,
    )
    (lent,) = holder["lent"]
    assert (lent["resource"], lent["leases"], lent["most"]) == ("usd", 1, "0")
    assert (lent["free"], lent["reserved"]) == ("0.100000000000", "0.100000000000")
    assert "0.1 free, 0.1 reserved usd" in text
    silence(books)
    assert json.loads(ledger("holders", "--json").stdout)[0]["state"] == "silent"
    books.sweep()
    assert json.loads(ledger("holders", "--json").stdout)[0]["state"] == "dead"


def test_forget_gives_back_and_presumes(books: Database) -> None:
    silence(books)
    assert ledger("forget", "worker-1").stdout == "Forgot worker-1: 1 open reservations count as spent.\n"
    assert ledger("holders").stdout == "Nobody holds anything.\n"
    assert ledger("verify").stdout == "4 entries, 1 accounts: right\n"
    spent = json.loads(CliRunner().invoke(app, ["spend", "--by", "mark", "--json"]).stdout)
    assert {row["mark"]: row["usd"] for row in spent["rows"]} == {"measured": "0.1", "presumed": "0.1"}


def test_where_redis_lends_it_is_told(place: Path, postgres_url: str, redis_url: str) -> None:
    database = Database(postgres_url)
    bank = RedisBank(database, redis_url)
    bank.open("worker-2", "box")
    bank.commit(Batch("worker-2", 1, [], [Move("daily@all", DAILY, 0, 0, 0, want=3 * COST, like=3 * COST)]))
    silence(database)
    books = ("--ledger", postgres_url)
    ((lent,),) = [each["lent"] for each in json.loads(ledger("holders", "--json", *books).stdout)]
    assert float(lent["most"]) >= 0.3
    assert "by Redis" in ledger("holders", *books).stdout
    assert "--config" in ledger("forget", "worker-2", *books, status=1).stderr
    Path("apportion.yaml").write_text(
        "endpoints: {a: {kind: openai, base_url: 'http://127.0.0.1:1/v1'}}\nmodels: {chat: a}\n"
        f"ledger: {{url: '{postgres_url}', redis: '{redis_url}'}}\n"
    )
    ledger("forget", "worker-2")
    assert ledger("holders").stdout == "Nobody holds anything.\n"
    bank.dispose()


def test_the_living_are_not_forgotten(books: Database) -> None:
    assert "is alive" in ledger("forget", "worker-1", status=1).stderr
    assert "There is no holder 'worker-2'" in ledger("forget", "worker-2", status=1).stderr
    assert "alive" in ledger("holders").stdout


def test_export_is_every_entry(books: Database) -> None:
    found = [json.loads(line) for line in ledger("export").stdout.splitlines()]
    assert [(each["reservation"], each["kind"]) for each in found] == [
        ("r1", "reserve"),
        ("r1", "settle"),
        ("r2", "reserve"),
    ]
    settled = found[1]
    assert (settled["usd"], settled["tokens"], settled["joules"]) == ("0.100000000000", 5, "0.000000")
    assert settled["tags"] == {"env": "prod"}
    assert settled["charged"] == ["daily"]
    assert settled["holder"] == "worker-1"
    assert settled["at"].endswith("Z")
    assert set(settled) == {"at", *entries.c.keys()}
    assert ledger("export", "--until", "1h").stdout == ""
    assert len(ledger("export", "--since", "1h").stdout.splitlines()) == 3


def test_prune_asks_and_keeps_the_balances(place: Path) -> None:
    worked(place, ago_s=8 * 86_400).dispose()
    assert "seven days" in ledger("prune", "--before", "6d", "--yes", status=1).stderr
    no = CliRunner().invoke(app, ["ledger", "prune", "--before", "7d"], input="n\n")
    assert no.exit_code == 1
    assert "Delete up to 3 entries from before" in no.stdout
    assert "3 entries" in ledger("verify").stdout
    yes = CliRunner().invoke(app, ["ledger", "prune", "--before", "7d"], input="y\n")
    assert "Deleted 2 entries; 1 accounts begin later." in yes.stdout
    assert ledger("verify").stdout == "1 entries, 1 accounts: right\n"
    assert json.loads(ledger("prune", "--before", "7d", "--yes", "--json").stdout) == {
        "entries": 0,
        "accounts": 0,
    }


def test_there_are_no_books(place: Path) -> None:
    for command in ("verify", "holders", "export"):
        assert "There are no books at" in ledger(command, status=1).stderr
    assert not place.parent.exists()
