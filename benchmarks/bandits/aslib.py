"""Choosing solvers online: only the chosen one's time is seen, and it is stopped at the cutoff."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from apportion.core import Cost, Option, Outcome, Policy, State, catalogue
from apportion.core.features import Features
from benchmarks.bandits.data import Scenario, scenarios

RIDGES = (1.0, 10.0)
WIDTHS = (0.5, 1.0)
EPSILONS = (0.02, 0.05)
GREEDY_RIDGES = (0.1, 1.0, 10.0)

Make = Callable[[Scenario, int], Policy]


def censored(**parameters: Any) -> Make:
    """`route/censored_linear` for a scenario: as many dimensions as features, its cutoff as the limit."""

    def make(scenario: Scenario, seed: int) -> Policy:
        dimensions = min(1 + scenario.features.shape[1], 64)
        return catalogue.build(  # type: ignore[return-value]
            "route/censored_linear", limit=scenario.cutoff_s, dimensions=dimensions, seed=seed, **parameters
        )

    return make


def greedy(**parameters: Any) -> Make:
    """Ridge regression of the penalised time, greedy but for a share of random choices."""

    def make(scenario: Scenario, seed: int) -> Policy:
        dimensions = min(1 + scenario.features.shape[1], 64)
        return catalogue.build(  # type: ignore[return-value]
            "route/epsilon_greedy", dimensions=dimensions, seed=seed, **parameters
        )

    return make


def settings() -> dict[str, list[tuple[str, Make]]]:
    """Each method with its settings, among which the other scenarios choose."""
    found: dict[str, list[tuple[str, Make]]] = {}
    for explore in ("ucb", "thompson"):
        for censoring, said in (
            ("impute", "imputed"),
            ("drop", "stopped dropped"),
            ("limit", "stopped at cutoff"),
        ):
            found[f"{explore}, {said}"] = [
                (
                    f"ridge {r:g}, width {w:g}",
                    censored(explore=explore, censoring=censoring, ridge=r, width=w),
                )
                for r in RIDGES
                for w in WIDTHS
            ]
    found["epsilon-greedy regression"] = [
        (f"ridge {r:g}, epsilon {e:g}", greedy(epsilon=e, ridge=r)) for r in GREEDY_RIDGES for e in EPSILONS
    ]
    return found


def normalised(scenario: Scenario, choices: list[int], order: np.ndarray[Any, Any]) -> float:
    """Mean PAR10 of the choices: 0 is the best solver for each instance, 1 the best single solver."""
    par10 = scenario.par10()
    best, single = par10.min(axis=1).mean(), par10.mean(axis=0).min()
    mine = float(np.mean([par10[i, c] for i, c in zip(order, choices, strict=True)]))
    return (mine - float(best)) / float(single - best)


def play(scenario: Scenario, policy: Policy, order: np.ndarray[Any, Any]) -> tuple[float, float]:
    """One pass over the instances: the normalised PAR10 of all of it, and of its second half."""
    choices = []
    offer = [Option(name, 1.0, Cost(usd=0.0)) for name in scenario.solvers]
    for place, i in enumerate(order):
        features = Features(tuple(scenario.features[i].tolist()))
        state = State(float(place), offer, id=str(place), prices={"seconds": 1e-3}, features=features)
        if policy.parameters().get("epsilon") is not None:
            state = State(float(place), offer, id=str(place), prices={"usd": 1.0}, features=features)
        choice = policy.decide(state).choice
        assert choice is not None
        took_s, stopped = float(scenario.times_s[i, choice]), bool(scenario.stopped[i, choice])
        quality = 0.0 if stopped else 1.0 - took_s / (10.0 * scenario.cutoff_s)
        policy.learn(
            Outcome(
                str(place),
                "ok",
                offer[choice].action,
                Cost(usd=0.0),
                quality,
                took_s,
                censored=stopped,
                state=state,
            )
        )
        choices.append(choice)
    half = len(order) // 2
    return normalised(scenario, choices, order), normalised(scenario, choices[half:], order[half:])


def measure(orders: int) -> dict[str, Any]:
    """Every method on every scenario in ``orders`` seeded orders; its setting is the other scenarios' best."""
    known = scenarios()
    found: dict[str, Any] = {}
    for scenario in known:
        par10 = scenario.par10()
        best = float(par10.min(axis=1).mean())
        chance = (float(par10.mean()) - best) / (float(par10.mean(axis=0).min()) - best)
        found[scenario.name] = {
            "instances": len(scenario.times_s), "solvers": len(scenario.solvers),
            "stopped": float(scenario.stopped.mean()), "rows": {"a random solver": {"mean": chance, "each": []}},
        }  # fmt: skip
    for name, tried in settings().items():
        means = np.zeros((len(tried), len(known), orders, 2))
        for place, (_, make) in enumerate(tried):
            for column, scenario in enumerate(known):
                for k in range(orders):
                    order = np.random.default_rng(1000 + k).permutation(len(scenario.times_s))
                    means[place, column, k] = play(scenario, make(scenario, k), order)
        for column, scenario in enumerate(known):
            others = [c for c in range(len(known)) if c != column] or [column]
            place = int(means[:, others, :, 0].mean(axis=(1, 2)).argmin())
            mine = means[place, column]
            found[scenario.name]["rows"][name] = {
                "setting": tried[place][0], "mean": float(mine[:, 0].mean()),
                "second_half": float(mine[:, 1].mean()), "each": mine[:, 0].tolist(),
            }  # fmt: skip
        overall = np.mean([found[s.name]["rows"][name]["mean"] for s in known])
        print(f"  {name}: normalised PAR10 {overall:.3f}", flush=True)
    return {"orders": orders, "scenarios": found}
