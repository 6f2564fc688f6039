"""What the length predictors share: lengths as logarithms, and the distribution of what a score leaves open.

A predictor says where a prompt's length lies (a score: the expected logarithm of the tokens of a typical model); for
each model a line turns it into that model's own, and how far its last answers lie from the line says how far off that
may be. An answer that a limit cut is at least so long: it is known from below only, which the product-limit estimator
of Kaplan and Meier uses for what it is worth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apportion.core.predictor import Quantiles
from apportion.predict._spread import MOST_LOG, Spread

WINDOW = 256
"""Answers that are remembered for each model."""
_ENOUGH = 3
"""Answers after which a model of which nothing was fitted is predicted."""
_PRIOR_ERRORS = np.array([-1.5, -0.7, -0.25, 0.25, 0.7, 1.5])
"""Of lengths spread by a factor of e, roughly those of conversations: counted in while there are few answers."""
_PRIOR_UNTIL = 24
NOTHING: tuple[None, float] = (None, 0.0)

Floats = NDArray[np.float64]


def log_tokens(tokens: float) -> float:
    """The logarithm of a length; one token is the least."""
    return math.log(min(max(tokens, 1.0), math.exp(MOST_LOG)))


class Line:
    """One model's ``location = intercept + slope * score``: a Kalman filter for two numbers that drift."""

    __slots__ = ("_p", "intercept", "slope")

    _DRIFT = (1e-4, 1e-6)
    """Variance that each gains with every answer: about the last 100 count for the level, more for the slope."""
    _BOUND = 2.0
    """Errors beyond so much (a factor of 7) count as if they were that large."""

    def __init__(
        self, intercept: float = 0.0, slope: float = 1.0, p: Sequence[float] = (1.0, 0.0, 0.05)
    ) -> None:
        self.intercept = intercept
        self.slope = slope
        self._p = (float(p[0]), float(p[1]), float(p[2]))
        """The variance of the intercept, the covariance of both, the variance of the slope."""

    def __call__(self, score: float) -> float:
        return self.intercept + self.slope * score

    def learn(self, score: float, error: float) -> None:
        """Move towards an answer that was ``error`` above what the line said."""
        a, b, c = self._p
        u, v = a + b * score, b + c * score
        gain = 1.0 / (1.0 + u + v * score)
        bounded = min(max(error, -self._BOUND), self._BOUND)
        self.intercept += u * gain * bounded
        self.slope += v * gain * bounded
        self._p = (a - u * u * gain + self._DRIFT[0], b - u * v * gain, c - v * v * gain + self._DRIFT[1])

    def saved(self) -> list[float]:
        """All of it, for saving."""
        return [self.intercept, self.slope, *self._p]


class Model:
    """All that is known of one model: its line, and its last answers around it."""

    __slots__ = ("_censored", "_logs", "_scores", "answers", "line", "spread")

    def __init__(
        self,
        line: Line,
        scores: Sequence[float] = (),
        logs: Sequence[float] = (),
        censored: Sequence[bool] = (),
        answers: int = 0,
    ) -> None:
        self.line = line
        self.answers = answers
        self._scores, self._logs = np.zeros(WINDOW), np.zeros(WINDOW)
        self._censored = np.zeros(WINDOW, bool)
        n = len(scores)
        self._scores[:n], self._logs[:n], self._censored[:n] = scores, logs, censored
        self.spread = self._around()

    @property
    def seen(self) -> int:
        """How many answers are in the window."""
        return min(self.answers, WINDOW)

    def learn(self, score: float, tokens: float, *, censored: bool) -> float:
        """Take in one answer; returns by how much its logarithm (expected, if censored) was above the line."""
        log = log_tokens(tokens)
        error = log - self.line(score)
        expected = self.spread.mean_above(error) if censored else error
        self.line.learn(score, expected)
        place = self.answers % WINDOW
        self._scores[place], self._logs[place], self._censored[place] = score, log, censored
        self.answers += 1
        self.spread = self._around()
        return expected

    def saved(self) -> dict[str, Any]:
        """All of it as JSON can carry it."""
        n = self.seen
        return {
            "answers": self.answers,
            "line": self.line.saved(),
            "scores": self._scores[:n].tolist(),
            "logs": self._logs[:n].tolist(),
            "censored": [int(cut) for cut in self._censored[:n]],
        }

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> Model:
        """Back from what `saved` gave."""
        line = saved["line"]
        cut = [bool(cut) for cut in saved["censored"]]
        return cls(Line(line[0], line[1], line[2:]), saved["scores"], saved["logs"], cut, saved["answers"])

    def _around(self) -> Spread:
        """How the answers of the window lie around the line as it is now."""
        n = self.seen
        errors = self._logs[:n] - (self.line.intercept + self.line.slope * self._scores[:n])
        cut = self._censored[:n]
        if n < _PRIOR_UNTIL:
            errors = np.concatenate([_PRIOR_ERRORS, errors])
            cut = np.concatenate([np.zeros(len(_PRIOR_ERRORS), bool), cut])
        return Spread(errors, cut)


class Models:
    """What is known of each model, of a bounded number: who was not heard of for longest goes.

    ``anyone`` stands in for a model of which nothing is known; None without a fit.
    """

    __slots__ = ("_known", "_most", "anyone", "scored")

    def __init__(self, most: int) -> None:
        self._most = most
        self.scored: tuple[tuple[float, ...] | None, float] = NOTHING
        """The marks that were looked at last, with their score, as long as that holds; nothing that is saved."""
        self._known: dict[str, Model] = {}
        self.anyone: Model | None = None

    @property
    def names(self) -> frozenset[str]:
        """Those that are known."""
        return frozenset(self._known)

    def predict(self, model: str, score: float) -> Quantiles | None:
        """The tokens of an answer of ``model`` to a prompt of this score."""
        known = self._of(model)
        if known is None:
            return None
        location, spread = known.line(score), known.spread
        middle = _tokens(location + spread.p50)
        return Quantiles(
            min(math.exp(min(location, MOST_LOG)) * spread.mean_exp, math.exp(MOST_LOG)),
            middle,
            max(middle, _tokens(location + spread.p90)),
        )

    def chance_longer(self, model: str, score: float, tokens: float) -> float | None:
        """The probability that the answer has more than ``tokens``."""
        known = self._of(model)
        if known is None:
            return None
        return min(max(known.spread.chance_above(log_tokens(tokens) - known.line(score)), 0.0), 1.0)

    def learn(self, model: str, score: float, tokens: float, *, censored: bool) -> float:
        """Take in an answer's length; returns by how much its logarithm (expected, if censored) was above the line."""
        known = self._known.pop(model, None)
        if known is None:
            known = Model(Line(log_tokens(tokens) - score))
        self._known[model] = known  # now the one heard of last
        while len(self._known) > self._most:
            del self._known[next(iter(self._known))]
        return known.learn(score, tokens, censored=censored)

    def _of(self, model: str) -> Model | None:
        known = self._known.get(model)
        return self.anyone if known is None or known.answers < _ENOUGH else known

    def put(self, model: str, known: Model) -> None:
        """Set what is known of ``model``."""
        self._known[model] = known

    def saved(self) -> dict[str, Any]:
        """All of it as JSON can carry it."""
        return {
            "anyone": None if self.anyone is None else self.anyone.saved(),
            "known": {name: model.saved() for name, model in self._known.items()},
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Back to what `saved` gave."""
        anyone = saved["anyone"]
        self.anyone = None if anyone is None else Model.restored(anyone)
        self._known = {name: Model.restored(item) for name, item in saved["known"].items()}


def _tokens(log: float) -> float:
    return math.exp(min(max(log, 0.0), MOST_LOG))
