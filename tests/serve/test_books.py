"""Reservations over several accounts, prices in small batches, and the shares of several workers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core.budget import Account
from apportion.core.cost import Cost
from apportion.core.resource import resource
from apportion.serve import books, errors
from apportion.serve.books import Books, Sheet
from apportion.serve.config.schema import Budget, Config, Key, KeyLimits, Secret

NAMES = ("requests", "tokens", "usd", "server_seconds")


def key(name: str = "alice", **limits: Any) -> Key:
    return Key(name=name, secret=Secret("s"), limits=KeyLimits(**limits))


def budget(name: str, amount: float, **more: Any) -> Budget:
    return Budget(name=name, amount=amount, **more)


def config(*budgets: Budget, keys: tuple[Key, ...] = (key(),)) -> Config:
    return Config(keys=list(keys), budgets=list(budgets))


def amounts(tokens: int = 0, usd: int = 0) -> books.Amounts:
    return (tokens, usd, 0, 0)


def of(accounts: books.Accounts) -> list[Account]:
    return [*accounts.counted, *(account for account, _ in accounts.metered)]


def settle(accounts: books.Accounts, held: books.Amounts, spent: books.Amounts) -> None:
    for account, place in accounts.metered:
        account.settle(held[place], spent[place], 0.0)


# --- reservations -------------------------------------------------------------------------------------

HARD = config(
    budget("all dollars", 100e-12),
    budget("alice", 60e-12, scope="key:alice"),
    budget("model", 80e-12, scope="model:m", window=10.0),
    budget("endpoint", 50, scope="endpoint:e", resource="tokens"),
    budget("soft", 10e-12, hard=False),
    keys=(key("alice"), key("bob")),
)
acts = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "release"]),
        st.sampled_from([("alice", "m", "e"), ("bob", "m", "e"), ("bob", "n", "f")]),
        st.integers(0, 40),
        st.integers(0, 20),
        st.integers(0, 30),
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(acts)
def test_a_hard_budget_is_never_overspent(
    acts: list[tuple[str, tuple[str, str, str], int, int, int]],
) -> None:
    """Whatever is reserved, settled (for no more than was held) and released, in any order."""
    found = Books(HARD, workers=1)
    held: list[tuple[Any, tuple[int, ...]]] = []
    for act, at, usd, tokens, pick in acts:
        accounts = found.accounts(*at)
        if act == "reserve":
            wanted = amounts(tokens=tokens, usd=usd)
            before = [(a.reserved_units, a.level_units) for a in of(accounts)]
            try:
                books.reserve(accounts, wanted, 0.0)
            except errors.BudgetExceededError:
                assert [(a.reserved_units, a.level_units) for a in of(accounts)] == before, "all or nothing"
            else:
                held.append((accounts, wanted))
        elif held:
            accounts, wanted = held.pop(pick % len(held))
            if act == "release":
                books.release(accounts, wanted, 0.0)
            else:
                settle(accounts, wanted, tuple(min(w, usd) for w in wanted))
        everybody = {
            id(a): a
            for name in ("alice", "bob")
            for m in "mn"
            for e in "ef"
            for a in of(found.accounts(name, m, e))
        }
        for account in everybody.values():
            if account.budget.hard:
                whole = account.budget.unit.to_units(account.budget.amount)
                assert account.spent_units + account.reserved_units <= whole
    for accounts, wanted in held:
        books.release(accounts, wanted, 0.0)
    for account in of(found.accounts("alice", "m", "e")):
        assert account.reserved_units == 0


def test_the_widest_scope_comes_first_and_each_scope_only_for_its_own() -> None:
    found = Books(HARD, workers=1)
    alice, bob = found.accounts("alice", "m", "e"), found.accounts("bob", "n", "f")
    assert [a.budget.name for a in of(alice)] == ["all dollars", "alice", "model", "endpoint"]
    assert [a.budget.name for a in of(bob)] == ["all dollars"], "a soft one refuses nothing"
    assert found.accounts("alice", "m", "e") is found.accounts("alice", "m", "e")
    assert found.caps_usd
    assert not Books(config(budget("soft", 1, hard=False), budget("t", 1, resource="tokens")), 1).caps_usd


def test_what_is_left_is_that_of_the_tightest() -> None:
    found = Books(HARD, workers=1)
    assert books.usd_left_units(found.accounts("alice", "m", "e"), 0.0) == 60
    assert books.usd_left_units(found.accounts("bob", "m", "e"), 0.0) == 80
    books.reserve(found.accounts("bob", "m", "e"), amounts(usd=75), 0.0)
    assert books.usd_left_units(found.accounts("alice", "m", "e"), 0.0) == 5
    assert books.usd_left_units(Books(config(), 1).accounts("alice", "m", "e"), 0.0) is None


def test_a_refusal_says_which_budget_how_much_and_until_when() -> None:
    found = Books(HARD, workers=1)
    accounts = found.accounts("alice", "m", "e")
    with pytest.raises(errors.BudgetExceededError) as caught:
        books.reserve(accounts, amounts(usd=70), 0.0)
    error = caught.value
    assert (error.status, error.field, error.retry_after_s) == (402, "alice", None)
    assert error.details is not None
    assert {k: error.details[k] for k in ("budget", "scope", "resource")} == {
        "budget": "alice", "scope": "key:alice", "resource": "usd",
    }  # fmt: skip
    limited = Books(config(keys=(key(requests_per_minute=2),)), workers=1)
    accounts = limited.accounts("alice", "m", "e")
    for _ in range(2):
        books.count(accounts, 0.0)
    with pytest.raises(errors.RateLimitedError) as rate:
        books.count(accounts, 0.0)
    assert (rate.value.status, rate.value.field) == (429, "requests_per_minute")
    assert rate.value.retry_after_s == pytest.approx(30.0, abs=1e-6)
    books.count(accounts, 30.1)


def test_a_refused_request_counts_nowhere() -> None:
    found = Books(
        config(
            budget("all", 2, resource="requests"),
            budget("alice", 1, resource="requests", scope="key:alice"),
            keys=(key("alice"), key("bob")),
        ),
        1,
    )
    alice, bob = found.accounts("alice", "m", "e"), found.accounts("bob", "m", "e")
    books.count(alice, 0.0)
    for _ in range(10):
        with pytest.raises(errors.BudgetExceededError, match="'alice'"):
            books.count(alice, 0.0)
    books.count(bob, 0.0)
    with pytest.raises(errors.BudgetExceededError, match="'all'"):
        books.count(bob, 0.0)


def test_a_budget_of_each_key() -> None:
    found = Books(config(budget("each", 10e-12, scope="key"), keys=(key("alice"), key("bob"))), workers=1)
    books.reserve(found.accounts("alice", "m", "e"), amounts(usd=10), 0.0)
    books.reserve(found.accounts("bob", "m", "e"), amounts(usd=10), 0.0)
    with pytest.raises(errors.BudgetExceededError):
        books.reserve(found.accounts("alice", "m", "e"), amounts(usd=1), 0.0)


# --- several workers ----------------------------------------------------------------------------------


@given(st.integers(1, 64), st.sampled_from(NAMES), st.integers(0, 10**6), st.integers(1, 1000))
def test_the_shares_of_all_workers_are_the_whole(workers: int, name: str, parts: int, divisor: int) -> None:
    amount = parts / divisor
    shares = []
    for worker in range(workers):
        found = Books(config(budget("b", amount, resource=name)), workers, worker=worker)
        (account,) = of(found.accounts("alice", "m", "e"))
        shares.append(account.available_units(0.0))
    assert sum(shares) == resource(name).to_units(amount)
    assert max(shares) - min(shares) <= 1


@given(st.integers(1, 16), st.integers(1, 1000))
def test_the_limits_of_a_key_are_shared(workers: int, limit: int) -> None:
    shares = []
    for worker in range(workers):
        found = Books(config(keys=(key(requests_per_minute=limit),)), workers, worker=worker)
        (account,) = of(found.accounts("alice", "m", "e"))
        assert account.budget.refill_per_s == pytest.approx(limit / workers / 60)
        shares.append(account.available_units(0.0))
    assert sum(shares) == limit
    assert max(shares) - min(shares) <= 1


# --- reloads ------------------------------------------------------------------------------------------


def test_a_reload_keeps_what_is_spent_and_held() -> None:
    day = budget("day", 100e-12, window=86400.0)
    before = Books(config(day, keys=(key(requests_per_minute=5),)), 1)
    now = time.time()
    accounts = before.accounts("alice", "m", "e")
    books.count(accounts, now)
    books.reserve(accounts, amounts(usd=30), now)
    other = config(day, budget("new", 1.0), keys=(key(requests_per_minute=5), key("bob")))
    after = Books(other, 1, before)
    again = after.accounts("alice", "m", "e")
    assert again.counted[0] is accounts.counted[0]
    assert again.usd[0] is accounts.usd[0]
    assert after.accounts("bob", "m", "e").usd[0] is accounts.usd[0]
    assert books.usd_left_units(again, now) == 70
    settle(accounts, amounts(usd=30), amounts(usd=20))
    assert books.usd_left_units(again, now) == 80

    larger = config(budget("day", 200e-12, window=86400.0), keys=(key(requests_per_minute=10),))
    grown = Books(larger, 1, after).accounts("alice", "m", "e")
    assert grown.usd == (accounts.usd[0],)
    assert books.usd_left_units(grown, now) == 180
    assert grown.counted[0].available_units(now) in (8, 9)
    assert (
        Books(config(budget("day", 1.0, resource="tokens")), 1, after).accounts("alice", "m", "e").usd == ()
    )


def test_a_reload_keeps_learned_prices() -> None:
    day = budget("day", 10.0, window=86400.0, scope="key:alice")
    before = Books(config(day), 1)
    now = time.time()
    sheet = before.sheet("alice", "m")
    for i in range(100):
        sheet.prices(now + i)
        sheet.spent(0.05, 10, 0.1, 1.0, now + i)
    same = Books(config(day, keys=(key(), key("bob"))), 1, before)
    assert same.sheet("alice", "m") is sheet
    price = sheet.prices(now + 101)["usd"]
    assert price > 1.0
    more = Books(config(day, budget("tokens", 10, scope="key:alice", resource="tokens")), 1, same)
    assert more.sheet("alice", "m") is not sheet
    assert more.sheet("alice", "m").prices(now + 101)["usd"] == pytest.approx(price)
    changed = Books(config(budget("day", 20.0, window=86400.0, scope="key:alice")), 1, same)
    assert changed.sheet("alice", "m").prices(now + 101)["usd"] == 1.0


# --- prices -------------------------------------------------------------------------------------------


class Noting:
    """A pricer that notes what it is told."""

    def __init__(self) -> None:
        self.spent: list[tuple[Cost, float, float]] = []
        self.asked = 0

    def prices(self, now: float) -> Mapping[str, float]:
        self.asked += 1
        return {"usd": 0.5, "tokens": float(len(self.spent))}

    def spend(self, cost: Cost, now: float, value: float) -> None:
        self.spent.append((cost, now, value))


spendings = st.lists(
    st.tuples(
        st.none() | st.integers(0, 1000).map(float),
        st.integers(0, 1000),
        st.integers(0, 100).map(float),
        st.integers(0, 10).map(float),
        st.floats(0.0, 0.05),
    ),
    max_size=40,
)


@given(spendings)
def test_small_batches_are_the_sum_of_their_parts(
    spendings: list[tuple[float | None, int, float, float, float]],
) -> None:
    pricers = (Noting(), Noting())
    sheet = Sheet({"usd": 1.0, "joules": 2.0}, pricers)  # type: ignore[arg-type]
    now = 0.0
    for usd, tokens, server_s, value, wait_s in spendings:
        sheet.spent(usd, tokens, server_s, value, now)
        now += wait_s
        sheet.prices(now)
    sheet.prices(now + 1)
    for pricer in pricers:
        known = [s for s in spendings if s[0] is not None]
        assert sum(c.get("usd", 0.0) for c, _, _ in pricer.spent) == sum(s[0] or 0.0 for s in known)
        assert sum(c["tokens"] for c, _, _ in pricer.spent) == sum(s[1] for s in spendings)
        assert sum(c["server_seconds"] for c, _, _ in pricer.spent) == sum(s[2] for s in spendings)
        assert sum(c["requests"] for c, _, _ in pricer.spent) == len(spendings)
        assert sum(v for _, _, v in pricer.spent) == sum(s[3] for s in spendings)
        times = [t for _, t, _ in pricer.spent]
        assert times == sorted(times)
        assert pricer.asked <= now / 0.02 + 2


def test_prices_add_up() -> None:
    sheet = Sheet({"usd": 1.0, "joules": 2.0}, (Noting(), Noting()))  # type: ignore[arg-type]
    assert sheet.prices(0.0) == {"usd": 2.0, "joules": 2.0, "tokens": 0.0}
    sheet.spent(1.0, 1, 1.0, 1.0, 0.001)
    assert sheet.prices(0.01) is sheet.prices(0.015), "as they were, for a moment"
    assert sheet.prices(0.03)["tokens"] == 2.0
    assert sheet.prices(-5.0)["tokens"] == 2.0, "a clock that is set back does not freeze them"


def test_without_budgets_prices_are_those_outside() -> None:
    found = Books(Config(keys=[key()], prices={"joules": 0.5}), workers=1)
    sheet = found.sheet("alice", "m")
    sheet.spent(1.0, 1, 1.0, 1.0, 0.0)
    assert sheet.prices(0.0) == {"usd": 1.0, "joules": 0.5}
    assert found.sheet("alice", "m") is sheet


def test_spending_ahead_of_the_pace_raises_the_price_of_those_concerned() -> None:
    found = Books(
        config(budget("day", 10.0, scope="key:alice", window=86400.0), keys=(key("alice"), key("bob"))), 1
    )
    alice, bob = found.sheet("alice", "m"), found.sheet("bob", "m")
    for i in range(100):
        alice.prices(i * 1.0)
        alice.spent(0.05, 10, 0.1, 1.0, i * 1.0)
    assert alice.prices(101.0)["usd"] > bob.prices(101.0)["usd"] == 1.0
