"""Budgets survive being written down, to the last digit."""

from __future__ import annotations

import json
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from apportion.core.budget import Budget
from apportion.serve.ledger.definitions import decode, encode, shape

amounts = st.one_of(
    st.integers(0, 10**24),
    st.floats(0, 1e18),
    st.decimals(0, 10**12, places=9),
)
kinds = st.one_of(
    st.just({}),
    st.builds(dict, window_s=st.floats(1, 1e7), origin_s=st.floats(-1e9, 1e9), sliding=st.booleans()),
    st.builds(dict, calendar=st.sampled_from(["day", "week", "month"]), time_zone=st.just("Asia/Tokyo")),
    st.builds(dict, refill_per_s=amounts),
)


@given(name=st.text(), amount=amounts, overdraft=amounts, hard=st.booleans(), kind=kinds)
def test_there_and_back(
    name: str, amount: float, overdraft: float, hard: bool, kind: dict[str, float]
) -> None:
    budget = Budget(name, "usd", amount, scope="user:x", hard=hard, overdraft=overdraft, **kind)  # type: ignore[arg-type]
    assert decode(encode(budget)) == budget


def test_what_a_newer_version_adds_is_passed_over() -> None:
    said = json.loads(encode(Budget("b", "usd", Decimal("0.1"))))
    assert decode(json.dumps({**said, "colour": "red"})) == Budget("b", "usd", Decimal("0.1"))


def test_the_amount_is_no_part_of_the_shape() -> None:
    month = Budget("b", "usd", 1, calendar="month")
    assert shape(month) == shape(Budget("b", "usd", 2, calendar="month", hard=False, overdraft=1))
    assert shape(month) != shape(Budget("b", "usd", 1, calendar="week"))
    assert shape(month) != shape(Budget("b", "tokens", 1, calendar="month"))
    assert shape(month) != shape(Budget("b", "usd", 1, calendar="month", time_zone="Asia/Tokyo"))
    assert shape(Budget("b", "usd", 1, window_s=60.0)) != shape(
        Budget("b", "usd", 1, window_s=60.0, sliding=True)
    )
