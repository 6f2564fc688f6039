"""The curve of success against its closed forms, and its distribution against what it was drawn from."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.reason import _curve
from apportion.reason._curve import GRID, UNKNOWN

weights = st.lists(st.floats(0.001, 1.0), min_size=len(GRID), max_size=len(GRID)).map(
    lambda raw: tuple(w / sum(raw) for w in raw)
)


def at(rate: float) -> tuple[float, ...]:
    return tuple(float(point == rate) for point in GRID)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_with_a_known_rate_it_is_the_textbook_formula(rate: float) -> None:
    assert _curve.curve(at(rate), 9) == pytest.approx([1 - (1 - rate) ** k for k in range(10)])
    assert _curve.mean(at(rate)) == rate


@given(weights)
def test_gains_fall(w: tuple[float, ...]) -> None:
    q = _curve.curve(w, 20)
    gains = [b - a for a, b in pairwise(q)]
    assert all(late <= early + 1e-12 for early, late in pairwise(gains))
    assert q[1] == pytest.approx(_curve.mean(w))
    assert q[7] == pytest.approx(_curve.success(w, 7))


@given(weights, st.integers(0, 10))
def test_gains_after_failures_are_those_of_the_posterior(w: tuple[float, ...], k: int) -> None:
    """q(k + 1) - q(k) = P(the first k fail) x P(right | the first k failed): why looking one step ahead suffices."""
    q = _curve.curve(w, k + 1)
    after = _curve.mean(_curve.posterior(w, 0, k))
    assert q[k + 1] - q[k] == pytest.approx((1 - q[k]) * after)


@given(weights, st.floats(0.02, 0.98))
def test_tilting_reaches_the_mean_that_is_wanted(w: tuple[float, ...], wanted: float) -> None:
    found = _curve.tilted(w, wanted)
    assert sum(found) == pytest.approx(1.0)
    assert _curve.mean(found) == pytest.approx(wanted, abs=1e-4)


def test_tilting_to_its_own_mean_changes_nothing() -> None:
    assert _curve.tilted(UNKNOWN, _curve.mean(UNKNOWN)) == pytest.approx(UNKNOWN, abs=1e-5)


def test_the_rates_behind_counts_are_found() -> None:
    """A third of the requests is hopeless, the rest has rate 0.3: the success of many samples ends at two thirds."""
    generator = Random(4)
    counts = []
    for _ in range(600):
        rate = 0.0 if generator.random() < 1 / 3 else 0.3
        right = sum(generator.random() < rate for _ in range(20))
        counts.append((right, 20 - right, 1.0))
    found = _curve.fitted(counts)
    assert _curve.mean(found) == pytest.approx(0.2, abs=0.02)
    assert _curve.success(found, 50) == pytest.approx(2 / 3, abs=0.05)
    assert sum(w for w, rate in zip(found, GRID, strict=True) if rate == 0.0) == pytest.approx(
        1 / 3, abs=0.08
    )


def test_a_distribution_that_rules_out_what_was_seen_stays() -> None:
    assert _curve.posterior(at(1.0), 0, 3) == at(1.0)
    assert _curve.fitted([]) == UNKNOWN
