"""The contracts of everything that predicts: a number not known yet, and how sure it is.

A predictor is a `Method`: found in the catalogue by name (``"quality/knn"``), saved and loaded as JSON, without
I/O, clock or global randomness. Whoever serves asks it once per request and writes what it says into the options.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from apportion.core.features import Features
from apportion.core.method import Method


class Estimate(NamedTuple):
    """A prediction: its mean and the standard deviation of its error, in the unit of what is predicted."""

    mean: float
    sd: float


class Quantiles(NamedTuple):
    """A predicted distribution of a length or time: mean, median and 90th percentile, in one unit."""

    mean: float
    p50: float
    p90: float


class Encoder(Method):
    """Text to a vector of unit length. May be slow: whoever serves gives it a thread and a time budget."""

    dimensions: ClassVar[int]

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """One vector of ``dimensions`` numbers for each text."""

    def reset(self) -> None:
        """It learns nothing."""


class QualityPredictor(Method):
    """Predicts for each model the probability that its answer to a request is right."""

    @abstractmethod
    def predict(self, features: Features, models: Sequence[str]) -> list[Estimate | None]:
        """For each of ``models`` the quality in [0, 1]; None for one it knows nothing of."""

    @abstractmethod
    def learn(self, features: Features, model: str, quality: float, *, weight: float = 1.0) -> None:
        """Take in that ``model`` answered with ``quality`` in [0, 1]; in bounded memory."""

    def prepare(self) -> None:
        """Do what takes seconds and makes predicting quicker. Whoever serves calls it before the first request, in a
        thread; nothing depends on it.
        """


class LengthPredictor(Method):
    """Predicts how many tokens an answer has."""

    @abstractmethod
    def predict(self, features: Features, model: str) -> Quantiles | None:
        """Output tokens of ``model``'s answer; None where it knows nothing."""

    @abstractmethod
    def learn(self, features: Features, model: str, output_tokens: float, *, censored: bool = False) -> None:
        """Take in an answer's length; ``censored``: a limit ended it, so it is at least that."""


class LatencyPredictor(Method):
    """Predicts how long an endpoint takes, from its load and the lengths."""

    @abstractmethod
    def predict(
        self, endpoint: str, load: float, input_tokens: float, output_tokens: float
    ) -> tuple[Quantiles, Quantiles] | None:
        """Seconds to the first token and to the end; None where it knows nothing of ``endpoint``."""

    @abstractmethod
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
        """Take in what was measured; ``first_token_s`` None for an answer that was not streamed."""
