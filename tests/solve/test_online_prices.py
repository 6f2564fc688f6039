"""Prices and weights learned online, against the guarantees they are used for."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.solve.online_prices import dual_step, hedge, mixed


@given(st.floats(0.0, 5.0), st.floats(-2.0, 2.0), st.floats(0.0, 1.0), st.floats(0.001, 1.0))
def test_a_price_moves_with_the_excess_and_stays_in_its_range(
    price: float, spent: float, allowed: float, rate: float
) -> None:
    moved = dual_step(price, spent, allowed, rate, 5.0)
    assert 0.0 <= moved <= 5.0
    assert (moved - price) * (spent - allowed) >= 0.0


@given(st.lists(st.floats(-100.0, 100.0), min_size=1, max_size=8), st.floats(0.0, 1.0))
def test_weights_are_probabilities_in_the_order_of_gains(gains: list[float], share: float) -> None:
    chances = mixed(hedge(gains, 0.5), share)
    assert sum(chances) == pytest.approx(1.0)
    assert min(chances) >= share / len(gains) - 1e-12
    best = max(range(len(gains)), key=gains.__getitem__)
    assert chances[best] == max(chances)


def test_hedge_loses_no_more_than_its_bound_against_any_fixed_action() -> None:
    generator = random.Random(1)
    n, rounds = 5, 4000
    rate = math.sqrt(8.0 * math.log(n) / rounds)
    gains, expected = [0.0] * n, 0.0
    for k in range(rounds):
        chances = hedge(gains, rate)
        # an adversary: what is most likely now pays nothing
        paid = [0.0 if p == max(chances) else generator.random() for p in chances]
        expected += sum(p * g for p, g in zip(chances, paid, strict=True))
        gains = [g + p for g, p in zip(gains, paid, strict=True)]
        assert max(gains) - expected <= math.log(n) / rate + rate * (k + 1) / 8.0 + 1e-9
