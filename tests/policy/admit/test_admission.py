"""Admission: thresholds as proven, budgets that are never overdrawn, prices that settle."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import Cost, Option, Outcome, ParameterError, State
from apportion.policy.admit.always import Always
from apportion.policy.admit.primal_dual_budget import PrimalDualBudget
from apportion.policy.admit.time_fair import TimeFair

REFUSE = Option("refuse", 0.0, Cost(usd=0.0))


def test_always_takes_the_most_valuable_way() -> None:
    offer = [Option("cheaper", 0.005, Cost(usd=0.001)), Option("fully", 0.01, Cost(usd=9.0)), REFUSE]
    assert Always().decide(State(0.0, offer, prices={"usd": 1.0})).action == "fully"
    assert Always().decide(State(0.0, [REFUSE], prices={"usd": 1.0})).action == "refuse"


# one budget that fills up


@settings(max_examples=100)
@given(
    st.sampled_from(["ect", "zcl", "la_ect", "static"]),
    st.floats(0.0, 1.0),
    st.floats(1.0, 100.0),
    st.floats(1e-4, 0.1),
)
def test_the_choice_is_the_threshold_rule(rule: str, used: float, density: float, weight: float) -> None:
    policy = TimeFair(rule=rule, lowest=1.0, highest=100.0, predicted=7.0)
    offer = [Option("serve", density * weight, Cost(usd=weight)), REFUSE]
    decision = policy.decide(State(0.0, offer, request={"budget_used": used}))
    asked = policy.threshold(used)
    if abs(density - asked) > 1e-6 * asked:
        assert decision.action == ("serve" if density > asked else "refuse")


def test_value_is_what_is_left_after_prices() -> None:
    policy = TimeFair(rule="static", lowest=1.0, predicted=4.0, resource="tokens")
    offer = [Option("serve", 1.0, Cost(usd=0.5, tokens=0.1)), REFUSE]
    assert policy.decide(State(0.0, offer, prices={"usd": 1.0})).action == "serve"
    assert policy.decide(State(0.0, offer, prices={"usd": 1.5})).action == "refuse"


def test_a_cheaper_way_is_taken_when_the_full_one_is_too_dear() -> None:
    policy = TimeFair(rule="zcl", lowest=1.0, highest=100.0)
    offer = [Option("fully", 0.100, Cost(usd=0.010)), Option("cheaper", 0.060, Cost(usd=0.002)), REFUSE]
    chosen = [
        policy.decide(State(0.0, offer, request={"budget_used": used})).action for used in (0.0, 0.55, 0.95)
    ]
    assert chosen == ["fully", "cheaper", "refuse"]


def test_utilisation_is_the_greater_and_a_request_may_predict() -> None:
    policy = TimeFair(rule="la_ect", lowest=1.0, highest=100.0, gamma=1.0)
    offer = [Option("serve", 0.05, Cost(usd=0.01)), REFUSE]
    for critical, action in ((4.0, "serve"), (6.0, "refuse")):
        request = {"critical_density": critical, "budget_used": None, "load": 0.5}
        assert policy.decide(State(0.0, offer, request=request)).action == action
    by_load = TimeFair(rule="ect", lowest=1.0, highest=100.0)
    assert by_load.decide(State(0.0, offer, request={"budget_used": 0.1, "load": 0.95})).action == "refuse"


def test_bounds_the_wrong_way_round_are_named() -> None:
    with pytest.raises(ParameterError, match="must be above lowest"):
        TimeFair(lowest=2.0, highest=1.0)


def test_without_a_refusal_on_offer_it_chooses_nothing() -> None:
    policy = TimeFair(rule="static", lowest=10.0)
    decision = policy.decide(State(0.0, [Option("serve", 0.01, Cost(usd=0.01))]))
    assert decision.choice is None
    assert decision.why


# budgets that refill


def serve(policy: PrimalDualBudget, now: float, spent: float, value: float = 1.0, **more: Any) -> bool:
    offer = [Option("serve", value, Cost(usd=more.get("predicted", 1.0))), REFUSE]
    decision = policy.decide(State(now, offer, id=f"{now}"))
    served = decision.choice == 0
    policy.learn(Outcome(f"{now}", "ok", decision.action, Cost(usd=spent if served else 0.0), 1.0))
    return served


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["offered", "hedge", "exp3"]),
    st.floats(0.0, 6.0),
    st.floats(0.0, 0.3),
    st.integers(0, 20),
    st.integers(0, 10_000),
)
def test_no_stock_is_ever_overdrawn(primal: str, budget: float, refill: float, late: int, seed: int) -> None:
    generator = random.Random(seed)
    policy = PrimalDualBudget(
        primal=primal, budgets={"usd": budget, "gpu": 3.0}, refill_per_s={"usd": refill},
        most={"usd": 1.0, "gpu": 1.0}, value_usd=1.0, horizon=50, seed=seed,
    )  # fmt: skip
    books = {"usd": budget, "gpu": 3.0}
    waiting: list[Outcome] = []
    for k in range(120):
        if k:
            books["usd"] += min(refill, max(0.0, budget - policy.stock["usd"]))
        offer = [Option("serve", 1.0, Cost(usd=0.3, gpu=0.2)), Option("small", 0.4, Cost()), REFUSE]
        decision = policy.decide(State(float(k), offer, id=str(k)))
        if decision.action != "refuse":
            cost = Cost(usd=generator.random(), gpu=generator.uniform(-1.0, 1.0))
            for name in books:
                books[name] -= cost[name]
                assert books[name] >= -1e-9
            waiting.append(Outcome(str(k), "ok", decision.action, cost, generator.random()))
        generator.shuffle(waiting)
        while len(waiting) > late:
            outcome = waiting.pop()
            policy.learn(outcome)
            policy.learn(outcome)
    assert policy.stock["usd"] <= books["usd"] + 1e-9


def test_the_price_settles_where_income_meets_spending() -> None:
    """Income of 0.25 a round, requests cost 1: the best are a quarter of them, those worth above 0.75."""
    policy = PrimalDualBudget(
        budgets={"usd": 50.0},
        refill_per_s={"usd": 0.25},
        value_usd=1.0,
        horizon=10_000,
        most_price=10.0,
        rate=3.0,
    )
    generator = random.Random(1)
    served, prices = 0, []
    for k in range(6000):
        taken = serve(policy, float(k), 1.0, generator.random())
        served += taken and k >= 2000
        if k >= 2000:
            prices.append(policy.price["usd"])
    assert sum(prices) / len(prices) == pytest.approx(0.75, abs=0.06)
    assert served / 4000 == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("primal", ["hedge", "exp3"])
def test_what_gains_more_per_price_is_drawn_more(primal: str) -> None:
    policy = PrimalDualBudget(
        primal=primal, budgets={"usd": 1e9}, value_usd=1.0, horizon=4000, seed=3, most={"usd": 1.0}
    )
    offer = [Option("good", 0.9, Cost(usd=0.1)), Option("bad", 0.2, Cost(usd=0.1)), REFUSE]
    late = []
    for k in range(4000):
        decision = policy.decide(State(float(k), offer, id=str(k)))
        policy.learn(Outcome(str(k), "ok", decision.action, Cost(usd=0.1 * (decision.choice != 2))))
        late.append(decision.action)
    assert late[2000:].count("good") > 0.85 * 2000


def test_an_outcome_counts_once_and_only_its_own() -> None:
    policy = PrimalDualBudget(budgets={"usd": 10.0}, most={"usd": 2.0}, horizon=100)
    decision = policy.decide(State(0.0, [Option("serve", 0.01, Cost(usd=1.0)), REFUSE], id="a"))
    assert decision.action == "serve"
    assert policy.stock["usd"] == 8.0, "the most is set aside"
    policy.learn(Outcome("b", "ok", "serve", Cost(usd=0.5)))
    policy.learn(Outcome("a", "ok", "another", Cost(usd=0.5)))
    policy.learn(Outcome("a", "ok", "serve", Cost(), 1.0, revised=True))
    assert policy.stock["usd"] == 8.0
    for _ in range(3):
        policy.learn(Outcome("a", "ok", "serve", Cost(usd=0.5)))
    assert policy.stock["usd"] == 9.5


def test_it_goes_on_after_saving() -> None:
    policies = [
        PrimalDualBudget(primal="exp3", budgets={"usd": 20.0}, value_usd=1.0, seed=5) for _ in range(2)
    ]
    for k in range(30):
        serve(policies[0], float(k), 0.4)
    policies[1].load(json.loads(json.dumps(policies[0].save())))
    for k in range(30, 60):
        assert serve(policies[0], float(k), 0.4) == serve(policies[1], float(k), 0.4)
    assert policies[0].stock == policies[1].stock
