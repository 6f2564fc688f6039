"""What is left of budgets is told as the next request will find it, whether or not one has asked before."""

from __future__ import annotations

import random

import pytest
from record import Record
from teller import Teller

from apportion.core.budget import Budget
from apportion.serve.ledger.balances import Balance, balances, balances_of

USERS = ("ann", "ben", "eve")
BUDGETS = tuple(
    Budget(name, "tokens", amount, hard=False, **more)
    for name, amount, more in (
        ("hourly", 5000, {"window_s": 3600.0, "scope": "user"}),
        ("daily", 5000, {"calendar": "day", "scope": "user"}),
        ("lately", 5000, {"window_s": 3600.0, "sliding": True, "scope": "user"}),
        ("ever", 5000, {"scope": "user"}),
        ("bens", 40, {"scope": "user:ben"}),
        ("rate", 5000, {"refill_per_s": 1e-6, "scope": "user"}),
        ("whole", 5000, {"calendar": "week"}),
    )
)


def spend(it: Teller, tokens: int, user: str) -> None:
    entry = it.reserve(tokens=tokens, requests=1, user=user)
    assert entry is not None
    it.settle(entry, tokens=tokens, requests=1)
    it.say()


def pairs(known: tuple[Budget, ...]) -> list[tuple[Budget, str]]:
    found = [(budget, "all") for budget in known if budget.scope == "all"]
    for user in USERS:
        of_user = [budget for budget in known if budget.scope in ("user", f"user:{user}")]
        found += [(budget, f"user:{user}") for budget in of_user]
    return found


def told(books: Record, wanted: list[tuple[Budget, str]]) -> dict[tuple[str, str], Balance]:
    with books.database.reading.connect() as c:
        found = balances_of(c, books.clock.now, wanted)
    assert [(each.budget, each.subject) for each in found] == [(b.name, subject) for b, subject in wanted]
    return {(each.budget, each.subject): each for each in found}


@pytest.mark.parametrize("seed", range(4))
def test_an_account_that_nobody_opened_is_told_as_it_will_be_opened(books: Record, seed: int) -> None:
    rng = random.Random(seed)
    order = list(BUDGETS)
    rng.shuffle(order)
    for count in range(len(order) + 1):
        # Those who come later know a budget more than those before, of which the window has seen something already.
        known = tuple(order[:count])
        for step in range(3):
            books.clock.now += rng.choice((1.0, 1700.0, 50_000.0))
            before = told(books, pairs(known))
            user, tokens = rng.choice(USERS), rng.randrange(1, 40)
            spend(Teller(books.database, f"worker{count}-{step}", known), tokens, user)
            with books.database.reading.connect() as c:
                after = {(each.budget, each.subject): each for each in balances(c, books.clock.now)}
            for at, balance in after.items():
                more = tokens if at[1] in ("all", f"user:{user}") else 0
                assert balance.spent == before[at].spent + more, (seed, at)
                if balance.budget != "bens":
                    assert balance.left == pytest.approx(float(before[at].left) - more, abs=1), (seed, at)
            assert all(balance == told(books, pairs(known))[at] for at, balance in after.items())


def test_a_changed_budget_is_told_as_it_is_now(books: Record) -> None:
    old = Budget("b", "tokens", 100, scope="user", hard=False)
    it = Teller(books.database, "one", [old])
    spend(it, 30, "ann")
    cases = (
        (Budget("b", "tokens", 200, scope="user"), 30, 170),
        (Budget("b", "tokens", 20, scope="user"), 30, 0),  # used up, and no debt
        (Budget("b", "requests", 9, scope="user"), 1, 8),
    )
    for new, spent, left in cases:
        balance = told(books, [(new, "user:ann")])["b", "user:ann"]
        assert (balance.resource, balance.spent, balance.left) == (new.resource, spent, left)
