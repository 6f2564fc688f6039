"""Indices against brute force and closed forms."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.solve.bandit import (
    above_moments,
    chance_of_greatest,
    confidence_width,
    expected_par,
    normal_cdf,
)


def test_normal_cdf_is_that_of_the_standard_library() -> None:
    points = np.linspace(-8.0, 8.0, 401)
    exact = [statistics.NormalDist().cdf(x) for x in points]
    assert np.abs(normal_cdf(points) - exact).max() < 2e-7


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-2.0, 2.0), st.floats(0.01, 3.0)), min_size=1, max_size=7))
def test_chances_of_being_greatest_sum_to_one(arms: list[tuple[float, float]]) -> None:
    means, sds = (np.array(column) for column in zip(*arms, strict=True))
    total = sum(chance_of_greatest(means, sds, k) for k in range(len(arms)))
    assert total == pytest.approx(1.0, abs=0.01)


def test_the_chance_of_two_is_the_closed_form() -> None:
    generator = random.Random(1)
    for _ in range(50):
        a, b = generator.gauss(0, 1), generator.gauss(0, 1)
        s, t = math.exp(generator.gauss(-1, 1.5)), math.exp(generator.gauss(-1, 1.5))
        exact = statistics.NormalDist().cdf((a - b) / math.hypot(s, t))
        assert chance_of_greatest(np.array([a, b]), np.array([s, t]), 0) == pytest.approx(exact, abs=0.005)


def test_the_chance_of_many_is_the_frequency() -> None:
    generator = np.random.default_rng(2)
    for _ in range(10):
        n = int(generator.integers(3, 8))
        means, sds = generator.normal(size=n), np.exp(generator.normal(-1.0, 1.5, size=n))
        won = generator.normal(means, sds, size=(100_000, n)).argmax(axis=1)
        for k in range(n):
            assert chance_of_greatest(means, sds, k) == pytest.approx(float((won == k).mean()), abs=0.01)


@given(st.floats(-3.0, 3.0), st.floats(0.1, 3.0), st.floats(-4.0, 4.0))
def test_moments_above_a_bound_are_those_of_the_truncated_law(mean: float, sd: float, z: float) -> None:
    bound = mean + z * sd
    grid = np.linspace(bound, mean + max(z, 0.0) * sd + 9.0 * sd, 40_001)
    weight = np.exp(-0.5 * ((grid - mean) / sd) ** 2)
    weight /= weight.sum()
    centre = float(weight @ grid)
    found, variance = above_moments(mean, sd, bound)
    assert found == pytest.approx(centre, abs=2e-3 * sd)
    assert variance == pytest.approx(float(weight @ (grid - centre) ** 2), abs=5e-3 * sd * sd)


def test_the_mean_far_above_stays_above_and_finite() -> None:
    for z in (4.9, 5.1, 20.0, 1e3):
        found, variance = above_moments(0.0, 1.0, z)
        assert z < found < z + 1.0 / z
        assert 0.0 <= variance <= 1.0 / (z * z)


def test_expected_par_is_the_mean_of_draws() -> None:
    generator = np.random.default_rng(3)
    for mean, sd in ((1.0, 0.5), (4.0, 1.5), (6.0, 1.0), (-1.0, 2.0)):
        times = np.exp(generator.normal(mean, sd, 400_000))
        drawn = np.where(times <= 100.0, times, 1000.0).mean()
        found = expected_par(np.array([mean]), np.array([sd]), np.array([100.0]), 10.0)
        assert float(found[0]) == pytest.approx(drawn, rel=0.02)


@given(st.floats(-5.0, 15.0), st.floats(0.05, 4.0), st.floats(0.01, 3.0))
def test_expected_par_grows_with_the_mean(mean: float, sd: float, more: float) -> None:
    par = expected_par(np.array([mean, mean + more]), np.array([sd, sd]), np.array([50.0, 50.0]), 10.0)
    assert -1e-4 <= par[0] <= par[1] + 1e-4 <= 500.01


def test_the_width_is_infinite_before_the_first_pull_and_falls() -> None:
    assert confidence_width(0, 10, 2.0) == math.inf
    assert confidence_width(4, 100, 2.0) == pytest.approx(math.sqrt(2.0 * math.log(100) / 4))
    assert confidence_width(5, 100, 2.0) < confidence_width(4, 100, 2.0) < confidence_width(4, 101, 2.0)
