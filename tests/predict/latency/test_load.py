"""The latency predictor against closed forms: coefficients, quantiles, outliers, change, censoring."""

from __future__ import annotations

import doctest
import json
import math
import pickle
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import catalogue
from apportion.core.errors import ParameterError, SavedStateError
from apportion.predict.latency import load as module
from apportion.predict.latency.load import Load, _least


def first_s(load: float, i: float) -> float:
    return 0.05 + 0.2 * i / 1e3 + 0.1 * load + 0.3 * load * i / 1e3 + 2.0 * max(load - 1.0, 0.0)


def total_s(load: float, i: float, o: float) -> float:
    return first_s(load, i) + o / 1e3 * (12.0 + 20.0 * load + 1.5 * i / 1e3)


def draw(generator: Random) -> tuple[float, float, float]:
    return 1.5 * generator.random(), 10 ** (1 + 3 * generator.random()), 10 ** (0.5 + 3 * generator.random())


def taught(
    n: int = 200, noise: float = 0.05, wild: float = 0.0, streamed: bool = True, seed: int = 1
) -> Load:
    generator, latency = Random(seed), Load()
    for _ in range(n):
        load, i, o = draw(generator)
        factor = math.exp(generator.gauss(0, noise)) * (30.0 if generator.random() < wild else 1.0)
        latency.learn(
            "e",
            load,
            i,
            o,
            first_token_s=first_s(load, i) * factor if streamed else None,
            total_s=total_s(load, i, o) * factor,
        )
    return latency


def errors(latency: Load, seed: int = 2) -> tuple[float, float]:
    """Median relative errors of both medians over fresh requests."""
    generator, firsts, totals = Random(seed), [], []
    for _ in range(200):
        load, i, o = draw(generator)
        found = latency.predict("e", load, i, o)
        assert found is not None
        firsts.append(abs(found[0].p50 / first_s(load, i) - 1))
        totals.append(abs(found[1].p50 / total_s(load, i, o) - 1))
    return float(np.median(firsts)), float(np.median(totals))


def test_a_known_server_is_learned() -> None:
    first, total = errors(taught())
    assert first < 0.05
    assert total < 0.03


def test_one_in_twenty_that_hangs_does_not_spoil_it() -> None:
    first, total = errors(taught(wild=0.05))
    assert first < 0.08
    assert total < 0.06


def test_without_streams_the_sum_is_still_learned() -> None:
    latency = taught(streamed=False)
    _, total = errors(latency)
    assert total < 0.05
    found = latency.predict("e", 0.5, 1000, 100)
    assert found is not None
    assert found[0].p50 <= found[1].p50 * 1.01


def test_quantiles_cover_what_they_say() -> None:
    generator, latency = Random(3), taught(250, noise=0.4)
    below = np.zeros(4)
    for n in range(1500):
        load, i, o = draw(generator)
        found = latency.predict("e", load, i, o)
        assert found is not None
        factor = math.exp(generator.gauss(0, 0.4))
        first, total = first_s(load, i) * factor, total_s(load, i, o) * factor
        below += [first <= found[0].p50, first <= found[0].p90, total <= found[1].p50, total <= found[1].p90]
        if n % 3 == 0:
            latency.learn("e", load, i, o, first_token_s=first, total_s=total)
    np.testing.assert_allclose(below / 1500, [0.5, 0.9, 0.5, 0.9], atol=0.05)


def test_a_server_that_slows_down_is_followed() -> None:
    generator, latency = Random(4), taught()
    for _ in range(300):
        load, i, o = draw(generator)
        latency.learn("e", load, i, o, first_token_s=3 * first_s(load, i), total_s=3 * total_s(load, i, o))
    found = latency.predict("e", 0.5, 1000, 300)
    assert found is not None
    assert found[1].p50 == pytest.approx(3 * total_s(0.5, 1000, 300), rel=0.1)


def test_what_a_limit_ended_counts_as_longer() -> None:
    """Half the answers are cut at their true median: the predicted median must not fall to what was seen."""
    honest, blind, generator = Load(), Load(), Random(5)
    for _ in range(250):
        _, i, o = draw(generator)
        limit_s = total_s(0.5, i, o)
        took_s = limit_s * math.exp(generator.gauss(0, 0.5))
        for latency, censored in ((honest, took_s > limit_s), (blind, False)):
            latency.learn("e", 0.5, i, o, first_token_s=None, total_s=min(took_s, limit_s), censored=censored)
    one, other = honest.predict("e", 0.5, 500, 500), blind.predict("e", 0.5, 500, 500)
    assert one is not None
    assert other is not None
    truth = total_s(0.5, 500, 500)
    assert abs(one[1].p50 / truth - 1) < 0.15
    assert other[1].p50 < one[1].p50


def test_more_work_never_takes_less_time() -> None:
    latency = taught(40, noise=0.6)
    generator = Random(6)
    for _ in range(100):
        load, i, o = draw(generator)
        here, more = latency.predict("e", load, i, o), latency.predict("e", load + 0.1, i + 100, o + 10)
        assert here is not None
        assert more is not None
        assert more[0].p50 >= here[0].p50
        assert more[1].p50 >= here[1].p50
        assert here[1].p90 >= here[1].p50


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_least_is_near_the_best_of_all_supports(seed: int) -> None:
    """Against projected gradient, on random well-posed problems."""
    generator = np.random.RandomState(seed)
    truth = np.maximum(generator.randn(8), 0.0) * module._PRIOR
    equations = generator.rand(60, 8) / np.maximum(module._PRIOR, 0.1)
    equations /= np.maximum(equations @ truth, 1e-3)[:, None]
    found = _least(equations, np.ones(60))
    assert (found >= 0).all()

    def loss(w: np.ndarray) -> float:
        pull = module._PRIOR_WEIGHT * float((((w - module._PRIOR) / module._PRIOR) ** 2).sum())
        return float(((equations @ w - 1.0) ** 2).sum()) + pull

    assert loss(found) <= loss(truth) + 1e-9 or loss(found) < 1.2 * loss(truth) + 0.02


def test_it_is_saved_copied_and_bounded() -> None:
    latency = taught(60)
    latency.learn("plain", 0.1, 10, 10, first_token_s=None, total_s=1.0)
    restored = Load()
    restored.load(json.loads(json.dumps(latency.save(), allow_nan=False)))
    thawed = pickle.loads(pickle.dumps(latency))
    for other in (restored, thawed):
        for generator in (Random(7),):
            for _ in range(10):
                case = draw(generator)
                assert other.predict("e", *case) == latency.predict("e", *case)
        other.learn("e", 0.5, 100, 100, first_token_s=0.2, total_s=2.0)
    latency.learn("e", 0.5, 100, 100, first_token_s=0.2, total_s=2.0)
    assert latency.save() == restored.save() == thawed.save()
    assert latency.predict("plain", 0.1, 10, 10) is None
    with pytest.raises(SavedStateError):
        latency.load({"method": "Another", "learned": {}})
    latency.reset()
    assert latency.predict("e", 0.5, 1, 1) is None
    small = Load(most_endpoints=2)
    for n in range(9):
        for _ in range(3):
            small.learn(f"e{n}", 0.5, 10, 10, first_token_s=0.1, total_s=0.5)
    assert [n for n in range(9) if small.predict(f"e{n}", 0.5, 1, 1)] == [7, 8]


@given(
    st.lists(
        st.tuples(st.floats(), st.floats(), st.floats(), st.none() | st.floats(), st.floats(), st.booleans()),
        max_size=20,
    )
)
@settings(max_examples=100, deadline=None)
def test_no_measurement_breaks_it(
    given_: list[tuple[float, float, float, float | None, float, bool]],
) -> None:
    latency = Load()
    for load, i, o, first, total, censored in given_:
        latency.learn("e", load, i, o, first_token_s=first, total_s=total, censored=censored)
    found = latency.predict("e", 0.5, 100, 100)
    if found is not None:
        assert all(math.isfinite(value) and value > 0 for quantiles in found for value in quantiles)
    json.dumps(latency.save(), allow_nan=False)


def test_the_catalogue_knows_it() -> None:
    assert isinstance(catalogue.build("latency/load", most_endpoints=5), Load)
    assert catalogue.describe("latency/load").papers
    with pytest.raises(ParameterError, match="most_endpoints"):
        Load(most_endpoints=0)
    assert doctest.testmod(module).failed == 0
