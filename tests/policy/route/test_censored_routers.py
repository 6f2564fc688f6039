"""Routers that learn from runs that were stopped: what one run says, and what stopping must not hide."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.core import Cost, Option, Outcome, State
from apportion.core.features import Features
from apportion.policy.route.censored_linear import CensoredLinear
from apportion.policy.route.censored_ucb import CensoredUCB, arm_and_limit

LIMITS = (100.0, 200.0, 400.0)
PAIRS = [Option(f"{arm}@{limit:g}", 0.01, Cost(usd=1e-5 * limit)) for arm in "ab" for limit in LIMITS]
STATE = State(0.0, PAIRS, prices={"usd": 1.0})


def ran(action: str, used: float, quality: float | None, id: str = "x", **more: Any) -> Outcome:
    return Outcome(id, more.pop("status", "ok"), action, Cost(tokens=used), quality, state=STATE, **more)


def test_arm_and_limit_are_read_from_facts_or_the_action() -> None:
    assert arm_and_limit(Option("m@250", 0.0, Cost())) == ("m", 250.0)
    assert arm_and_limit(Option("m", 0.0, Cost())) == ("m", math.inf)
    assert arm_and_limit(Option("me@home", 0.0, Cost())) == ("me@home", math.inf)
    assert arm_and_limit(Option("x", 0.0, Cost(), facts={"arm": "m", "limit": 5})) == ("m", 5.0)


@given(st.sampled_from(LIMITS), st.floats(1.0, 400.0), st.floats(0.0, 1.0))
def test_one_run_updates_every_lower_limit_of_its_arm(limit: float, used: float, quality: float) -> None:
    policy = CensoredUCB()
    cut = used > limit
    policy.learn(ran(f"a@{limit:g}", min(used, limit), None if cut else quality, censored=cut))
    for other in LIMITS:
        found = policy._pairs.get(f"a@{other:g}")
        if other > limit:
            assert found is None, "a run says nothing of limits above its own"
            continue
        assert found is not None
        assert found[0] == 1.0
        assert found[1] == pytest.approx(quality if used <= other else 0.0)
        assert found[2] == pytest.approx(min(used, other) / other)
    assert not any(name.startswith("b@") for name in policy._pairs)


def test_late_words_count_once_and_correct() -> None:
    at_once, late = CensoredUCB(), CensoredUCB()
    at_once.learn(ran("a@400", 150.0, 0.8))
    late.learn(ran("a@400", 150.0, None))
    late.learn(Outcome("x", "ok", "a@400", Cost(), 0.1, state=STATE, revised=True))
    late.learn(Outcome("x", "ok", "a@400", Cost(), 0.8, state=STATE, revised=True))
    late.learn(ran("a@400", 150.0, 0.8))
    assert late._pairs.keys() == at_once._pairs.keys()
    for name, pair in at_once._pairs.items():
        assert late._pairs[name] == pytest.approx(pair)


def test_it_settles_on_the_limit_that_pays() -> None:
    """Arm a answers within 150 tokens or never; b within 350 always, a little better than a."""
    policy = CensoredUCB(exploration=0.5)
    generator = random.Random(1)
    for k in range(1500):
        state = State(float(k), PAIRS, id=str(k), prices={"usd": 1.0})
        action = str(policy.decide(state).action)
        arm, limit = action.split("@")
        length = generator.choice((150.0, 5000.0)) if arm == "a" else 350.0
        right = float(generator.random() < (0.9 if arm == "a" else 0.45))
        cut = length > float(limit)
        used = min(length, float(limit))
        policy.learn(
            Outcome(
                str(k), "ok", action, Cost(tokens=used), None if cut else right, censored=cut, state=state
            )
        )
    # a@200 gains 0.0045 - 0.00175; b@400 gains 0.0045 - 0.0035
    last = [policy.decide(STATE).action for _ in range(5)]
    assert last == ["a@200"] * 5
    dear = State(0.0, PAIRS, prices={"usd": 10.0})
    assert policy.decide(dear).action.endswith("@100"), "at ten times the price the least use wins"  # type: ignore[union-attr]


# run times


def timed(names: str = "xy", **more: Any) -> State:
    return State(0.0, [Option(name, 0.0, Cost()) for name in names], prices={"seconds": 0.001}, **more)


def took(state: State, name: str, seconds: float, limit: float, id: str) -> Outcome:
    return Outcome(id, "ok", name, Cost(), None, min(seconds, limit), censored=seconds > limit, state=state)


@pytest.mark.parametrize("explore", ["ucb", "thompson"])
def test_stopped_runs_are_not_forgotten(explore: str) -> None:
    """x is done in 1 s or stopped, half and half; y always takes 30 of 100 s: PAR10 is 500 against 30."""
    state = timed()
    chosen = {}
    for censoring in ("impute", "drop"):
        policy = CensoredLinear(limit=100.0, explore=explore, censoring=censoring, dimensions=1, width=0.3)
        for k in range(60):
            policy.learn(took(state, "x", 1.0 if k % 2 else 1e9, 100.0, f"x{k}"))
            policy.learn(took(state, "y", 30.0, 100.0, f"y{k}"))
        chosen[censoring] = [policy.decide(state).action for _ in range(20)].count("y")
    assert chosen["impute"] >= 18
    assert chosen["drop"] <= 2, "without the stopped runs x looks thirty times faster"


def test_the_imputed_model_finds_the_mean_that_stopping_hides() -> None:
    """Log-normal times of which half are stopped: the learned median is near the true one, not below."""
    generator = random.Random(2)
    found = {}
    for censoring in ("impute", "limit", "drop"):
        policy = CensoredLinear(limit=100.0, censoring=censoring, dimensions=1, width=0.0, ridge=1.0)
        state = timed("x")
        for k in range(800):
            policy.learn(
                took(state, "x", math.exp(math.log(100.0) + generator.gauss(0.0, 1.5)), 100.0, str(k))
            )
        mean, _, _ = policy._belief(state, ["x"])
        found[censoring] = float(mean[0])
    assert found["impute"] == pytest.approx(math.log(100.0), abs=0.4)
    assert found["drop"] < found["limit"] < found["impute"] - 0.3


def test_the_choice_follows_the_features() -> None:
    policy = CensoredLinear(limit=1000.0, dimensions=3, seed=1)
    generator = random.Random(3)
    right = 0
    for k in range(500):
        size = generator.choice((1.0, 1000.0))
        state = timed(features=Features((size, 2.0)), id=str(k))
        action = str(policy.decide(state).action)
        quick = (action == "x") == (size < 10.0)
        right += quick and k >= 250
        seconds = (5.0 if quick else 600.0) * math.exp(generator.gauss(0.0, 0.5))
        policy.learn(took(state, action, seconds, 1000.0, str(k)))
    assert right >= 0.9 * 250


def test_the_state_does_not_grow_with_the_runs() -> None:
    policy = CensoredLinear(dimensions=4)
    sizes = []
    for stop in (3000, 6000):
        for k in range(stop - 3000, stop):
            policy.learn(
                took(timed(features=Features((1.0 + k % 7,))), "xy"[k % 2], 1.0 + k % 5, 4.0, f"{k:06}")
            )
        sizes.append(len(json.dumps(policy.save())))
    assert sizes[1] <= 1.02 * sizes[0]


def test_thompson_states_how_often_it_chooses() -> None:
    policy = CensoredLinear(limit=100.0, dimensions=1, seed=4, explore="thompson", ridge=1.0)
    state = timed("xyz")
    for k in range(9):
        policy.learn(took(state, "xyz"[k % 3], (20.0, 35.0, 60.0)[k % 3] * (1 + k % 2), 100.0, str(k)))
    counts: dict[str, int] = {}
    stated: dict[str, float] = {}
    for _ in range(4000):
        decision = policy.decide(state)
        counts[str(decision.action)] = counts.get(str(decision.action), 0) + 1
        stated[str(decision.action)] = decision.probability or 0.0
    for action, chance in stated.items():
        assert counts[action] / 4000 == pytest.approx(chance, abs=0.03)


def test_a_price_on_another_resource_counts() -> None:
    options = [Option("x", 0.0, Cost(usd=0.5)), Option("y", 0.0, Cost(usd=0.0))]
    policy = CensoredLinear(limit=10.0, dimensions=1, explore="ucb")
    for k in range(30):
        state = State(0.0, options, prices={"seconds": 0.001, "usd": 1.0})
        policy.learn(took(state, "x", 1.0, 10.0, f"x{k}"))
        policy.learn(took(state, "y", 5.0, 10.0, f"y{k}"))
    assert policy.decide(State(0.0, options, prices={"seconds": 0.001, "usd": 1.0})).action == "y"
    assert policy.decide(State(0.0, options, prices={"seconds": 0.001, "usd": 0.0})).action == "x"
