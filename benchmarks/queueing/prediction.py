"""The proxy's own length predictor on lexical features, taught with prompts that are not tested on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from apportion.core import Features, LengthPredictor, catalogue

METHOD = "length/linear"
"""Learns from nothing, one answer after the other, as it does in the proxy."""


_STEPS = 8


class Prediction(NamedTuple):
    """What is known of an answer before it is made."""

    tokens: float
    p_long: float


class Lengths:
    """Predicts output tokens from a text; ``long_tokens`` is where long begins."""

    def __init__(self, texts: Sequence[str], tokens: Sequence[float], long_tokens: float, cap: float) -> None:
        predictor = catalogue.build(METHOD)
        assert isinstance(predictor, LengthPredictor)
        self._predictor = predictor
        self._lexical = catalogue.build("text/lexical")
        self._long_tokens, self._cap = long_tokens, cap
        for text, count in zip(texts, tokens, strict=True):
            predictor.learn(self.features(text), "model", count, censored=count >= cap)

    def features(self, text: str) -> Features:
        """The text in numbers."""
        return Features(self._lexical.features(text))  # type: ignore[attr-defined]

    def predict(self, text: str) -> Prediction:
        """Expected tokens of an answer that the limit may cut, and the chance that there are more than
        ``long_tokens``.
        """
        features = self.features(text)

        def longer(tokens: float) -> float:
            chance = self._predictor.chance_longer(features, "model", tokens)  # type: ignore[attr-defined]
            assert chance is not None
            return float(chance)

        # The mean of what a limit cuts is the area under the chance of being longer, up to the limit.
        width = self._cap / _STEPS
        expected = width * sum(longer((step + 0.5) * width) for step in range(_STEPS))
        return Prediction(expected, longer(self._long_tokens))

    def seconds_each(self, texts: Sequence[str]) -> float:
        """How long one prediction takes, features and all, in the median."""
        spent = []
        for text in texts:
            began = time.perf_counter()
            self.predict(text)
            spent.append(time.perf_counter() - began)
        return sorted(spent)[len(spent) // 2]
