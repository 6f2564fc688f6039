"""Predicts the time to the first token and to the end from an endpoint's load and the lengths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from apportion.core.method import Constraint, Interval
from apportion.core.predictor import LatencyPredictor, Quantiles
from apportion.predict._spread import Spread

_ENOUGH = 3
_WINDOW = 256
_LEAST_S = 1e-4
_FIRST, _ALL = 5, 8
"""Of the eight coefficients five make the time to the first token."""
_PRIOR = np.array([0.2, 0.1, 0.1, 0.05, 0.5, 15.0, 10.0, 0.5])
"""Seconds, and seconds per thousand tokens: a mid-sized model on one large accelerator. Anything near will do."""
_PRIOR_WEIGHT = 0.003
"""What the prior counts for, in answers: it only decides what the answers leave open."""
_PRIOR_RATIOS = np.array([-0.5, -0.2, 0.0, 0.2, 0.5])
_PRIOR_UNTIL = 12
_EVERY = 8
"""Once there are so many, the line is drawn anew after so many more answers."""
_BOUND = 3.0
"""A relative error of more than so many times the median one has the weight of one that large."""
_ROUNDS = 3

Floats = NDArray[np.float64]


@final
class Load(LatencyPredictor):
    """Predicts the time to the first token and to the end from an endpoint's load and the lengths.

    A server reads the prompt at some speed and writes the answer at another, both slower the more it does at once, and
    beyond its capacity requests wait. That is linear in eight coefficients, learned for each endpoint from its
    last 256 answers (robust least squares of the relative error, none below 0):

        first(i, l)    = w0 + w1 i + w2 l + w3 l i + w4 max(l - 1, 0)
        total(i, o, l) = first(i, l) + o (w5 + w6 l + w7 i)

    with i and o thousands of input and output tokens and l the load. How far the last measurements lay from the line,
    as ratios, gives the quantiles; one that a limit ended counts as at least so long [1]_.

    Parameters
    ----------
    most_endpoints
        Endpoints that are remembered, 1 to 100,000; who was not heard of for longest goes.

    Complexity
    ----------
    2 microseconds to predict, about 150 to learn and 500 at every eighth answer, which is on no request's way;
    25 KB an endpoint.

    Notes
    -----
    No coefficient is below 0: no endpoint is faster for more work, whatever noise says. An error beyond three times the
    median one counts as if it were that large, so that a hanging request moves little; its ratio still counts in the
    90th percentile. Answers that were not streamed teach the sum alone. The mean is that of the ratios, which a long
    tail lifts above the median.

    References
    ----------
    .. [1] Kaplan, E. L., Meier, P. "Nonparametric Estimation from Incomplete Observations." (1958)
       doi:10.1080/01621459.1958.10501452
    .. [2] Patel, P., et al. "Splitwise: Efficient Generative LLM Inference Using Phase Splitting." (2023)
       arXiv:2311.18677

    Examples
    --------
    >>> latency = Load()
    >>> latency.predict("a", 0.5, 1000, 100) is None
    True
    >>> for tokens in range(20, 420, 4):
    ...     latency.learn("a", 0.5, 1000, tokens, first_token_s=0.3, total_s=0.3 + 0.02 * tokens)
    >>> first, total = latency.predict("a", 0.5, 1000, 200)
    >>> round(first.p50, 1), round(total.p50, 1)
    (0.3, 4.3)
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "most_endpoints": Interval(int, 1, 100_000),
    }

    def __init__(self, *, most_endpoints: int = 1_000) -> None:
        self.most_endpoints = most_endpoints
        self.start()

    def reset(self) -> None:
        """Knows no endpoint."""
        self._endpoints: dict[str, _Endpoint] = {}

    def predict(
        self, endpoint: str, load: float, input_tokens: float, output_tokens: float
    ) -> tuple[Quantiles, Quantiles] | None:
        """Seconds to the first token and to the end; None until three answers of ``endpoint`` were measured."""
        known = self._endpoints.get(endpoint)
        if known is None or known.answers < _ENOUGH:
            return None
        first_s, total_s = known.times(load, input_tokens, output_tokens)
        total = _around(total_s, known.total)
        if not known.streamed:  # nothing was ever streamed: all that is known is when it ends
            first_s = min(first_s, total_s)
        return _around(first_s, known.first), total

    def learn(
        self,
        endpoint: str,
        load: float,
        input_tokens: float,
        output_tokens: float,
        *,
        first_token_s: float | None,
        total_s: float,
        censored: bool = False,
    ) -> None:
        """Take in what was measured; ``first_token_s`` None for an answer that was not streamed.

        ``censored``: a limit ended it, so that it would have taken at least that. Times that are not finite or below
        zero, and numbers of tokens that are none, teach nothing.
        """
        if not _sound(load, input_tokens, output_tokens, total_s, first_token_s or 0.0):
            return
        known = self._endpoints.pop(endpoint, None) or _Endpoint()
        self._endpoints[endpoint] = known
        while len(self._endpoints) > self.most_endpoints:
            del self._endpoints[next(iter(self._endpoints))]
        known.learn(_row(load, input_tokens, output_tokens), first_token_s, total_s, censored)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        yield {"most_endpoints": 2}

    def save(self) -> dict[str, Any]:
        """What was learned, as an object that JSON can carry."""
        learned = {name: known.saved() for name, known in self._endpoints.items()}
        return {"method": type(self).__name__, "learned": {"_endpoints": learned}}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` returned; raises `SavedStateError` if it is another method's."""
        super().load(saved)
        found: Any = self._endpoints
        self._endpoints = {name: _Endpoint.restored(item) for name, item in found.items()}


class _Endpoint:
    """What is known of one endpoint: its last answers, the line through them, how they lie around it."""

    __slots__ = ("_censored", "_firsts", "_rows", "_totals", "_w", "answers", "first", "total")

    def __init__(self) -> None:
        self._rows = np.zeros((_WINDOW, _ALL))
        self._firsts = np.full(_WINDOW, np.nan)
        self._totals = np.ones(_WINDOW)
        self._censored = np.zeros(_WINDOW, bool)
        self._w = _PRIOR.copy()
        self.answers = 0
        self.first = self.total = _spread(np.zeros(0), np.zeros(0, bool))
        """How measured over predicted times are distributed (logarithms)."""

    @property
    def streamed(self) -> bool:
        """Whether the time to the first token was ever measured, of late."""
        return not np.isnan(self._firsts[: self.answers]).all()

    def times(self, load: float, input_tokens: float, output_tokens: float) -> tuple[float, float]:
        """Seconds to the first token and to the end, as the line has them."""
        w = self._w.tolist()
        over = load - 1.0 if load > 1.0 else 0.0
        i, o = input_tokens / 1e3, output_tokens / 1e3
        first_s = w[0] + w[1] * i + w[2] * load + w[3] * load * i + w[4] * over
        total_s = first_s + o * (w[5] + w[6] * load + w[7] * i)
        return max(first_s, _LEAST_S), max(total_s, _LEAST_S)

    def learn(self, row: list[float], first_token_s: float | None, total_s: float, censored: bool) -> None:
        """One more answer: the oldest goes."""
        place = self.answers % _WINDOW
        self._rows[place] = row
        self._firsts[place] = np.nan if first_token_s is None else max(first_token_s, _LEAST_S)
        self._totals[place] = max(total_s, _LEAST_S)
        self._censored[place] = censored
        self.answers += 1
        if self.answers <= 4 * _EVERY or self.answers % _EVERY == 0:
            self._w = self._line()
        self._around()

    def _line(self) -> Floats:
        """Coefficients of least relative errors; a large error counts in proportion, not in square (Huber)."""
        n = min(self.answers, _WINDOW)
        rows, totals, cut = self._rows[:n], self._totals[:n], self._censored[:n]
        timed = ~np.isnan(self._firsts[:n])
        firsts = np.where(np.arange(_ALL) < _FIRST, rows[timed], 0.0) / self._firsts[:n][timed, None]
        w = self._w
        weight = np.ones(n + int(timed.sum()))
        for _ in range(_ROUNDS):
            expected = totals.copy()
            for place in np.flatnonzero(cut):
                said = max(float(rows[place] @ w), _LEAST_S)
                beyond = self.total.mean_above(math.log(totals[place] / said))
                expected[place] = max(totals[place], said * math.exp(min(beyond, 10.0)))
            equations = np.concatenate([rows / expected[:, None], firsts])
            w = _least(equations, weight)
            errors = np.abs(equations @ w - 1.0)
            for part in (slice(n), slice(n, None)):  # each by its own measure: first tokens are told better
                bound = _BOUND * float(np.median(errors[part])) + 1e-3 if errors[part].size else 1.0
                weight[part] = np.minimum(1.0, bound / np.maximum(errors[part], 1e-12))
        return w

    def _around(self) -> None:
        n = min(self.answers, _WINDOW)
        rows, w = self._rows[:n], self._w
        predicted = np.maximum(rows @ w, _LEAST_S)
        self.total = _spread(np.log(self._totals[:n] / predicted), self._censored[:n])
        timed = ~np.isnan(self._firsts[:n])
        predicted = np.maximum(rows[timed][:, :_FIRST] @ w[:_FIRST], _LEAST_S)
        self.first = _spread(np.log(self._firsts[:n][timed] / predicted), np.zeros(int(timed.sum()), bool))

    def saved(self) -> dict[str, Any]:
        """All of it as JSON can carry it."""
        n = min(self.answers, _WINDOW)
        return {
            "answers": self.answers,
            "w": self._w.tolist(),
            "rows": self._rows[:n].tolist(),
            "firsts": [None if value != value else value for value in self._firsts[:n].tolist()],
            "totals": self._totals[:n].tolist(),
            "censored": [int(cut) for cut in self._censored[:n]],
        }

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> _Endpoint:
        """Back from what `saved` gave."""
        found = cls()
        n = len(saved["rows"])
        found._rows[:n] = saved["rows"]
        found._firsts[:n] = [math.nan if value is None else value for value in saved["firsts"]]
        found._totals[:n], found._censored[:n] = saved["totals"], saved["censored"]
        found._w = np.array(saved["w"], float)
        found.answers = saved["answers"]
        found._around()
        return found


def _least(equations: Floats, weight: Floats) -> Floats:
    """The ``w >= 0`` that brings ``equations @ w`` nearest to 1, the prior counting a little.

    Coefficients that would be negative are dropped, the worst first: near enough to the optimum, and quick.
    """
    pull = _PRIOR_WEIGHT / _PRIOR**2
    weighted = equations * weight[:, None]
    gram = equations.T @ weighted + np.diag(pull)
    target = weighted.sum(axis=0) + pull * _PRIOR
    kept = np.arange(_ALL)
    while True:
        found = np.linalg.solve(gram[np.ix_(kept, kept)], target[kept])
        if (found >= 0.0).all():
            w = np.zeros(_ALL)
            w[kept] = found
            return w
        kept = np.delete(kept, int(np.argmin(found / _PRIOR[kept])))


def _spread(logs: Floats, censored: NDArray[np.bool_]) -> Spread:
    if len(logs) < _PRIOR_UNTIL:
        logs = np.concatenate([_PRIOR_RATIOS, logs])
        censored = np.concatenate([np.zeros(len(_PRIOR_RATIOS), bool), censored])
    return Spread(logs, censored)


def _row(load: float, input_tokens: float, output_tokens: float) -> list[float]:
    i, o = input_tokens / 1e3, output_tokens / 1e3
    return [1.0, i, load, load * i, max(load - 1.0, 0.0), o, o * load, o * i]


def _around(seconds: float, spread: Spread) -> Quantiles:
    middle = seconds * math.exp(spread.p50)
    return Quantiles(seconds * spread.mean_exp, middle, max(middle, seconds * math.exp(spread.p90)))


def _sound(*numbers: float) -> bool:
    return all(math.isfinite(number) and 0.0 <= number <= 1e9 for number in numbers)
