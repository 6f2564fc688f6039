"""Where windows begin and when they are over: never later, never earlier than `core` counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from apportion.core.budget import Account, Budget
from apportion.serve.ledger.windows import US, begin_us, counts, over_us

NOW = 1_800_000_000
BUDGETS = [
    Budget("b", "tokens", 10, window_s=3600.0),
    Budget("b", "tokens", 10, window_s=0.7, origin_s=0.1),
    Budget("b", "tokens", 10, window_s=600.0, sliding=True),
    Budget("b", "tokens", 10, calendar="day", time_zone="Europe/Berlin"),
    Budget("b", "tokens", 10, calendar="week"),
    Budget("b", "tokens", 10, calendar="month", time_zone="America/New_York"),
]


@given(budget=st.sampled_from(BUDGETS), at_us=st.integers(NOW * US, (NOW + 40_000_000) * US))
def test_what_was_spent_before_the_begin_does_not_count(budget: Budget, at_us: int) -> None:
    account = Account(budget)
    account.move(spent=1, now=(begin_us(budget, at_us) - 2) / US)
    assert account.window_spent_units(at_us / US) == 0


@given(budget=st.sampled_from(BUDGETS), died_us=st.integers(NOW * US, (NOW + 40_000_000) * US))
def test_what_was_spent_at_death_counts_no_more_when_it_is_over(budget: Budget, died_us: int) -> None:
    account = Account(budget)
    account.move(spent=1, now=died_us / US)
    end_us = over_us(budget, died_us, 30.0)
    assert end_us is not None
    assert end_us > died_us
    assert account.window_spent_units((end_us + 1) / US) == 0


def test_for_ever_and_buckets() -> None:
    ever = Budget("b", "usd", 1)
    assert begin_us(ever, NOW * US) == 0
    assert over_us(ever, NOW * US, 30.0) is None
    assert over_us(Budget("b", "usd", 1, refill_per_s=1), NOW * US, 30.0) == (NOW + 60) * US
    assert counts(ever)
    assert not counts(Budget("b", "usd", 1, refill_per_s=1))
    assert not counts(Budget("b", "parallel", 1))
