"""S137: unequal servers whose speeds are only predicted, or only ranked, against known speeds and a linear program."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any, NamedTuple

from apportion.core import Cost, Option, Outcome, Policy, State, catalogue
from benchmarks.queueing.sweep import averaged

ERRORS = (1.0, 2.0, 4.0, 8.0, 16.0)
SPEEDS = (8.0, 4.0, 2.0, 1.0)
NAMES = tuple(f"server-{index}" for index in range(len(SPEEDS)))


class Task(NamedTuple):
    """A request: its weight, its seconds on each server, and what was predicted of them."""

    arrived_s: float
    weight: float
    service_s: tuple[float, ...]
    predicted_s: tuple[float, ...]


def instance(n: int, error: float, seed: int, *, bias: bool = False, load: float = 0.8) -> list[Task]:
    """``n`` requests; speeds differ by server and, up to about a factor 2, by request. Predictions are wrong by a
    factor between 1/error and error: for each request and server anew, or (``bias``) once for each server.
    """
    draw, wrong = random.Random(f"tasks-{seed}"), random.Random(f"errors-{seed}")

    def factor() -> float:
        return error ** wrong.uniform(-1.0, 1.0)

    biases = [factor() for _ in SPEEDS]
    tasks, now = [], 0.0
    for _ in range(n):
        now += draw.expovariate(load * sum(SPEEDS))
        size = draw.lognormvariate(-0.5, 1.0)  # mean 1
        service = tuple(size / (speed * draw.lognormvariate(0.0, 0.35)) for speed in SPEEDS)
        guesses = tuple(s * (biases[i] if bias else factor()) for i, s in enumerate(service))
        tasks.append(Task(now, draw.choice((1.0, 1.0, 3.0)), service, guesses))
    return tasks


def total(tasks: Sequence[Task], router: Policy, *, smith: bool) -> float:
    """The sum of weighted completion times (from arrival) when ``router`` sends every request on arrival; servers start
    what waits by weight over predicted seconds (``smith``) or in order of arrival, and interrupt nothing.
    """
    m = len(SPEEDS)
    waiting: list[list[int]] = [[] for _ in range(m)]
    running: list[int | None] = [None] * m
    ends: list[tuple[float, int]] = []
    offers: dict[int, State] = {}
    found = 0.0
    place = 0

    def begin(server: int, now: float) -> None:
        line = waiting[server]
        if running[server] is None and line:
            index = line[0]
            if smith:
                index = max(line, key=lambda k: (tasks[k].weight / tasks[k].predicted_s[server], -k))
            line.remove(index)
            running[server] = index
            heapq.heappush(ends, (now + tasks[index].service_s[server], server))

    while place < len(tasks) or ends:
        if place < len(tasks) and (not ends or tasks[place].arrived_s <= ends[0][0]):
            task = tasks[place]
            now = task.arrived_s
            options = []
            for server in range(m):
                there = [*([] if running[server] is None else [running[server]]), *waiting[server]]
                pending = [(tasks[k].weight, tasks[k].predicted_s[server]) for k in there if k is not None]
                options.append(
                    Option(
                        NAMES[server],
                        0.01,
                        Cost(server_seconds=task.predicted_s[server]),
                        load=float(len(there)),
                        facts={"pending": pending, "slots": 1},
                    )
                )
            state = State(now, options, str(place), {"weight": task.weight})
            choice = router.decide(state).choice
            assert choice is not None
            offers[place] = state
            waiting[choice].append(place)
            place += 1
            begin(choice, now)
        else:
            now, server = heapq.heappop(ends)
            index = running[server]
            assert index is not None
            running[server] = None
            task = tasks[index]
            found += task.weight * (now - task.arrived_s)
            if router.learns:
                spent = Cost(server_seconds=task.service_s[server])
                router.learn(Outcome(str(index), "ok", NAMES[server], spent, state=offers.pop(index)))
            begin(server, now)
    return found


def bound(tasks: Sequence[Task], bins: int = 160) -> float:
    """A lower bound on the sum of weighted completion times (from arrival) of any schedule, offline: the linear
    program of fractional assignment over time, a request's completion being at least its mean busy time plus half
    its processing, work in a bin counted at the bin's beginning.
    """
    import numpy as np
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix

    m, n = len(SPEEDS), len(tasks)
    # Enough room: all work after the last arrival, at the rate of the slowest part of the fleet.
    span_s = (
        tasks[-1].arrived_s
        + 2.0 * sum(min(t.service_s) for t in tasks) / m
        + 4.0 * max(min(t.service_s) for t in tasks)
    )
    width = span_s / bins
    costs, places, jobs, amounts = [], [], [], []
    for j, task in enumerate(tasks):
        for t in range(int(task.arrived_s / width), bins):
            at = max(task.arrived_s, t * width)
            for i in range(m):
                costs.append(task.weight * ((at - task.arrived_s) / task.service_s[i] + 0.5))
                places.append(t * m + i)
                jobs.append(j)
                amounts.append(1.0 / task.service_s[i])
    columns = np.arange(len(costs))
    upper = coo_matrix((np.ones(len(costs)), (places, columns)), shape=(bins * m, len(costs))).tocsr()
    equal = coo_matrix((amounts, (jobs, columns)), shape=(n, len(costs))).tocsr()
    solved = linprog(
        costs, A_ub=upper, b_ub=np.full(bins * m, width), A_eq=equal, b_eq=np.ones(n), method="highs"
    )
    if not solved.success:
        raise RuntimeError(f"the linear program was not solved: {solved.message}")
    least = sum(task.weight * min(task.service_s) for task in tasks)
    return max(float(solved.fun), least)


def router(name: str, **parameters: Any) -> Policy:
    """A fresh router of the catalogue."""
    found = catalogue.build(f"route/{name}", **parameters)
    assert isinstance(found, Policy)
    return found


def compare(n: int, seeds: int) -> dict[str, Any]:
    """Every rule as a multiple of the bound, for each size of error."""
    greedy: dict[str, Callable[[], Policy]] = {
        "greedy": lambda: router("speed_oblivious", newest=0.0),
        "greedy, corrected": lambda: router("speed_oblivious"),
    }
    blind: dict[str, Callable[[], Policy]] = {
        "fair": lambda: router("speed_oblivious", rule="fair"),
        "ordered": lambda: router("speed_oblivious", rule="ordered", fastest_first=NAMES),
        "least_load (speed-blind)": lambda: router("least_load"),
        "random": lambda: router("random", seed=1),
    }
    bounds = [bound(instance(n, 1.0, seed)) for seed in range(seeds)]
    found: dict[str, Any] = {"random": {}, "bias": {}, "no prediction": {}}
    for kind in ("random", "bias"):
        for error in ERRORS:
            found[kind][f"{error:g}"] = averaged(
                [
                    {
                        name: total(instance(n, error, seed, bias=kind == "bias"), make(), smith=True) / least
                        for name, make in greedy.items()
                    }
                    for seed, least in enumerate(bounds)
                ]
            )
    found["no prediction"] = averaged(
        [
            {
                name: total(_sizes_hidden(instance(n, 1.0, seed)), make(), smith=False) / least
                for name, make in blind.items()
            }
            for seed, least in enumerate(bounds)
        ]
    )
    found["bound"] = mean(bounds)
    return found


def _sizes_hidden(tasks: Sequence[Task]) -> list[Task]:
    """Predictions that know the servers' mean speeds but nothing of the requests."""
    return [task._replace(predicted_s=tuple(1.0 / speed for speed in SPEEDS)) for task in tasks]
