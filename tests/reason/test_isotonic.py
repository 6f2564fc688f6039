"""The rising fit against the least squares that it should be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.reason._isotonic import at, fit

pairs = st.lists(
    st.tuples(st.integers(-50, 50).map(float), st.sampled_from([0.0, 1.0])), min_size=1, max_size=40
)


@given(pairs)
def test_it_rises_and_stays_a_probability(points: list[tuple[float, float]]) -> None:
    xs, ys = fit(points)
    assert xs == sorted(xs)
    assert ys == sorted(ys)
    assert all(0.0 <= y <= 1.0 for y in ys)
    for score in (-60.0, -3.3, 0.0, 60.0):
        assert ys[0] <= at((xs, ys), score) <= ys[-1]


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=30))
def test_without_a_prior_it_is_isotonic_regression(outcomes: list[float]) -> None:
    sklearn = pytest.importorskip("sklearn.isotonic")
    points = [(float(i), outcome) for i, outcome in enumerate(outcomes)]
    xs, ys = fit(points, prior=0.0)
    wanted = sklearn.isotonic_regression(np.array(outcomes))
    levels = sorted(set(np.round(wanted, 9)))
    assert sorted(set(np.round(ys, 9))) == pytest.approx(levels)
    assert len(xs) == len(ys)


def test_nothing_is_known_without_outcomes() -> None:
    assert at(fit([]), 0.3) is None


def test_a_short_block_is_drawn_to_the_mean() -> None:
    _, ys = fit([(0.0, 0.0), (1.0, 1.0)])
    assert ys == pytest.approx([0.25, 0.75])


def test_outcomes_at_one_score_are_one_block() -> None:
    assert fit([(2.0, 1.0), (2.0, 0.0), (2.0, 0.0), (2.0, 1.0)]) == ([2.0], [0.5])
