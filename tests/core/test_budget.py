"""Accounts keep exact books: against a plain model, at the edges, and over long random courses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import (
    Account,
    AmountError,
    Budget,
    BudgetError,
    Ledger,
    MemoryLedger,
    Refusal,
    SavedStateError,
    UnknownResourceError,
)

TOKENS = Budget("b", "tokens", 100)
WINDOW = Budget("b", "tokens", 100, window_s=60.0)
BUCKET = Budget("b", "tokens", 100, refill_per_s=0.5)


def test_for_ever() -> None:
    account = Account(TOKENS)
    assert account.reserve(60, 0.0)
    assert not account.reserve(41, 1e9)
    assert account.available_units(1e9) == 40
    account.settle(60, 50, 1e9)
    assert account.available_units(1e9) == 50
    assert account.spent_units == 50
    assert account.wait_s(50, 0.0) == 0.0
    assert account.wait_s(51, 0.0) is None


def test_windows_are_aligned_to_the_origin() -> None:
    account = Account(Budget("b", "tokens", 100, window_s=60.0, origin_s=10.0))
    assert account.reserve(100, 69.0)
    account.settle(100, 100, 69.5)
    assert account.wait_s(1, 69.5) == pytest.approx(0.5)
    assert account.available_units(69.999) == 0
    assert account.available_units(70.0) == 100
    assert Budget("b", "usd", 1, window_s=86400.0).window(1e5) == (86400.0, 172800.0)
    assert TOKENS.window(5.0) == (-math.inf, math.inf)


def test_a_reservation_keeps_its_room_when_the_window_turns() -> None:
    account = Account(WINDOW)
    assert account.reserve(70, 59.0)
    assert account.available_units(61.0) == 30
    assert account.balance_units(61.0) == 100
    assert account.wait_s(31, 61.0) is None
    account.settle(70, 20, 62.0)
    assert account.available_units(62.0) == 80


def test_an_overrun_is_paid_from_what_comes_next() -> None:
    account = Account(WINDOW)
    assert account.reserve(10, 0.0)
    account.settle(10, 250, 1.0)
    assert account.available_units(1.0) == account.balance_units(1.0) == 0
    assert account.overrun_units(1.0) == 150
    assert account.reserve(0, 1.0)
    assert not account.reserve(1, 1.0)
    assert account.wait_s(0, 1.0) == 0.0
    assert account.wait_s(50, 1.0) == 119.0
    assert account.wait_s(51, 1.0) == 179.0
    assert account.wait_s(101, 1.0) is None
    assert account.available_units(60.0) == 0
    assert account.overrun_units(60.0) == 50
    assert account.available_units(120.0) == 50
    assert account.available_units(180.0) == 100


def test_a_bucket_refills_exactly() -> None:
    account = Account(BUCKET)
    assert account.reserve(100, 0.0)
    account.settle(100, 100, 0.0)
    assert account.wait_s(1, 0.0) == 2.0
    assert account.available_units(1.999) == 0
    assert account.available_units(2.0) == 1
    assert account.available_units(1e6) == 100
    assert account.wait_s(101, 0.0) is None


def test_a_thousand_small_refills_lose_nothing() -> None:
    account = Account(Budget("b", "tokens", 1000, refill_per_s=Decimal("0.1")))
    assert account.reserve(1000, 0.0)
    for step in range(1, 1001):
        account.available_units(step / 8)
    assert account.available_units(125.0) == 12
    assert account.available_units(130.0) == 13


@pytest.mark.parametrize("window_s", [0.1, 0.3, 1 / 3, 7.7, 60.0])
@pytest.mark.parametrize("origin_s", [0.0, 0.1, -1.7])
def test_rounding_never_gives_a_window_out_twice(window_s: float, origin_s: float) -> None:
    account = Account(Budget("b", "tokens", 1, window_s=window_s, origin_s=origin_s))
    windows = 2000
    granted = 0
    for third in range(3 * windows):
        if account.reserve(1, 1.7e9 + third * window_s / 3):
            account.settle(1, 1, 1.7e9 + third * window_s / 3)
            granted += 1
    assert windows <= granted <= windows + 1


def test_a_soft_budget_admits_and_shows_the_excess() -> None:
    account = Account(Budget("b", "tokens", 100, window_s=60.0, hard=False))
    assert account.reserve(150, 0.0)
    assert account.available_units(0.0) == -50
    account.settle(150, 150, 0.0)
    assert account.balance_units(0.0) == -50
    assert account.overrun_units(0.0) == 50
    assert account.wait_s(1000, 0.0) == 0.0
    assert account.available_units(60.0) == 100


def test_time_that_runs_backwards_stands_still() -> None:
    for budget in (WINDOW, BUCKET):
        account = Account(budget)
        assert account.reserve(100, 70.0)
        account.settle(100, 100, 70.0)
        assert account.available_units(10.0) == 0
        assert account.available_units(70.0) == 0


def test_settling_twice_is_an_error_that_names_the_account() -> None:
    account = Account(TOKENS)
    assert account.reserve(5, 0.0)
    account.release(5, 0.0)
    with pytest.raises(AmountError, match="'b' holds 0 units, not 5"):
        account.release(5, 0.0)
    with pytest.raises(AmountError, match="zero or more"):
        account.reserve(-1, 0.0)
    with pytest.raises(AmountError, match="zero or more"):
        account.settle(0, -1, 0.0)


def test_a_spending_that_is_taken_back() -> None:
    for budget in (TOKENS, WINDOW, BUCKET):
        account = Account(budget)
        assert account.spend(60, 1.0)
        assert account.reserve(30, 1.0)
        account.refund(60, 1.0)
        assert (account.available_units(1.0), account.spent_units, account.reserved_units) == (70, 0, 30)
        with pytest.raises(AmountError, match="has spent 0 units, not 1"):
            account.refund(1, 1.0)
    account = Account(WINDOW)
    assert account.spend(60, 1.0)
    account.refund(60, 61.0)
    assert account.available_units(61.0) == 100, "a window gets nothing back from the one before"


def test_what_is_spent_stays_spent_when_the_budget_changes() -> None:
    for budget in (TOKENS, WINDOW):
        account = Account(budget)
        assert account.spend(30, 1.0)
        assert account.reserve(20, 1.0)
        account.change(replace(budget, amount=200), 2.0)
        assert account.available_units(2.0) == 150
        account.settle(20, 10, 3.0)
        assert account.available_units(3.0) == 160
        account.change(replace(budget, amount=15), 4.0)
        assert account.available_units(4.0) == 0
        assert not account.reserve(1, 4.0)
        account.change(budget, 5.0)
        assert account.available_units(5.0) == 60, "a change that is taken back changes nothing"
    with pytest.raises(BudgetError, match="in tokens"):
        account.change(Budget("b", "usd", 1), 5.0)


def test_a_smaller_budget_is_no_debt() -> None:
    """Neither in its next window, nor does it forgive what was overrun before."""
    account = Account(WINDOW)
    assert account.spend(90, 1.0)
    account.change(replace(WINDOW, amount=10), 2.0)
    restored = Account.load(account.budget, json.loads(json.dumps(account.save())))
    for found in (account, restored):
        assert found.wait_s(10, 2.0) == 58.0
        assert found.available_units(59.0) == 0
        assert found.available_units(60.0) == 10
    account = Account(WINDOW)
    account.settle(0, 130, 1.0)
    account.change(replace(WINDOW, amount=50), 2.0)
    assert account.available_units(60.0) == 20


def test_a_budget_with_another_window() -> None:
    account = Account(TOKENS)
    assert account.spend(70, 1.0)
    account.change(replace(TOKENS, window_s=60.0), 70.0)
    assert account.available_units(70.0) == 30
    assert account.available_units(120.0) == 100
    assert account.spend(40, 121.0)
    account.change(TOKENS, 122.0)
    assert account.available_units(1e6) == 60


def test_a_bucket_stays_as_full_as_it_was() -> None:
    account = Account(BUCKET)
    assert account.spend(60, 10.0)
    account.change(replace(BUCKET, amount=1000, refill_per_s=5), 10.0)
    assert account.available_units(10.0) == 400
    assert account.available_units(11.0) == 405
    account.change(BUCKET, 5.0)
    assert account.available_units(11.0) == 40, "time does not run twice"
    assert account.reserve(30, 11.0)
    account.change(WINDOW, 11.0)
    assert account.available_units(11.0) == 10
    account.release(30, 12.0)
    assert account.available_units(12.0) == 40
    assert account.available_units(60.0) == 100
    account.change(BUCKET, 60.0)
    assert account.available_units(61.0) == 100
    assert account.spend(100, 61.0)
    assert account.available_units(63.0) == 1


courses = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "release"]),
        st.integers(0, 150),
        st.integers(0, 150),
        st.floats(0.0, 50.0),
    ),
    max_size=60,
)


@settings(max_examples=600, deadline=None)
@given(budget=st.sampled_from([TOKENS, WINDOW, BUCKET]), course=courses, overrun=st.booleans())
def test_a_hard_budget_is_never_negative_and_never_overspent(
    budget: Budget, course: list[tuple[str, int, int, float]], overrun: bool
) -> None:
    account = Account(budget)
    held: list[int] = []
    now = 0.0
    spent: list[tuple[float, int]] = []
    for act, amount, actual, wait in course:
        now += wait
        waited = account.wait_s(amount, now)
        if act == "reserve":
            fits = account.available_units(now) >= amount
            assert account.reserve(amount, now) is fits
            assert (waited == 0.0) is fits
            if fits:
                held.append(amount)
        elif held:
            reserved = held.pop(0)
            if act == "release":
                account.release(reserved, now)
            else:
                used = actual if overrun else min(actual, reserved)
                account.settle(reserved, used, now)
                spent.append((now, used))
        assert account.available_units(now) >= 0
        assert account.balance_units(now) >= 0
        assert account.reserved_units == sum(held)
        assert account.spent_units == sum(used for _, used in spent)
        restored = Account.load(budget, json.loads(json.dumps(account.save())))
        assert restored.available_units(now + 7.0) == Account.load(budget, account.save()).available_units(
            now + 7.0
        )
    if not overrun:
        assert account.overrun_units(now) == 0
        if budget is BUCKET:
            assert account.spent_units <= 100 + 0.5 * now
        windows: dict[float, int] = {}
        for when, used in spent:
            start = budget.window(when)[0]
            windows[start] = windows.get(start, 0) + used
        assert all(used <= 100 for used in windows.values()) or budget is BUCKET


@settings(max_examples=200, deadline=None)
@given(
    budget=st.sampled_from([WINDOW, BUCKET, Budget("b", "usd", 1, refill_per_s=Decimal("0.0003"))]),
    spent=st.integers(0, 400),
    wanted=st.integers(0, 120),
    now=st.floats(0.0, 1e6),
)
def test_wait_is_the_first_time_at_which_it_fits(budget: Budget, spent: int, wanted: int, now: float) -> None:
    account = Account(budget)
    account.reserve(0, now)
    account.settle(0, spent, now)
    wait = account.wait_s(wanted, now)
    if wait is None:
        assert wanted > account._amount
        return
    assert account.wait_s(wanted, now) == wait
    early = Account.load(budget, account.save())
    if wait > 1e-3:
        assert not early.reserve(wanted, now + wait - 1e-3)
    assert account.reserve(wanted, now + wait + 1e-6)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"amount": -1}, "amount"),
        ({"amount": math.nan}, "amount"),
        ({"amount": math.inf}, "amount"),
        ({"amount": True}, "amount"),
        ({"window_s": 0.0}, "window_s"),
        ({"window_s": math.inf}, "window_s"),
        ({"refill_per_s": -1.0}, "refill_per_s"),
        ({"window_s": 1.0, "refill_per_s": 1.0}, "refill_per_s"),
        ({"origin_s": math.nan}, "origin_s"),
    ],
)
def test_an_impossible_budget_is_refused_by_field(wrong: dict[str, float], field: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget(**{"name": "b", "resource": "usd", "amount": 1, **wrong})  # type: ignore[arg-type]
    assert caught.value.field == field


def test_unknown_resource_and_foreign_saved_state() -> None:
    with pytest.raises(UnknownResourceError, match="Did you mean 'tokens'"):
        Budget("b", "token", 1)
    with pytest.raises(SavedStateError):
        Account.load(TOKENS, {"level": 3})
    assert repr(Account(TOKENS)) == "Account('b', level=100, reserved=0)"


def test_a_ledger_reserves_all_or_nothing() -> None:
    ledger = MemoryLedger([Budget("team", "usd", 1), Budget("key", "tokens", 10, window_s=60.0)])
    assert isinstance(ledger, Ledger)
    first = ledger.reserve({"team": 400, "key": 8}, 0.0)
    assert isinstance(first, str)
    refused = ledger.reserve({"team": 400, "key": 8}, 1.0)
    assert isinstance(refused, Refusal)
    assert (refused.account, refused.wanted_units, refused.available_units) == ("key", 8, 2)
    assert refused.budget.name == "key"
    assert ledger.available_units("team", 1.0) == 10**12 - 400
    ledger.settle(first, {"key": 3}, 2.0)
    assert ledger.available_units("key", 2.0) == 7
    assert ledger.available_units("team", 2.0) == 10**12 - 400
    with pytest.raises(AmountError, match="settled or released before"):
        ledger.release(first, 3.0)
    second = ledger.reserve({"key": 7}, 3.0)
    assert isinstance(second, str)
    ledger.release(second, 3.0)
    assert ledger.available_units("key", 3.0) == 7
    with pytest.raises(BudgetError, match="no account 'other'"):
        ledger.reserve({"other": 1}, 0.0)
    with pytest.raises(BudgetError, match="already an account"):
        ledger.open("key", TOKENS)
