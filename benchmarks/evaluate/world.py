"""Policies that write logs, policies that are to be judged, and logs drawn from the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apportion.measure.off_policy import cross_fit
from benchmarks.evaluate.data import Array, Outcomes


@dataclass(frozen=True)
class Log:
    """What one logging policy did on queries drawn with replacement."""

    rows: NDArray[np.int64]
    chosen: NDArray[np.int64]
    propensities: Array

    def of(self, table: Array) -> Array:
        """The logged entries of a table ``(queries, models)``."""
        found: Array = table[self.rows, self.chosen]
        return found


LOGGING = {
    "half drawn at random": 0.5,
    "a tenth drawn at random": 0.1,
}
"""Shares of the traffic that the logging policy draws from all models alike; the rest follows its preference."""


def logging_policy(data: Outcomes, explored: float) -> Array:
    """Prefers models by their mean cost and the length of the query: ``(queries, models)`` of probabilities.

    It knows no quality, as a policy does that was in use before there was feedback.
    """
    k = len(data.models)
    cheap = -_standard(data.cost.mean(axis=0))
    length = _standard(data.lexical[:, 0])
    taste = np.random.default_rng(7).normal(size=k)
    logits = 1.5 * cheap[None, :] + length[:, None] * taste[None, :]
    preferred = np.exp(logits - logits.max(axis=1, keepdims=True))
    preferred /= preferred.sum(axis=1, keepdims=True)
    return explored / k + (1.0 - explored) * preferred


def targets(data: Outcomes) -> dict[str, Array]:
    """The policies to be judged, as probabilities ``(queries, models)``.

    The router is made of the data's own outcomes, cross-fitted: as good as a linear router on counts can be. How it
    came about does not matter to its evaluation; all that counts is that it is none of the logging policy.
    """
    n, k = data.quality.shape
    best = np.zeros((n, k))
    best[:, data.quality.mean(axis=0).argmax()] = 1.0
    features = np.repeat(np.column_stack([np.ones(n), data.lexical])[:, None, :], k, axis=1)
    predicted = np.column_stack(
        [
            cross_fit(features[:, :1], data.quality[:, model], np.zeros(n, dtype=np.int64), penalty=10.0)[
                :, 0
            ]
            for model in range(k)
        ]
    )
    weight = 0.1 / max(float(np.ptp(data.cost.mean(axis=0))), 1e-12)
    worth = predicted - weight * data.cost
    router = np.zeros((n, k))
    router[np.arange(n), worth.argmax(axis=1)] = 1.0
    soft = np.exp((worth - worth.max(axis=1, keepdims=True)) / 0.05)
    return {
        "best single model": best,
        "router": router,
        "router that explores": 0.9 * soft / soft.sum(axis=1, keepdims=True) + 0.1 / k,
    }


def draw(policy: Array, n: int, generator: np.random.Generator) -> Log:
    """A log of ``n`` decisions."""
    rows = generator.integers(0, len(policy), n)
    cumulated = policy[rows].cumsum(axis=1)
    chosen = (generator.random((n, 1)) * cumulated[:, -1:] > cumulated).sum(axis=1)
    return Log(rows, chosen, policy[rows, chosen])


def truth(policy: Array, table: Array) -> float:
    """What a policy brings over all queries."""
    return float((policy * table).sum(axis=1).mean())


def _standard(values: Array) -> Array:
    spread = values.std()
    return (values - values.mean()) / (spread or 1.0)
