"""CARROT's excess risk on the hardest smooth qualities, by the number of labelled requests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apportion.core import Cost, Option, Outcome, Policy, State, catalogue
from apportion.core.features import Features

Array = NDArray[np.float64]

OFFER = [Option("known", 1.0, Cost()), Option("bumpy", 1.0, Cost())]


class Bumps:
    """Two models: one right half the time, one half the time plus or minus bumps with slope 1, signs drawn.

    The construction of the lower bound: with n labels, n^(d / (2 + d)) bumps are just too low to be told
    apart.
    """

    def __init__(self, labels: int, d: int, random: np.random.Generator) -> None:
        self.d = d
        self.side = max(1, round(0.8 * labels ** (1.0 / (2 + d))))
        self.signs = random.choice((-1.0, 1.0), (self.side,) * d)

    def quality(self, x: Array) -> Array:
        """The second model's, for points of shape (n, d) in the unit cube."""
        cell = np.minimum((x * self.side).astype(int), self.side - 1)
        centre = (cell + 0.5) / self.side
        height = np.maximum(0.0, 0.5 / self.side - np.abs(x - centre).max(axis=1))
        return 0.5 + self.signs[tuple(cell.T)] * height


def excess(labels: int, d: int, seed: int, points: int = 400) -> float:
    """The quality that the choices of a fitted `route/carrot` lose against the best choice."""
    random = np.random.default_rng(seed)
    world = Bumps(labels, d, random)
    k = max(1, round(0.6 * labels ** (2.0 / (2 + d))))
    policy = catalogue.build(
        "route/carrot", mu=0.0, features="vector", dimensions=d + 1, k=k, memory=2 * labels, seed=seed
    )
    assert isinstance(policy, Policy)
    x = random.random((labels, d))
    chance = np.stack([np.full(labels, 0.5), world.quality(x)], axis=1)
    right = (random.random(chance.shape) < chance).astype(float)
    for i in range(labels):
        state = State(float(i), OFFER, features=Features((), tuple(x[i].tolist())))
        for a, option in enumerate(OFFER):
            policy.learn(Outcome(f"{i}", "ok", option.action, Cost(), float(right[i, a]), state=state))
    asked = random.random((points, d))
    quality = world.quality(asked)
    lost = 0.0
    for i in range(points):
        choice = policy.decide(State(0.0, OFFER, features=Features((), tuple(asked[i].tolist())))).choice
        lost += max(quality[i], 0.5) - (quality[i] if choice == 1 else 0.5)
    return lost / points


def measure(sizes: list[int], seeds: int) -> dict[str, Any]:
    """The excess by number of labels and its slope, against the minimax rate n^(-1 / (2 + d))."""
    found = {}
    for d in (1, 2):
        points = []
        for labels in sizes:
            each = [excess(labels, d, seed) for seed in range(seeds)]
            points.append({"labels": labels, "excess": float(np.mean(each))})
        slope = float(np.polyfit(np.log(sizes), np.log([p["excess"] for p in points]), 1)[0])
        found[str(d)] = {"points": points, "slope": slope, "minimax": -1.0 / (2 + d)}
        print(f"  d = {d}: slope {slope:.3f}, minimax {-1.0 / (2 + d):.3f}", flush=True)
    return {"seeds": seeds, "dimensions": found}
