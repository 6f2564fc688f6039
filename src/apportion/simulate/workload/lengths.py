"""Joint laws of prompt and answer lengths: quantiles of each, and how often which rank of one goes with which rank of
the other.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import numpy as np
from msgspec import Struct
from numpy.random import Generator
from numpy.typing import NDArray

from apportion.simulate.trace import TraceError

Law = Literal["empirical", "lognormal", "zipf"]

LEVELS: Final = np.concatenate(
    (
        [0.0, 0.001, 0.002, 0.005],
        np.linspace(0.01, 0.99, 99),
        [0.9925, 0.995, 0.9975, 0.999, 0.9995, 1.0],
    )
)
"""Levels of the quantiles that are kept: every hundredth, and the tails more finely."""
_RANKS: Final = 10
_MOST_TOKENS: Final = 2**31 - 1


class Lengths(Struct, frozen=True):
    """A joint law. ``prompts`` and ``outputs`` are quantiles at `LEVELS`; ``together`` has in row i, column j how
    often a prompt of the i-th tenth by length had an answer of the j-th tenth (shape _RANKS x _RANKS, row by row; a
    bucketed copula).
    """

    prompts: tuple[float, ...]
    outputs: tuple[float, ...]
    together: tuple[float, ...]

    def draw(self, n: int, rng: Generator) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """``n`` pairs of lengths in tokens, each at least 1."""
        return self.at(rng.random((n, 3)))

    def at(self, uniform: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The pairs for numbers between 0 and 1, three for each (shape n x 3)."""
        below = np.cumsum(self.together)
        cell = np.searchsorted(below, uniform[:, 0] * below[-1], side="right")
        cell = np.minimum(cell, _RANKS * _RANKS - 1)
        u = (cell // _RANKS + uniform[:, 1]) / _RANKS
        v = (cell % _RANKS + uniform[:, 2]) / _RANKS
        return _tokens(u, self.prompts), _tokens(v, self.outputs)


def fit(
    prompts: NDArray[np.int32],
    outputs: NDArray[np.int32],
    *,
    prompt_law: Law = "empirical",
    output_law: Law = "empirical",
) -> Lengths:
    """The law of pairs of lengths (at least one pair).

    ``empirical`` keeps the quantiles that were seen; ``lognormal`` those of a mixture of one to four log-normal
    distributions, as many as the Bayesian information criterion asks for; ``zipf`` those of a power law between 1 and
    the longest.
    """
    if not len(prompts):
        raise TraceError("Lengths cannot be fitted to no request.", field="prompt_tokens")
    rows = _ranks(prompts) * _RANKS + _ranks(outputs)
    together = np.bincount(rows, minlength=_RANKS * _RANKS).astype(float)
    return Lengths(
        tuple(quantiles(prompts, prompt_law).tolist()),
        tuple(quantiles(outputs, output_law).tolist()),
        tuple((together / together.sum()).round(6).tolist()),
    )


def quantiles(tokens: NDArray[np.int32], law: Law = "empirical") -> NDArray[np.float64]:
    """Quantiles at `LEVELS` under a law fitted to ``tokens``."""
    if law == "zipf":
        return zipf_quantiles(zipf_exponent(tokens), int(max(tokens.max(), 2)))
    if law == "lognormal":
        return _normal_mixture_quantiles(np.log(np.maximum(tokens, 1).astype(float)), float(tokens.max()))
    return np.quantile(tokens, LEVELS)


def cdf(knots: tuple[float, ...], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """The probability of at most ``at`` tokens, where lengths are drawn from quantiles ``knots`` and rounded."""
    x = np.asarray(knots)
    return np.asarray(np.where(at + 0.5 >= x[-1], 1.0, _last_below(x, at + 0.5)))


def independent(prompts: NDArray[np.float64], outputs: NDArray[np.float64]) -> Lengths:
    """A law from quantiles alone: which prompt has which answer is chance."""
    return Lengths(tuple(prompts.tolist()), tuple(outputs.tolist()), (1.0 / _RANKS**2,) * _RANKS**2)


def _last_below(x: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """As ``np.interp(at, x, LEVELS)``; where several quantiles are equal, the last of their levels."""
    right = np.clip(np.searchsorted(x, at, side="right"), 1, len(x) - 1)
    low, high = x[right - 1], x[right]
    share = np.clip((at - low) / np.maximum(high - low, 1e-12), 0.0, 1.0)
    level = LEVELS[right - 1] + share * (LEVELS[right] - LEVELS[right - 1])
    return np.where(at >= x[0], level, 0.0)


def _tokens(u: NDArray[np.float64], knots: tuple[float, ...]) -> NDArray[np.int32]:
    return np.clip(np.rint(np.interp(u, LEVELS, knots)), 1, _MOST_TOKENS).astype(np.int32)


def _ranks(tokens: NDArray[np.int32]) -> NDArray[np.int64]:
    """Tenths by length; equal lengths are spread evenly over the tenths they fill, in a fixed order."""
    order = np.lexsort((np.arange(len(tokens)) * 7919 % max(1, len(tokens)), tokens))
    ranks = np.empty(len(tokens), np.int64)
    ranks[order] = np.arange(len(tokens))
    return ranks * _RANKS // len(tokens)


# --- parametric laws --------------------------------------------------------------------------------


def zipf_exponent(tokens: NDArray[np.int32]) -> float:
    """Maximum likelihood exponent of P(x) proportional to x ** -s between 1 and the longest; golden section."""
    x = np.maximum(tokens, 1).astype(float)
    mean_log, support = float(np.log(x).mean()), np.log(np.arange(1, max(int(x.max()), 2) + 1))

    def loss(s: float) -> float:
        return s * mean_log + math.log(float(np.exp(-s * support).sum()))

    low, high, golden = 0.0, 8.0, (math.sqrt(5.0) - 1.0) / 2.0
    while high - low > 1e-6:
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return (low + high) / 2.0


def zipf_quantiles(exponent: float, longest: int) -> NDArray[np.float64]:
    """Quantiles of P(x) proportional to x ** -exponent on 1..longest."""
    below = np.cumsum(np.arange(1, longest + 1, dtype=float) ** -exponent)
    places = np.searchsorted(below / below[-1], np.minimum(LEVELS, 1.0 - 1e-12), side="left")
    return (places + 1).astype(np.float64)


def mixture_quantiles(
    weights: NDArray[np.float64], medians: NDArray[np.float64], sigmas: NDArray[np.float64], longest: float
) -> NDArray[np.float64]:
    """Quantiles of a mixture of log-normal distributions, cut at ``longest``."""
    means = np.log(medians)
    x = np.linspace(float((means - 6 * sigmas).min()), float((means + 6 * sigmas).max()), 4001)
    erf = np.array(
        [[math.erf(v) for v in (x - m) / (s * math.sqrt(2.0))] for m, s in zip(means, sigmas, strict=True)]
    )
    below = weights @ (0.5 * (1.0 + erf))
    return np.clip(np.exp(np.interp(LEVELS, below, x)), 1.0, longest)


def _normal_mixture_quantiles(logs: NDArray[np.float64], longest: float) -> NDArray[np.float64]:
    best, least = None, np.inf
    for parts in range(1, 5):
        if len(logs) < 20 * parts:
            break
        weights, means, sigmas, likelihood = _normal_mixture(logs, parts)
        value = (3 * parts - 1) * math.log(len(logs)) - 2.0 * likelihood
        if value < least:
            best, least = (weights, np.exp(means), sigmas), value
    if best is None:
        best = (np.ones(1), np.exp(logs.mean(keepdims=True)), np.maximum(logs.std(keepdims=True), 0.05))
    return mixture_quantiles(*best, longest)


def _normal_mixture(
    logs: NDArray[np.float64], parts: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    means = np.quantile(logs, (np.arange(parts) + 0.5) / parts)
    sigmas = np.full(parts, max(float(logs.std()) / parts, 0.05))
    weights = np.full(parts, 1.0 / parts)
    likelihood = before = -np.inf
    for _ in range(300):
        each = (
            np.log(weights)[:, None]
            - 0.5 * ((logs - means[:, None]) / sigmas[:, None]) ** 2
            - np.log(sigmas * math.sqrt(2 * math.pi))[:, None]
        )
        top = each.max(axis=0)
        whole = top + np.log(np.exp(each - top).sum(axis=0))
        belongs = np.exp(each - whole)
        likelihood = float(whole.sum())
        if likelihood - before < 1e-6 * len(logs):
            break
        before = likelihood
        total = belongs.sum(axis=1) + 1e-12
        weights, means = total / total.sum(), belongs @ logs / total
        spread = (belongs * (logs - means[:, None]) ** 2).sum(axis=1) / total
        sigmas = np.sqrt(np.maximum(spread, 0.02**2))
    return weights, means, sigmas, likelihood
