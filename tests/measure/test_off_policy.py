"""Off-policy estimates against a world whose truth is known: unbiased, covered, and doubly robust."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest

from apportion.measure import off_policy
from apportion.measure.off_policy import Array, Indices, Terms


class World(NamedTuple):
    """Rows that a random policy has logged, another policy, and what that really brings."""

    rewards: Array
    propensities: Array
    chosen: Indices
    target: Array
    means: Array
    features: Array
    truth: float
    of_sample: float
    """The truth for these contexts."""


def world(seed: int, n: int = 500, k: int = 3, *, curved: bool = False, floor: float = 0.1) -> World:
    """Bernoulli rewards; the mean is linear in the context unless ``curved``."""
    generator = np.random.default_rng(seed)
    context = generator.uniform(-1, 1, (n, 2))
    slopes = np.array([[0.3, 0.0], [-0.1, 0.25], [0.0, -0.3], [0.2, 0.2]])[:k]
    levels = np.array([0.5, 0.6, 0.4, 0.5])[:k]
    means = levels + context @ slopes.T
    if curved:
        means = levels + 0.3 * np.sin(4 * context @ slopes.T / 0.3)
    logits = context @ np.array([[1.0, -1.0], [0.0, 1.5], [-1.0, 0.0], [0.5, 0.5]])[:k].T
    logging = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    logging = floor + (1 - k * floor) * logging
    chosen = (generator.random((n, 1)) > logging.cumsum(axis=1)).sum(axis=1).astype(np.int64)
    target = np.zeros((n, k))
    target[np.arange(n), np.where(context[:, 0] > 0, 0, 1)] = 0.9
    target += 0.1 / k
    rewards = (generator.random(n) < means[np.arange(n), chosen]).astype(float)
    features = np.repeat(np.column_stack([np.ones(n), context])[:, None, :], k, axis=1)
    # E over contexts, by symmetry: context 0 is above 0 half of the time, with mean 1/2 there.
    best = 0.5 * ((levels[0] + slopes[0, 0] / 2) + (levels[1] - slopes[1, 0] / 2))
    truth = math.nan if curved else 0.9 * best + 0.1 * levels.mean()
    return World(
        rewards,
        logging[np.arange(n), chosen],
        chosen,
        target,
        means,
        features,
        truth,
        float((target * means).sum(axis=1).mean()),
    )


def estimates(w: World, *, wrong_model: bool = False, wrong_propensities: bool = False) -> dict[str, Terms]:
    propensities = np.full(len(w.rewards), 1 / 3) if wrong_propensities else w.propensities
    weights = off_policy.importance(w.target, w.chosen, propensities)
    predicted = off_policy.cross_fit(w.features, w.rewards, w.chosen)
    if wrong_model:
        predicted = np.full_like(predicted, 0.9)
    return {
        "naive": off_policy.naive(w.rewards),
        "ips": off_policy.ips(w.rewards, weights),
        "snips": off_policy.snips(w.rewards, weights),
        "direct": off_policy.direct(w.target, predicted),
        "robust": off_policy.doubly_robust(w.rewards, weights, w.chosen, w.target, predicted),
    }


SEEDS = range(300)


@pytest.fixture(scope="module")
def errors() -> dict[str, Array]:
    """Of each estimator, over many logs of the same world."""
    found = [
        {name: terms.estimate - w.truth for name, terms in estimates(w).items()} for w in map(world, SEEDS)
    ]
    return {name: np.array([each[name] for each in found]) for name in found[0]}


@pytest.mark.parametrize("name", ["ips", "snips", "robust", "direct"])
def test_unbiased(errors: dict[str, Array], name: str) -> None:
    error = errors[name]
    assert abs(error.mean()) < 3.5 * error.std() / math.sqrt(len(error))


def test_the_logging_policy_is_no_estimate_of_another(errors: dict[str, Array]) -> None:
    error = errors["naive"]
    assert abs(error.mean()) > 10 * error.std() / math.sqrt(len(error))


def test_doubly_robust_varies_less_than_inverse_propensity(errors: dict[str, Array]) -> None:
    assert errors["robust"].var() < 0.7 * errors["ips"].var()
    assert errors["snips"].var() < errors["ips"].var()


@pytest.mark.parametrize("wrong", ["wrong_model", "wrong_propensities"])
def test_one_of_the_two_may_be_wrong(wrong: str) -> None:
    found: dict[str, list[float]] = {}
    for w in map(world, SEEDS):
        for name, terms in estimates(w, **{wrong: True}).items():
            found.setdefault(name, []).append(terms.estimate - w.truth)
    error = {name: np.array(each) for name, each in found.items()}
    bias = {
        name: abs(each.mean()) / (each.std() / math.sqrt(len(each)) + 1e-12) for name, each in error.items()
    }
    assert bias["robust"] < 3.5
    assert bias["direct" if wrong == "wrong_model" else "ips"] > 10


def test_a_model_that_misses_the_curve_is_corrected() -> None:
    found: dict[str, list[float]] = {}
    for w in (world(seed, curved=True) for seed in SEEDS):
        for name, terms in estimates(w).items():
            found.setdefault(name, []).append(terms.estimate - w.of_sample)
    robust = np.array(found["robust"])
    assert abs(robust.mean()) < 3.5 * robust.std() / math.sqrt(len(robust))


@pytest.mark.parametrize("name", ["ips", "snips", "robust"])
@pytest.mark.parametrize("n", [100, 500])
def test_intervals_cover(name: str, n: int) -> None:
    level, hits = 0.9, []
    for seed in SEEDS:
        w = world(seed, n)
        low, high = off_policy.bootstrap_interval(estimates(w)[name], level, resamples=400, seed=seed)
        hits.append(low <= w.truth <= high)
    # Nominal, less what chance allows over so many logs.
    assert np.mean(hits) >= level - 2.0 * math.sqrt(level * (1 - level) / len(hits))


def test_the_bernstein_interval_always_covers_and_is_wider() -> None:
    for seed in SEEDS[:60]:
        w = world(seed)
        terms = estimates(w)["ips"]
        most = float(w.target.max() / 0.1)
        low, high = off_policy.bernstein_interval(terms, 0.9, low=0.0, high=most)
        assert low <= w.truth <= high
        inner = off_policy.bootstrap_interval(terms, 0.9, resamples=200)
        assert high - low > inner.high - inner.low


def test_intervals_shrink_with_the_rows() -> None:
    widths = [
        interval.high - interval.low
        for n in (100, 400, 1600, 6400)
        for interval in (off_policy.bootstrap_interval(estimates(world(1, n))["robust"]),)
    ]
    assert all(later < 0.65 * earlier for earlier, later in itertools.pairwise(widths))


def test_the_bootstrap_is_the_normal_interval_where_terms_are_normal() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, 5000)
    terms = off_policy.naive(values)
    one, other = off_policy.bootstrap_interval(terms, resamples=4000), off_policy.normal_interval(terms)
    assert one == pytest.approx(other, abs=0.004)


def test_hardly_any_variety_gives_no_endless_interval() -> None:
    """All but one of few rewards are 1: most resamples hold no variety at all."""
    generator = np.random.default_rng(2)
    weights = np.where(generator.random(1000) < 0.02, 50.0, 0.0)
    rewards = np.ones(1000)
    rewards[np.flatnonzero(weights)[0]] = 0.0
    low, high = off_policy.bootstrap_interval(off_policy.snips(rewards, weights))
    assert -1.0 < low < 0.96 < high < 2.0


def test_known_sums() -> None:
    target = np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])
    chosen, propensities = np.array([0, 0, 0]), np.array([0.25, 0.5, 0.5])
    rewards = np.array([1.0, 2.0, 4.0])
    weights = off_policy.importance(target, chosen, propensities)
    assert weights.tolist() == [2.0, 2.0, 0.0]
    assert off_policy.importance(target, chosen, propensities, most=1.5).tolist() == [1.5, 1.5, 0.0]
    assert off_policy.ips(rewards, weights).estimate == 2.0
    assert off_policy.snips(rewards, weights).estimate == 1.5
    assert off_policy.effective_sample_size(weights) == 2.0
    predicted = np.array([[1.0, 3.0], [1.0, 1.0], [1.0, 2.0]])
    assert off_policy.direct(target, predicted).estimate == pytest.approx(5 / 3)
    robust = off_policy.doubly_robust(rewards, weights, chosen, target, predicted)
    assert robust.values.tolist() == [2.0, 3.0, 2.0]


def test_a_difference_of_policies_is_one_estimate() -> None:
    w = world(3)
    predicted = off_policy.cross_fit(w.features, w.rewards, w.chosen)
    other = np.full_like(w.target, 1 / 3)
    both = [
        off_policy.doubly_robust(
            w.rewards, off_policy.importance(each, w.chosen, w.propensities), w.chosen, each, predicted
        )
        for each in (w.target, other, w.target - other)
    ]
    assert np.allclose(both[0].values - both[1].values, both[2].values)


def test_failures_that_happened_not_to_happen_are_reckoned_with() -> None:
    """Six rows carry the weight, all of them right; the other rows of the same action fail one time in five."""
    generator = np.random.default_rng(0)
    n = 400
    rewards = (generator.random(n) < 0.8).astype(float)
    weights = np.zeros(n)
    weights[np.flatnonzero(rewards)[:6]] = n / 6
    chosen, target, predicted = np.zeros(n, dtype=np.int64), np.ones((n, 1)), np.full((n, 1), 0.8)
    terms = off_policy.doubly_robust(rewards, weights, chosen, target, predicted)
    assert terms.error == terms.least_error > 2 * terms.influence.std() / math.sqrt(n)
    low, high = off_policy.normal_interval(terms)
    assert low < 0.8 < high


def test_unknown_rewards_do_not_count() -> None:
    w = world(4)
    weights = off_policy.importance(w.target, w.chosen, w.propensities)
    predicted = off_policy.cross_fit(w.features, w.rewards, w.chosen)
    rewards = np.where(np.arange(len(weights)) % 3 == 0, w.rewards, np.nan)
    nothing = np.where(np.isnan(rewards), 0.0, weights)
    one = off_policy.doubly_robust(rewards, weights, w.chosen, w.target, predicted)
    other = off_policy.doubly_robust(rewards, nothing, w.chosen, w.target, predicted)
    assert np.array_equal(one.values, other.values)
    assert one.least_error == other.least_error


def test_nothing_known_is_said_so() -> None:
    none = off_policy.snips(np.zeros(3), np.zeros(3))
    assert math.isnan(none.estimate)
    assert off_policy.effective_sample_size(np.zeros(3)) == 0.0
    assert off_policy.bootstrap_interval(off_policy.naive(np.ones(1))) == (-math.inf, math.inf)
    assert off_policy.bootstrap_interval(off_policy.naive(np.ones(9))) == (1.0, 1.0)


def test_predictions_never_see_their_own_row() -> None:
    w = world(0, 60)
    predicted = off_policy.cross_fit(w.features, w.rewards, w.chosen, folds=60)
    changed = w.rewards.copy()
    changed[7] = 1 - changed[7]
    again = off_policy.cross_fit(w.features, changed, w.chosen, folds=60)
    assert np.allclose(predicted[7], again[7])
    assert not np.allclose(predicted, again)


def test_rows_without_a_reward_are_predicted() -> None:
    w = world(0, 2000)
    rewards = np.where(np.arange(2000) % 4 == 0, w.rewards, np.nan)
    predicted = off_policy.cross_fit(w.features, rewards, w.chosen)
    assert np.abs(predicted - w.means).mean() < 0.06


def test_a_replay_keeps_every_action_alike() -> None:
    generator = np.random.default_rng(1)
    probabilities = np.array([0.1, 0.3, 0.6])
    chosen = generator.choice(3, 60_000, p=probabilities)
    kept = off_policy.acceptance(probabilities[chosen], generator.random(60_000))
    assert np.bincount(chosen[kept]) / kept.sum() == pytest.approx([1 / 3] * 3, abs=0.01)
    assert kept[chosen == 0].all()
