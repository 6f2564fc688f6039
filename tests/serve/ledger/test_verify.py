"""Verification finds whatever has been done to the books, and nothing in books that are right."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from record import Record
from sqlalchemy import Connection, delete, insert, select, update
from teller import Teller

from apportion.core.budget import Budget
from apportion.serve.ledger.entries import CORRECT, PRESUME, RESERVE, SETTLE
from apportion.serve.ledger.schema import accounts, entries, holders, leases

BUDGETS = (
    Budget("ever", "tokens", 10_000),
    Budget("hour", "tokens", 10_000, window_s=3600.0),
    Budget("slide", "tokens", 10_000, window_s=600.0, sliding=True),
    Budget("each", "usd", 1, scope="user"),
    Budget("rate", "requests", 100, refill_per_s=1.0, scope="key"),
    Budget("soft", "tokens", 10, scope="team", hard=False),
)
FIRST = "one-0"
"""A reservation that was settled."""
OPEN = "one-6"
"""One that is not."""


@pytest.fixture
def told(books: Record) -> Record:
    """Two workers have done this and that over two hours; one died and left a presumption, corrected since."""
    one, two = (Teller(books.database, name, BUDGETS) for name in ("one", "two"))
    one.lease({}, 50, 100)
    for number in range(6):
        for it in (one, two):
            if it.reserve(tokens=10, usd=10, requests=1) is None:
                it.lease({}, 20, 100)
                assert it.reserve(tokens=10, usd=10, requests=1) is not None
            entry = next(iter(it.open.values()))
            it.say()
            it.settle(entry, tokens=number, usd=number, requests=1)
            it.say()
        books.clock.now += 15.0 if number != 3 else 3600.0
        one.say()
        two.say()
    late = two.reserve(tokens=10, usd=10, requests=1)
    assert late is not None
    two.say()
    books.clock.now += 25.0
    one.say()
    books.clock.now += 25.0
    one.say()
    books.database.sweep()
    two.settle(late, tokens=3, usd=3, requests=1)
    two.recovered()
    assert one.reserve(tokens=1) is not None
    one.say()
    books.right()
    assert {kind for (kind,) in books.rows(entries.c.kind)} == {RESERVE, SETTLE, PRESUME, CORRECT}
    return books


Damage = Callable[[Connection], object]


def gone(reservation: str, kind: int) -> Damage:
    return lambda c: c.execute(
        delete(entries).where(entries.c.reservation == reservation, entries.c.kind == kind)
    )


def again(reservation: str, kind: int, **values: object) -> Damage:
    def damage(c: Connection) -> None:
        row = c.execute(select(entries).where(entries.c.reservation == reservation)).mappings().first()
        assert row is not None
        c.execute(insert(entries).values({**row, "kind": kind, "charged": "", **values}))

    return damage


def state(account: str, **changes: int) -> Damage:
    def damage(c: Connection) -> None:
        this = accounts.c.id == account
        saved = json.loads(c.execute(select(accounts.c.state).where(this)).scalar_one())
        for name, by in changes.items():
            saved[name] += by
        c.execute(update(accounts).where(this).values(state=json.dumps(saved)))

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (gone(FIRST, RESERVE), ["has a settle but no reserve"]),
        (again(FIRST, PRESUME), ["both settle and presume"]),
        (again(FIRST, 2), ["both settle and release"]),
        (again(FIRST, CORRECT), ["corrected but was not presumed"]),
        (
            gone("one-3", SETTLE),
            ["'ever@all' has spent", "'hour@all' has spent", "'each@user:bob' has spent", "'rate@key:alice'"],
        ),
        (
            lambda c: c.execute(
                update(entries)
                .where(entries.c.reservation == "one-5", entries.c.kind == SETTLE)
                .values(tokens=entries.c.tokens + 1)
            ),
            ["'ever@all' has spent in its window", "'hour@all'", "'slide@all'", "'soft@team:red'"],
        ),
        (state("ever@all", spent_units=1), ["'ever@all' has spent"]),
        (state("hour@all", _before=-1), ["'hour@all' has spent in its window"]),
        (state("ever@all", lent_units=5), ["'ever@all' has lent"]),
        (state("ever@all", reserved_units=-1), ["'ever@all' holds"]),
        (
            lambda c: c.execute(update(leases).where(leases.c.account == "ever@all").values(free=1)),
            ["'ever@all' has lent"],
        ),
        (
            lambda c: c.execute(update(accounts).where(accounts.c.id == "ever@all").values(state="{}")),
            ["'ever@all' cannot be read"],
        ),
        (
            lambda c: c.execute(delete(accounts).where(accounts.c.id == "ever@all")),
            ["has a lease of 'ever@all', which does not exist"],
        ),
        (
            lambda c: c.execute(delete(holders).where(holders.c.holder == "one")),
            ["is open, but worker one is gone", "is lent to one, which does not exist"],
        ),
        (
            lambda c: c.execute(
                update(holders).where(holders.c.holder == "one").values(dead_us=1_800_000_000_000_000)
            ),
            [f"{OPEN} is open"],
        ),
    ],
)
def test_damage_is_found(told: Record, damage: Damage, words: list[str]) -> None:
    with told.database.engine.begin() as c:
        damage(c)
    findings = told.database.verify()
    for each in words:
        assert any(each in finding for finding in findings), (each, findings)
    assert len(findings) <= 12


def test_many_findings_are_counted(books: Record) -> None:
    one = Teller(books.database, "one", BUDGETS[:1])
    one.lease({}, 1000)
    for _ in range(250):
        entry = one.reserve(tokens=1)
        assert entry is not None
        one.settle(entry, tokens=1)
    one.say()
    with books.database.engine.begin() as c:
        c.execute(delete(entries).where(entries.c.kind == RESERVE))
    findings = books.database.verify()
    assert len(findings) == 101
    assert findings[-1] == "and 150 more like that."


def test_accounts_that_nobody_has_spent_of_are_looked_at(books: Record) -> None:
    one = Teller(books.database, "one", [Budget("ever", "tokens", 100, scope="user")])
    one.lease({"user": "idle"}, 10)
    books.right()
    with books.database.engine.begin() as c:
        state("ever@user:idle", spent_units=7)(c)
    assert books.database.verify() == [
        "Account 'ever@user:idle' has spent 7 units, its entries 0.",
        "Account 'ever@user:idle' has spent in its window 7 units, its entries 0.",
    ]


def test_a_correction_of_nothing_in_a_later_window_from_which_the_clock_was_put_back(books: Record) -> None:
    """It opens the window for the entries, and not for the account: neither is asked about the one before."""
    minute = Budget("minute", "tokens", 50, window_s=60.0, scope="user", hard=False)
    teller = Teller(books.database, "one", [minute])
    entry = teller.reserve(tokens=53)
    assert entry is not None
    teller.say()
    books.clock.now += 80.0
    books.database.sweep()
    books.clock.now += 60.0
    teller.settle(entry, tokens=53)
    teller.recovered()
    assert books.kinds(entry.reservation) == [RESERVE, PRESUME, CORRECT]
    books.clock.now -= 7200.0
    books.right()
