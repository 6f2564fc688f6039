"""What is known of one tenant's answers of one model: how long they get, and which requests make them long."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

_RATE = 0.3
_MOST_LOG = 30.0
_KEEP = 1000
_FIRST = 10
"""Answers that over-generate before anything is flagged."""
_CALIBRATE = 400
"""Ordinary requests that a copy has seen when it takes the place of the one before."""


class Recent:
    """The last thousand values, their order statistics at hand."""

    def __init__(self, values: Sequence[float] = ()) -> None:
        self.values = deque(values, maxlen=_KEEP)
        self._sorted = sorted(values)

    def add(self, value: float) -> None:
        """One more; the oldest of too many goes."""
        if len(self.values) == _KEEP:
            oldest = self.values[0]
            del self._sorted[bisect_left(self._sorted, oldest)]
        self.values.append(value)
        insort(self._sorted, value)

    def bound(self, alpha: float) -> float:
        """What a further value like these exceeds with a probability of at most ``alpha`` (split conformal): the
        ceil((n + 1)(1 - alpha))-th least; infinite while there are too few.
        """
        rank = math.ceil((len(self._sorted) + 1) * (1.0 - alpha))
        return self._sorted[rank - 1] if rank <= len(self._sorted) else math.inf


class Score:
    """Weights as they stood at one moment, and what was left of the ordinary requests since: neither knew the
    other, so their quantiles are a bound for the next one.
    """

    def __init__(self, weights: Sequence[float], ordinary: Sequence[float] = ()) -> None:
        self.weights = list(weights)
        self.ordinary = Recent(ordinary)


class History:
    """Two linear models on a request's features, learned online (AdaGrad): the logarithm of the answer's length,
    and the odds that it over-generates. Each is judged by a copy that stands still while it is calibrated; the
    next copy takes its place when it has seen enough ordinary requests itself. The first copy of the length knows
    nothing, so that its bound is the tenant's quantile.
    """

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.length = [0.0] * (dimensions + 1)
        self.odds = [0.0] * (dimensions + 1)
        self.squares = [[1e-3] * (dimensions + 1), [1e-3] * (dimensions + 1)]
        self.lengths = [Score(self.length)]
        """What answers that ended by themselves had beyond their predicted log(1 + tokens)."""
        self.calm = Recent()
        """The longest stretch of each such answer in which the model was sure of every token."""
        self.scores: list[Score] = []
        self.answers = self.over = self.flagged = self.watched = 0
        self.usual_log_length = 0.0

    def stands_out(self, x: Sequence[float], alpha: float) -> bool:
        """Whether a request's odds exceed those of all but ``alpha`` of ordinary requests."""
        return bool(self.scores) and _dot(self.scores[0].weights, x) > self.scores[0].ordinary.bound(alpha)

    def probability(self, x: Sequence[float]) -> float:
        """Of over-generation."""
        return _logistic(_dot(self.odds, x))

    def log_length(self, x: Sequence[float]) -> float:
        """Of the answer, in log(1 + tokens)."""
        return _dot(self.length, x)

    def most_tokens(self, x: Sequence[float], alpha: float) -> float:
        """What the answer exceeds with a probability of at most ``alpha`` if it ends by itself."""
        score = self.lengths[0]
        return math.expm1(min(_dot(score.weights, x) + score.ordinary.bound(alpha), _MOST_LOG))

    def learn(self, x: Sequence[float], tokens: float, limit: float, censored: bool, weight: int = 1) -> None:
        """One answer that stands for ``weight`` like it. Of a censored one only what it says for sure is taken: that
        it was at least so long.
        """
        seen, expected = math.log1p(tokens), self.log_length(x)
        self.answers += 1
        self.usual_log_length += (seen - self.usual_log_length) / min(self.answers, 200)
        if not censored or seen > expected:
            _step(self.length, self.squares[0], x, seen - expected)
        over = tokens >= limit
        if not over and not censored:
            _calibrate(self.scores, self.odds, lambda weights: _dot(weights, x), weight)
        if over or not censored:
            _step(self.odds, self.squares[1], x, weight * (over - self.probability(x)))
        if over:
            self.over += 1
            if self.over == _FIRST:
                self.scores = [Score(self.odds)]
            elif self.over == 2 * _FIRST:
                self.scores.append(Score(self.odds))

    def ended(self, x: Sequence[float], tokens: float, weight: int) -> None:
        """An answer that ended by itself, and stands for ``weight`` as long ones, has so many tokens."""
        seen = math.log1p(tokens)
        if len(self.lengths) == 1 and len(self.lengths[0].ordinary.values) >= _CALIBRATE // 2:
            self.lengths.append(Score(self.length))
        _calibrate(self.lengths, self.length, lambda weights: seen - _dot(weights, x), weight)

    def save(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "length": self.length,
            "odds": self.odds,
            "squares": self.squares,
            "lengths": [[score.weights, list(score.ordinary.values)] for score in self.lengths],
            "calm": list(self.calm.values),
            "scores": [[score.weights, list(score.ordinary.values)] for score in self.scores],
            "answers": self.answers,
            "over": self.over,
            "flagged": self.flagged,
            "watched": self.watched,
            "usual_log_length": self.usual_log_length,
        }

    @classmethod
    def loaded(cls, saved: dict[str, Any]) -> History:
        """What `save` returned."""
        found = cls(len(saved["length"]) - 1)
        found.length, found.odds = list(saved["length"]), list(saved["odds"])
        found.squares = [list(row) for row in saved["squares"]]
        found.lengths = [Score(weights, ordinary) for weights, ordinary in saved["lengths"]]
        found.calm = Recent(saved["calm"])
        found.scores = [Score(weights, ordinary) for weights, ordinary in saved["scores"]]
        found.answers, found.over = saved["answers"], saved["over"]
        found.flagged, found.watched = saved["flagged"], saved["watched"]
        found.usual_log_length = saved["usual_log_length"]
        return found


def _calibrate(
    scores: list[Score], weights: Sequence[float], left: Callable[[Sequence[float]], float], times: int
) -> None:
    """Show each copy an ordinary request; the second takes the first one's place when it has seen enough."""
    for score in scores:
        value = left(score.weights)
        for _ in range(times):
            score.ordinary.add(value)
    if len(scores) == 2 and len(scores[1].ordinary.values) >= _CALIBRATE:
        scores[:] = [scores[1], Score(weights)]


def _dot(weights: Sequence[float], x: Sequence[float]) -> float:
    return sum(map(float.__mul__, weights, x)) + weights[-1]


def _step(weights: list[float], squares: list[float], x: Sequence[float], error: float) -> None:
    for place, value in enumerate((*x, 1.0)):
        if value:
            slope = error * value
            squares[place] += slope * slope
            weights[place] += _RATE * slope / math.sqrt(squares[place])


def _logistic(score: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(min(score, 30.0), -30.0)))
