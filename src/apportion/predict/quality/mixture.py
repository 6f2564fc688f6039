"""Predicts a model's quality by a weighted mean of neighbours, a line and trees, each trusted as it has earned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self, final

import numpy as np

from apportion.core.method import Constraint, Interval
from apportion.predict.quality._arrays import Floats
from apportion.predict.quality._base import Head, Said, TwoViews, nothing
from apportion.predict.quality._kernels import Kernels
from apportion.predict.quality.boosted import BoostedHead
from apportion.predict.quality.knn import KNNHead
from apportion.predict.quality.linear import LinearHead

ETA = 0.5
"""The squared error of probabilities is exp-concave up to here: the mean's regret is at most ln(3) / ETA."""
SHARE = 1e-3
"""With this chance another member is the best from the next outcome on [fixed share]."""
_KINDS: dict[str, type[Head]] = {"knn": KNNHead, "linear": LinearHead, "boosted": BoostedHead}


class MixtureHead(Head):
    """Member heads by name and the share of trust ``shares`` that each has, which sum to one."""

    def __init__(self, members: dict[str, Head], shares: dict[str, float], models: int) -> None:
        self.members, self.shares, self.models = members, shares, models

    def raw(self, x: Floats) -> Said:
        """Mean of the members that know the model; the spread is theirs and that between them."""
        if not self.members:
            return nothing(self.models)
        said = [head.raw(x) for head in self.members.values()]
        return combine(said, [self.shares[name] for name in self.members])

    def quick(self, x: Floats, kernels: Kernels, said: Floats) -> None:
        """As `raw`."""
        if not self.members:
            said[:] = math.nan
            return
        parts = np.empty((len(self.members), *said.shape))
        for part, head in zip(parts, self.members.values(), strict=True):
            head.quick(x, kernels, part)
        kernels.mix(parts, np.array([self.shares[name] for name in self.members]), said)

    def learn(self, x: Floats, model: int, quality: float, weight: float) -> None:
        """Trust is multiplied by exp(-error), a little is shared out, then every member learns."""
        losses = {name: (head.raw(x)[0][model] - quality) ** 2 for name, head in self.members.items()}
        if all(loss == loss for loss in losses.values()):
            grown = {
                name: self.shares[name] * math.exp(-ETA * weight * loss) for name, loss in losses.items()
            }
            total = sum(grown.values())
            if total > 0.0:
                even = SHARE / len(grown)
                self.shares = {name: (1.0 - SHARE) * one / total + even for name, one in grown.items()}
        for head in self.members.values():
            head.learn(x, model, quality, weight)

    def grow(self) -> None:
        """Every member gets one more model."""
        self.models += 1
        for head in self.members.values():
            head.grow()

    def save(self) -> dict[str, Any]:
        """As an object that JSON can carry."""
        members = {name: head.save() for name, head in self.members.items()}
        return {"members": members, "shares": self.shares, "models": self.models}

    @classmethod
    def load(cls, saved: Mapping[str, Any], owner: TwoViews) -> Self:
        """What `save` returned."""
        members = {name: _KINDS[name].load(one, owner) for name, one in saved["members"].items()}
        shares = {name: float(saved["shares"][name]) for name in members}
        return cls(members, shares, int(saved["models"]))


def combine(said: Sequence[Said], shares: Sequence[float]) -> Said:
    """Mean and standard deviation of a mixture of predictions, each with a mean and a standard deviation;
    NaN counts as absent.
    """
    means, sds = [], []
    for of_model in zip(*(zip(p, sd, strict=True) for p, sd in said), strict=True):
        known = [(share, p, sd) for share, (p, sd) in zip(shares, of_model, strict=True) if p == p]
        total = 1.0 if len(known) == len(shares) else sum([share for share, _, _ in known])
        if not total > 0.0:
            means.append(math.nan)
            sds.append(math.nan)
            continue
        mean = sum([share * p for share, p, _ in known]) / total
        wide = sum([share * (sd * sd + (p - mean) ** 2) for share, p, sd in known]) / total
        means.append(mean)
        sds.append(math.sqrt(wide))
    return means, sds


@final
class Mixture(TwoViews):
    """Predicts a model's quality by a weighted mean of neighbours, a line and trees, each trusted as it has
    earned.

    Offline, the weights are those that make the squared error of held-out predictions least, on the simplex:
    stacking [1]_. Online, each weight is multiplied by exp(-error) after every outcome, and a small share is
    spread evenly so that a member that becomes good again is heard again soon [2]_. It starts cold with
    neighbours and the line; trees come with fitting. Calibrated as a whole.

        quality = sum of v_i q_i;   variance = sum of v_i (sd_i^2 + (q_i - quality)^2)
        v_i <- v_i exp(-(q_i - y)^2 / 2), normalised;   v_i <- (1 - a) v_i + a / members

    Parameters
    ----------
    k
        Neighbours, an integer of one or more.
    capacity
        Requests remembered, an integer of ten or more; the oldest goes first.
    l2
        Precision of the line's weights before anything is known, a number above zero.
    memory
        Outcomes of a model over which the line's uncertainty returns towards where it began, an integer of 10
        or more.
    dims
        Directions of the sentence vector that are kept, an integer of one or more.
    seed
        Start of all random draws, an integer of zero or more.
    rows_per_false_alarm
        A change is noticed by mistake at most once in so many outcomes of a model on the average, an
        integer of 100 or more.

    Complexity
    ----------
    The sum of its members': 0.3 ms of processor time for ten models with a vector, 0.2 ms without; memory
    likewise. A member whose weight came out zero in fitting is left out.

    Notes
    -----
    The weights are common to all models, so that they need few outcomes. Without the sentence vector another
    mixture of the same artefact answers, fitted on lexical marks alone.

    See Also
    --------
    quality/knn : the first member.
    quality/linear : the second.
    quality/boosted : the third.

    References
    ----------
    .. [1] D. Wolpert (1992). "Stacked Generalization." Neural Networks 5(2), 241-259.
       doi:10.1016/S0893-6080(05)80023-1
    .. [2] M. Herbster, M. Warmuth (1998). "Tracking the Best Expert." Machine Learning 32, 151-178.
       doi:10.1023/A:1007424614876

    Examples
    --------
    >>> from apportion.core import Features
    >>> predictor = Mixture(k=5, l2=0.5)
    >>> for length in range(60):
    ...     predictor.learn(Features((length % 20 / 20,)), "small", float(length % 20 < 10))
    >>> [round(predictor.predict(Features((x,)), ["small"])[0].mean, 1) for x in (0.1, 0.9)]
    [0.9, 0.0]
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "k": Interval(int, 1),
        "capacity": Interval(int, 10),
        "l2": Interval(float, 0.0, closed="neither"),
        "memory": Interval(int, 10),
        "dims": Interval(int, 1),
        "seed": Interval(int, 0),
        "rows_per_false_alarm": Interval(int, 100),
    }
    head = MixtureHead

    def __init__(
        self,
        *,
        k: int = 40,
        capacity: int = 10_000,
        l2: float = 10.0,
        memory: int = 20_000,
        dims: int = 64,
        seed: int = 0,
        rows_per_false_alarm: int = 10_000,
    ) -> None:
        self.k = k
        self.capacity = capacity
        self.l2 = l2
        self.memory = memory
        self.dims = dims
        self.seed = seed
        self.rows_per_false_alarm = rows_per_false_alarm
        self.start()

    def new_head(self, width: int) -> MixtureHead:
        """Neighbours and a line that know nothing, trusted alike."""
        neighbours = KNNHead(np.ones(width), 0, self.k, self.capacity)
        line = LinearHead.cold(width, self.l2, self.memory)
        return MixtureHead({"knn": neighbours, "linear": line}, {"knn": 0.5, "linear": 0.5}, 0)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """A short memory."""
        yield {"k": 3, "capacity": 50, "memory": 50}
        yield {"l2": 100.0, "dims": 8, "seed": 3}
