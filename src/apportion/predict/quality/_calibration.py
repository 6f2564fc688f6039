"""Calibration: when it says 0.8, 0.8 of the answers are right. Fitted offline, kept up from outcomes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apportion.predict.quality._arrays import Floats, logistic, logit, pack, sigmoid, unpack
from apportion.predict.quality._kernels import Kernels

PRIOR = np.array([4.0, 25.0])
"""Precision of the belief that offset is 0 and slope is 1: the slope needs more evidence to move."""
MEMORY = 2000.0
"""Outcomes over which the uncertainty returns towards the prior's, so that new outcomes keep counting."""
FLOOR = 1e-4
_MARGIN = 1e-3


class Calibrator:
    """Platt's line for each model, ``sigmoid(offset + slope * logit(p))``, as a Bayesian logistic regression
    with two weights. ``line`` has shape (models, 2), ``spread`` its covariance (models, 2, 2).
    """

    def __init__(self, models: int) -> None:
        self.line = np.tile([0.0, 1.0], (models, 1))
        self.spread = np.tile(np.diag(1.0 / PRIOR), (models, 1, 1))

    def grow(self) -> None:
        """One more model."""
        fresh = Calibrator(1)
        self.line = np.concatenate((self.line, fresh.line))
        self.spread = np.concatenate((self.spread, fresh.spread))

    def apply(self, p: Sequence[float], sd: Sequence[float]) -> tuple[list[float], list[float]]:
        """Calibrated probabilities of all models and the standard deviations that go with them.

        The line's own uncertainty is added, and its slope scales what came in. NaN stays what it is.
        """
        means, sds = [], []
        for mean, wide, (offset, slope), ((a, b), (_, c)) in zip(
            p, sd, self.line.tolist(), self.spread.tolist(), strict=True
        ):
            inner = min(max(mean, _MARGIN), 1.0 - _MARGIN)
            raw = math.log(inner / (1.0 - inner))
            out = logistic(offset + slope * raw)
            steep = out * (1.0 - out)
            line = a + raw * (2.0 * b + raw * c)
            scaled = wide * slope * steep / (inner * (1.0 - inner))
            means.append(out)
            sds.append(math.sqrt(min(steep * steep * max(line, 0.0) + scaled * scaled, steep + FLOOR)))
        return means, sds

    def quick(self, said: Floats, kernels: Kernels) -> None:
        """As `apply`, in place, for rows of means and standard deviations."""
        kernels.calibrate(self.line, self.spread, _MARGIN, FLOOR, said)

    def learn(self, model: int, p: float, quality: float, weight: float) -> None:
        """One answer that was predicted at ``p`` (uncalibrated) turned out at ``quality``."""
        x = np.array([1.0, float(logit(np.asarray(p), _MARGIN))])
        spread = self.spread[model]
        forget = 1.0 / MEMORY
        spread = spread + forget * (np.diag(1.0 / PRIOR) - spread)
        out = logistic(float(self.line[model] @ x))
        gain = spread @ x
        curve = weight * out * (1.0 - out)
        shrink = 1.0 + curve * float(x @ gain)
        self.line[model] += gain * (weight * (quality - out) / shrink)
        self.line[model, 1] = min(max(self.line[model, 1], 0.05), 5.0)
        self.spread[model] = spread - np.outer(gain, gain) * (curve / shrink)

    def fit(self, p: Floats, quality: Floats) -> None:
        """From held-out predictions ``p`` and their qualities, both (rows, models), NaN where missing."""
        for model in range(p.shape[1]):
            known = ~np.isnan(quality[:, model]) & ~np.isnan(p[:, model])
            x = np.stack((np.ones(int(known.sum())), logit(p[known, model])), 1)
            y = quality[known, model]
            line = np.array([0.0, 1.0])
            for _ in range(25):
                out = sigmoid(x @ line)
                slope = (out * (1.0 - out))[:, None]
                hessian = x.T @ (x * slope) + np.diag(PRIOR)
                step = np.linalg.solve(hessian, x.T @ (y - out) - PRIOR * (line - [0.0, 1.0]))
                line = line + step
                if np.abs(step).max() < 1e-8:
                    break
            line[1] = min(max(line[1], 0.05), 5.0)
            self.line[model] = line
            self.spread[model] = np.linalg.inv(hessian)

    def save(self) -> dict[str, Any]:
        """As an object that JSON can carry."""
        return {"line": pack(self.line), "spread": pack(self.spread)}

    @classmethod
    def load(cls, saved: Mapping[str, Any]) -> Calibrator:
        """What `save` returned."""
        found = cls(0)
        found.line = unpack(saved["line"]).astype(float, copy=False)
        found.spread = unpack(saved["spread"]).astype(float, copy=False)
        models = len(found.line)
        if found.line.shape != (models, 2) or found.spread.shape != (models, 2, 2):
            raise ValueError("the saved calibration does not fit together")
        return found


def calibration_error(p: Floats, quality: Floats, bins: int = 10) -> float:
    """Expected calibration error: the mean over bins of equal width of |mean predicted - mean observed|."""
    known = ~(np.isnan(p) | np.isnan(quality))
    predicted, observed = p[known], quality[known]
    if not len(predicted):
        return float("nan")
    place = np.minimum((predicted * bins).astype(int), bins - 1)
    gap = np.bincount(place, predicted - observed, minlength=bins)
    return float(np.abs(gap).sum() / len(predicted))
