"""Predicts an answer's length from the prompt's counts and marks by a line that it learns as it goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from apportion.core.features import Features
from apportion.core.method import Constraint, Interval
from apportion.core.predictor import LengthPredictor, Quantiles
from apportion.predict.length._lengths import NOTHING, Models


@final
class Linear(LengthPredictor):
    """Predicts an answer's length from the prompt's counts and marks by a line that it learns as it goes.

    One line for all models gives a prompt's score: how much longer or shorter than usual its answers are. For each
    model a line of two numbers and the errors of late turn the score into tokens. It needs no fit and no trace;
    after some hundreds of answers it knows an essay from a yes.

        score = w . x,   w, P by recursive least squares with penalty and forgetting
        log tokens = a_m + b_m score + error_m,   error_m ~ the model's last 256 (Kaplan and Meier)

    An answer that a limit cut enters the distribution of errors as what it is, at least so long [2]_, and the lines
    with the length it would be expected to have had [3]_.

    Parameters
    ----------
    penalty
        Strength of the pull of ``w`` towards 0, in answers, above 0 up to 10,000.
    memory
        Weight of an earlier answer against the next, 0.9 to 1; 0.9995: about the last 2000 count.
    most_models
        Models that are remembered, 1 to 100,000; who was not heard of for longest goes.

    Complexity
    ----------
    O(d) to predict (6 microseconds), O(d^2) to learn (25 microseconds), O(d^2) memory for d lexical features.

    Notes
    -----
    Errors beyond a factor of 7 count as if they were that large. The vector of `Features` is not used. If the number
    of lexical features changes, the score starts anew.

    See Also
    --------
    length/trees : fitted to a trace, better once there is one.
    length/typical : does not look at the prompt.

    References
    ----------
    .. [1] "Clairvoyant: Predictive SJF Scheduling to Mitigate Head-of-Line Blocking in Serial LLM Backends." (2026)
       https://github.com/Aravind0403/clairvoyant-scheduler
    .. [2] Kaplan, E. L., Meier, P. "Nonparametric Estimation from Incomplete Observations." (1958)
       doi:10.1080/01621459.1958.10501452
    .. [3] Buckley, J., James, I. "Linear Regression with Censored Data." (1979) doi:10.1093/biomet/66.3.429

    Examples
    --------
    >>> from apportion.core import Features
    >>> length = Linear()
    >>> for round_ in range(200):
    ...     length.learn(Features((1.0, 0.0)), "small", 500)
    ...     length.learn(Features((0.0, 1.0)), "small", 20)
    >>> 300 < length.predict(Features((1.0, 0.0)), "small").p50 < 700
    True
    >>> 10 < length.predict(Features((0.0, 1.0)), "small").p50 < 40
    True
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "penalty": Interval(float, 0.0, 10_000.0, closed="right"),
        "memory": Interval(float, 0.9, 1.0),
        "most_models": Interval(int, 1, 100_000),
    }

    _w: NDArray[np.float64]
    _p: NDArray[np.float64]

    def __init__(self, *, penalty: float = 3.0, memory: float = 0.9995, most_models: int = 1_000) -> None:
        self.penalty = penalty
        self.memory = memory
        self.most_models = most_models
        self.start()

    def reset(self) -> None:
        """Knows no model and no weight."""
        self._models = Models(self.most_models)
        self._fresh(0)

    @property
    def models(self) -> frozenset[str]:
        """The models that it knows."""
        return self._models.names

    def predict(self, features: Features, model: str) -> Quantiles | None:
        """Output tokens of ``model``'s answer; None until three were seen."""
        return self._models.predict(model, self._score(features))

    def chance_longer(self, features: Features, model: str, tokens: float) -> float | None:
        """The probability that the answer has more than ``tokens``."""
        return self._models.chance_longer(model, self._score(features), tokens)

    def learn(self, features: Features, model: str, output_tokens: float, *, censored: bool = False) -> None:
        """Take in an answer's length; ``censored``: a limit ended it, so it is at least that."""
        x = np.array(features.lexical)
        if len(x) != len(self._w):
            self._fresh(len(x))
        error = self._models.learn(model, float(x @ self._w), output_tokens, censored=censored)
        self._models.scored = NOTHING
        px = self._p @ x
        gain = px / (self.memory + float(x @ px))
        self._w += gain * min(max(error, -2.0), 2.0)
        self._p = (self._p - gain[:, None] * px) / self.memory
        # What is never seen must not become ever less certain: no more than at the start.
        most = 1.0 / self.penalty
        wide = float(self._p.diagonal().max())
        if wide > most:
            self._p *= most / wide

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        yield {"penalty": 0.5, "memory": 1.0, "most_models": 3}

    def save(self) -> dict[str, Any]:
        """What was learned, as an object that JSON can carry."""
        learned = {"_models": self._models.saved(), "_w": self._w.tolist(), "_p": self._p.tolist()}
        return {"method": type(self).__name__, "learned": learned}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` returned; raises `SavedStateError` if it is another method's."""
        super().load(saved)
        learned: Any = self._models
        self._models = Models(self.most_models)
        self._models.restore(learned)
        self._w = np.array(self._w, float)
        self._p = np.array(self._p, float).reshape(len(self._w), len(self._w))

    def _score(self, features: Features) -> float:
        """The same for every model: they are asked for one after the other."""
        lexical = features.lexical
        seen, score = self._models.scored
        if seen is not lexical:
            score = float(np.array(lexical) @ self._w) if len(lexical) == len(self._w) else 0.0
            self._models.scored = lexical, score
        return score

    def _fresh(self, d: int) -> None:
        self._w = np.zeros(d)
        self._p = np.eye(d) / self.penalty
