"""Notices that a model is no longer what it was: its mean quality, or how far predictions can be believed.

An e-detector of the Shiryaev-Roberts kind [1]_. For an error ``r`` whose mean is at most ``tolerance`` while
nothing has changed, ``1 + bet * (r - tolerance)`` is a bet that does not gain on the average. A new bettor
starts at every row; ``M = (M + 1) * (1 + bet * (r - tolerance))`` is what all of them own together. While
nothing changes it grows by at most one a row on the average, so the mean number of rows until it first
reaches N is at least N: **a false alarm at most once in N rows on the average**, whatever the distribution
of the qualities, and without independence. Several sizes of bet, for both directions, share the stake.

.. [1] J. Shin, A. Ramdas, A. Rinaldo (2022). "E-detectors: A Nonparametric Framework for Sequential Change
   Detection." arXiv:2203.03532
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

BETS = (0.05, 0.1, 0.2, 0.4, 0.8)


class Drift(NamedTuple):
    """What is known of one model: means over ``rows``, the two detectors' evidence, and whether either fired.

    Evidence of 1 is the threshold.
    """

    rows: int
    mean_quality: float
    mean_predicted: float
    quality_evidence: float
    calibration_evidence: float
    quality_changed: bool
    calibration_changed: bool

    @property
    def changed(self) -> bool:
        """Whether either has changed."""
        return self.quality_changed or self.calibration_changed


class Detector:
    """Watches errors in [-1, 1] whose mean should be within ``tolerance`` of zero.

    ``rows_per_false_alarm`` is the least mean number of rows to a false alarm. ``changed`` stays until
    `reset`.
    """

    def __init__(self, rows_per_false_alarm: float = 10_000.0, tolerance: float = 0.05) -> None:
        self.threshold = rows_per_false_alarm
        self.tolerance = tolerance
        self.reset()

    def reset(self) -> None:
        """Nothing has been seen."""
        self.wealth = [0.0] * (2 * len(BETS))
        self.changed = False

    @property
    def evidence(self) -> float:
        """The share of the threshold that is reached; 1 or more is an alarm."""
        return sum(self.wealth) / len(self.wealth) / self.threshold

    def notice(self, error: float) -> bool:
        """Take in one error; whether a change has been noticed."""
        wealth = self.wealth
        place = 0
        for sign in (error, -error):
            gain = sign - self.tolerance
            for bet in BETS:
                # A bet of 0.8 on an error of -1 and a tolerance below 0.25 never loses more than it has.
                grown = (wealth[place] + 1.0) * max(1.0 + bet * gain, 0.0)
                wealth[place] = min(grown, 1e12)
                place += 1
        if self.evidence >= 1.0:
            self.changed = True
        return self.changed


class DriftMonitor:
    """Two detectors for each model: of the mean quality against that of its first ``settle`` rows (or of the
    fit), and of the quality against what was predicted.

    Every mean may move by ``tolerance`` without an alarm, which also covers the error of the reference.
    """

    def __init__(
        self, rows_per_false_alarm: float = 10_000.0, tolerance: float = 0.05, settle: int = 400
    ) -> None:
        self.rows_per_false_alarm, self.tolerance, self.settle = rows_per_false_alarm, tolerance, settle
        self._models: dict[str, _Watched] = {}

    def expect(self, model: str, mean_quality: float) -> None:
        """The reference of ``model``, from fitting."""
        self._watched(model).reference = mean_quality

    def notice(self, model: str, predicted: float, quality: float) -> None:
        """An answer of ``model`` that was ``predicted`` turned out at ``quality``, both in [0, 1]."""
        watched = self._watched(model)
        watched.rows += 1
        watched.total_quality += quality
        watched.total_predicted += predicted
        if watched.reference is not None:
            watched.quality.notice(quality - watched.reference)
            watched.calibration.notice(quality - predicted)
        elif watched.rows >= self.settle:
            watched.reference = watched.total_quality / watched.rows

    def report(self) -> dict[str, Drift]:
        """For each model what is known."""
        return {name: watched.report() for name, watched in self._models.items()}

    def forget(self, model: str) -> None:
        """Begin anew with ``model``: its reference is taken from the rows to come."""
        self._models.pop(model, None)

    def _watched(self, model: str) -> _Watched:
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = _Watched(self.rows_per_false_alarm, self.tolerance)
        return found

    def save(self) -> dict[str, Any]:
        """As an object that JSON can carry."""
        return {name: watched.save() for name, watched in self._models.items()}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` returned."""
        self._models = {}
        for name, one in saved.items():
            self._watched(name).load(one)


class _Watched:
    """One model's sums and detectors."""

    def __init__(self, rows_per_false_alarm: float, tolerance: float) -> None:
        # Each of the two has half of the false alarms.
        self.quality = Detector(2.0 * rows_per_false_alarm, tolerance)
        self.calibration = Detector(2.0 * rows_per_false_alarm, tolerance)
        self.rows = 0
        self.total_quality = self.total_predicted = 0.0
        self.reference: float | None = None

    def report(self) -> Drift:
        rows = self.rows
        return Drift(
            rows,
            self.total_quality / rows if rows else math.nan,
            self.total_predicted / rows if rows else math.nan,
            self.quality.evidence,
            self.calibration.evidence,
            self.quality.changed,
            self.calibration.changed,
        )

    def save(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "totals": [self.total_quality, self.total_predicted],
            "reference": self.reference,
            "wealth": [self.quality.wealth, self.calibration.wealth],
            "changed": [self.quality.changed, self.calibration.changed],
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        self.rows = int(saved["rows"])
        self.total_quality, self.total_predicted = (float(x) for x in saved["totals"])
        self.reference = saved["reference"]
        for detector, wealth, changed in zip(
            (self.quality, self.calibration), saved["wealth"], saved["changed"], strict=True
        ):
            detector.wealth, detector.changed = [float(x) for x in wealth], bool(changed)
