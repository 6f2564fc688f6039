"""Routers on toy problems whose answers are known: brute force, balls into bins, fair turns, exact shares."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.core import Cost, Option, Policy, State
from apportion.policy.route.least_load import LeastLoad
from apportion.policy.route.power_of_two import PowerOfTwo, chance
from apportion.policy.route.priced import Priced
from apportion.policy.route.random import Random
from apportion.policy.route.round_robin import RoundRobin
from apportion.policy.route.weighted import Weighted


def servers(loads: list[float]) -> list[Option]:
    return [Option(f"server-{k}", 0.01, Cost(usd=0.0), load=load) for k, load in enumerate(loads)]


amounts = st.floats(0.0, 10.0)
offers = st.lists(
    st.builds(
        lambda value, usd, tokens, load: Option(
            f"{value}-{usd}",
            value,
            Cost(usd=usd) if tokens is None else Cost(usd=usd, tokens=tokens),
            load=load,
        ),
        st.floats(-10.0, 10.0),
        amounts,
        st.one_of(st.none(), amounts),
        st.one_of(st.none(), amounts),
    ),
    min_size=1,
    max_size=6,
)


@given(
    offers, st.fixed_dictionaries({"usd": amounts, "tokens": amounts}), st.sampled_from(["last", "refuse"])
)
def test_priced_is_the_argmax(offer: list[Option], prices: dict[str, float], unknown: str) -> None:
    decision = Priced(unknown=unknown).decide(State(0.0, offer, prices=prices))
    worths = []
    for option in offer:
        known = all(not price or name in option.cost for name, price in prices.items())
        paid = sum(price * option.cost[name] for name, price in prices.items() if price) if known else None
        worths.append(None if paid is None else option.value - paid)
    assert decision.worths == pytest.approx(worths)
    best = [worth for worth in decision.worths if worth is not None]
    if best:
        assert decision.choice is not None
        assert decision.worths[decision.choice] == max(best)
    elif unknown == "refuse":
        assert decision.choice is None
        assert decision.why == "no option has a known cost in every priced resource"
    else:
        assert decision.choice is not None
        assert offer[decision.choice].value == max(option.value for option in offer)


def test_priced_bends_to_prices() -> None:
    small, large = Option("small", 0.010, Cost(usd=0.001)), Option("large", 0.018, Cost(usd=0.005))
    chosen = [
        Priced().decide(State(0.0, [small, large], prices={"usd": price})).action
        for price in (0.0, 1.0, 1.9, 2.1)
    ]
    assert chosen == ["large", "large", "large", "small"]


def test_priced_breaks_ties_by_load_then_by_place() -> None:
    def offer(*loads: float | None) -> State:
        return State(0.0, [Option(str(k), 0.01, Cost(), load=load) for k, load in enumerate(loads)])

    assert Priced().decide(offer(0.5, 0.2, 0.2)).choice == 1
    assert Priced().decide(offer(None, 0.9)).choice == 1
    assert Priced().decide(offer(None, None)).choice == 0
    unknown = [Option(str(k), 0.01, Cost(), load=load) for k, load in enumerate((0.9, 0.1))]
    assert Priced().decide(State(0.0, unknown, prices={"usd": 1.0})).choice == 1


def test_priced_passes_over_what_is_not_a_number() -> None:
    offer = [Option("odd", math.nan, Cost(usd=0.0)), Option("bad", -1.0, Cost(usd=0.0))]
    decision = Priced().decide(State(0.0, offer, prices={"usd": 1.0}))
    assert (decision.action, decision.worths) == ("bad", (None, -1.0))


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_the_stated_probability_of_power_of_two_is_the_enumerated_one(d: int) -> None:
    loads = [0.3, 0.1, 0.3, 0.7, math.inf]
    draws = list(itertools.permutations(range(len(loads)), d))
    won = Counter(min(draw, key=loads.__getitem__) for draw in draws)
    for index in range(len(loads)):
        assert chance(loads, index, d) == pytest.approx(won[index] / len(draws))


def imbalance(policy: Policy, balls: int, bins: int, refresh: int = 1) -> int:
    """Throw ``balls`` into ``bins`` as the policy says; by how much the fullest is above the mean.

    The policy sees the loads of the last multiple of ``refresh`` balls.
    """
    loads = [0] * bins
    seen = servers([0.0] * bins)
    for ball in range(balls):
        if refresh > 1 and ball % refresh == 0:
            seen = servers([float(load) for load in loads])
        choice = policy.decide(State(float(ball), seen)).choice
        assert choice is not None
        loads[choice] += 1
        if refresh == 1:
            seen[choice].load = float(loads[choice])
    return max(loads) - balls // bins


@pytest.mark.parametrize("seed", range(3))
def test_two_choices_balance_far_better_than_one(seed: int) -> None:
    """Berenbrink et al.: log log n / log 2 + O(1) above the mean for two choices, about sqrt(m log n / n)
    for one.
    """
    one, two = (imbalance(policy, 10_000, 50) for policy in (Random(seed=seed), PowerOfTwo(seed=seed)))
    assert two <= 5
    assert one >= 15
    assert imbalance(LeastLoad(seed=seed), 2_000, 100) == 0
    assert imbalance(RoundRobin(), 2_000, 100) == 0


@pytest.mark.parametrize("seed", range(3))
def test_with_old_loads_two_choices_beat_the_shortest_line(seed: int) -> None:
    two = imbalance(PowerOfTwo(seed=seed), 5_000, 50, refresh=250)
    all_ = imbalance(LeastLoad(seed=seed), 5_000, 50, refresh=250)
    assert two < all_ / 2


def test_least_load_draws_ties_evenly_and_leaves_unknown_loads_last() -> None:
    policy = LeastLoad(seed=1)
    offer = [
        Option("unknown", 1.0, Cost()),
        *servers([0.5, 0.2, 0.2]),
        Option("odd", 1.0, Cost(), load=math.nan),
    ]
    seen = Counter(policy.decide(State(0.0, offer)).action for _ in range(2000))
    assert seen.keys() == {"server-1", "server-2"}
    assert abs(seen["server-1"] - 1000) < 150
    assert policy.decide(State(0.0, offer)).probability == 0.5
    blind = policy.decide(State(0.0, [Option("a", 1.0, Cost()), Option("b", 1.0, Cost())]))
    assert blind.probability == 0.5


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_round_robin_takes_exact_turns(n: int) -> None:
    policy = RoundRobin()
    seen = Counter(policy.decide(State(0.0, servers([0.0] * n))).action for _ in range(10 * n))
    assert set(seen.values()) == {10}


def test_round_robin_stays_fair_when_options_come_and_go() -> None:
    policy = RoundRobin()
    generator = random.Random(2)
    options = servers([0.0] * 4)
    seen: Counter[str | None] = Counter()
    offered: Counter[str] = Counter()
    for _ in range(6000):
        present = [option for option in options if generator.random() < 0.7]
        generator.shuffle(present)
        if present:
            offered.update(option.action for option in present)
            seen[policy.decide(State(0.0, present)).action] += 1
    shares = [seen[action] / offered[action] for action in offered]
    assert max(shares) - min(shares) < 0.03


def test_weighted_shares() -> None:
    weights = [1.0, 0.0, 3.0, math.nan, 6.0, math.inf, -1.0]
    offer = [Option(str(k), 0.01, Cost(), weight=weight) for k, weight in enumerate(weights)]
    policy = Weighted(seed=3)
    decisions = [policy.decide(State(0.0, offer)) for _ in range(20_000)]
    seen = Counter(decision.choice for decision in decisions)
    assert seen.keys() == {0, 2, 4}
    for choice, share in ((0, 0.1), (2, 0.3), (4, 0.6)):
        assert seen[choice] / 20_000 == pytest.approx(share, abs=0.015)
        (stated,) = {decision.probability for decision in decisions if decision.choice == choice}
        assert stated == pytest.approx(share)
    drained = policy.decide(State(0.0, [Option("a", 1.0, Cost(), weight=0.0)]))
    assert drained.explain() == "Chose nothing: every option has weight 0. Offered: a."
    huge = [Option(name, 1.0, Cost(), weight=1.7e308) for name in "abc"]
    assert policy.decide(State(0.0, huge)).probability == pytest.approx(1 / 3)


def test_random_draws_evenly() -> None:
    policy = Random(seed=4)
    seen = Counter(policy.decide(State(0.0, servers([0.0] * 5))).choice for _ in range(10_000))
    assert all(abs(count - 2000) < 200 for count in seen.values())
