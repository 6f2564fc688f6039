"""Thresholds of the online knapsack: their defining equations, and their proven ratios against the worst cases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.solve.online_knapsack import (
    ect,
    ect_slope,
    fractional_optimum,
    la_ect,
    la_ect_ratio,
    lambert_w,
    least_alpha,
    zcl,
    zcl_ratio,
)

spans = st.sampled_from([10.0, 100.0, 500.0])
shares = st.floats(0.0, 1.0)


@given(st.floats(0.0, 1e6))
def test_lambert_w_inverts(x: float) -> None:
    w = lambert_w(x)
    assert w * math.exp(w) == pytest.approx(x, rel=1e-9, abs=1e-12)


@given(spans, st.floats(0.05, 0.999))
def test_the_slope_of_ect_balances_the_end_of_its_constant_part(highest: float, alpha: float) -> None:
    beta = ect_slope(1.0, highest, alpha)
    assert highest * math.exp(beta * (alpha - 1.0)) == pytest.approx(beta * alpha, rel=1e-9)
    assert ect(1.0, 1.0, highest, alpha) == pytest.approx(highest)


@given(spans)
def test_ect_meets_zcl_at_the_least_alpha_and_the_static_price_at_one(highest: float) -> None:
    assert ect_slope(1.0, highest, least_alpha(1.0, highest)) == pytest.approx(zcl_ratio(1.0, highest))
    assert ect_slope(1.0, highest, 1.0) == highest
    assert ect_slope(1.0, highest, 1.0 - 1e-9) == pytest.approx(highest, rel=1e-3)


@given(spans, st.floats(0.05, 1.0), st.floats(0.0, 0.99), shares, shares)
def test_every_threshold_rises(highest: float, alpha: float, gamma: float, one: float, other: float) -> None:
    low, high = sorted((one, other))
    for rule in (
        lambda z: zcl(z, 1.0, highest),
        lambda z: ect(z, 1.0, highest, alpha),
        lambda z: la_ect(z, 1.0, highest, gamma, math.sqrt(highest)),
    ):
        assert rule(low) <= rule(high) * (1 + 1e-12)


@given(spans, shares, shares)
def test_ect_has_one_price_on_an_alpha_share(highest: float, place: float, z: float) -> None:
    least = least_alpha(1.0, highest)
    alpha = least + place * (1.0 - least)
    if z <= alpha:
        assert ect(z, 1.0, highest, alpha) == 1.0
    elif z > alpha + 1e-6:
        assert ect(z, 1.0, highest, alpha) > 1.0


def test_ect_with_less_than_the_least_alpha_asks_for_the_lowest_price_for_longer() -> None:
    assert least_alpha(1.0, 10.0) > 0.25
    assert ect(0.25, 1.0, 10.0, 0.125) == 1.0


@given(spans, st.floats(0.05, 0.95), st.floats(0.0, 1.0))
def test_la_ect_has_one_price_on_a_gamma_share(highest: float, gamma: float, place: float) -> None:
    predicted = highest**place
    start = (1.0 - gamma) * (math.log(predicted) + 1.0) / (math.log(highest) + 1.0)
    for z in (start + 1e-9, start + gamma / 2, start + gamma - 1e-9):
        assert la_ect(z, 1.0, highest, gamma, predicted) == pytest.approx(predicted)
    assert la_ect(start - 1e-6, 1.0, highest, gamma, predicted) < predicted * (1 + 1e-9)


def gained(densities: list[float], weight: float, rule: Callable[[float], float]) -> float:
    used, value = 0, 0.0
    for density in densities:
        if (used + 1) * weight <= 1.0 + 1e-9 and density >= rule(used * weight):
            used += 1
            value += density * weight
    return value


@pytest.mark.parametrize("highest", [10.0, 100.0, 500.0])
def test_no_rule_is_worse_than_proven_on_rising_prices(highest: float) -> None:
    weight = 0.004
    alpha, gamma = 0.6, 0.5
    rules = {
        "zcl": (lambda z: zcl(z, 1.0, highest), zcl_ratio(1.0, highest)),
        "ect": (lambda z: ect(z, 1.0, highest, alpha), ect_slope(1.0, highest, alpha)),
        "la_ect": (
            lambda z: la_ect(z, 1.0, highest, gamma, 0.5 * highest),
            la_ect_ratio(1.0, highest, gamma),
        ),
    }
    steps = [highest ** (k / 30) for k in range(31)]
    worst = dict.fromkeys(rules, 0.0)
    for stop in range(1, 32):
        densities = list(itertools.chain.from_iterable([step] * 260 for step in steps[:stop]))
        best = steps[stop - 1]
        for name, (rule, proven) in rules.items():
            ratio = best / gained(densities, weight, rule)
            assert ratio <= proven * math.exp(2.0 * weight * proven)
            worst[name] = max(worst[name], ratio)
    assert worst["zcl"] > 0.85 * rules["zcl"][1], "the bound is tight, so the test can fail"
    assert worst["ect"] > 0.85 * rules["ect"][1]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(1.0, 10.0), st.floats(0.01, 0.6)), min_size=1, max_size=7))
def test_the_fractional_optimum_is_above_every_packing(items: list[tuple[float, float]]) -> None:
    densities, weights = zip(*items, strict=True)
    value, critical = fractional_optimum(densities, weights)
    for chosen in itertools.product((0, 1), repeat=len(items)):
        if sum(c * w for c, w in zip(chosen, weights, strict=True)) <= 1.0:
            packed = sum(c * d * w for c, d, w in zip(chosen, densities, weights, strict=True))
            assert packed <= value + 1e-9
    assert critical in densities
