"""What all quality predictors share: two views of a request, calibration, drift, saving.

A predictor holds up to two heads: one sees lexical marks and the sentence vector, the other the marks alone and
answers when the vector is missing. A head turns a row of numbers into a raw probability for every model it
knows; here the row is made and the probability calibrated.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from apportion.core.errors import SavedStateError
from apportion.core.features import Features
from apportion.core.predictor import Estimate, QualityPredictor
from apportion.predict.quality._arrays import Floats
from apportion.predict.quality._calibration import Calibrator
from apportion.predict.quality._drift import Drift, DriftMonitor
from apportion.predict.quality._kernels import Kernels, kernels
from apportion.predict.quality._view import View

MODELS = 64
"""So many models are learned of at most; an outcome of another is not taken in, which bounds the memory."""


Said = tuple[list[float], list[float]]
"""Of each model a probability and its standard deviation; NaN where nothing is known."""


class Head(ABC):
    """Rows of one view to a raw probability and its standard deviation for each of ``count`` models."""

    @abstractmethod
    def raw(self, x: Floats) -> Said:
        """Probability and standard deviation of every model, NaN for one nothing is known of."""

    @abstractmethod
    def quick(self, x: Floats, kernels: Kernels, said: Floats) -> None:
        """Write what `raw` says, to rounding, into ``said`` (2, models), by compiled loops."""

    @abstractmethod
    def learn(self, x: Floats, model: int, quality: float, weight: float) -> None:
        """Take in that model number ``model`` answered the request of row ``x`` with ``quality``."""

    @abstractmethod
    def grow(self) -> None:
        """One more model, nothing known of it."""

    @abstractmethod
    def save(self) -> dict[str, Any]:
        """As an object that JSON can carry."""

    @classmethod
    @abstractmethod
    def load(cls, saved: Mapping[str, Any], owner: TwoViews) -> Self:
        """What `save` returned, for a predictor with the parameters of ``owner``."""


class Seat:
    """A head with the view it sees through, the models in its order and their calibration."""

    def __init__(self, view: View, head: Head, models: Sequence[str], calibrator: Calibrator) -> None:
        self.view, self.head, self.calibrator = view, head, calibrator
        self.places = {model: place for place, model in enumerate(models)}

    def place(self, model: str) -> int | None:
        """The number of ``model``, a new one where there is room."""
        found = self.places.get(model)
        if found is None and len(self.places) < MODELS:
            found = self.places[model] = len(self.places)
            self.head.grow()
            self.calibrator.grow()
        return found


class TwoViews(QualityPredictor):
    """The base of every quality predictor here. ``dims`` and ``seed`` are parameters of all of them."""

    dims: int
    seed: int
    rows_per_false_alarm: int
    head: ClassVar[type[Head]]
    _kernels: Kernels | None = None

    def prepare(self) -> None:
        """Compile what predicts, where numba is installed; before, and without it, it is done in arrays."""
        self._kernels = kernels()

    def reset(self) -> None:
        """Nothing is known of any model."""
        self._seats: dict[str, Seat] = {}
        self._drift = DriftMonitor(self.rows_per_false_alarm)

    @abstractmethod
    def new_head(self, width: int) -> Head | None:
        """A head that knows nothing, for rows of ``width`` numbers; None where only fitting makes one."""

    def predict(self, features: Features, models: Sequence[str]) -> list[Estimate | None]:
        """For each of ``models`` the quality in [0, 1]; None for one it knows nothing of."""
        loops = self._kernels
        seen = self._see(features, loops)
        if seen is None:
            return [None] * len(models)
        seat, x = seen
        places = seat.places
        if loops is None or len(seat.calibrator.line) != len(places):
            means, spreads = seat.calibrator.apply(*seat.head.raw(x))
        else:
            said = np.empty((2, len(places)))
            seat.head.quick(x, loops, said)
            seat.calibrator.quick(said, loops)
            means, spreads = said.tolist()
        found: list[Estimate | None] = []
        for model in models:
            place = places.get(model)
            mean = means[place] if place is not None else math.nan
            found.append(Estimate(mean, spreads[place]) if place is not None and mean == mean else None)
        return found

    def _see(self, features: Features, loops: Kernels | None) -> tuple[Seat, Floats] | None:
        """The best seat for what there is of ``features``, with the row it sees."""
        for name in ("vector", "lexical") if features.vector is not None else ("lexical",):
            seat = self._seats.get(name)
            if seat is not None:
                x = seat.view.row(features, loops)
                if x is not None:
                    return seat, x
        return None

    def learn(self, features: Features, model: str, quality: float, *, weight: float = 1.0) -> None:
        """Take in that ``model`` answered with ``quality`` in [0, 1]; in bounded memory.

        A quality or weight that is not a number, or out of range, is not taken in.
        """
        if not (0.0 <= quality <= 1.0 and 0.0 < weight < math.inf):
            return
        told = False
        for name in ("vector", "lexical") if features.vector is not None else ("lexical",):
            seat = self._seats.get(name) or self._sit(name, features)
            x = seat.view.row(features) if seat else None
            place = seat.place(model) if seat and x is not None else None
            if seat is None or x is None or place is None:
                continue
            p, sd = seat.head.raw(x)
            before = p[place]
            if before == before:
                if not told:
                    self._drift.notice(model, seat.calibrator.apply(p, sd)[0][place], quality)
                    told = True
                seat.calibrator.learn(place, before, quality, weight)
            seat.head.learn(x, place, quality, weight)

    def _sit(self, name: str, features: Features) -> Seat | None:
        """A new seat without knowledge, at the first outcome."""
        shown = features if name == "vector" else Features(features.lexical)
        view = View.cold(shown, self.dims, self.seed)
        head = self.new_head(view.width)
        if head is None:
            return None
        seat = self._seats[name] = Seat(view, head, (), Calibrator(0))
        return seat

    def seat(self, name: str, seat: Seat, expected: Mapping[str, float]) -> None:
        """Put in a fitted ``seat``, "vector" or "lexical"; ``expected`` is each model's mean quality."""
        self._seats[name] = seat
        for model, mean in expected.items():
            self._drift.expect(model, mean)

    def drift(self) -> Mapping[str, Drift]:
        """For each model whether its quality, or the calibration of what is said of it, has changed."""
        return self._drift.report()

    def forget_drift(self, model: str) -> None:
        """The change of ``model`` has been seen to: watch anew from here."""
        self._drift.forget(model)

    def save(self) -> dict[str, Any]:
        """What was learned, as an object that JSON can carry."""
        seats = {
            name: {
                "view": seat.view.save(),
                "head": seat.head.save(),
                "models": list(seat.places),
                "calibrator": seat.calibrator.save(),
            }
            for name, seat in self._seats.items()
        }
        return {"method": type(self).__name__, "learned": {"seats": seats, "drift": self._drift.save()}}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` returned; raises `SavedStateError` if it is another method's."""
        learned = saved.get("learned")
        if saved.get("method") != type(self).__name__ or not isinstance(learned, Mapping):
            raise SavedStateError(
                f"The saved state is of {saved.get('method')!r}, not of {type(self).__name__!r}.",
                field="method",
            )
        try:
            seats = {name: self._loaded(one) for name, one in learned["seats"].items()}
            drift = DriftMonitor(self.rows_per_false_alarm)
            drift.load(learned["drift"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise SavedStateError(
                f"The saved state of {type(self).__name__} cannot be read: {error}.",
                field="learned",
                fix="It was written by another version or cut short; fit anew or start without it.",
            ) from error
        self._seats, self._drift = seats, drift

    def _loaded(self, one: Mapping[str, Any]) -> Seat:
        """A saved seat. It is asked once in arrays, which notice what does not fit and machine code would not."""
        head = type(self).head.load(one["head"], self)
        seat = Seat(View.load(one["view"]), head, one["models"], Calibrator.load(one["calibrator"]))
        means, sds = head.raw(np.zeros(seat.view.width))
        if {len(means), len(sds), len(seat.calibrator.line)} != {len(seat.places)}:
            raise ValueError("the saved models do not fit together")
        return seat


def nothing(models: int) -> Said:
    """What a head says of ``models`` it knows nothing of."""
    return [math.nan] * models, [math.nan] * models
