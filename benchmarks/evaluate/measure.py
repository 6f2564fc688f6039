"""Many logs of each world: how far the estimates are from the truth, and how often the intervals hold it."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np

from apportion.measure import off_policy
from apportion.measure.off_policy import Interval
from benchmarks.evaluate.data import Outcomes
from benchmarks.evaluate.peer import Peer
from benchmarks.evaluate.world import LOGGING, Log, draw, logging_policy, targets, truth

ROWS = 1000
LEVEL = 0.95
Cell = dict[str, list[float]]


def measured(data: Outcomes, peer: Peer | None, *, logs: int, peer_logs: int) -> list[dict[str, Any]]:
    """One entry for every logging policy, judged policy and measure."""
    found = []
    features = np.column_stack([np.ones(len(data.lexical)), data.lexical])
    for logging, explored in LOGGING.items():
        policy = logging_policy(data, explored)
        for name, target in targets(data).items():
            for measure, table in (("quality", data.quality), ("cost", data.cost)):
                true = truth(target, table)
                cells: defaultdict[str, Cell] = defaultdict(lambda: defaultdict(list))
                effective = []
                for seed in range(logs):
                    generator = np.random.default_rng(seed)
                    log = draw(policy, ROWS, generator)
                    weights = off_policy.importance(target[log.rows], log.chosen, log.propensities)
                    effective.append(off_policy.effective_sample_size(weights))
                    _ours(cells, data, features, log, weights, target, table, true, seed)
                    own = draw(target, ROWS, generator)
                    _add(cells, "had it run itself", own.of(table).mean(), None, true)
                    if peer is not None and seed < peer_logs and measure == "quality":
                        _theirs(cells, peer, features, log, target, table, true, seed)
                found.append(
                    {
                        "data": data.name,
                        "unit": data.unit if measure == "cost" else "",
                        "logging": logging,
                        "policy": name,
                        "measure": measure,
                        "truth": true,
                        "logged": truth(policy, table),
                        "effective": float(np.mean(effective)),
                        "estimators": {key: _summary(cell, true) for key, cell in cells.items()},
                    }
                )
    return found


def _ours(
    cells: defaultdict[str, Cell],
    data: Outcomes,
    features: Any,
    log: Log,
    weights: Any,
    target: Any,
    table: Any,
    true: float,
    seed: int,
) -> None:
    rewards, wanted = log.of(table), target[log.rows]
    seen = np.repeat(features[log.rows][:, None, :], len(data.models), axis=1)
    predicted = off_policy.cross_fit(seen, rewards, log.chosen, seed=seed)
    terms = {
        "as logged": off_policy.naive(rewards),
        "inverse propensity": off_policy.ips(rewards, weights),
        "self-normalised": off_policy.snips(rewards, weights),
        "direct": off_policy.direct(wanted, predicted),
        "doubly robust": off_policy.doubly_robust(rewards, weights, log.chosen, wanted, predicted),
    }
    intervals = off_policy.bootstrap_intervals(list(terms.values()), LEVEL, resamples=500, seed=seed)
    for (name, each), interval in zip(terms.items(), intervals, strict=True):
        _add(cells, name, each.estimate, None if name == "direct" else interval, true)


def _theirs(
    cells: defaultdict[str, Cell],
    peer: Peer,
    features: Any,
    log: Log,
    target: Any,
    table: Any,
    true: float,
    seed: int,
) -> None:
    estimates = peer.estimates(
        features[log.rows][:, 1:],
        log.of(table),
        log.chosen,
        log.propensities,
        target[log.rows],
        intervals=True,
        seed=seed,
    )
    for name, (estimate, interval) in estimates.items():
        _add(cells, f"obp: {name}", estimate, interval, true)


def _add(
    cells: defaultdict[str, Cell], name: str, estimate: float, interval: Interval | None, true: float
) -> None:
    cell = cells[name]
    cell["estimates"].append(float(estimate))
    if interval is not None:
        cell["hits"].append(float(interval.low <= true <= interval.high))
        cell["widths"].append(interval.high - interval.low)


def _summary(cell: Cell, true: float) -> dict[str, float | None]:
    errors = np.array(cell["estimates"]) - true
    hits = cell.get("hits")
    return {
        "logs": float(len(errors)),
        "rmse": float(np.sqrt((errors**2).mean())),
        "bias": float(errors.mean()),
        "bias_error": float(errors.std() / math.sqrt(len(errors))),
        "coverage": float(np.mean(hits)) if hits else None,
        "width": float(np.mean(cell["widths"])) if hits else None,
    }
