"""Bandit routers: exact linear algebra, known best arms, probabilities, late and doubled words, prices."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import Cost, Option, Outcome, Policy, State, catalogue
from apportion.core.features import Features
from apportion.policy.route._arms import LinearArms
from apportion.policy.route._context import Context
from apportion.policy.route._learned import LearnedRouter, worth_of_right
from apportion.policy.route._neighbours import Neighbours
from apportion.policy.route.carrot import Carrot
from apportion.policy.route.epsilon_greedy import EpsilonGreedy
from apportion.policy.route.linucb import LinUCB
from apportion.policy.route.thompson import Thompson

LEARNERS: list[type[LearnedRouter]] = [LinUCB, Thompson, EpsilonGreedy, Carrot]


def told(state: State, action: str, quality: float | None, id: str = "x", **more: Any) -> Outcome:
    return Outcome(id, more.pop("status", "ok"), action, Cost(usd=0.001), quality, state=state, **more)


def offer(*costs: float, **more: Any) -> list[Option]:
    return [Option(f"m{k}", 0.01, Cost(usd=cost), **more) for k, cost in enumerate(costs)]


# the linear algebra


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 30), st.floats(0.1, 5.0), st.integers(0, 999))
def test_rank_one_updates_are_ridge_regression(d: int, n: int, ridge: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, d)), generator.normal(size=n)
    arms = LinearArms(d, ridge, 4)
    for row, value in zip(x, y, strict=True):
        arms.learn("a", row, float(value))
    a = ridge * np.eye(d) + x.T @ x
    at = generator.normal(size=d)
    mean, variance = arms.estimates(["a", "never seen"], at)
    assert mean[0] == pytest.approx(at @ np.linalg.solve(a, x.T @ y), abs=1e-8)
    assert variance[0] == pytest.approx(at @ np.linalg.solve(a, at), abs=1e-8)
    assert mean[1] == 0.0
    assert variance[1] == pytest.approx(at @ at / ridge)


def test_a_correction_is_as_if_the_number_had_been_right_at_once() -> None:
    generator = np.random.default_rng(1)
    right, mended = LinearArms(3, 1.0, 4), LinearArms(3, 1.0, 4)
    points = generator.normal(size=(20, 3))
    for k, x in enumerate(points):
        y = float(generator.normal())
        right.learn("a", x, y)
        mended.learn("a", x, y - 1.0 if k == 7 else y)
        if k == 12:
            mended.correct("a", points[7], 1.0)
    at = np.ones(3)
    assert mended.estimates(["a"], at)[0] == pytest.approx(right.estimates(["a"], at)[0])


def test_the_arm_without_news_leaves_first() -> None:
    arms = LinearArms(1, 1.0, 2)
    one = np.ones(1)
    for name in ("a", "b", "a", "c"):
        arms.learn(name, one, 1.0)
    assert list(arms.slots) == ["a", "c"]
    assert arms.pulled("a") == 2.0
    assert arms.pulled("b") == 0.0
    assert arms.estimates(["b"], one)[0][0] == 0.0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 99))
def test_neighbours_are_the_nearest_of_the_last(k: int, memory: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    near = Neighbours(2, k, memory)
    seen = []
    for _ in range(60):
        arm, x, y = f"a{generator.integers(2)}", generator.normal(size=2), float(generator.random())
        near.learn(arm, x, y)
        seen = [*seen, (arm, x, y)][-memory:]
    at = generator.normal(size=2)
    found = near.estimates(["a0", "a1"], at, [0.5, 0.5])
    for place, arm in enumerate(("a0", "a1")):
        mine = sorted((float(((x - at) ** 2).sum()), y) for name, x, y in seen if name == arm)[:k]
        mean = (0.5 + sum(y for _, y in mine)) / (1 + len(mine))
        assert found[place] == pytest.approx(mean), "all are within reach when few are kept"


# the context


@given(st.lists(st.floats(-1e6, 1e6), min_size=0, max_size=40), st.integers(1, 12))
def test_a_context_has_its_length_and_a_one(lexical: list[float], dimensions: int) -> None:
    context = Context(dimensions, "both", 0)
    x = context.of(Features(tuple(lexical)))
    assert x.shape == (dimensions,)
    assert x[0] == 1.0
    assert np.isfinite(x).all()


def test_projection_keeps_inner_products_on_average() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 300))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b) + 0.7 * a / np.linalg.norm(a)
    products = []
    for seed in range(300):
        context = Context(33, "vector", seed)
        products.append(context.of(Features((), tuple(a)))[1:] @ context.of(Features((), tuple(b)))[1:])
    assert np.mean(products) == pytest.approx(a @ b, abs=4.0 * np.std(products) / math.sqrt(300))


def test_counts_are_centred_by_what_was_seen() -> None:
    context = Context(3, "lexical", 0)
    generator = np.random.default_rng(4)
    rows = generator.lognormal(3.0, 1.0, size=(500, 2))
    for row in rows:
        context.learn(Features(tuple(row)))
    seen = np.array([context.of(Features(tuple(row)))[1:] for row in rows])
    assert np.abs(seen.mean(axis=0)).max() < 0.05
    assert (seen.std(axis=0) * math.sqrt(2)) == pytest.approx([1.0, 1.0], abs=0.05)


# what all learners do


@pytest.mark.parametrize("cls", LEARNERS)
def test_a_better_arm_is_found_per_kind_of_request(cls: type[LearnedRouter]) -> None:
    """m0 is right on short requests, m1 on long ones; both cost the same."""
    policy = cls(dimensions=3, seed=1)  # type: ignore[call-arg]
    generator = random.Random(2)
    models = offer(0.001, 0.001)
    right = 0
    for k in range(600):
        length = generator.choice((5.0, 500.0))
        state = State(float(k), models, id=str(k), prices={"usd": 1.0}, features=Features((length, 1.0)))
        decision = policy.decide(state)
        good = (decision.action == "m0") == (length < 100.0)
        right += good and k >= 300
        # CARROT does not explore: it is shown both
        for action in ("m0", "m1") if cls is Carrot else (decision.action,):
            chance = 0.9 if (action == "m0") == (length < 100.0) else 0.2
            policy.learn(told(state, str(action), float(generator.random() < chance), id=str(k)))
    assert right >= 0.85 * 300


@pytest.mark.parametrize("cls", LEARNERS)
def test_prices_bend_the_choice_without_learning_anew(cls: type[LearnedRouter]) -> None:
    policy = cls(dimensions=1, seed=1)  # type: ignore[call-arg]
    models = offer(0.0001, 0.003)
    cheap = State(0.0, models, prices={"usd": 1.0})
    for k in range(300):
        policy.learn(told(cheap, "m0", 0.4, id=f"a{k}"))
        policy.learn(told(cheap, "m1", 0.9, id=f"b{k}"))
    chosen = {
        price: [policy.decide(State(0.0, models, prices={"usd": price})).action for _ in range(40)]
        for price in (0.5, 4.0)
    }
    assert chosen[0.5].count("m1") >= 36, "5 tenths of a cent more in quality pay 1.5 tenths of cost"
    assert chosen[4.0].count("m0") >= 36


@pytest.mark.parametrize("cls", LEARNERS)
def test_a_later_word_corrects_and_a_doubled_one_changes_nothing(cls: type[LearnedRouter]) -> None:
    once, twice = cls(dimensions=1, seed=0), cls(dimensions=1, seed=0)  # type: ignore[call-arg]
    state = State(0.0, offer(0.001, 0.001), prices={"usd": 1.0})
    for k in range(10):
        once.learn(told(state, "m0", 0.9, id=str(k)))
        twice.learn(told(state, "m0", None, id=str(k)))
        twice.learn(told(state, "m0", 0.2, id=str(k), revised=True))
        twice.learn(told(state, "m0", 0.9, id=str(k), revised=True))
        twice.learn(told(state, "m0", 0.9, id=str(k)))
    assert twice.decide(state).worths == pytest.approx(once.decide(state).worths)


@pytest.mark.parametrize("cls", LEARNERS)
def test_failures_count_as_wrong_and_cancellations_as_nothing(cls: type[LearnedRouter]) -> None:
    state = State(0.0, offer(0.001, 0.001), prices={"usd": 1.0})
    worths = {}
    for status in ("failed", "timeout", "cancelled", "refused"):
        policy = cls(dimensions=1)  # type: ignore[call-arg]
        for k in range(5):
            policy.learn(told(state, "m0", None, id=str(k), status=status))
        worths[status] = policy.decide(state).worths
    fresh = cls(dimensions=1).decide(state).worths  # type: ignore[call-arg]
    assert worths["cancelled"] == worths["refused"] == fresh
    assert worths["failed"] == worths["timeout"]
    assert worths["failed"][0] < fresh[0]  # type: ignore[operator]


@pytest.mark.parametrize("cls", LEARNERS)
def test_an_unknown_cost_is_taken_from_what_was_measured(cls: type[LearnedRouter]) -> None:
    policy = cls(dimensions=1)  # type: ignore[call-arg]
    models = [Option("dark", 0.01, Cost()), Option("known", 0.01, Cost(usd=0.002))]
    state = State(0.0, models, prices={"usd": 1.0})
    first = policy.decide(state)
    assert first.worths[0] is None
    if cls is not EpsilonGreedy:
        assert first.action == "known"
    policy.learn(Outcome("a", "ok", "dark", Cost(usd=0.0005), None, state=state))
    assert policy.decide(state).worths[0] == pytest.approx(0.01 * 0.5 - 0.0005)


@pytest.mark.parametrize("cls", LEARNERS)
def test_saved_in_mid_course_it_goes_on_the_same(cls: type[LearnedRouter]) -> None:
    generator = random.Random(5)
    policy = cls(dimensions=5, seed=2)  # type: ignore[call-arg]
    states = [
        State(float(k), offer(0.001, 0.002, 0.003), id=str(k), prices={"usd": 1.0},
              features=Features((generator.random(), generator.random())))
        for k in range(80)
    ]  # fmt: skip
    for state in states[:40]:
        action = policy.decide(state).action
        policy.learn(told(state, str(action), generator.random(), id=state.id))
    other = cls(dimensions=5, seed=2)  # type: ignore[call-arg]
    other.load(json.loads(json.dumps(policy.save())))
    for state in states[40:]:
        mine, theirs = policy.decide(state), other.decide(state)
        assert mine == theirs
        for each in (policy, other):
            each.learn(told(state, str(mine.action), 0.5, id=state.id))


@given(st.floats(0.001, 1.0), st.one_of(st.none(), st.floats(0.02, 1.0)))
def test_worth_is_what_the_value_was_made_of(worth: float, quality: float | None) -> None:
    option = Option("a", worth if quality is None else worth * quality, Cost(), quality=quality)
    assert worth_of_right(option, None) == pytest.approx(worth)
    assert worth_of_right(option, 7.0) == 7.0


# special to one


def test_linucb_learns_the_correction_of_a_prediction() -> None:
    policy = LinUCB(dimensions=1, alpha=0.0)
    models = [
        Option("boaster", 0.009, Cost(usd=0.0), quality=0.9),
        Option("modest", 0.005, Cost(usd=0.0), quality=0.5),
    ]
    state = State(0.0, models, prices={"usd": 1.0})
    assert policy.decide(state).action == "boaster"
    for k in range(50):
        policy.learn(told(state, "boaster", 0.3, id=f"a{k}"))
        policy.learn(told(state, "modest", 0.6, id=f"b{k}"))
    decision = policy.decide(state)
    assert decision.action == "modest"
    assert decision.worths == pytest.approx((0.003, 0.006), abs=2e-4)


def test_linucb_bounds_hold_the_truth_nearly_always() -> None:
    """The self-normalised bound with the noise of a coin: seldom outside, over many runs."""
    outside = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        arms, theta = LinearArms(3, 1.0, 1), generator.normal(size=3) * 0.15
        for _ in range(60):
            x = generator.normal(size=3) / math.sqrt(3)
            arms.learn("a", x, float(generator.random() < 0.5 + x @ theta) - 0.5)
        at = generator.normal(size=3) / math.sqrt(3)
        mean, variance = arms.estimates(["a"], at)
        outside += abs(mean[0] - at @ theta) > 1.5 * math.sqrt(variance[0])
    assert outside <= 4


def test_thompson_states_the_frequency_of_its_choices() -> None:
    policy = Thompson(dimensions=1, seed=3)
    state = State(0.0, offer(0.001, 0.002, 0.0015), prices={"usd": 1.0})
    for k in range(6):
        policy.learn(told(state, f"m{k % 3}", (k % 3) / 2, id=str(k)))
    counts: dict[str, int] = {}
    stated: dict[str, float] = {}
    for _ in range(5000):
        decision = policy.decide(state)
        counts[str(decision.action)] = counts.get(str(decision.action), 0) + 1
        stated[str(decision.action)] = decision.probability or 0.0
    for action, chance in stated.items():
        assert counts[action] / 5000 == pytest.approx(chance, abs=0.03)


def test_a_policy_can_be_judged_on_thompsons_log() -> None:
    """Inverse propensities recover the mean reward of always choosing one arm."""
    policy = Thompson(dimensions=1, seed=9, noise=2.0)
    generator = random.Random(4)
    models = offer(0.0, 0.0)
    total = 0.0
    for k in range(4000):
        state = State(0.0, models, id=str(k), prices={"usd": 1.0})
        decision = policy.decide(state)
        reward = float(generator.random() < (0.3 if decision.action == "m0" else 0.6))
        if decision.action == "m0":
            total += reward / (decision.probability or 1.0)
        if k < 30:
            policy.learn(told(state, str(decision.action), reward, id=str(k)))
    assert total / 4000 == pytest.approx(0.3, abs=0.06)


def test_carrot_is_the_weighted_argmin_at_every_mu() -> None:
    generator = random.Random(6)
    policy = Carrot()
    for _ in range(200):
        models = [
            Option(
                str(k),
                0.0,
                Cost(usd=generator.random(), joules=generator.random()),
                quality=generator.random(),
            )
            for k in range(4)
        ]
        mu, prices = generator.random(), {"usd": generator.random(), "joules": generator.random()}
        decision = policy.decide(State(0.0, models, request={"mu": mu}, prices=prices))
        sums = [(1 - mu) * (1 - (o.quality or 0.0)) + mu * (o.cost.at_prices(prices) or 0.0) for o in models]
        assert decision.choice == min(range(4), key=sums.__getitem__)


def test_carrots_mu_is_a_worth_in_dollars() -> None:
    models = [
        Option("small", 0.7 * 0.05, Cost(usd=0.001), quality=0.7),
        Option("large", 0.9 * 0.05, Cost(usd=0.02), quality=0.9),
    ]
    for effort in (0.5, 1.0, 2.0, 4.0):
        worth = 0.05 * effort
        asked = State(0.0, models, request={"effort": effort}, prices={"usd": 1.0})
        by_mu = Carrot(mu=1.0 / 1.05).decide(asked).action
        by_worth = (
            Carrot().decide(State(0.0, models, request={"worth_usd": worth}, prices={"usd": 1.0})).action
        )
        assert by_mu == by_worth


def test_names_are_in_the_catalogue() -> None:
    for name in (
        "carrot",
        "linucb",
        "thompson",
        "epsilon_greedy",
        "censored_ucb",
        "censored_linear",
        "cost_capacity",
    ):
        assert isinstance(catalogue.build(f"route/{name}"), Policy)
