"""The two modes: filling by price, spreading by load, and not going back and forth."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import Cost, Option, Outcome, State
from apportion.policy.route.cost_capacity import CostCapacity


def pools(
    *loads: float | None, capacity: tuple[float, ...] = (), healthy: tuple[bool, ...] = ()
) -> list[Option]:
    """Pools p0, p1, ... each dearer than the one before."""
    return [
        Option(f"p{k}", 0.0, Cost(usd=0.001 * (k + 1)), load=load, facts={
            "capacity": capacity[k] if capacity else 10.0, "healthy": healthy[k] if healthy else True
        })
        for k, load in enumerate(loads)
    ]  # fmt: skip


def asked(policy: CostCapacity, now: float, *loads: float | None, **more: tuple[float, ...]) -> str | None:
    return policy.decide(State(now, pools(*loads, **more), prices={"usd": 1.0})).action  # type: ignore[arg-type]


def test_cost_mode_fills_the_cheapest_first() -> None:
    policy = CostCapacity(full=0.8)
    assert [asked(policy, 0.0, *loads) for loads in ((0.0, 0.0, 0.0), (0.79, 0.0, 0.0), (0.8, 0.1, 0.0))] == [
        "p0",
        "p0",
        "p1",
    ]
    assert asked(policy, 0.0, 0.9, 0.85, 0.2) == "p2"


def test_prices_decide_which_is_cheapest() -> None:
    policy = CostCapacity()
    options = [
        Option("power", 0.0, Cost(usd=0.001, joules=100.0)),
        Option("dear", 0.0, Cost(usd=0.002, joules=1.0)),
    ]
    assert policy.decide(State(0.0, options, prices={"usd": 1.0})).action == "power"
    assert policy.decide(State(0.0, options, prices={"usd": 1.0, "joules": 1e-4})).action == "dear"


def test_shortage_spreads_and_calm_brings_cost_back_after_a_while() -> None:
    policy = CostCapacity(hold_s=30.0)
    assert asked(policy, 0.0, 1.0, 0.95, 0.9) == "p2"
    assert policy.mode == "capacity"
    assert asked(policy, 10.0, 0.5, 0.4, 0.45) == "p1", "calm, but not for long enough"
    assert asked(policy, 39.0, 0.5, 0.4, 0.45) == "p1"
    assert asked(policy, 41.0, 0.5, 0.4, 0.45) == "p0"
    assert policy.mode == "cost"


def test_capacity_counts_by_its_size() -> None:
    policy = CostCapacity()
    asked(policy, 0.0, 1.0, 0.2, capacity=(10.0, 90.0))
    assert policy.mode == "cost"
    asked(policy, 0.0, 0.2, 1.0, capacity=(10.0, 90.0))
    assert policy.mode == "capacity"


@settings(max_examples=50)
@given(st.lists(st.floats(0.0, 1.2), min_size=50, max_size=300), st.floats(5.0, 60.0))
def test_cost_mode_never_comes_back_sooner_than_it_may(loads: list[float], hold_s: float) -> None:
    policy = CostCapacity(hold_s=hold_s)
    left_at, returns = -math.inf, []
    mode = "cost"
    for second, load in enumerate(loads):
        asked(policy, float(second), load, load)
        if policy.mode != mode:
            if policy.mode == "capacity":
                left_at = float(second)
            else:
                returns.append(second - left_at)
            mode = policy.mode
    assert all(stayed >= hold_s for stayed in returns)


def test_relapses_make_it_patient() -> None:
    policy = CostCapacity(hold_s=10.0)
    now, waits = 0.0, []
    for _ in range(4):
        asked(policy, now, 1.0, 1.0)
        began = now
        while policy.mode == "capacity":
            now += 1.0
            asked(policy, now, 0.1, 0.1)
        waits.append(now - began)
        now += 1.0
    assert waits == [11.0, 21.0, 41.0, 81.0]


def test_late_answers_are_a_shortage() -> None:
    policy = CostCapacity(target_s=1.0)
    state = State(0.0, pools(0.3, 0.1), prices={"usd": 1.0})
    for k in range(64):
        policy.learn(Outcome(str(k), "ok", "p0", Cost(), latency_s=2.0 if k % 10 == 0 else 0.5, state=state))
    assert policy.decide(state).action == "p1"
    assert policy.mode == "capacity"


def test_a_failed_pool_is_left_alone_and_its_capacity_is_gone() -> None:
    policy = CostCapacity(hold_s=30.0)
    state = State(100.0, pools(0.3, 0.75), prices={"usd": 1.0})
    policy.learn(Outcome("a", "failed", "p0", Cost(), latency_s=1.0, state=state))
    assert asked(policy, 102.0, 0.0, 0.75) == "p1"
    assert asked(policy, 102.0, 0.0, 0.9) == "p1"
    assert policy.mode == "capacity", "what is left is loaded above the level"
    assert asked(policy, 140.0, 0.0, 0.9) == "p0", "it is tried again"


def test_with_every_pool_down_all_are_tried() -> None:
    policy = CostCapacity()
    options = pools(0.5, 0.2, healthy=(False, False))
    assert policy.decide(State(0.0, options, prices={"usd": 1.0})).action == "p1"
