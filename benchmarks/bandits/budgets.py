"""Budgets that refill: reward against the best mixture in hindsight, and stocks that must not go below zero."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apportion.core import Cost, Option, Outcome, Policy, State, catalogue

Array = NDArray[np.float64]

RESOURCES = ("gpu", "usd")
ACTIONS = ("large", "small", "earn", "refuse")
VOID = 3
SHARE = 0.25
"""The starting stock of each resource over the horizon, in units of the most that a round can cost."""
RESTORED = 0.1
"""What refusing restores of each resource."""


class World:
    """Rounds with a reward of each action in [0, 1] and a cost of each resource in [-1, 1].

    "earn" brings the first resource in and costs some of the second; refusing restores both.
    """

    def __init__(self, rounds: int, seed: int, kind: str) -> None:
        random = np.random.default_rng(seed)
        reward = np.array([0.8, 0.45, 0.1, 0.0])
        cost = np.array([[0.8, 0.7], [0.3, 0.35], [-0.6, 0.2], [-RESTORED, -RESTORED]])
        means = np.tile(reward, (rounds, 1))
        spent = np.tile(cost, (rounds, 1, 1))
        if kind == "poor, then rich":
            means[: rounds // 2, :2] *= 0.25
        elif kind == "rich, then poor":
            means[rounds // 2 :, :2] *= 0.25
        elif kind == "blocks":
            block = (np.arange(rounds) * 10 // rounds) % 2 == 0
            means[block, :2] *= 0.1
            spent[~block, 2, 0] = 0.2
        self.rewards = (random.random(means.shape) < means).astype(float)
        self.costs = np.where(random.random(spent.shape) < np.abs(spent), np.sign(spent), 0.0)
        self.costs[:, VOID] = -RESTORED
        self.budget = SHARE * rounds
        self.mean_rewards, self.mean_costs = means.mean(axis=0), spent.mean(axis=0)

    def optimum(self) -> float:
        """Reward of the best fixed mixture of actions that spends the budget on average (a linear program)."""
        from scipy.optimize import linprog

        rounds = len(self.rewards)
        solved = linprog(
            -self.mean_rewards, A_ub=self.mean_costs.T, b_ub=np.full(2, self.budget / rounds),
            A_eq=np.ones((1, 4)), b_eq=[1.0],
        )  # fmt: skip
        return float(-solved.fun * rounds)


def make(primal: str, rounds: int, budget: float, seed: int) -> Policy:
    policy = catalogue.build(
        "admit/primal_dual_budget", primal=primal, horizon=rounds, value_usd=1.0, cap=1e9, seed=seed,
        budgets=dict.fromkeys(RESOURCES, budget), most=dict.fromkeys(RESOURCES, 1.0), most_price=1.0,
    )  # fmt: skip
    assert isinstance(policy, Policy)
    return policy


def offer(world: World, k: int, primal: str) -> list[Option]:
    """With "exp3" nothing is known beforehand; else what each action brings and costs in this round."""
    if primal == "exp3":
        return [Option(name, 0.5 if name != "refuse" else 0.0, Cost(), quality=0.5) for name in ACTIONS]
    return [
        Option(
            name,
            float(world.rewards[k, a]),
            Cost(gpu=float(world.costs[k, a, 0]), usd=float(world.costs[k, a, 1])),
        )
        for a, name in enumerate(ACTIONS)
    ]


def play(world: World, policy: Policy, primal: str, late: int = 0, seed: int = 0) -> tuple[float, float]:
    """Reward of all rounds and the least that a stock ever was, by books of our own; up to ``late`` outcomes late."""
    random = np.random.default_rng(seed)
    stock = np.full(2, world.budget)
    reward, least = 0.0, float(world.budget)
    waiting: list[Outcome] = []
    for k in range(len(world.rewards)):
        state = State(float(k), offer(world, k, primal), id=str(k))
        choice = policy.decide(state).choice
        assert choice is not None
        spent = world.costs[k, choice]
        stock -= spent
        least = min(least, float(stock.min()))
        reward += float(world.rewards[k, choice])
        cost = Cost(gpu=float(spent[0]), usd=float(spent[1]))
        waiting.append(
            Outcome(str(k), "ok", ACTIONS[choice], cost, float(world.rewards[k, choice]), state=state)
        )
        if late:
            random.shuffle(waiting)
        while len(waiting) > late:
            policy.learn(waiting.pop())
    return reward, least


def offered_optimum(world: World) -> float:
    """At least the reward of the best choice for each round knowing all rounds.

    Any prices on the two resources bound it from above (weak duality); the lowest bound is searched for.
    """
    from scipy.optimize import minimize

    def bound(prices: Array) -> float:
        prices = np.maximum(prices, 0.0)
        return float((world.rewards - world.costs @ prices).max(axis=1).sum() + world.budget * prices.sum())

    found = [
        minimize(bound, start, method="Nelder-Mead", options={"xatol": 1e-4})
        for start in ([0.5, 0.5], [1.0, 0.1])
    ]
    return min(float(each.fun) for each in found)


def measure(horizons: list[int], seeds: int, books: int) -> dict[str, Any]:
    """Regret by horizon with its slope; the share of the optimum under adversaries; the least stock of many runs."""
    stochastic: dict[str, Any] = {}
    for primal in ("exp3", "hedge", "offered"):
        points = []
        for rounds in horizons:
            regrets = []
            for seed in range(seeds):
                world = World(rounds, 100 + seed, "drawn")
                best = offered_optimum(world) if primal == "offered" else world.optimum()
                regrets.append(best - play(world, make(primal, rounds, world.budget, seed), primal)[0])
            points.append({"rounds": rounds, "regret": float(np.mean(regrets)), "optimum": best})
            print(f"  {primal} {rounds}: regret {points[-1]['regret']:.1f} of {best:.0f}", flush=True)
        x, y = np.log(horizons), np.log([max(point["regret"], 1.0) for point in points])
        stochastic[primal] = {"points": points, "slope": float(np.polyfit(x, y, 1)[0])}
    alpha = (SHARE + RESTORED) / (1.0 + RESTORED)
    adversarial: dict[str, Any] = {}
    for kind in ("poor, then rich", "rich, then poor", "blocks"):
        for primal in ("exp3", "hedge", "offered"):
            shares = []
            for seed in range(seeds):
                rounds = horizons[len(horizons) // 2]
                world = World(rounds, 200 + seed, kind)
                reward, _ = play(world, make(primal, rounds, world.budget, seed), primal)
                shares.append(reward / (offered_optimum(world) if primal == "offered" else world.optimum()))
            adversarial.setdefault(kind, {})[primal] = {
                "mean": float(np.mean(shares)),
                "least": float(min(shares)),
            }
    least = []
    for seed in range(books):
        for primal in ("exp3", "hedge", "offered"):
            world = World(1000, 300 + seed, ("drawn", "poor, then rich", "blocks")[seed % 3])
            world.budget = float(5 + seed % 40)
            late = seed % 4 * 5
            least.append(play(world, make(primal, 1000, world.budget, seed), primal, late=late, seed=seed)[1])
    return {
        "stochastic": stochastic, "adversarial": adversarial, "alpha": alpha, "seeds": seeds, "horizons": horizons,
        "books": {"runs": len(least), "seeds": books, "least": float(min(least))},
    }  # fmt: skip
