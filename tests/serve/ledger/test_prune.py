"""Retention: old entries go, balances stay, and the books can still be verified; at every point in between."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from teller import Teller

from apportion.core.budget import Budget
from apportion.core.errors import ParameterError
from apportion.serve.ledger import prune as pruning
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import PRESUME, RESERVE
from apportion.serve.ledger.prune import LEAST_US, countable, prune
from apportion.serve.ledger.reading import reading
from apportion.serve.ledger.schema import accounts, entries
from apportion.serve.ledger.spend import Question, total

USD = 10**12
BUDGETS = [
    Budget("all-time", "usd", 10_000.0),
    Budget("each-user", "usd", 1_000.0, scope="user"),
    Budget("daily", "tokens", 10**9, window_s=86_400, scope="team"),
    Budget("monthly", "usd", 9_000.0, calendar="month", time_zone="Europe/Berlin", scope="model"),
    Budget("sliding", "requests", 10**6, window_s=3_600, sliding=True, scope="key"),
    Budget("bucket", "tokens", 10**7, refill_per_s=1_000.0, scope="key"),
    Budget("soft", "joules", 5.0, hard=False),
]


class Clock:
    """Unix seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_795_260_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/ledger.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    made = Database(url, clock=clock)
    yield made
    made.dispose()


ENOUGH = {"usd": (10 * USD, 40 * USD), "tokens": (3_000, 9_000), "requests": (8, 20)}


def wants(teller: Teller) -> dict[str, tuple[int, int]]:
    """Some of every hard budget."""
    return {id: ENOUGH[budget.resource] for id, budget in teller.of.items() if budget.hard}


def work(teller: Teller, rng: random.Random, clock: Clock, count: int) -> None:
    """Requests of several people: settled, released, or left open; on SQLite minutes go by between batches."""
    teller.say()
    for _ in range(count):
        clock.now += rng.choice((0.0, 0.0, 90.0, 4_000.0))
        who = {
            "user": rng.choice(("bob", "eve", "")),
            "model": rng.choice(("small", "large")),
            "key": rng.choice("ab"),
        }
        entry = teller.reserve(**who, usd=2 * USD, tokens=500, requests=1, joules=10**6)
        if entry is None:
            teller.say(wants(teller))
        elif rng.random() < 0.7:
            teller.settle(entry, usd=rng.randrange(2 * USD), tokens=rng.randrange(500), requests=1, joules=7)
        elif rng.random() < 0.6:
            teller.settle(entry)
        if rng.random() < 0.4:
            teller.say()
    teller.say()


def cut(database: Database) -> int:
    """A moment after everything that has happened so far, and before all that will."""
    with database.engine.connect() as c:
        return int(c.execute(sa.select(sa.func.max(entries.c.at_us))).scalar_one()) + 1


def states(database: Database) -> dict[str, str]:
    with database.engine.connect() as c:
        return {row.id: row.state for row in c.execute(sa.select(accounts.c.id, accounts.c.state))}


def left(database: Database, before_us: int) -> list[sa.Row[tuple[str, int]]]:
    with database.engine.connect() as c:
        old = sa.select(entries.c.reservation, entries.c.kind).where(entries.c.at_us < before_us)
        return list(c.execute(old.order_by(entries.c.reservation, entries.c.kind)).all())


@pytest.mark.parametrize("seed", range(2))
def test_balances_stay_and_the_books_are_right(database: Database, clock: Clock, seed: int) -> None:
    rng = random.Random(seed)
    teller = Teller(database, "one", BUDGETS)
    work(teller, rng, clock, 50)
    under_way = set(teller.open)
    before_us = cut(database)
    work(teller, rng, clock, 20)
    assert database.verify() == []
    books = states(database)
    with reading(database.engine) as c:
        since = total(c, Question(since_us=before_us))

    done = prune(database, before_us, before_us + LEAST_US)

    assert done.entries > 50
    assert done.accounts > 5
    assert database.verify() == []
    assert states(database) == books
    assert all(row.kind == RESERVE and row.reservation in under_way for row in left(database, before_us))
    with reading(database.engine) as c:
        assert total(c, Question(since_us=before_us)) == since
    assert prune(database, before_us, before_us + LEAST_US) == (0, 0)

    work(teller, rng, clock, 20)
    for entry in list(teller.open.values()):
        teller.settle(entry, usd=USD, tokens=1, requests=1, joules=1)
    teller.say()
    assert database.verify() == []
    prune(database, cut(database), cut(database) + LEAST_US)
    assert database.verify() == []


def test_stopped_in_the_middle_it_is_right_and_goes_on(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    teller = Teller(database, "one", BUDGETS)
    work(teller, random.Random(5), clock, 40)
    before_us = cut(database)
    monkeypatch.setattr(pruning, "_ENTRIES", 7)
    store = database.watch(lambda store: store)
    pruning._sum_up(store, before_us)
    assert database.verify() == []
    pruning._rebase(store, before_us)
    assert database.verify() == []
    steps = pruning._delete(store, before_us)
    first = next(steps)
    steps.close()
    assert first > 0
    assert database.verify() == []
    assert prune(database, before_us, before_us + LEAST_US).entries > first
    assert database.verify() == []
    assert left(database, before_us) == [(name, RESERVE) for name in sorted(teller.open)]


def test_a_budget_made_later_begins_with_what_was_spent(database: Database, clock: Clock) -> None:
    teller = Teller(database, "one", BUDGETS[:1])
    work(teller, random.Random(1), clock, 40)
    before_us = cut(database)
    with reading(database.engine) as c:
        spent = {name: total(c, Question(only={"user": [name]})).usd for name in ("bob", "eve")}
    prune(database, before_us, before_us + LEAST_US)

    late = Teller(database, "two", [*BUDGETS[:1], Budget("late", "usd", 10_000.0, scope="user")])
    for name in spent:
        late.reserve(user=name)
    late.say()
    books = states(database)
    assert {name: json.loads(books[f"late@user:{name}"])["spent_units"] for name in spent} == spent
    assert min(spent.values()) > 0
    assert database.verify() == []


def test_what_is_presumed_is_kept_for_a_late_journal(database: Database, clock: Clock) -> None:
    teller = Teller(database, "one", BUDGETS)
    work(teller, random.Random(2), clock, 20)
    teller.say(wants(teller))
    entry = teller.reserve(user="bob", model="small", key="a", usd=2 * USD, tokens=5, requests=1, joules=5)
    assert entry is not None
    teller.say()
    settled = teller.settled(entry, usd=USD, tokens=3, requests=1, joules=1)
    database.forget("one")
    before_us = cut(database)
    prune(database, before_us, before_us + LEAST_US)
    kept = left(database, before_us)
    assert (entry.reservation, PRESUME) in kept
    with reading(database.engine) as c:
        presumed = total(c, Question()).usd
    recovery = database.recover("one", [(entry, settled)])
    assert (recovery.settled, recovery.presumed, recovery.known) == (1, 0, 0)
    with reading(database.engine) as c:
        assert total(c, Question()).usd == presumed - USD
    assert database.verify() == []
    # Corrected, it may go the next time.
    prune(database, cut(database), cut(database) + LEAST_US)
    assert (entry.reservation, PRESUME) not in left(database, cut(database) + 1)
    assert database.verify() == []


def test_the_last_week_is_kept(database: Database, clock: Clock) -> None:
    teller = Teller(database, "one", BUDGETS)
    work(teller, random.Random(3), clock, 10)
    before_us = cut(database)
    with pytest.raises(ParameterError) as caught:
        prune(database, before_us, before_us + LEAST_US - 1)
    assert caught.value.field == "before"
    with reading(database.engine) as c:
        assert countable(c, before_us) > 0


def test_a_budget_that_is_redefined_meanwhile_keeps_its_own_base(database: Database, clock: Clock) -> None:
    teller = Teller(database, "one", BUDGETS[:1])
    work(teller, random.Random(4), clock, 20)
    before_us = cut(database)
    store = database.watch(lambda store: store)
    with reading(database.engine) as c:
        bases = list(pruning._bases(c, before_us))
        other = Teller(database, "two", [Budget("all-time", "usd", 5.0)])
        other.reserve()
        other.say()
        with store.engine.begin() as writing:
            assert pruning._write(writing, bases, before_us) == 0
    assert database.verify() == []
