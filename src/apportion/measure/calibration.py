"""Whether what was predicted comes true: a table of predicted against observed quality, its error, and drift.

References
----------
M. P. Naeini, G. F. Cooper, M. Hauskrecht (2015). "Obtaining Well Calibrated Probabilities Using Bayesian Binning." AAAI
(expected calibration error).
E. S. Page (1954). "Continuous Inspection Schemes." Biometrika 41. doi:10.1093/biomet/41.1-2.100 (CUSUM).
D. Siegmund (1985). "Sequential Analysis." Springer (how rare its false alarms are).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final, Literal

Drift = Literal["worse", "better"]

_BINS: Final = 10
_MEMORY: Final = 2000.0
"""Observations after which an old one counts a third."""
_SLACK: Final = 0.125
"""Half of the smallest shift that matters, in standard deviations of an observation."""
_ALARM: Final = 40.0
"""With this a calibrated predictor is called drifted about once in half a million observations."""
_MOST: Final = 3.0
"""An observation that surprises more counts as this much: a rare failure of a good model is no drift."""


class Calibration:
    """The predictions of one model and what became of them, in constant memory."""

    __slots__ = ("_better", "_worse", "count", "drift", "n", "observed", "predicted")

    def __init__(self) -> None:
        self.n = [0.0] * _BINS
        self.predicted = [0.0] * _BINS
        self.observed = [0.0] * _BINS
        self.count = 0
        self._worse = self._better = 0.0
        self.drift: Drift | None = None
        """Whether answers have become worse or better than predicted; None while they are as predicted."""

    def observe(self, predicted: float, observed: float, earlier: float | None = None) -> None:
        """Take in what became of a prediction; ``earlier`` is what was told of the same one before."""
        place = min(int(predicted * _BINS), _BINS - 1)
        if earlier is not None:
            self.observed[place] += observed - earlier
            return
        self.count += 1
        keep = 1.0 - 1.0 / _MEMORY
        for sums in (self.n, self.predicted, self.observed):
            for index in range(_BINS):
                sums[index] *= keep
        self.n[place] += 1.0
        self.predicted[place] += predicted
        self.observed[place] += observed
        spread = math.sqrt(max(predicted * (1.0 - predicted), 0.01))
        surprise = min(_MOST, max(-_MOST, (observed - predicted) / spread))
        self._worse = min(_ALARM, max(0.0, self._worse - surprise - _SLACK))
        self._better = min(_ALARM, max(0.0, self._better + surprise - _SLACK))
        if self._worse >= _ALARM or self._better >= _ALARM:
            self.drift = "worse" if self._worse >= self._better else "better"
        elif self.drift and max(self._worse, self._better) < _ALARM / 2:
            self.drift = None

    @property
    def error(self) -> float | None:
        """The expected calibration error: how far bins are off, weighted by what is in them. None without any."""
        total = sum(self.n)
        if not total:
            return None
        return sum(abs(o - p) for o, p in zip(self.observed, self.predicted, strict=True)) / total

    @property
    def quality(self) -> float | None:
        """The mean of what was observed lately."""
        total = sum(self.n)
        return sum(self.observed) / total if total else None

    def table(self) -> dict[str, Any]:
        """All of it as JSON shows it."""
        return {
            "count": self.count,
            "quality": self.quality,
            "calibration_error": self.error,
            "drift": self.drift,
            "bins": [
                {
                    "from": index / _BINS,
                    "to": (index + 1) / _BINS,
                    "weight": n,
                    "predicted": self.predicted[index] / n,
                    "observed": self.observed[index] / n,
                }
                for index, n in enumerate(self.n)
                if n > 1e-6
            ],
        }


def merged(tables: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The tables of several workers as one; drift is what any of them says, "worse" first."""
    whole = Calibration()
    drifts = set()
    for table in tables:
        whole.count += table["count"]
        drifts.add(table["drift"])
        for each in table["bins"]:
            index = min(round(each["from"] * _BINS), _BINS - 1)
            whole.n[index] += each["weight"]
            whole.predicted[index] += each["weight"] * each["predicted"]
            whole.observed[index] += each["weight"] * each["observed"]
    whole.drift = "worse" if "worse" in drifts else "better" if "better" in drifts else None
    return whole.table()
