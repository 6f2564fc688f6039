"""Predicts a model's quality from how it answered the requests most like this one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self, final

import numpy as np

from apportion.core.method import Constraint, Interval
from apportion.predict.quality._arrays import Floats, Integers, pack, unpack
from apportion.predict.quality._base import Head, Said, TwoViews, nothing
from apportion.predict.quality._kernels import Kernels

_GROW = 256
_ARRAYS = ("metric", "points", "worth", "weight", "base")


class KNNHead(Head):
    """A ring of past requests.

    ``points`` (rows, width) are rows times ``metric``; ``weight`` (rows, models) is how much an outcome counts,
    zero where there is none, ``worth`` its product with the quality. ``base`` (models, 2) holds each model's
    discounted sum of qualities and of weights. ``reach`` is the squared distance that is usual for the
    k-th neighbour.
    """

    def __init__(self, metric: Floats, models: int, k: int, capacity: int) -> None:
        self.k, self.capacity = k, capacity
        self.metric = metric.astype(np.float32)
        self.points = np.zeros((0, len(metric)), np.float32)
        self.worth = np.zeros((0, models), np.float32)
        self.weight = np.zeros((0, models), np.float32)
        self.base = np.zeros((models, 2))
        self.reach = 0.0
        self.rows = 0
        self.next = 0
        self._measure()

    def _measure(self) -> None:
        self._norms = np.einsum("ij,ij->i", self.points, self.points)

    def raw(self, x: Floats) -> Said:
        """Mean of the neighbours, those beyond the usual reach fading, drawn towards the model's mean."""
        if not self.rows:
            return nothing(len(self.base))
        near, distance = self._near((x * self.metric).astype(np.float32))
        fade = kernel(distance, self.reach)
        heard = fade @ self.weight.take(near, 0) + SHRINK
        means, sds = [], []
        for told, weight, more, (total, count) in zip(
            (fade @ self.worth.take(near, 0)).tolist(),
            heard.tolist(),
            (heard + 1.0).tolist(),
            self.base.tolist(),
            strict=True,
        ):
            mean = (total + 0.5) / (count + 1.0)
            p = (told + SHRINK * mean) / weight if count > 0.0 else math.nan
            means.append(p)
            sds.append(math.sqrt(max(p * (1.0 - p), 0.0) / more))
        return means, sds

    def quick(self, x: Floats, kernels: Kernels, said: Floats) -> None:
        """Of points that are equally far others may count than in `raw`."""
        if not self.rows or len(x) != len(self.metric):
            said[:] = self.raw(x)
            return
        kernels.near(
            x,
            self.metric,
            self.points,
            self._norms,
            self.rows,
            self.k,
            self.reach,
            self.worth,
            self.weight,
            self.base,
            SHRINK,
            said,
        )

    def _near(self, point: Floats) -> tuple[Integers, Floats]:
        """Places of the k nearest points and their squared distances."""
        size = self.rows
        distance = self.points[:size] @ (-2.0 * point)
        distance += self._norms[:size]
        distance += point @ point
        if size <= self.k:
            return np.arange(size), np.maximum(distance, 0.0)
        near = distance.argpartition(self.k)[: self.k]
        return near, np.maximum(distance.take(near), 0.0)

    def learn(self, x: Floats, model: int, quality: float, weight: float) -> None:
        """Into the ring; several models' outcomes of one request, told one after the other, share a place."""
        point = (x * self.metric).astype(np.float32)
        place = (self.next - 1) % max(self.rows, 1)
        if not self.rows or not np.array_equal(self.points[place], point):
            place = self._turn(point)
        self.worth[place, model] += weight * quality
        self.weight[place, model] += weight
        self.base[model] *= 1.0 - 1.0 / self.capacity
        self.base[model] += weight * quality, weight

    def _turn(self, point: Floats) -> int:
        """The place for a new point, an empty one or the oldest."""
        if self.rows > self.k:
            _, distance = self._near(point)
            self.reach += (float(distance.max()) - self.reach) * (0.02 if self.reach else 1.0)
        place = self.next
        if place >= len(self.points):
            room = min(max(_GROW, len(self.points)), self.capacity - len(self.points))
            for name in ("points", "worth", "weight"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate((old, np.zeros((room, old.shape[1]), np.float32))))
            self._norms = np.concatenate((self._norms, np.zeros(room, np.float32)))
        self.points[place] = point
        self._norms[place] = point @ point
        self.worth[place] = 0.0
        self.weight[place] = 0.0
        self.rows = max(self.rows, place + 1)
        self.next = (place + 1) % self.capacity
        return place

    def grow(self) -> None:
        """One more column."""
        for name in ("worth", "weight"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate((old, np.zeros((len(old), 1), np.float32)), 1))
        self.base = np.concatenate((self.base, np.zeros((1, 2))))

    def fill(self, rows: Floats, quality: Floats) -> None:
        """From fitting: the newest ``capacity`` rows with their qualities, NaN where missing."""
        rows, quality = rows[-self.capacity :], quality[-self.capacity :]
        known = ~np.isnan(quality)
        self.points = np.ascontiguousarray(rows * self.metric, np.float32)
        self.weight = np.ascontiguousarray(known, np.float32)
        self.worth = np.ascontiguousarray(np.where(known, quality, 0.0), np.float32)
        self.base = np.ascontiguousarray(np.stack((self.worth.sum(0), self.weight.sum(0)), 1), float)
        self.rows = len(rows)
        self.next = self.rows % self.capacity
        self._measure()

    def save(self) -> dict[str, Any]:
        """As an object that JSON can carry."""
        arrays = {name: pack(getattr(self, name)) for name in _ARRAYS}
        return {
            **arrays,
            "reach": self.reach,
            "rows": self.rows,
            "next": self.next,
            "capacity": self.capacity,
        }

    @classmethod
    def load(cls, saved: Mapping[str, Any], owner: TwoViews) -> Self:
        """What `save` returned."""
        parameters = owner.parameters()
        metric = unpack(saved["metric"])
        capacity = min(int(saved["capacity"]), int(parameters["capacity"]))
        found = cls(metric, 0, int(parameters["k"]), capacity)
        for name in ("points", "worth", "weight"):
            setattr(found, name, unpack(saved[name]).astype(np.float32, copy=False))
        found.base = unpack(saved["base"]).astype(float, copy=False)
        found.reach, found.rows, found.next = (
            float(saved["reach"]),
            int(saved["rows"]),
            int(saved["next"]),
        )
        size, models = found.worth.shape
        if size > found.capacity:
            raise ValueError(f"{size} rows were saved, more than the capacity {found.capacity}")
        shapes = (found.points.shape, found.weight.shape, found.base.shape)
        if shapes != ((size, len(metric)), (size, models), (models, 2)) or not 0 <= found.rows <= size:
            raise ValueError("the saved neighbours do not fit together")
        found._measure()
        return found


MARKS_CAPACITY = 2000
"""Requests remembered by marks alone: what must answer within 0.1 ms when the vector did not come in time."""
SHRINK = 2.0
"""So many imaginary neighbours answered as the model does on the average."""


def kernel(distance: Floats, reach: float) -> Floats:
    """How much a neighbour at a squared ``distance`` counts: hardly less within the usual reach, ever less
    beyond.
    """
    if reach <= 0.0:
        return np.ones_like(distance)
    return np.asarray(1.0 / (1.0 + (distance / (1.5 * reach)) ** 4))


@final
class KNN(TwoViews):
    """Predicts a model's quality from how it answered the requests most like this one.

    Among the last ``capacity`` requests with known outcomes it takes the k nearest and averages, for each
    model, the outcomes that are known. Nearness is Euclidean in the row of lexical marks and sentence
    vector, each direction stretched by how much it says of quality (`fit` learns this) [1]_. Neighbours
    farther away than usual count less, so an odd request is answered with the model's mean and a wide
    standard deviation. As a router alone it is hard to beat by anything learned end to end [2]_.

        w_i = 1 / (1 + (d_i^2 / (1.5 r))^4),  r the usual squared distance of the k-th neighbour
        quality(m) = (sum of w_i y_im + s ybar_m) / (sum of w_i + s),  over neighbours i where m was tried

    Parameters
    ----------
    k
        Neighbours, an integer of one or more.
    capacity
        Requests remembered, an integer of ten or more; the oldest goes first.
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
    O(N d + k n) to predict, N rows of d numbers, n models: 0.3 ms for 10 000 x 86 in single precision; the
    same to learn. O(N (d + 2 n)) memory, 4 bytes each.

    Notes
    -----
    It needs neighbours where the model in question was tried: learning only from the model that was chosen,
    it knows a rarely chosen one mostly by its mean.

    See Also
    --------
    quality/linear : needs fewer rows.

    References
    ----------
    .. [1] K. Weinberger, L. Saul (2009). "Distance Metric Learning for Large Margin Nearest Neighbor
       Classification." Journal of Machine Learning Research 10, 207-244.
       https://www.jmlr.org/papers/v10/weinberger09a.html
    .. [2] Y. Li (2025). "Rethinking Predictive Modeling for LLM Routing: When Simple kNN Beats Complex Learned
       Routers." arXiv:2505.12601

    Examples
    --------
    >>> from apportion.core import Features
    >>> predictor = KNN(k=5)
    >>> for length in range(60):
    ...     predictor.learn(Features((length % 20 / 20,)), "small", float(length % 20 < 10))
    >>> [round(predictor.predict(Features((x,)), ["small"])[0].mean, 1) for x in (0.1, 0.9)]
    [0.8, 0.1]
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "k": Interval(int, 1),
        "capacity": Interval(int, 10),
        "dims": Interval(int, 1),
        "seed": Interval(int, 0),
        "rows_per_false_alarm": Interval(int, 100),
    }
    head = KNNHead

    def __init__(
        self,
        *,
        k: int = 40,
        capacity: int = 10_000,
        dims: int = 64,
        seed: int = 0,
        rows_per_false_alarm: int = 10_000,
    ) -> None:
        self.k = k
        self.capacity = capacity
        self.dims = dims
        self.seed = seed
        self.rows_per_false_alarm = rows_per_false_alarm
        self.start()

    def new_head(self, width: int) -> KNNHead:
        """A head that knows nothing."""
        return KNNHead(np.ones(width), 0, self.k, self.capacity)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Few neighbours of a short past."""
        yield {"k": 3, "capacity": 50}
        yield {"k": 80, "dims": 8, "seed": 3}
