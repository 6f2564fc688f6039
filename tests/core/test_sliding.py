"""A sliding window against brute force: never too much in any interval, and room comes back in time."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import Account, Budget
from apportion.core.sliding import Sliding

AMOUNT = 100
NS = 10**9
lengths = st.sampled_from([0.001, 0.7, 1.0, 60.0, 3600.0, 86400.0])
origins = st.sampled_from([0.0, 0.1, -3.7, 1e6])
starts = st.sampled_from([0.0, 12.34, 1.7e9])
steps = st.one_of(
    st.sampled_from([0.0, 1 / 120, 1 / 60, 0.5, 59 / 60, 1.0, 61 / 60]),
    st.floats(0.0, 0.2),
    st.floats(0.0, 2.5),
)
"""In windows."""
courses = st.lists(
    st.tuples(st.sampled_from(["reserve", "settle", "release", "spend"]), st.integers(0, 120), steps),
    max_size=60,
)


@settings(max_examples=500, deadline=None)
@given(
    length=lengths, origin=origins, start=starts, overdraft=st.sampled_from([0, 0, 7, 300]), course=courses
)
def test_in_no_interval_is_more_spent_than_the_amount(
    length: float, origin: float, start: float, overdraft: int, course: list[tuple[str, int, float]]
) -> None:
    budget = Budget(
        "b", "tokens", AMOUNT, window_s=length, sliding=True, origin_s=origin, overdraft=overdraft
    )
    account = Account(budget)
    held: list[int] = []
    spent: list[tuple[int, int]] = []
    now = start
    for act, amount, step in course:
        now += step * length
        if act == "reserve" and account.reserve(amount, now):
            held.append(amount)
        elif act == "spend" and account.spend(amount, now):
            spent.append((int(now * NS), amount))
        elif act == "settle" and held:
            reserved = held.pop(0)
            account.settle(reserved, min(amount, reserved), now)
            spent.append((int(now * NS), min(amount, reserved)))
        elif act == "release" and held:
            account.release(held.pop(), now)
        at, window_ns = int(now * NS), round(length * NS)
        within = sum(units for when, units in spent if when > at - window_ns)
        assert within <= AMOUNT + overdraft
        counted = sum(units for when, units in spent if when > at - window_ns * 61 // 60 - 60)
        assert within <= account.window_spent_units(now)
        if not overdraft:
            assert account.window_spent_units(now) <= counted
            assert account.available_units(now) >= AMOUNT - counted - sum(held)
        account = Account.load(budget, json.loads(json.dumps(account.save())))
        assert account._sliding is not None
        assert len(account._sliding.save()[2]) <= 64


@settings(max_examples=300, deadline=None)
@given(
    length=lengths,
    start=starts,
    spent=st.integers(0, 900),
    more=st.integers(0, 90),
    wanted=st.integers(0, 120),
)
def test_waiting_is_neither_too_short_nor_too_long(
    length: float, start: float, spent: int, more: int, wanted: int
) -> None:
    account = Account(Budget("b", "tokens", AMOUNT, window_s=length, sliding=True))
    account.settle(0, spent, start)
    now = start + 0.3 * length
    account.settle(0, more, now)
    wait = account.wait_s(wanted, now)
    if wanted > AMOUNT:
        assert wait is None
        return
    assert wait is not None
    saved = account.save()
    if wait:
        early = Account.load(account.budget, saved)
        assert not early.reserve(wanted, now + wait - 1e-6)
    assert account.reserve(wanted, now + wait + 1e-6)


class Plain:
    """The same by definition: part after part, every spending and every payment of what is owed on its own."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.parts: dict[int, int] = {}
        self.owed = 0
        self.at = 0

    def until(self, part: int) -> None:
        """With a window of 60 parts, what was spent in part k ceases to count when part k + 61 begins."""
        while self.at < part:
            self.at += 1
            self.parts.pop(self.at - 61, None)
            self._pay()

    def spend(self, units: int) -> None:
        over = max(0, min(units, sum(self.parts.values()) + units - self.limit))
        self.parts[self.at] = self.parts.get(self.at, 0) + units - over
        self.owed += over

    def refund(self, units: int) -> None:
        for part in sorted(self.parts):
            taken = min(units, self.parts[part])
            self.parts[part] -= taken
            units -= taken
        self.owed = max(0, self.owed - units)
        self._pay()

    def _pay(self) -> None:
        paid = max(0, min(self.owed, self.limit - sum(self.parts.values())))
        self.parts[self.at] = self.parts.get(self.at, 0) + paid
        self.owed -= paid


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["spend", "refund", "wait"]),
            st.one_of(st.integers(0, 30), st.integers(0, 500)),
            st.one_of(st.integers(0, 70), st.integers(0, 800)),
        ),
        max_size=25,
    )
)
def test_what_is_owed_takes_the_room_that_becomes_free(course: list[tuple[str, int, int]]) -> None:
    """Parts are seconds. Long pauses and large overruns included: whole rounds are skipped, not walked."""
    sliding, plain = Sliding(60.0, 0.0, 10), Plain(10)
    freed = taken = 0
    now = 0
    for act, units, pause in course:
        now += pause
        before = sum(plain.parts.values()) + plain.owed
        plain.until(now)
        assert sliding.slide(float(now)) == before - sum(plain.parts.values()) - plain.owed
        if act == "spend":
            sliding.spend(units, float(now))
            plain.spend(units)
        elif act == "refund":
            taken = sliding.refund(units, float(now))
            before = sum(plain.parts.values()) + plain.owed
            plain.refund(units)
            assert taken == before - sum(plain.parts.values()) - plain.owed
        elif units:
            total = sum(plain.parts.values()) + plain.owed
            wait = sliding.wait_s(units, float(now))
            assert (wait is None) is (units > total)
            if wait is not None:
                later = Sliding.load(json.loads(json.dumps(sliding.save())), sliding)
                freed = later.slide(now + wait - 1.0)
                assert freed < units
                assert freed + later.slide(now + wait) >= units
        assert sliding.owed_units == plain.owed
        assert sliding.total_units == sum(plain.parts.values())
        assert dict(sliding.save()[2]) == {part: u for part, u in plain.parts.items() if u}


def test_an_overrun_of_years_is_worked_off_at_once() -> None:
    """Nothing is walked through part by part: 10^15 windows would not end."""
    sliding = Sliding(0.006, 0.0, 10)
    sliding.spend(10**16, 1.0)
    wait = sliding.wait_s(10**16 - 5, 1.0)
    assert wait == pytest.approx(10**15 * 0.0061, rel=1e-3)
    assert sliding.slide(1e9) == pytest.approx(1e9 / 0.0061 * 10, rel=1e-3)


def test_a_soft_one_owes_nothing() -> None:
    account = Account(Budget("b", "tokens", 100, window_s=60.0, sliding=True, hard=False))
    assert account.spend(250, 0.0)
    assert account.available_units(30.0) == -150
    assert account.available_units(61.0) == 100


def test_time_that_runs_backwards_stands_still() -> None:
    account = Account(Budget("b", "tokens", 100, window_s=60.0, sliding=True))
    assert account.spend(40, 100.0)
    assert account.spend(60, 10.0)
    assert account.available_units(160.0) == 0
    assert account.available_units(161.0) == 100
    assert account.spend(100, 0.0)
    assert account.available_units(220.0) == 0


def test_a_hard_budget_that_changes_keeps_what_was_spent() -> None:
    minute = Budget("b", "tokens", 100, window_s=60.0, sliding=True)
    account = Account(minute)
    assert account.spend(30, 0.0)
    assert account.spend(60, 30.0)
    account.change(Budget("b", "tokens", 50, window_s=60.0, sliding=True), 31.0)
    assert account.overrun_units(31.0) == 40
    assert account.wait_s(20, 31.0) == 60.0, "when the second spending goes, and it was no debt"
    assert account.available_units(91.0) == 50
    account = Account(minute)
    account.settle(0, 250, 0.0)
    account.change(Budget("b", "tokens", 300, window_s=60.0, sliding=True), 1.0)
    assert (account.available_units(1.0), account.overrun_units(1.0)) == (50, 0)
    assert account.available_units(61.0) == 150, "of 250, the 150 that were owed were paid at 1 s"
    assert account.available_units(62.0) == 300


def test_from_and_to_other_windows() -> None:
    minute = Budget("b", "tokens", 100, window_s=60.0, sliding=True)
    hour = Budget("b", "tokens", 100, window_s=3600.0, sliding=True)
    ever = Budget("b", "tokens", 100)
    fixed = Budget("b", "tokens", 100, window_s=60.0)
    bucket = Budget("b", "tokens", 100, refill_per_s=1)
    for first in (minute, hour, ever, fixed, bucket):
        for second in (minute, hour, ever, fixed, bucket):
            account = Account(first)
            assert account.spend(30, 121.0)
            assert account.reserve(20, 121.0)
            assert account.lend(10, 121.0)
            account.change(second, 122.0)
            assert account.available_units(122.0) == (40 if first is not bucket else 41)
            account.move(lent=-10, now=122.0)
            account.release(20, 122.0)
            assert account.available_units(122.0) in (70, 71)
            assert account.available_units(183.0) in ((70, 71) if second in (ever, hour) else (100,))
            assert Account.load(second, account.save()).save() == account.save()
    account = Account(hour)
    assert account.spend(30, 0.0)
    account.change(minute, 3000.0)
    assert account.available_units(3000.0) == 100, "what was spent an hour ago is no part of the last minute"
    account = Account(minute)
    account.settle(0, 250, 0.0)
    account.change(fixed, 1.0)
    assert account.available_units(60.0) == 0
    assert account.available_units(120.0) == 50, "what is owed stays owed"
