"""Accounts that are lent from, overdrawn and kept for others: bounds, and agreement with doing it all oneself."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import Account, AmountError, Budget, BudgetError, MemoryLedger, Refusal, SavedStateError

EVER = Budget("b", "tokens", 100)
WINDOW = Budget("b", "tokens", 100, window_s=60.0)
SLIDING = Budget("b", "tokens", 100, window_s=60.0, sliding=True)
MONTH = Budget("b", "tokens", 100, calendar="month", time_zone="Europe/Berlin")
BUCKET = Budget("b", "tokens", 100, refill_per_s=0.5)
KINDS = [EVER, WINDOW, SLIDING, MONTH, BUCKET]
kinds = st.sampled_from(KINDS)
pauses = st.one_of(st.sampled_from([0.0, 1.0, 30.0, 60.0]), st.floats(0.0, 90.0), st.floats(0.0, 5e6))


def restored(account: Account) -> Account:
    return Account.load(account.budget, json.loads(json.dumps(account.save(), allow_nan=False)))


@pytest.mark.parametrize("budget", KINDS)
def test_what_is_lent_is_not_available_until_it_is_moved_back(budget: Budget) -> None:
    account = Account(budget)
    assert account.lend(60, 0.0)
    assert not account.lend(41, 0.0)
    assert account.available_units(0.0) == 40
    assert account.balance_units(0.0) == 100
    account.move(lent=-50, reserved=30, spent=5, now=0.0)
    assert (account.lent_units, account.reserved_units, account.spent_units) == (10, 30, 5)
    assert account.available_units(0.0) == 55
    account.move(reserved=-30, spent=20, now=0.0)
    assert account.available_units(0.0) == 65
    account.move(lent=-10, spent=-5, now=0.0)
    assert account.available_units(0.0) == 80
    assert account.window_spent_units(0.0) == account.spent_units == 20


def test_what_is_lent_keeps_its_room_when_a_window_turns() -> None:
    for budget in (WINDOW, MONTH):
        account = Account(budget)
        assert account.lend(70, 0.0)
        assert account.available_units(4e6) == 30
        assert account.wait_s(31, 4e6) is None
        account.move(lent=-70, spent=250, now=4e6)
        assert account.overrun_units(4e6) == 150
        assert not account.reserve(1, 4e6)


def test_a_bucket_is_no_larger_for_being_lent() -> None:
    account = Account(BUCKET)
    assert account.lend(100, 0.0)
    assert account.available_units(1000.0) == 0
    account.move(lent=-100, spent=100, now=1000.0)
    assert account.available_units(1000.0) == 0, "the borrower may have spent all of it just now"
    assert account.available_units(1010.0) == 5
    assert account.wait_s(6, 1010.0) == 2.0
    assert account.lend(5, 1010.0)
    assert account.wait_s(96, 1010.0) is None


@pytest.mark.parametrize(
    ("moved", "message"),
    [
        ({"lent": -11}, "'b' has lent 10 units, not 11"),
        ({"reserved": -21}, "'b' holds 20 units, not 21"),
        ({"lent": 5, "spent": -31}, "'b' has spent 30 units, not 31"),
    ],
)
def test_a_move_of_more_than_there_is_changes_nothing(moved: dict[str, int], message: str) -> None:
    account = Account(SLIDING)
    assert account.lend(10, 0.0)
    assert account.reserve(20, 0.0)
    assert account.spend(30, 0.0)
    before = account.save()
    with pytest.raises(AmountError, match=message) as caught:
        account.move(now=1.0, **moved)
    assert caught.value.field in moved
    assert account.save() == before


acts = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "release", "spend", "refund", "lend", "back", "take"]),
        st.integers(0, 150),
        st.integers(0, 150),
        pauses,
    ),
    max_size=40,
)


@settings(max_examples=400, deadline=None)
@given(budget=kinds, overdraft=st.sampled_from([0, 25]), hard=st.booleans(), course=acts)
def test_moving_is_doing_it_oneself(
    budget: Budget, overdraft: int, hard: bool, course: list[tuple[str, int, int, float]]
) -> None:
    """Reservations that fit, settlements, releases, refunds and loans give the same book either way."""
    own = Account(replace(budget, overdraft=overdraft, hard=hard))
    moved = restored(own)
    now = 1.7e9
    for act, units, actual, pause in course:
        now += pause
        own.available_units(now)
        if act in ("reserve", "lend", "spend"):
            if getattr(own, act)(units, now):
                name = {"reserve": "reserved", "lend": "lent", "spend": "spent"}[act]
                moved.move(now=now, **{name: units})
        elif act in ("settle", "release"):
            held = min(units, own.reserved_units)
            if act == "settle":
                own.settle(held, actual, now)
            else:
                own.release(held, now)
            moved.move(reserved=-held, spent=actual if act == "settle" else 0, now=now)
        elif act == "refund":
            spent = min(units, own.spent_units)
            own.refund(spent, now)
            moved.move(spent=-spent, now=now)
        else:
            lent = min(units, own.lent_units)
            for account in (own, moved):
                account.move(lent=-lent, reserved=lent if act == "take" else 0, now=now)
        moved.available_units(now)
        assert moved.save() == own.save()
        own, moved = restored(own), restored(moved)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["lend", "take", "settle", "back", "reserve"]),
            st.integers(0, 120),
            st.floats(0.0, 1.0),
            st.floats(0.0, 80.0),
        ),
        max_size=50,
    )
)
def test_in_no_interval_is_more_taken_from_a_bucket_than_it_holds_and_gains(
    course: list[tuple[str, int, float, float]],
) -> None:
    """Taken: reserved, here or from what was lent, less what of a reservation was given back."""
    account = Account(BUCKET)
    taken: list[tuple[float, int]] = []
    held: list[int] = []
    now = 0.0
    for act, units, part, pause in course:
        now += pause
        if act == "lend":
            account.lend(units, now)
        elif act == "take":
            units = min(units, account.lent_units)
            account.move(lent=-units, reserved=units, now=now)
            held.append(units)
            taken.append((now, units))
        elif act == "back":
            account.move(lent=-min(units, account.lent_units), now=now)
        elif act == "reserve" and account.reserve(units, now):
            held.append(units)
            taken.append((now, units))
        elif act == "settle" and held:
            units = held.pop(0)
            actual = int(units * part)
            account.move(reserved=-units, spent=actual, now=now)
            taken.append((now, actual - units))
        assert account.level_units + account.lent_units <= 100
        net = 0
        for since, more in reversed(taken):
            net += more
            assert net <= 100 + 0.5 * (now - since) + 1


@settings(max_examples=400, deadline=None)
@given(budget=kinds, overdraft=st.integers(0, 250), course=acts)
def test_an_overdraft_is_the_most_that_is_overspent(
    budget: Budget, overdraft: int, course: list[tuple[str, int, int, float]]
) -> None:
    """By the end of any window: what all windows give together, and the overdraft once."""
    account = Account(replace(budget, overdraft=overdraft))
    now = start = 1.7e9
    windows = 1
    for act, units, actual, pause in course:
        end = account.budget.window(now)[1]
        now += pause
        if budget in (WINDOW, MONTH):
            windows += now >= end
        available = account.available_units(now)
        if act in ("reserve", "lend", "spend"):
            assert getattr(account, act)(units, now) is (units <= available or not units)
        elif act in ("settle", "release"):
            held = min(units, account.reserved_units)
            account.settle(held, min(actual, held), now)
        elif act in ("back", "take"):
            lent = min(units, account.lent_units)
            account.move(lent=-lent, spent=lent if act == "take" else 0, now=now)
        assert account.overrun_units(now) <= overdraft
        assert account.balance_units(now) >= 0
        assert account.window_spent_units(now) <= 100 + overdraft or budget is BUCKET
        if budget in (EVER, WINDOW, MONTH):
            most = windows * 100
            assert account.spent_units + account.reserved_units + account.lent_units <= most + overdraft or (
                windows > 1
            )
            assert account.spent_units <= most + overdraft
        elif budget is BUCKET:
            assert account.spent_units + account.reserved_units <= 100 + overdraft + 0.5 * (now - start) + 1


def test_what_is_overdrawn_is_paid_by_the_next_window() -> None:
    for budget in (WINDOW, SLIDING):
        account = Account(replace(budget, overdraft=50))
        assert account.spend(99, 0.0)
        assert account.available_units(0.0) == 51
        assert account.reserve(51, 0.0)
        assert account.available_units(0.0) == 0
        assert not account.reserve(1, 0.0)
        account.settle(51, 51, 0.0)
        assert account.wait_s(100, 0.0) == (60.0 if budget is WINDOW else 61.0), "with the overdraft of then"
        assert account.available_units(61.0) == 100, "50 are left of it, and the overdraft"
    account = Account(replace(BUCKET, overdraft=50))
    assert account.spend(150, 0.0)
    assert account.available_units(100.0) == 0
    assert account.wait_s(1, 100.0) == 2.0
    assert account.available_units(102.0) == 51
    assert account.wait_s(151, 102.0) is None
    account = Account(replace(EVER, overdraft=50))
    assert account.spend(150, 0.0)
    assert account.wait_s(1, 0.0) is None


@settings(max_examples=500, deadline=None)
@given(
    budget=kinds,
    overdraft=st.sampled_from([0, 1, 30, 300]),
    lent=st.integers(0, 60),
    reserved=st.integers(0, 40),
    spent=st.integers(0, 400),
    later=pauses,
    wanted=st.integers(0, 450),
)
def test_after_the_wait_it_fits_and_just_before_it_does_not(
    budget: Budget, overdraft: int, lent: int, reserved: int, spent: int, later: float, wanted: int
) -> None:
    account = Account(replace(budget, overdraft=overdraft))
    assert account.lend(lent, 1.7e9)
    assert account.reserve(reserved, 1.7e9)
    account.move(spent=spent, now=1.7e9)
    now = 1.7e9 + later
    wait = account.wait_s(wanted, now)
    if wait is None:
        for at in (now, now + 1e3, now + 1e9):
            assert not account.reserve(wanted, at)
        return
    if wait > 1e-3:
        assert not restored(account).reserve(wanted, now + wait - 1e-3)
    else:
        assert wait == 0.0 or not restored(account).reserve(wanted, now)
    assert account.reserve(wanted, now + wait + 1e-6)


@settings(max_examples=200, deadline=None)
@given(
    budget=st.sampled_from([WINDOW, MONTH]),
    course=st.lists(st.tuples(st.integers(-80, 80), pauses), max_size=40),
)
def test_what_a_window_has_spent(budget: Budget, course: list[tuple[int, float]]) -> None:
    """A refund takes from this window at most what it has spent."""
    account = Account(budget)
    now = 1.7e9
    expected, window = 0, budget.window(now)
    for units, pause in course:
        now += pause
        if now >= window[1]:
            expected, window = 0, budget.window(now)
        assert account.window_spent_units(now) == expected
        if account.spent_units + units >= 0:
            account.move(spent=units, now=now)
            expected = max(0, expected + units)
        account = restored(account)
        assert account.window_spent_units(now) == expected


@pytest.mark.parametrize(
    ("budget", "saved", "spent"),
    [
        (
            EVER,
            {
                "_at": None,
                "_end": math.inf,
                "_forgiven": 0,
                "_level": 50,
                "_part": 0,
                "_windows": None,
                "reserved_units": 10,
                "spent_units": 40,
            },
            40,
        ),
        (
            WINDOW,
            {
                "_at": None,
                "_end": 180.0,
                "_forgiven": 0,
                "_level": 50,
                "_part": 0,
                "_windows": 2,
                "reserved_units": 30,
                "spent_units": 1040,
            },
            20,
        ),
        (
            BUCKET,
            {
                "_at": 130 * 10**9,
                "_end": math.inf,
                "_forgiven": 0,
                "_level": 50,
                "_part": 0,
                "_windows": None,
                "reserved_units": 0,
                "spent_units": 1040,
            },
            1040,
        ),
    ],
)
def test_what_older_releases_saved_is_understood(budget: Budget, saved: dict[str, float], spent: int) -> None:
    """The words of release 0.2, whose accounts could not be lent from."""
    account = Account.load(budget, dict(saved))
    assert account.available_units(130.0) == 50
    assert account.lent_units == 0
    assert account.window_spent_units(130.0) == spent
    assert account.available_units(180.0) == {EVER: 50, WINDOW: 70, BUCKET: 75}[budget]
    assert restored(account).save() == account.save()


def test_what_was_saved_by_another_kind_of_account_is_refused() -> None:
    good = Account(SLIDING).save()
    for budget, saved in ((WINDOW, good), (SLIDING, Account(WINDOW).save()), (SLIDING, {**good, "more": 1})):
        with pytest.raises(SavedStateError, match="'b' has the wrong fields"):
            Account.load(budget, saved)
    del good["lent_units"]
    with pytest.raises(SavedStateError):
        Account.load(SLIDING, good)


@pytest.mark.parametrize(
    ("wrong", "field", "message"),
    [
        ({"calendar": "year"}, "calendar", "'day', 'week', 'month' or None"),
        ({"calendar": "day", "window_s": 60.0}, "window_s", "both calendar and window_s"),
        ({"calendar": "day", "refill_per_s": 1.0}, "refill_per_s", "both calendar and refill_per_s"),
        ({"sliding": True}, "sliding", "has no length"),
        ({"calendar": "day", "sliding": True}, "sliding", "has no length"),
        ({"overdraft": -1}, "overdraft", "zero or more"),
        ({"overdraft": math.nan}, "overdraft", "zero or more"),
    ],
)
def test_an_impossible_window_or_overdraft_is_refused_by_field(
    wrong: dict[str, object], field: str, message: str
) -> None:
    with pytest.raises(BudgetError, match=message) as caught:
        Budget("b", "tokens", 1, **wrong)  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize("pair", [*pairwise(KINDS), (BUCKET, MONTH), (MONTH, EVER), (SLIDING, BUCKET)])
def test_a_budget_changes_while_it_is_lent(pair: tuple[Budget, Budget]) -> None:
    account = Account(pair[0])
    assert account.lend(40, 121.0)
    assert account.spend(20, 121.0)
    account.change(replace(pair[1], amount=200), 121.0)
    expected = 80 if BUCKET in pair else 140
    assert account.available_units(121.0) == expected
    account.move(lent=-40, spent=10, now=121.0)
    assert account.available_units(121.0) == expected + 30
    assert restored(account).save() == account.save()


def test_a_ledger_of_all_kinds() -> None:
    ledger = MemoryLedger([replace(budget, name=str(n)) for n, budget in enumerate(KINDS)])
    everything = {str(n): 60 for n in range(len(KINDS))}
    first = ledger.reserve(everything, 121.0)
    assert isinstance(first, str)
    refused = ledger.reserve(everything, 122.0)
    assert isinstance(refused, Refusal)
    assert (refused.account, refused.available_units) == ("0", 40)
    ledger.settle(first, dict.fromkeys(everything, 50), 123.0)
    assert [ledger.available_units(name, 123.0) for name in everything] == [50, 50, 50, 50, 51]
    assert [ledger.available_units(name, 184.0) for name in everything] == [50, 100, 100, 50, 81]
