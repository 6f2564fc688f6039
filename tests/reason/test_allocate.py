"""Greedy allocation against every other allocation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from apportion.reason._allocate import at_price, greedy


def concave(steps: list[int]) -> list[int]:
    values = [0]
    for step in sorted(steps, reverse=True):
        values.append(values[-1] + step)
    return values


curves = st.lists(st.lists(st.integers(0, 20), min_size=0, max_size=6).map(concave), min_size=1, max_size=5)


def best(values: list[list[int]], budget: int) -> int:
    """The exact optimum, by dynamic programming over every allocation; right for any curves."""
    table = [0] * (budget + 1)
    for curve in values:
        table = [
            max(table[spent - k] + curve[k] for k in range(min(spent, len(curve) - 1) + 1))
            for spent in range(budget + 1)
        ]
    return table[budget]


@given(curves, st.integers(0, 30))
def test_greedy_is_the_optimum_on_concave_curves(values: list[list[int]], budget: int) -> None:
    taken = greedy(values, budget)
    assert sum(taken) <= budget
    assert sum(curve[k] for curve, k in zip(values, taken, strict=True)) == best(values, budget)


def test_greedy_need_not_be_the_optimum_on_other_curves() -> None:
    """What the claim rests on: with a gain that comes late, the greedy choice misses it."""
    values = [[0, 0, 9], [0, 1, 2]]
    assert sum(curve[k] for curve, k in zip(values, greedy(values, 2), strict=True)) < best(values, 2)


@given(curves, st.integers(0, 30))
def test_a_price_buys_what_a_budget_buys(values: list[list[int]], budget: int) -> None:
    """At the gain of the last unit bought, every curve alone buys its share, up to units that tie at that gain."""
    taken = greedy(values, budget)
    bought = [curve[k] - curve[k - 1] for curve, k in zip(values, taken, strict=True) if k]
    if not bought or sum(taken) < budget:
        return
    price = min(bought)
    for curve, k in zip(values, taken, strict=True):
        assert at_price(curve, price) <= k
        assert k <= at_price(curve, price - 0.5)


@given(curves, st.integers(0, 30), st.integers(0, 3))
def test_everyone_gets_the_least(values: list[list[int]], budget: int, least: int) -> None:
    for curve, k in zip(values, greedy(values, budget, least), strict=True):
        assert k >= min(least, len(curve) - 1)


@given(st.lists(st.integers(0, 20), max_size=8).map(concave), st.floats(0.0, 25.0))
def test_the_units_at_a_price_leave_the_most(curve: list[int], price: float) -> None:
    k = at_price(curve, price)
    assert curve[k] - price * k >= max(value - price * i for i, value in enumerate(curve)) - 1e-9
