"""Started cold on a stream: only the answer of the model that was chosen is seen.

A request is worth `rate` times its quality less its cost, both as shares of the best single model's. A predictor
learns from each outcome and the best of its predictions is chosen, with a small share of random choices that falls as
one over the square root of the requests seen. Compared with the best fixed model in hindsight, and with the same
predictor fitted to every model's outcome on the other requests (full information).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from apportion.core import catalogue
from apportion.core.predictor import QualityPredictor
from apportion.predict.quality._fit import fit
from benchmarks.routing.data import Absent, Array

NAMES = ("gsm8k_multi_model", "llmrouter_9_models")
RATE = 3.0
PREDICTORS = ("knn", "linear", "mixture")
MOST = 1500


def measure_online(prepare: Callable[[str, bool], Any], quick: bool) -> dict[str, Any]:
    """For each data set the mean worth of each policy, as a share of the best fixed model's, and its late regret."""
    found: dict[str, Any] = {}
    for name in NAMES:
        try:
            data, features = prepare(name, quick)
        except Absent:
            continue
        unit, top = data.cost[:, data.best].mean(), data.quality[:, data.best].mean()
        expected = (data.cost if data.stated_cost is not None else data.cost.mean(0) + 0.0 * data.cost) / unit
        worth = RATE * data.quality / top - data.cost / unit
        seeds = 2 if quick else 5
        runs = [_run(data, features, worth, expected, top, seed) for seed in range(seeds)]
        fixed = np.mean([run["fixed"] for run in runs])
        rows = {}
        for title in runs[0]:
            value = np.array([run[title].mean() for run in runs])
            late = [(run["fixed"] - run[title])[-len(run[title]) // 4 :].mean() for run in runs]
            rows[title] = {
                "value": float(value.mean() / fixed),
                "sd": float(value.std(ddof=1) / fixed),
                "late_regret": float(np.mean(late)),
            }
        length = len(next(iter(runs[0].values())))
        told = (
            f"{length} requests in random order, {seeds} times; a request is worth {RATE:g} times its quality less its "
            f"cost. Only the chosen model's answer is seen, except with full information. Regret is against the best "
            f"fixed model in hindsight (below zero: better than it)."
        )
        found[name] = {"rows": rows, "told": told}
    return found


def _run(
    data: Any, features: list[Any], worth: Array, expected: Array, top: float, seed: int
) -> dict[str, Array]:
    order = np.random.default_rng(seed).permutation(len(features))
    stream, rest = order[: min(MOST, len(order) // 2)], order[min(MOST, len(order) // 2) :]
    here = worth[stream]
    found = {"fixed": here[:, here.mean(0).argmax()], "oracle": here.max(1)}
    for name in PREDICTORS:
        predictor = catalogue.build(f"quality/{name}", seed=seed)
        assert isinstance(predictor, QualityPredictor)
        found[f"quality/{name}, cold"] = _learn(predictor, data, features, here, expected, stream, top, seed)
    view = ("vector",) if features[0].vector is not None else ("lexical",)
    fitted = fit(
        [features[row] for row in rest],
        data.models,
        data.quality[rest],
        method="mixture",
        folds=3,
        seed=seed,
        views=view,
    )
    said = [
        [one.mean if one else 0.5 for one in fitted.predictor.predict(features[row], data.models)]
        for row in stream
    ]
    choice = (RATE * np.array(said) / top - expected[stream]).argmax(1)
    found["quality/mixture, full information beforehand"] = here[np.arange(len(stream)), choice]
    return found


def _learn(
    predictor: QualityPredictor,
    data: Any,
    features: list[Any],
    here: Array,
    expected: Array,
    stream: Any,
    top: float,
    seed: int,
) -> Array:
    random = np.random.default_rng(seed)
    got = np.empty(len(stream))
    for number, row in enumerate(stream):
        said = predictor.predict(features[row], data.models)
        # A model nobody has tried is taken to be perfect, so that each is tried.
        quality = np.array([one.mean if one else 1.0 for one in said])
        choice = int((RATE * quality / top - expected[row]).argmax())
        if random.random() < 0.5 / np.sqrt(number + 1.0):
            choice = int(random.integers(len(data.models)))
        got[number] = here[number, choice]
        predictor.learn(features[row], data.models[choice], float(data.quality[row, choice]))
    return got
