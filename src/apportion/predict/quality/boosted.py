"""Predicts a model's quality by boosted trees that all models share, each leaf with one number for each model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self, final

import numpy as np

from apportion.core.method import Constraint, Interval
from apportion.predict.quality._arrays import Floats, Integers, pack, unpack
from apportion.predict.quality._base import Head, Said, TwoViews
from apportion.predict.quality._kernels import Kernels
from apportion.predict.quality._leaves import Leaves

_ARRAYS = ("roots", "mark", "cut", "child", "value", "rarity", "base", "scale")


class BoostedHead(Head):
    """All trees' nodes in a row.

    ``roots`` (trees) are their first nodes. Node i goes to ``child[i, 0]`` where the row's number ``mark[i]`` is at
    most ``cut[i]`` and to ``child[i, 1]`` elsewhere; a leaf goes to itself. ``value`` (nodes, models) is what a
    leaf adds to ``base`` (models). ``rarity`` is one over the rows that a leaf was fitted on, in units of its mean
    over the data, and ``scale`` (models) the standard deviation where it is one.
    """

    def __init__(
        self,
        roots: Integers,
        mark: Integers,
        cut: Floats,
        child: Integers,
        value: Floats,
        rarity: Floats,
        base: Floats,
        scale: Floats,
    ) -> None:
        self.roots, self.mark, self.cut, self.child = roots, mark, cut, child
        self.value, self.rarity = np.ascontiguousarray(value), rarity
        self.base, self.scale = base, scale
        self._leaves = Leaves(roots, mark, cut, child)
        self._arrange()

    def _arrange(self) -> None:
        """Put what every row asks for into the order of the leaves."""
        self._values = self.value[self._leaves.nodes]
        self._rarities = self.rarity[self._leaves.nodes]
        self._bases: list[float] = self.base.tolist()
        self._scales: list[float] = self.scale.tolist()
        self._walked = (
            self.roots.astype(np.int32),
            self.mark.astype(np.int32),
            self.cut.astype(np.float32),
            np.ascontiguousarray(self.child, np.int32),
            np.ascontiguousarray(self.value, np.float32),
            self.rarity.astype(np.float32),
            self.base.astype(float),
            self.scale.astype(float),
        )
        """For walking down in machine code, which knows these types alone and looks at no bounds."""
        self._widest = int(self.mark.max(initial=-1))

    def raw(self, x: Floats) -> Said:
        """The leaves' sum; wider where the leaves were fitted on few rows."""
        leaf = self._leaves.of(x)
        added: list[float] = np.add.reduce(self._values.take(leaf, 0)).tolist()
        wide = float(np.sqrt(np.add.reduce(self._rarities.take(leaf)) / max(len(leaf), 1)))
        p = [min(max(base + more, 1e-3), 1.0 - 1e-3) for base, more in zip(self._bases, added, strict=True)]
        return p, [scale * wide for scale in self._scales]

    def quick(self, x: Floats, kernels: Kernels, said: Floats) -> None:
        """As `raw`."""
        if self._widest >= len(x):
            said[:] = self.raw(x)
            return
        kernels.trees(x, *self._walked, said)

    def learn(self, x: Floats, model: int, quality: float, weight: float) -> None:
        """The trees stay as they were fitted; calibration, outside, learns."""

    def grow(self) -> None:
        """A model that the trees do not know: NaN from now on."""
        self.value = np.concatenate((self.value, np.zeros((len(self.value), 1), self.value.dtype)), 1)
        self.base = np.append(self.base, np.nan)
        self.scale = np.append(self.scale, np.nan)
        self._arrange()

    def save(self) -> dict[str, Any]:
        """As an object that JSON can carry."""
        return {name: pack(getattr(self, name)) for name in _ARRAYS}

    @classmethod
    def load(cls, saved: Mapping[str, Any], owner: TwoViews) -> Self:
        """What `save` returned."""
        return cls(*(unpack(saved[name]) for name in _ARRAYS))


@final
class Boosted(TwoViews):
    """Predicts a model's quality by boosted trees that all models share, each leaf with one number for each model.

    What makes a request hard makes it hard for most models, so one tree is grown on the residuals of all
    models together and every leaf holds a correction for each of them, shrunk by its number of rows. Splits
    are drawn at random and the best of a few kept [1]_, on a random share of the rows [2]_; the number of
    trees is where held-out error was least. The trees are fitted offline only. From outcomes it learns its
    calibration: a line on the log-odds for each model.

        residual_m = y_m - f_m;   tree on all residuals;   f_m += rate * sum(residual_m) / (rows + shrink)

    Parameters
    ----------
    trees
        At most so many trees, an integer of one or more.
    leaves
        Leaves of a tree at most, an integer of two or more.
    rate
        What share of a tree's correction is taken, a number in (0, 1].
    dims
        Directions of the sentence vector that are kept, an integer of one or more.
    seed
        Start of the random draws in fitting, an integer of zero or more.
    rows_per_false_alarm
        A change is noticed by mistake at most once in so many outcomes of a model on the average, an
        integer of 100 or more.

    Complexity
    ----------
    O(trees (leaves + n)) to predict for n models, but with few steps: some 20 microseconds; O(1) to learn;
    O(trees leaves n) memory.

    Notes
    -----
    Before it is fitted it knows nothing and says None; the same of a model that was not in the fit. The
    standard deviation is how far predictions for the same row moved between fits on different folds,
    scaled by how few rows the leaves in question had: an estimate of the variance, not of the bias.

    See Also
    --------
    quality/linear : learns from every outcome.

    References
    ----------
    .. [1] P. Geurts, D. Ernst, L. Wehenkel (2006). "Extremely Randomized Trees." Machine Learning 63, 3-42.
       doi:10.1007/s10994-006-6226-1
    .. [2] J. Friedman (2002). "Stochastic Gradient Boosting." Computational Statistics & Data Analysis 38(4).
       doi:10.1016/S0167-9473(01)00065-2

    Examples
    --------
    >>> from apportion.core import Features
    >>> from apportion.predict.quality._fit import fit
    >>> texts = [Features((length / 60, length % 3)) for length in range(60)]
    >>> answers = [[length < 20, length < 40] for length in range(60)]
    >>> predictor = fit(texts, ["small", "large"], answers, method="boosted").predictor
    >>> [round(estimate.mean, 1) for estimate in predictor.predict(Features((0.5, 0.0)), ["small", "large"])]
    [0.0, 1.0]
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "trees": Interval(int, 1),
        "leaves": Interval(int, 2),
        "rate": Interval(float, 0.0, 1.0, closed="right"),
        "dims": Interval(int, 1),
        "seed": Interval(int, 0),
        "rows_per_false_alarm": Interval(int, 100),
    }
    head = BoostedHead

    def __init__(
        self,
        *,
        trees: int = 300,
        leaves: int = 16,
        rate: float = 0.1,
        dims: int = 64,
        seed: int = 0,
        rows_per_false_alarm: int = 10_000,
    ) -> None:
        self.trees = trees
        self.leaves = leaves
        self.rate = rate
        self.dims = dims
        self.seed = seed
        self.rows_per_false_alarm = rows_per_false_alarm
        self.start()

    def new_head(self, width: int) -> None:
        """Only fitting makes trees."""
        return

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Small trees."""
        yield {"trees": 20, "leaves": 4, "rate": 0.2, "seed": 3}
