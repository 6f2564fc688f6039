"""Routing by predicted or ranked speeds: the increase is exact, and measured speeds correct predicted ones."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import Cost, Option, Outcome, State
from apportion.policy.route.speed_oblivious import SpeedOblivious, increase

FAST = settings(max_examples=80, deadline=None, derandomize=True)

jobs = st.lists(st.tuples(st.integers(1, 5).map(float), st.integers(1, 9).map(float)), max_size=5)


def least(pending: list[tuple[float, float]]) -> float:
    """The least sum of weighted completion times, over all orders."""
    return min(
        sum(
            weight * end
            for (weight, _), end in zip(order, itertools.accumulate(s for _, s in order), strict=True)
        )
        for order in itertools.permutations(pending)
    )


def server(name: str, service_s: float | None = 1.0, load: float = 0.0, **facts: Any) -> Option:
    cost = Cost() if service_s is None else Cost(server_seconds=service_s)
    return Option(name, 0.01, cost, load=load, facts=facts or None)


def choose(policy: SpeedOblivious, *servers: Option, weight: float = 1.0, prices: Any = None) -> str | None:
    return policy.decide(State(0.0, servers, "d", {"weight": weight}, prices or {})).action


@FAST
@given(jobs, st.integers(1, 5).map(float), st.integers(1, 9).map(float))
def test_the_increase_is_what_the_best_order_grows_by(
    pending: list[tuple[float, float]], weight: float, service_s: float
) -> None:
    grown = least([*pending, (weight, service_s)]) - least(pending)
    assert increase(weight, service_s, pending) == pytest.approx(grown)


@FAST
@given(
    st.lists(st.tuples(st.integers(1, 9).map(float), jobs), min_size=1, max_size=4),
    st.integers(1, 5).map(float),
)
def test_greedy_grows_the_sum_by_the_least(
    drawn: list[tuple[float, list[tuple[float, float]]]], weight: float
) -> None:
    servers = [server(f"{k}", s, pending=pending) for k, (s, pending) in enumerate(drawn)]
    chosen = choose(SpeedOblivious(), *servers, weight=weight)
    assert chosen is not None
    grown = [least([*pending, (weight, s)]) - least(pending) for s, pending in drawn]
    assert grown[int(chosen)] == pytest.approx(min(grown))


def test_waiting_is_weighed_against_dollars() -> None:
    fast = Option("fast", 0.01, Cost(server_seconds=1.0, usd=0.005))
    slow = Option("slow", 0.01, Cost(server_seconds=9.0, usd=0.001))
    policy = SpeedOblivious()
    assert choose(policy, fast, slow, prices={"usd": 1.0, "seconds": 1e-4}) == "slow"
    assert choose(policy, fast, slow, prices={"usd": 1.0, "seconds": 1e-3}) == "fast"


def test_what_is_measured_corrects_the_prediction_of_that_server_only() -> None:
    a, b = server("a", 1.0), server("b", 2.0)
    policy = SpeedOblivious(newest=0.2)
    assert choose(policy, a, b) == "a"
    for k in range(40):
        policy.learn(Outcome(str(k), "ok", "a", Cost(server_seconds=8.0), state=State(0.0, [a, b])))
    assert policy.seconds(a) == pytest.approx(
        8.0 ** (5.0 / 6.0), rel=0.01
    )  # five count, against a doubt of one
    assert policy.seconds(b) == 2.0
    assert choose(policy, a, b) == "b"
    for k in range(40):  # failures and answers that were cut say nothing of speed
        policy.learn(Outcome(str(k), "failed", "b", Cost(server_seconds=99.0), state=State(0.0, [a, b])))
        policy.learn(
            Outcome(str(k), "ok", "b", Cost(server_seconds=99.0), censored=True, state=State(0.0, [b]))
        )
    assert policy.seconds(b) == 2.0


def test_predictions_that_are_noise_are_drawn_to_the_mean_and_true_ones_are_left() -> None:
    draw = random.Random(1)
    noisy, true = SpeedOblivious(), SpeedOblivious()
    for k in range(400):
        service_s, guess_s = draw.lognormvariate(0.0, 0.5), draw.lognormvariate(0.0, 1.5)
        spent = Cost(server_seconds=service_s)
        for policy, predicted in ((noisy, guess_s), (true, service_s)):
            policy.learn(Outcome(str(k), "ok", "a", spent, state=State(0.0, [server("a", predicted)])))
    for predicted in (0.1, 1.0, 10.0):
        assert 0.4 < noisy.seconds(server("a", predicted)) < 2.5
        assert true.seconds(server("a", predicted)) == pytest.approx(predicted)


def test_fair_takes_the_server_that_gives_the_largest_share_of_speed() -> None:
    policy = SpeedOblivious(rule="fair")
    fast = server("fast", None, speed=4.0, pending=[(1.0, 1.0)] * 3)
    assert choose(policy, fast, server("slow", None, speed=0.9, pending=[])) == "fast"
    assert choose(policy, fast, server("slow", None, speed=1.1, pending=[])) == "slow"
    assert choose(policy, fast, server("slow", None, speed=1.1, pending=[]), weight=9.0) == "fast"


def test_ordered_fills_the_fastest_first_and_then_the_least_loaded() -> None:
    policy = SpeedOblivious(rule="ordered", fastest_first=["big", "little"])
    assert choose(policy, server("little", load=0.0), server("big", load=0.5)) == "big"
    assert choose(policy, server("little", load=0.5), server("big", load=1.0)) == "little"
    assert choose(policy, server("little", load=2.0), server("big", load=2.0)) == "big"
    assert choose(policy, server("unnamed", load=0.0), server("little", load=0.9)) == "little"


def test_an_order_can_be_learned() -> None:
    policy = SpeedOblivious(rule="ordered")
    for name, service_s in [("slow", 9.0), ("fast", 1.0)]:
        policy.learn(Outcome("d", "ok", name, Cost(server_seconds=service_s)))
    assert choose(policy, server("slow"), server("fast")) == "fast"


def test_slots_share_what_is_ahead() -> None:
    ahead = [(1.0, 2.0)] * 4
    policy = SpeedOblivious()
    assert (
        choose(
            policy, server("one", 2.0, pending=ahead, slots=1), server("four", 3.0, pending=ahead, slots=4)
        )
        == "four"
    )
