"""The online knapsack: thresholds against the best packing in hindsight, on random and on adversarial sequences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apportion.core import Cost, Option, Policy, State, catalogue
from apportion.solve.online_knapsack import (
    ect,
    ect_slope,
    la_ect,
    la_ect_ratio,
    least_alpha,
    zcl,
    zcl_ratio,
)

Array = NDArray[np.float64]

WEIGHT = 0.002
"""Weight of an item, as a share of the knapsack: small, as the ratios assume."""
ALPHA, GAMMA = 0.66, 0.66
KINDS = ("uniform", "log-uniform", "few good late", "rising", "falling", "rising, stopped")


def sequence(kind: str, highest: float, random: np.random.Generator) -> Array:
    """Densities in [1, ``highest``] of items that come one by one; more of them than fit."""
    n = int(random.uniform(1.2, 4.0) / WEIGHT)
    top = math.log(highest)
    if kind == "uniform":
        return random.uniform(1.0, highest ** random.uniform(0.3, 1.0), n)
    if kind == "log-uniform":
        return np.exp(random.uniform(0.0, top * random.uniform(0.3, 1.0), n))
    if kind == "few good late":
        late = int(random.uniform(0.05, 0.6) * n)
        return np.concatenate(
            (random.uniform(1.0, 2.0, n - late), np.exp(random.uniform(0.6 * top, top, late)))
        )
    steps = np.exp(np.linspace(0.0, top, 20))
    if kind == "rising, stopped":
        steps = steps[: random.integers(1, 21)]
    if kind == "falling":
        steps = steps[::-1]
    return np.repeat(steps, math.ceil(random.uniform(0.1, 1.0) / WEIGHT) + 1)


def gained(densities: Array, threshold: Callable[[float], float]) -> float:
    """What a rule takes, in value, with the knapsack of capacity 1."""
    at = [threshold(k * WEIGHT) for k in range(round(1.0 / WEIGHT))]
    taken, value = 0, 0.0
    for density in densities.tolist():
        if taken == len(at):
            break
        if density >= at[taken]:
            taken += 1
            value += density * WEIGHT
    return value


def best(densities: Array) -> tuple[float, float]:
    """The best packing, of equal weights, and its lowest density."""
    room = round(1.0 / WEIGHT)
    held = np.sort(densities)[::-1][:room]
    return float(held.sum() * WEIGHT), float(held[-1])


def rules(highest: float, critical: float, wrong: float) -> dict[str, tuple[Callable[[float], float], float]]:
    """Name to threshold and proven ratio, with a correction for items that are not infinitely small.

    A threshold that grows as exp(kappa z) loses at most a factor exp(kappa w) to the integral of it, and as
    much again when an item of weight w does not fit any more.
    """

    def small(ratio: float, kappa: float) -> float:
        return ratio * math.exp(2.0 * kappa * WEIGHT)

    rise = zcl_ratio(1.0, highest)
    beta = ect_slope(1.0, highest, ALPHA)
    low = least_alpha(1.0, highest)
    low_beta = ect_slope(1.0, highest, low)
    bad = min(highest, max(1.0, critical * wrong))
    return {
        "accept everything": (lambda z: 0.0, highest),
        "ZCL": (lambda z: zcl(z, 1.0, highest), small(rise, rise)),
        f"ECT[{ALPHA}]": (lambda z: ect(z, 1.0, highest, ALPHA, beta), small(beta, beta)),
        "ECT[least alpha]": (lambda z: ect(z, 1.0, highest, low, low_beta), small(low_beta, low_beta)),
        f"LA-ECT[{GAMMA}], good prediction": (
            lambda z: la_ect(z, 1.0, highest, GAMMA, critical),
            small(la_ect_ratio(1.0, highest, GAMMA), rise / (1.0 - GAMMA)),
        ),
        f"LA-ECT[{GAMMA}], prediction off by 2": (
            lambda z: la_ect(z, 1.0, highest, GAMMA, bad),
            small(la_ect_ratio(1.0, highest, GAMMA), rise / (1.0 - GAMMA)),
        ),
    }


def measure(sequences: int) -> dict[str, Any]:
    """Ratios of the best to what each rule gains, for three spans of density, over ``sequences`` each."""
    found: dict[str, Any] = {}
    for highest in (10.0, 100.0, 500.0):
        random = np.random.default_rng(7)
        ratios: dict[str, list[float]] = {}
        broken: dict[str, int] = {}
        bounds: dict[str, float] = {}
        for k in range(sequences):
            densities = sequence(KINDS[k % len(KINDS)], highest, random)
            optimum, critical = best(densities)
            wrong = float(random.choice((0.5, 2.0)))
            for name, (threshold, bound) in rules(highest, critical, wrong).items():
                ratio = optimum / max(gained(densities, threshold), 1e-12)
                ratios.setdefault(name, []).append(ratio)
                broken[name] = broken.get(name, 0) + (ratio > bound)
                bounds[name] = bound
        found[f"{highest:g}"] = {
            name: {
                "mean": float(np.mean(each)), "p95": float(np.quantile(each, 0.95)), "worst": float(np.max(each)),
                "proven": bounds[name], "above_proven": broken[name],
            }
            for name, each in ratios.items()
        }  # fmt: skip
        print(
            f"  U/L {highest:g}: " + ", ".join(f"{n} {np.mean(e):.2f}" for n, e in ratios.items()), flush=True
        )
    return {"sequences": sequences, "weight": WEIGHT, "spans": found, "policy_differs": policy_differs(200)}


def policy_differs(sequences: int) -> int:
    """Decisions of `admit/time_fair`, over some sequences, that differ from those of the formula."""
    random = np.random.default_rng(3)
    differ = 0
    refuse = Option("refuse", 0.0, Cost(usd=0.0))
    for k in range(sequences):
        densities = sequence(KINDS[k % len(KINDS)], 100.0, random)[:400]
        policy = catalogue.build("admit/time_fair", rule="ect", alpha=ALPHA, lowest=1.0, highest=100.0)
        assert isinstance(policy, Policy)
        used = 0
        for density in densities.tolist():
            offer = [Option("serve", density * WEIGHT, Cost(usd=WEIGHT)), refuse]
            decision = policy.decide(State(0.0, offer, request={"budget_used": used * WEIGHT}))
            accepted = density >= ect(used * WEIGHT, 1.0, 100.0, ALPHA) - 1e-9
            differ += (decision.choice == 0) != accepted
            used += decision.choice == 0
            if used * WEIGHT >= 1.0:
                break
    return differ
