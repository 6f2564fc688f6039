"""Predicts a model's quality by a Bayesian logistic regression for each model, kept up answer by answer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self, final

import numpy as np

from apportion.core.method import Constraint, Interval
from apportion.predict.quality._arrays import Floats, logistic, pack, unpack
from apportion.predict.quality._base import Head, Said, TwoViews
from apportion.predict.quality._kernels import Kernels

_FLAT = math.pi / 8.0


class LinearHead(Head):
    """``weights`` of shape (models, 1 + width), the intercept first, and their ``spread`` (covariance)."""

    def __init__(self, weights: Floats, spread: Floats, rows: Floats, prior: Floats, memory: float) -> None:
        self.weights, self.spread = np.ascontiguousarray(weights), np.ascontiguousarray(spread)
        self.rows, self.prior = rows, prior
        self.memory = memory

    @classmethod
    def cold(cls, width: int, l2: float, memory: float) -> Self:
        """No model yet. The intercept is left nearly free, every other weight has variance 1 / ``l2``."""
        prior = np.full(1 + width, 1.0 / l2)
        prior[0] = 4.0
        shape = 1 + width
        return cls(np.zeros((0, shape)), np.zeros((0, shape, shape)), np.zeros(0), prior, memory)

    def raw(self, x: Floats) -> Said:
        """The logistic of the mean, flattened for the weights' uncertainty (MacKay's approximation)."""
        full = np.empty(len(self.prior))
        full[0] = 1.0
        full[1:] = x
        count = len(self.weights)
        variances = (self.spread.reshape(-1, len(full)) @ full).reshape(count, len(full)) @ full
        means, sds = [], []
        for mean, spread, rows in zip(
            (self.weights @ full).tolist(), variances.tolist(), self.rows.tolist(), strict=True
        ):
            variance = max(spread, 0.0)
            p = logistic(mean / math.sqrt(1.0 + _FLAT * variance)) if rows > 0.0 else math.nan
            means.append(p)
            sds.append(min(p * (1.0 - p) * math.sqrt(variance), math.sqrt(p * (1.0 - p))))
        return means, sds

    def quick(self, x: Floats, kernels: Kernels, said: Floats) -> None:
        """As `raw`."""
        if len(x) + 1 != len(self.prior):
            said[:] = self.raw(x)
            return
        kernels.line(x, self.weights, self.spread, self.rows, _FLAT, said)

    def learn(self, x: Floats, model: int, quality: float, weight: float) -> None:
        """One step of the extended Kalman filter for the logistic model; then a little is forgotten."""
        full = np.concatenate(([1.0], x))
        spread = self.spread[model]
        p = logistic(float(self.weights[model] @ full))
        gain = spread @ full
        curve = weight * p * (1.0 - p)
        shrink = 1.0 + curve * float(full @ gain)
        self.weights[model] += gain * (weight * (quality - p) / shrink)
        spread -= np.outer(gain, gain) * (curve / shrink)
        spread *= 1.0 - 1.0 / self.memory
        spread.flat[:: len(full) + 1] += self.prior / self.memory
        self.rows[model] += 1.0

    def grow(self) -> None:
        """The new model begins where the others are on the average, as unsure as if nothing was known."""
        known = self.rows > 0.0
        start = self.weights[known].mean(0) if known.any() else np.zeros(len(self.prior))
        self.weights = np.concatenate((self.weights, start[None]))
        self.spread = np.concatenate((self.spread, np.diag(self.prior)[None]))
        self.rows = np.append(self.rows, 0.0)

    def save(self) -> dict[str, Any]:
        """As an object that JSON can carry."""
        return {name: pack(getattr(self, name)) for name in ("weights", "spread", "rows", "prior")}

    @classmethod
    def load(cls, saved: Mapping[str, Any], owner: TwoViews) -> Self:
        """What `save` returned."""
        weights, spread, rows, prior = (
            unpack(saved[name]).astype(float, copy=False) for name in ("weights", "spread", "rows", "prior")
        )
        models, width = weights.shape
        if (spread.shape, rows.shape, prior.shape) != ((models, width, width), (models,), (width,)):
            raise ValueError("the saved weights do not fit together")
        return cls(weights, spread, rows, prior, float(owner.parameters().get("memory", 20_000)))


@final
class Linear(TwoViews):
    """Predicts a model's quality by a Bayesian logistic regression for each model, kept up answer by answer.

    The row x is the standardised lexical marks and the sentence vector in its strongest directions. Fitted
    offline, all models are drawn towards what they have in common (that some requests are hard for
    everyone), and each is allowed its own departure from it; how much of either comes from cross-validation
    [1]_. Online, every outcome is one step of an extended Kalman filter, which is the exact Bayesian update
    with the logistic curve replaced by its tangent [2]_ [3]_.

        quality(m, x) = sigmoid( w_m . x / sqrt(1 + pi/8 x' S_m x) )
        S_m x <- S_m x / (1 + p (1 - p) x' S_m x);   w_m <- w_m + S_m x (y - p)

    Parameters
    ----------
    l2
        Precision of the weights before anything is known, a number above zero. Fitting chooses it.
    memory
        Outcomes of a model over which its uncertainty returns towards where it began, so that new outcomes
        keep counting, an integer of 10 or more.
    dims
        Directions of the sentence vector that are kept, an integer of one or more.
    seed
        Start of the random directions that stand in for fitted ones when it starts cold, an integer of zero
        or more.
    rows_per_false_alarm
        A change is noticed by mistake at most once in so many outcomes of a model on the average, an
        integer of 100 or more.

    Complexity
    ----------
    O(n d^2) to predict for n models and d = dims + lexical marks, O(d^2) to learn; O(n d^2) memory.
    Without a vector d is the number of marks alone: some 20 microseconds for ten models.

    Notes
    -----
    A quality between 0 and 1 is taken as that share of a right answer. The standard deviation is the
    uncertainty of the weights, so it is small where many requests were alike, even if a line does not
    suit them: calibration then mends the mean, and quality/mixture widens it where the kinds disagree.

    See Also
    --------
    quality/knn : no line, but needs neighbours.

    References
    ----------
    .. [1] T. Evgeniou, M. Pontil (2004). "Regularized Multi-Task Learning." KDD.
       doi:10.1145/1014052.1014067
    .. [2] D. MacKay (1992). "The Evidence Framework Applied to Classification Networks." Neural Computation
       4(5), 720-736. doi:10.1162/neco.1992.4.5.720
    .. [3] Y. Ollivier (2018). "Online Natural Gradient as a Kalman Filter." Electronic Journal of Statistics
       12(2). arXiv:1703.00209

    Examples
    --------
    >>> from apportion.core import Features
    >>> predictor = Linear(l2=0.5)
    >>> for length in range(60):
    ...     predictor.learn(Features((length % 20 / 20,)), "small", float(length % 20 < 10))
    >>> [round(predictor.predict(Features((x,)), ["small"])[0].mean, 1) for x in (0.1, 0.9)]
    [1.0, 0.0]
    >>> predictor.predict(Features((1.0,)), ["large"])
    [None]
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "l2": Interval(float, 0.0, closed="neither"),
        "memory": Interval(int, 10),
        "dims": Interval(int, 1),
        "seed": Interval(int, 0),
        "rows_per_false_alarm": Interval(int, 100),
    }
    head = LinearHead

    def __init__(
        self,
        *,
        l2: float = 10.0,
        memory: int = 20_000,
        dims: int = 64,
        seed: int = 0,
        rows_per_false_alarm: int = 10_000,
    ) -> None:
        self.l2 = l2
        self.memory = memory
        self.dims = dims
        self.seed = seed
        self.rows_per_false_alarm = rows_per_false_alarm
        self.start()

    def new_head(self, width: int) -> LinearHead:
        """A head that knows nothing."""
        return LinearHead.cold(width, self.l2, self.memory)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Quick to forget, and strict."""
        yield {"memory": 50, "l2": 1.0}
        yield {"l2": 100.0, "dims": 8, "seed": 3}
