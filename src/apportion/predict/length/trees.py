"""Predicts an answer's length from the prompt by boosted trees fitted to a trace, corrected by what is served."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from apportion.core.features import Features
from apportion.core.method import Constraint, Interval
from apportion.core.predictor import LengthPredictor, Quantiles
from apportion.predict.length._forest import Forest
from apportion.predict.length._lengths import Models


@final
class Trees(LengthPredictor):
    """Predicts an answer's length from the prompt by boosted trees fitted to a trace, corrected by what is served.

    `apportion fit length` grows the trees: they give a prompt's score, the expected logarithm of the tokens of a
    typical model's answer. That much is S310 [1]_, whose classes short and long are two questions among others here:
    the chance that an answer is longer than so many tokens is read from the same distribution as the quantiles. What
    is served goes on correcting it: for each model a line turns the score into its own length, and its errors of late
    say how far off that may be.

        score = F(x) = base + sum of trees;   log tokens = a_m + b_m score + error_m

    Answers that a limit cut are neither left out nor taken at their word: the trees maximise the likelihood of
    accelerated failure times [2]_, the distribution of errors is the product-limit estimate [3]_. With a fit to
    sentence vectors a second forest gets a linear function of the vector as one more feature; it is used whenever the
    request has its vector.

    Parameters
    ----------
    most_models
        Models that are remembered, 1 to 100,000; who was not heard of for longest goes.

    Complexity
    ----------
    O(trees x depth) to predict, about 30 microseconds (50 with a vector of 384); O(256 log 256) after an answer, when
    first asked. A forest of 150 trees takes 100 KB.

    Notes
    -----
    Without a fit it is length/typical. The paper's classifier has three classes and no notion of a model; ranking
    by the chance of being long is the same with either.

    See Also
    --------
    length/linear : learns from nothing.
    length/typical : does not look at the prompt.

    References
    ----------
    .. [1] "Clairvoyant: Predictive SJF Scheduling to Mitigate Head-of-Line Blocking in Serial LLM Backends." (2026)
       https://github.com/Aravind0403/clairvoyant-scheduler
    .. [2] Barnwal, A., Cho, H., Hocking, T. "Survival Regression with Accelerated Failure Time Model in XGBoost."
       (2020) arXiv:2006.04920
    .. [3] Kaplan, E. L., Meier, P. "Nonparametric Estimation from Incomplete Observations." (1958)
       doi:10.1080/01621459.1958.10501452

    Examples
    --------
    >>> from apportion.core import Features
    >>> length = Trees()
    >>> for tokens in (90, 100, 110) * 20:
    ...     length.learn(Features((0.1, 0.2)), "small", tokens)
    >>> round(length.predict(Features((0.1, 0.2)), "small").p50)
    100
    >>> round(length.chance_longer(Features((0.1, 0.2)), "small", 1000), 1)
    0.0
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {"most_models": Interval(int, 1, 100_000)}

    _plain: Forest | None
    _meaning: Forest | None
    _projection: NDArray[np.float32] | None

    def __init__(self, *, most_models: int = 1_000) -> None:
        self.most_models = most_models
        self.start()

    def reset(self) -> None:
        """Knows no model and has no trees."""
        self._models = Models(self.most_models)
        self._numbers = 0
        self._plain = None
        self._meaning = None
        self._projection = None

    @property
    def models(self) -> frozenset[str]:
        """The models that it knows."""
        return self._models.names

    def predict(self, features: Features, model: str) -> Quantiles | None:
        """Output tokens of ``model``'s answer; None without a fit until three answers were seen.

        A model that was not in the trace is predicted as any of them might be, until it has answered three times.
        """
        return self._models.predict(model, self.score(features))

    def chance_longer(self, features: Features, model: str, tokens: float) -> float | None:
        """The probability that the answer has more than ``tokens``: S310's P(long)."""
        return self._models.chance_longer(model, self.score(features), tokens)

    def learn(self, features: Features, model: str, output_tokens: float, *, censored: bool = False) -> None:
        """Take in an answer's length; ``censored``: a limit ended it, so it is at least that."""
        self._models.learn(model, self.score(features), output_tokens, censored=censored)

    def score(self, features: Features) -> float:
        """The expected logarithm of a typical model's tokens, less the mean; 0 without trees or for other features."""
        plain = self._plain
        if plain is None or len(features.lexical) != self._numbers:
            return 0.0
        vector, projection = features.vector, self._projection
        if vector is None or projection is None or self._meaning is None or len(vector) != len(projection):
            return plain(np.array(features.lexical, np.float32))
        direction = float(np.array(vector, np.float32) @ projection)
        return self._meaning(np.array((*features.lexical, direction), np.float32))

    def fitted(
        self,
        models: Models,
        numbers: int,
        plain: Forest,
        meaning: Forest | None = None,
        projection: ArrayLike | None = None,
    ) -> None:
        """Take what a fit has found; see ``_fit``."""
        self._models = models
        self._numbers = numbers
        self._plain = plain
        self._meaning = meaning
        self._projection = None if projection is None else np.array(projection, np.float32)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        yield {"most_models": 2}

    def save(self) -> dict[str, Any]:
        """What was learned, as an object that JSON can carry."""
        learned = {
            "_models": self._models.saved(),
            "_numbers": self._numbers,
            "_plain": None if self._plain is None else self._plain.saved(),
            "_meaning": None if self._meaning is None else self._meaning.saved(),
            "_projection": None if self._projection is None else [float(x) for x in self._projection],
        }
        return {"method": type(self).__name__, "learned": learned}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` returned; raises `SavedStateError` if it is another method's."""
        super().load(saved)
        found: Any = vars(self).copy()
        models = Models(self.most_models)
        models.restore(found["_models"])
        plain, meaning = (
            None if found[name] is None else Forest.restored(found[name]) for name in ("_plain", "_meaning")
        )
        self._plain = None
        self._models = models
        if plain is not None:
            self.fitted(models, found["_numbers"], plain, meaning, found["_projection"])
