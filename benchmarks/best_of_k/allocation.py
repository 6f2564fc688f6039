"""How many samples each problem gets, on recorded counts of samples that passed: exact expectations, no simulation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from apportion.core import Cost, Option
from apportion.reason import _curve
from apportion.reason.best_of_k import BestOfK
from benchmarks.best_of_k.data import Counts, Floats, Ints

MOST = 64
"""Samples a problem may get."""
UNIFORM = (2, 4, 8, 16, 32)
"""Numbers of samples for every problem that are compared with."""
WORTHS = np.geomspace(0.5, 1e7, 140)
"""Worth of a right answer in samples: what is swept to spend more or less."""
RIDGES = (0.03, 0.3, 3.0, 30.0)


@cache
def passed(n: int, right: int, most: int) -> tuple[float, ...]:
    """P(one of the first k of ``n`` samples passed) for k = 0..most: the unbiased estimate of pass@k."""
    failing = [1.0]
    for k in range(most):
        failing.append(failing[-1] * max(0.0, (n - right - k) / (n - k)))
    return tuple(1.0 - f for f in failing)


def evaluate(counts: Counts, seeds: Sequence[int], folds: int = 5) -> list[dict[str, object]]:
    """For every setting and seed: samples of each method at the success of each uniform number."""
    found: list[dict[str, object]] = []
    for s, setting in enumerate(counts.settings):
        n, right = counts.n[s], counts.right[s]
        most = int(min(MOST, n.min()))
        q = np.array([passed(int(a), int(b), most) for a, b in zip(n, right, strict=True)])
        others, others_n = np.delete(counts.right, s, axis=0).T, np.delete(counts.n, s, axis=0).T
        for seed in seeds:
            fold = np.random.default_rng(seed).permutation(len(n)) % folds
            curves = np.zeros((len(n), most + 1))
            for f in range(folds):
                train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
                known, asked, spread = predict(others, others_n, right, n, train, test, seed)
                strategy = BestOfK(max_samples=most)
                strategy.calibrate(
                    "model",
                    [
                        (float(right[i]), float(n[i] - right[i]), p, _sd(p, spread))
                        for i, p in zip(train, known, strict=True)
                    ],
                )
                for i, p in zip(test, asked, strict=True):
                    option = Option("model", 0.0, Cost(), quality=p, quality_sd=_sd(p, spread))
                    curves[i] = _curve.curve(strategy.rates(option), most)
            found.append({"setting": setting, "seed": seed, "most": most, **compare(q, n, right, curves)})
    return found


def predict(
    others: Ints, others_n: Ints, right: Ints, n: Ints, train: Ints, test: Ints, seed: int
) -> tuple[list[float], list[float], float]:
    """The rate on each problem from the other settings' counts on it (problems, settings): ridge regression, its
    strength chosen by cross-validation within the training problems.

    For the training problems as predicted without them, for the test problems, and the share of p (1 - p) that the
    variance of the error is. Without other settings, the mean.
    """
    rate, history = right / n, others / others_n
    if not history.shape[1]:
        history = np.ones((len(n), 1))
    fold = np.random.default_rng(seed).permutation(len(train)) % 5
    held_out = np.zeros((len(RIDGES), len(train)))
    for f in range(5):
        seen, left = train[fold != f], train[fold == f]
        for i, strength in enumerate(RIDGES):
            held_out[i, fold == f] = _ridge(history[seen], rate[seen], history[left], strength)
    errors = np.square(held_out - rate[train])
    best = int(np.argmin(errors.sum(axis=1)))
    middle = held_out[best] * (1.0 - held_out[best])
    noise = rate[train] * (1.0 - rate[train]) / n[train]
    spread = float(np.clip((errors[best] - noise).sum() / middle.sum(), 0.02, 0.98))
    return (
        held_out[best].tolist(),
        _ridge(history[train], rate[train], history[test], RIDGES[best]).tolist(),
        spread,
    )


def _ridge(x: Floats, y: Floats, asked: Floats, strength: float) -> Floats:
    middle, level = x.mean(axis=0), y.mean()
    x = x - middle
    weights = np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ (y - level))
    return np.clip(level + (asked - middle) @ weights, 0.002, 0.998)


def _sd(p: float, spread: float) -> float:
    return float(np.sqrt(spread * p * (1.0 - p)))


def compare(q: Floats, n: Ints, right: Ints, curves: Floats) -> dict[str, object]:
    """Mean samples at the success of each uniform number, by method."""
    problems, most = len(q), q.shape[1] - 1
    draws = np.concatenate([np.zeros((problems, 1)), np.cumsum(1.0 - q[:, :-1], axis=1)], axis=1)
    each = np.arange(problems)
    ks = range(1, most + 1)
    gains, true_gains = np.diff(curves, axis=1), np.diff(q, axis=1)
    chances = gains / np.maximum(1.0 - curves[:, :-1], 1e-12)
    rate = (right / n)[:, None]
    frontiers = {
        "stop at the first that passes": [(draws[:, k].mean(), q[:, k].mean()) for k in ks],
        "ours, k fixed beforehand": _sweep(gains, q, None),
        "ours, checked after each": _sweep(chances, q, draws),
        "best possible, k fixed beforehand": _sweep(true_gains, q, None),
        "best possible, checked after each": _sweep(np.repeat(rate, most, axis=1), q, draws),
    }
    uniform = {k: float(q[each, k].mean()) for k in UNIFORM if k < most}
    return {
        "success": uniform,
        "samples": {
            name: {k: _samples_for(points, goal, float(k)) for k, goal in uniform.items()}
            for name, points in frontiers.items()
        },
        "gain": {
            name: {k: _success_for(points, float(k)) for k in uniform}
            for name, points in frontiers.items()
            if "beforehand" in name
        },
    }


def _sweep(value: Floats, q: Floats, draws: Floats | None) -> list[tuple[float, float]]:
    """(mean samples, mean success) when sample k + 1 is drawn while ``value[:, k]`` pays at each worth; always one."""
    each = np.arange(len(q))
    points = []
    for worth in WORTHS:
        pays = value * worth > 1.0
        k = np.maximum(1, np.where(pays.all(axis=1), pays.shape[1], pays.argmin(axis=1)))
        spent = k if draws is None else draws[each, k]
        points.append((float(spent.mean()), float(q[each, k].mean())))
    return points


def _samples_for(points: list[tuple[float, float]], goal: float, otherwise: float) -> float:
    """The fewest mean samples that reach ``goal``, between points by mixing the two."""
    before = (1.0, 0.0)
    for samples, success in sorted(points):
        if success >= goal - 1e-12:
            low, high = before[1], success
            share = (goal - low) / (high - low) if high > low and before[1] > 0.0 else 1.0
            return float(before[0] + share * (samples - before[0])) if before[1] > 0.0 else float(samples)
        before = (samples, success) if success > before[1] else before
    return otherwise


def _success_for(points: list[tuple[float, float]], samples: float) -> float:
    """The success that ``samples`` in the mean buy."""
    ordered = sorted(points)
    return float(np.interp(samples, [p[0] for p in ordered], np.maximum.accumulate([p[1] for p in ordered])))


def summary(runs: Sequence[dict[str, object]]) -> dict[str, object]:
    """Over settings and seeds: share of samples saved against uniform k, with the standard error over settings."""
    found: dict[str, object] = {
        "settings": len({run["setting"] for run in runs}),
        "saved": {},
        "share_of_gain": {},
    }
    for k in UNIFORM:
        of_k = [run for run in runs if k in run["success"]]  # type: ignore[operator]
        if not of_k:
            continue
        row: dict[str, object] = {"success": float(np.mean([run["success"][k] for run in of_k]))}  # type: ignore[index]
        for name in of_k[0]["samples"]:  # type: ignore[attr-defined]
            by_setting: dict[object, list[float]] = {}
            for run in of_k:
                by_setting.setdefault(run["setting"], []).append(1.0 - run["samples"][name][k] / k)  # type: ignore[index]
            means = [float(np.mean(values)) for values in by_setting.values()]
            row[name] = {
                "mean": float(np.mean(means)),
                "se": float(np.std(means) / max(1.0, np.sqrt(len(means) - 1.0))),
                "least": min(means),
                "samples": k * (1.0 - float(np.mean(means))),
            }
        found["saved"][k] = row  # type: ignore[index]
        ours = np.array([run["gain"]["ours, k fixed beforehand"][k] - run["success"][k] for run in of_k])  # type: ignore[index]
        best = np.array(
            [run["gain"]["best possible, k fixed beforehand"][k] - run["success"][k] for run in of_k]
        )  # type: ignore[index]
        found["share_of_gain"][k] = float(ours.sum() / best.sum()) if best.sum() > 0 else None  # type: ignore[index]
    return found
