"""Held-out predictions: every outer fold is predicted by what was fitted, and chosen, on the others alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from apportion.core import Features
from apportion.predict.quality._fit import fit
from benchmarks.routing.curve import folds
from benchmarks.routing.data import Array, Data

NEIGHBOURS = 40
METHODS = ("knn", "linear", "boosted", "mixture")


class HeldOut(NamedTuple):
    """Predicted quality by method (n, m), its standard deviation for the mixture, and the expected costs: each
    model's mean, and what is known of the request's before the call (else the mean again).
    """

    quality: dict[str, Array]
    sd: Array
    mean_cost: Array
    expected_cost: Array
    weights: list[dict[str, float]]


def floor(vectors: Array, quality: Array, others: Array) -> Array:
    """Plain k-nearest neighbours by scikit-learn: the mean of the neighbours' outcomes."""
    from sklearn.neighbors import KNeighborsRegressor

    known = KNeighborsRegressor(min(NEIGHBOURS, len(vectors))).fit(vectors, quality)
    return np.asarray(known.predict(others))


def ridge(vectors: Array, quality: Array, others: Array) -> Array:
    """scikit-learn's ridge regression with its own choice of strength."""
    from sklearn.linear_model import RidgeCV

    return np.asarray(RidgeCV(np.logspace(-2.0, 3.0, 11)).fit(vectors, quality).predict(others))


def classifier(vectors: Array, quality: Array, others: Array) -> Array:
    """The rule of llmrouter-lib's `knnrouter`: neighbours vote on which model is best; 1 for the elected one."""
    from sklearn.neighbors import KNeighborsClassifier

    vote = KNeighborsClassifier(min(NEIGHBOURS, len(vectors))).fit(vectors, quality.argmax(1))
    elected = np.asarray(vote.predict(others), int)
    return np.eye(quality.shape[1])[elected]


def hold_out(data: Data, features: list[Features], seed: int, methods: tuple[str, ...] = METHODS) -> HeldOut:
    """Five outer folds; hyper-parameters, weights and calibration come from folds inside the other four."""
    place = folds(len(features), seed)
    vectors = None
    if features[0].vector is not None:
        vectors = np.array([one.vector for one in features])
    lexical = np.array([one.lexical for one in features])
    plain = lexical if vectors is None else vectors
    names = ("floor", "ridge", "classifier", *methods)
    quality = {name: np.full_like(data.quality, np.nan) for name in names}
    spread = np.full_like(data.quality, np.nan)
    mean_cost, expected = np.empty_like(data.cost), np.empty_like(data.cost)
    weights = []
    for fold in range(5):
        train, test = np.flatnonzero(place != fold), np.flatnonzero(place == fold)
        known = data.quality[train]
        scale = plain[train].std(0) if vectors is None else 1.0
        near, far = plain[train] / np.maximum(scale, 1e-9), plain[test] / np.maximum(scale, 1e-9)
        quality["floor"][test] = floor(near, known, far)
        quality["ridge"][test] = ridge(near, known, far)
        quality["classifier"][test] = classifier(near, known, far)
        for method in methods:
            fitted = fit(
                [features[row] for row in train],
                data.models,
                known,
                method=method,
                seed=seed,
                folds=3,
                views=("vector",) if vectors is not None else ("lexical",),
            )
            if "weights" in fitted.report:
                weights.append(fitted.report["weights"])
            for row in test:
                found = fitted.predictor.predict(features[row], data.models)
                quality[method][row] = [one.mean if one else np.nan for one in found]
                if method == "mixture":
                    spread[row] = [one.sd if one else np.nan for one in found]
        mean_cost[test] = data.cost[train].mean(0)
        expected[test] = mean_cost[test] if data.stated_cost is None else data.stated_cost[test]
    return HeldOut(quality, spread, mean_cost, expected, weights)


def brier(p: Array, quality: Array) -> float:
    """Mean squared error."""
    return float(np.nanmean((p - quality) ** 2))


def sharp(p: Array, sd: Array, quality: Array, bins: int = 5) -> list[dict[str, float]]:
    """Is a wide prediction a worse one? By fifths of the stated standard deviation, the squared error beyond what
    a right answer's chance explains, p (1 - p).
    """
    order = np.argsort(sd, axis=None)
    found = []
    for part in np.array_split(order, bins):
        mean, right = p.ravel()[part], quality.ravel()[part]
        found.append(
            {
                "sd": float(sd.ravel()[part].mean()),
                "error": float(((mean - right) ** 2).mean()),
                "gap": float(abs(mean.mean() - right.mean())),
            }
        )
    return found
