"""Cumulative regret of the bandit routers on synthetic requests, against the best rule in hindsight."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apportion.core import Cost, Option, Outcome, Policy, State, catalogue
from apportion.core.features import Features

Array = NDArray[np.float64]

ARMS, DIMENSIONS, WORTH_USD = 8, 10, 0.01


class LinearWorld:
    """Arms whose chance of a right answer is linear in ten features; the better ones cost more."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        directions = self.random.normal(size=(ARMS, DIMENSIONS))
        self.slopes = 0.35 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
        self.base = np.linspace(0.45, 0.6, ARMS)
        self.costs = np.linspace(0.0002, 0.0016, ARMS)

    def requests(self, n: int) -> tuple[Array, Array]:
        """Features of shape (n, d) and the chance of a right answer of each arm, (n, arms)."""
        x = self.random.normal(size=(n, DIMENSIONS)) / math.sqrt(DIMENSIONS) * 1.5
        x = np.clip(x, -2.0, 2.0)
        return x, np.clip(self.base + x @ self.slopes.T, 0.0, 1.0)


def options(costs: Array) -> list[Option]:
    return [Option(f"arm-{k}", WORTH_USD, Cost(usd=float(cost))) for k, cost in enumerate(costs)]


def linear_regret(make: Callable[[int], Any], rounds: int, seed: int, later_price: float) -> Array:
    """The cumulated regret in dollars of one learner, when a dollar costs ``later_price`` in the second half.

    ``make(seed)`` has ``choose(k, x, price)`` and ``tell(k, x, arm, quality, price)``.
    """
    world = LinearWorld(seed)
    x, chances = world.requests(rounds)
    prices = np.where(np.arange(rounds) < rounds // 2, 1.0, later_price)
    left = WORTH_USD * chances - prices[:, None] * world.costs
    right = world.random.random(chances.shape) < chances
    learner = make(seed)
    regret = np.empty(rounds)
    for k in range(rounds):
        price = float(prices[k])
        arm = learner.choose(k, x[k], price)
        learner.tell(k, x[k], arm, float(right[k, arm]), price)
        regret[k] = left[k].max() - left[k, arm]
    return np.cumsum(regret)


class Ours:
    """A router of the catalogue as a learner."""

    def __init__(self, name: str, seed: int, costs: Array, **parameters: Any) -> None:
        signature = catalogue.find(name).signature()
        own = {"dimensions": DIMENSIONS + 1, **({"seed": seed} if "seed" in signature else {}), **parameters}
        self.policy = catalogue.build(name, **own)
        assert isinstance(self.policy, Policy)
        self.offer = options(costs)
        self.state = State(0.0, self.offer)

    def choose(self, k: int, x: Array, price: float) -> int:
        self.state = State(
            float(k), self.offer, id=str(k), prices={"usd": price}, features=Features(tuple(x.tolist()))
        )
        choice = self.policy.decide(self.state).choice  # type: ignore[union-attr]
        assert choice is not None
        return choice

    def tell(self, k: int, x: Array, arm: int, quality: float, price: float) -> None:
        offered = self.offer[arm]
        self.policy.learn(  # type: ignore[union-attr]
            Outcome(str(k), "ok", offered.action, offered.cost, quality, state=self.state)
        )


class MabWiser:
    """LinUCB or linear Thompson sampling of MABWiser, on the dollars left."""

    def __init__(self, kind: str, seed: int, costs: Array) -> None:
        from mabwiser.mab import MAB, LearningPolicy  # type: ignore[import-not-found]

        policy = LearningPolicy.LinUCB(alpha=0.5) if kind == "ucb" else LearningPolicy.LinTS(alpha=0.5)
        self.bandit = MAB(list(range(ARMS)), policy, seed=seed)
        self.costs, self.fresh = costs, True

    def choose(self, k: int, x: Array, price: float) -> int:
        return k % ARMS if self.fresh else int(self.bandit.predict([_with_one(x)]))

    def tell(self, k: int, x: Array, arm: int, quality: float, price: float) -> None:
        reward = quality - price * float(self.costs[arm]) / WORTH_USD
        if self.fresh:
            self.bandit.fit([arm], [reward], [_with_one(x)])
            self.fresh = False
        else:
            self.bandit.partial_fit([arm], [reward], [_with_one(x)])


class VowpalWabbit:
    """Vowpal Wabbit's contextual bandit with action features' interactions, doubly robust, SquareCB exploration."""

    def __init__(self, kind: str, seed: int, costs: Array) -> None:
        import vowpalwabbit  # type: ignore[import-not-found]

        explore = {"squarecb": "--squarecb --gamma_scale 500", "epsilon": "--epsilon 0.05"}[kind]
        self.workspace = vowpalwabbit.Workspace(
            f"--cb_explore_adf {explore} --cb_type mtr -q CA --quiet --random_seed {seed}"
        )
        self.costs, self.random, self.chance = costs, np.random.default_rng(seed), 1.0

    def _lines(self, x: Array, label: tuple[int, float, float] | None) -> list[str]:
        shared = "shared |C " + " ".join(f"f{i}:{v:.6f}" for i, v in enumerate(x)) + " one:1"
        told = [
            "" if label is None or label[0] != a else f"0:{label[1]:.6f}:{label[2]:.6f} " for a in range(ARMS)
        ]
        return [shared, *[f"{told[a]}|A arm={a}" for a in range(ARMS)]]

    def choose(self, k: int, x: Array, price: float) -> int:
        chances = np.array(self.workspace.predict(self._lines(x, None)))
        arm = int(self.random.choice(ARMS, p=chances / chances.sum()))
        self.chance = float(chances[arm])
        return arm

    def tell(self, k: int, x: Array, arm: int, quality: float, price: float) -> None:
        cost = price * float(self.costs[arm]) / WORTH_USD - quality
        self.workspace.learn(self._lines(x, (arm, cost, self.chance)))


def _with_one(x: Array) -> list[float]:
    return [1.0, *x.tolist()]


def learners(costs: Array) -> dict[str, Callable[[int], Any]]:
    """Name to a maker of each learner that is installed."""
    found: dict[str, Callable[[int], Any]] = {
        "route/linucb": lambda seed: Ours("route/linucb", seed, costs),
        "route/thompson": lambda seed: Ours("route/thompson", seed, costs),
        "route/epsilon_greedy (baseline)": lambda seed: Ours("route/epsilon_greedy", seed, costs),
        "route/linucb without features": lambda seed: Ours("route/linucb", seed, costs, dimensions=1),
    }
    try:
        import mabwiser.mab  # noqa: F401

        found["MABWiser LinUCB"] = lambda seed: MabWiser("ucb", seed, costs)
        found["MABWiser LinTS"] = lambda seed: MabWiser("thompson", seed, costs)
    except ImportError:
        print("MABWiser is not installed: left out (pip install mabwiser, and --peers)", file=sys.stderr)
    try:
        import vowpalwabbit  # noqa: F401

        found["Vowpal Wabbit SquareCB"] = lambda seed: VowpalWabbit("squarecb", seed, costs)
        found["Vowpal Wabbit epsilon-greedy"] = lambda seed: VowpalWabbit("epsilon", seed, costs)
    except ImportError:
        print(
            "Vowpal Wabbit is not installed: left out (pip install vowpalwabbit, and --peers)",
            file=sys.stderr,
        )
    return found


def slope(curve: Sequence[float] | Array, start: float = 0.1) -> float:
    """The slope of log cumulated regret over log rounds, from a ``start`` share of the rounds on."""
    curve = np.asarray(curve, dtype=float)
    rounds = np.arange(1, len(curve) + 1)
    kept = (rounds >= start * len(curve)) & (curve > 0.0)
    return float(np.polyfit(np.log(rounds[kept]), np.log(curve[kept]), 1)[0]) if kept.sum() > 1 else 0.0


def measure(rounds: int, seeds: int, later_price: float) -> dict[str, Any]:
    """Mean curves, final regrets and slopes of every learner."""
    costs = LinearWorld(0).costs
    rows = {}
    for name, make in learners(costs).items():
        repeats = min(seeds, 2) if "MABWiser LinTS" in name else seeds
        curves = np.array([linear_regret(make, rounds, seed, later_price) for seed in range(repeats)])
        rows[name] = summary(curves)
        print(f"  {name}: {rows[name]['final']:.3f} dollars, slope {rows[name]['slope']:.2f}", flush=True)
    return {"rounds": rounds, "seeds": seeds, "later_price": later_price, "rows": rows}


def summary(curves: Array) -> dict[str, Any]:
    """Mean and standard error at the end, slope of the mean curve, and the curve at 60 points."""
    mean = curves.mean(axis=0)
    points = np.unique(np.geomspace(1, len(mean), 60).astype(int))
    return {
        "final": float(mean[-1]),
        "error": float(curves[:, -1].std(ddof=1) / math.sqrt(len(curves))) if len(curves) > 1 else 0.0,
        "slope": slope(mean),
        "seeds": len(curves),
        "curve": [[int(p), float(mean[p - 1])] for p in points],
    }
