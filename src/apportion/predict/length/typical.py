"""Predicts that an answer is as long as the model's answers of late."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.features import Features
from apportion.core.method import Constraint, Interval
from apportion.core.predictor import LengthPredictor, Quantiles
from apportion.predict.length._lengths import Models


@final
class Typical(LengthPredictor):
    """Predicts that an answer is as long as the model's answers of late.

    The prompt is not looked at: mean, median and 90th percentile are those of the model's last 256 answers, where
    one that a limit cut counts as at least so long (Kaplan and Meier).

    References: none, baseline

    Parameters
    ----------
    most_models
        Models that are remembered, 1 to 100,000; who was not heard of for longest goes.

    Complexity
    ----------
    A microsecond to predict; O(256 log 256) after an answer, when first asked; 256 numbers a model.

    See Also
    --------
    length/linear : looks at the prompt and learns from nothing.
    length/trees : looks at the prompt, fitted to a trace.

    Examples
    --------
    >>> from apportion.core import Features
    >>> length, prompt = Typical(), Features((0.1, 0.2))
    >>> length.predict(prompt, "small") is None
    True
    >>> for tokens in (90, 100, 110) * 20:
    ...     length.learn(prompt, "small", tokens)
    >>> round(length.predict(prompt, "small").p50)
    100
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {"most_models": Interval(int, 1, 100_000)}

    def __init__(self, *, most_models: int = 1_000) -> None:
        self.most_models = most_models
        self.start()

    def reset(self) -> None:
        """Knows no model."""
        self._models = Models(self.most_models)

    @property
    def models(self) -> frozenset[str]:
        """The models that it knows."""
        return self._models.names

    def predict(self, features: Features, model: str) -> Quantiles | None:
        """Output tokens of ``model``'s answer; None until three were seen."""
        return self._models.predict(model, 0.0)

    def chance_longer(self, features: Features, model: str, tokens: float) -> float | None:
        """The probability that the answer has more than ``tokens``."""
        return self._models.chance_longer(model, 0.0, tokens)

    def learn(self, features: Features, model: str, output_tokens: float, *, censored: bool = False) -> None:
        """Take in an answer's length; ``censored``: a limit ended it, so it is at least that."""
        self._models.learn(model, 0.0, output_tokens, censored=censored)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        yield {"most_models": 2}

    def save(self) -> dict[str, Any]:
        """What was learned, as an object that JSON can carry."""
        return {"method": type(self).__name__, "learned": {"_models": self._models.saved()}}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` returned; raises `SavedStateError` if it is another method's."""
        super().load(saved)
        learned: Any = self._models
        self._models = Models(self.most_models)
        self._models.restore(learned)
