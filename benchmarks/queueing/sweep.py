"""The measured service times under Poisson arrivals, simulated: load by load, tenant by tenant, error by error."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from apportion.core import Policy, catalogue
from benchmarks.queueing.events import (
    Served,
    Work,
    concordance,
    figures,
    jain,
    serve,
    shortest_remaining,
    slowdown,
)

LOADS = (0.3, 0.5, 0.7, 0.74, 0.8, 0.9, 0.95)
ERRORS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, math.inf)
Run = Callable[[Sequence[Work]], list[Served]]


def policy(name: str, **parameters: Any) -> Policy:
    """A fresh scheduler of the catalogue."""
    found = catalogue.build(f"schedule/{name}", **parameters)
    assert isinstance(found, Policy)
    return found


def orders(service_s: float) -> dict[str, Run]:
    """What is compared; patience and levels are set by the mean service, as an operator would."""
    patience_s, quantum_s = 50.0 * service_s, 0.5 * service_s

    def by(name: str, **parameters: Any) -> Run:
        return lambda works: serve(works, policy(name, **parameters))

    def known(works: Sequence[Work]) -> list[Served]:
        return serve([work._replace(expected_s=work.service_s) for work in works], policy("sjf"))

    return {
        "fcfs": by("fcfs"),
        "weighted_fair": by("weighted_fair"),
        "predictive_sjf": by("predictive_sjf", starvation_s=patience_s),
        "alise": by("alise", quantum_s=quantum_s, ageing_s=patience_s / 5.0),
        "priced": by("priced"),
        "spt": known,
        "srpt": shortest_remaining,
    }


def arrivals(
    rows: Sequence[dict[str, Any]], load: float, n: int, seed: int, shares: Sequence[float] = (1.0,)
) -> list[Work]:
    """``n`` requests drawn from the measured ``rows``, coming at random so that the server is busy for ``load``;
    ``shares`` of them belong to tenant 0, 1, ...
    """
    draw = random.Random(f"arrivals-{seed}")
    rate = load / mean(row["service_s"] for row in rows)
    now, works = 0.0, []
    for index in range(n):
        now += draw.expovariate(rate)
        row = draw.choice(rows)
        tenant = draw.choices(range(len(shares)), shares)[0]
        works.append(
            Work(
                f"{index:06}",
                now,
                row["service_s"],
                expected_s=row["expected_s"],
                p_long=row["p_long"],
                kind=row["kind"],
                tenant=str(tenant),
                tokens=row["tokens"],
            )
        )
    return works


def by_load(rows: Sequence[dict[str, Any]], n: int, seeds: int) -> dict[str, dict[str, dict[str, float]]]:
    """For each load and order the mean of the figures over ``seeds``."""
    runs = orders(mean(row["service_s"] for row in rows))
    return {
        f"{load:g}": {
            name: averaged([figures(run(arrivals(rows, load, n, seed))) for seed in range(seeds)])
            for name, run in runs.items()
        }
        for load in LOADS
    }


def by_tenant(rows: Sequence[dict[str, Any]], n: int, seeds: int) -> dict[str, dict[str, float]]:
    """One tenant sends 70% of the requests, three send 10% each. At load 0.95: how much is each slowed down? At load 4,
    where everybody asks for more than a fair share: what does each get?
    """
    shares = (0.7, 0.1, 0.1, 0.1)
    runs = orders(mean(row["service_s"] for row in rows))
    runs["weighted_fair, short first"] = lambda works: serve(works, policy("weighted_fair", short_first=True))
    found = {}
    for name, run in runs.items():
        each = []
        for seed in range(seeds):
            served = run(arrivals(rows, 0.95, n, seed, shares))
            slow = [slowdown(served, str(tenant)) for tenant in range(len(shares))]
            flood = arrivals(rows, 4.0, n // 2, seed, shares)
            had = dict.fromkeys(map(str, range(len(shares))), 0.0)
            for one in run(flood):
                if one.ended_s <= flood[-1].arrived_s:
                    had[one.work.tenant] += one.work.service_s
            each.append(
                {
                    "jain_service": jain(list(had.values())),
                    "slowdown_heavy": slow[0],
                    "slowdown_light": mean(slow[1:]),
                    "max_wait_light_s": max(one.wait_s for one in served if one.work.tenant != "0"),
                }
            )
        found[name] = averaged(each)
    return found


def by_value(rows: Sequence[dict[str, Any]], n: int, seeds: int) -> dict[str, dict[str, float]]:
    """Answers of unequal worth, half of them with a deadline, and waiting that costs: the dollars that remain, as a
    share of all that was to be earned if nobody ever waited.
    """
    service_s = mean(row["service_s"] for row in rows)
    second_usd = 0.0002 / service_s
    rules = {
        "fcfs": policy("fcfs"),
        "edf": policy("edf", patience_s=20.0 * service_s),
        "sjf": policy("sjf"),
        "predictive_sjf": policy("predictive_sjf", starvation_s=50.0 * service_s),
        "priced": policy("priced"),
    }
    found: dict[str, dict[str, float]] = {}
    for load in (0.7, 0.9, 1.1, 1.5):
        each = []
        for seed in range(seeds):
            draw = random.Random(f"values-{seed}")
            works = []
            for work in arrivals(rows, load, n, seed):
                due_s = work.arrived_s + work.service_s + draw.uniform(1.0, 20.0) * service_s
                worth = draw.choice((0.002, 0.005, 0.02))
                hurried = draw.random() < 0.5
                works.append(work._replace(value_usd=worth, deadline_s=due_s if hurried else None))
            most = sum(work.value_usd for work in works)
            shares = {}
            for name, rule in rules.items():
                served = serve(works, rule.clone(), prices={"seconds": second_usd})
                shares[name] = sum(_earned(one, second_usd) for one in served) / most
            exact = [work._replace(expected_s=work.service_s) for work in works]
            served = serve(exact, policy("priced"), prices={"seconds": second_usd})
            shares["priced, true lengths"] = sum(_earned(one, second_usd) for one in served) / most
            each.append(shares)
        found[f"{load:g}"] = averaged(each)
    return found


def _earned(one: Served, second_usd: float) -> float:
    """The worth of an answer that was not late, less the waiting; waiting costs also when it was in vain."""
    late = one.work.deadline_s is not None and one.ended_s > one.work.deadline_s
    return (0.0 if late else one.work.value_usd) - second_usd * one.wait_s


def by_error(rows: Sequence[dict[str, Any]], n: int, seeds: int) -> dict[str, dict[str, float]]:
    """True lengths times log-normal noise at load 0.8 (infinite: noise alone): how good must a prediction be?"""
    found = {}
    for error in ERRORS:
        each = []
        for seed in range(seeds):
            draw = random.Random(f"noise-{seed}")
            works = []
            for work in arrivals(rows, 0.8, n, seed):
                noise = draw.gauss(0.0, 1.0)
                guess = work.service_s * math.exp(error * noise) if error < math.inf else math.exp(noise)
                works.append(work._replace(expected_s=guess, p_long=guess / (1.0 + guess)))
            service_s = mean(work.service_s for work in works)
            runs = orders(service_s)
            sample = works[:400]
            numbers = {
                "ranking": concordance([w.service_s for w in sample], [w.expected_s or 0.0 for w in sample])
            }
            for name in ("fcfs", "predictive_sjf", "alise", "priced", "spt"):
                of_order = figures(runs[name](works))
                numbers[name] = of_order["short_median_s"]
                numbers[f"{name}, mean"] = of_order["short_mean_s"]
            each.append(numbers)
        found[f"{error:g}"] = averaged(each)
    return found


def averaged(each: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every figure."""
    return {name: mean(one[name] for one in each) for name in each[0]}
