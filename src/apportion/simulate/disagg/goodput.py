"""How much a cluster carries: requests at a rate, objectives that they must meet, and the highest rate that does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from apportion.simulate.disagg.link import PhasesError
from apportion.simulate.profile import Profile
from apportion.simulate.result import OK, Result
from apportion.simulate.trace import Trace

QUANTILES: Final = (0.5, 0.9, 0.99)
LIMITS: Final = {"ttft": (2.0, 3.0, 6.0), "tbt": (1.25, 1.5, 5.0), "e2e": (1.25, 1.5, 5.0)}
"""Splitwise's objectives: how many times as slow as alone on the reference machine, at p50, p90 and p99."""


def poisson(
    prompt_tokens: NDArray[np.int32],
    output_tokens: NDArray[np.int32],
    rate_per_s: float,
    duration_s: float,
    seed: int = 0,
) -> Trace:
    """Requests at random times, with pairs of lengths drawn from those given.

    Of one seed, a higher rate brings the same requests closer together, and more of them: rates are comparable.
    """
    if not (rate_per_s > 0 and duration_s > 0):
        raise PhasesError(
            f"A rate of {rate_per_s!r} for {duration_s!r} s brings no request.",
            field="rate_per_s",
            fix="Positive.",
        )
    if not len(prompt_tokens) or len(prompt_tokens) != len(output_tokens):
        raise PhasesError("There must be as many prompts as outputs, and one of them.", field="prompt_tokens")
    gaps, which = np.random.default_rng((seed, 0)), np.random.default_rng((seed, 1))
    most = int(rate_per_s * duration_s * 1.5 + 100)
    arrival = np.cumsum(gaps.exponential(1.0, most)) / rate_per_s
    arrival = arrival[arrival <= duration_s]
    rows = which.integers(len(prompt_tokens), size=most)[: len(arrival)]
    return Trace(arrival, prompt_tokens[rows].astype(np.int32), output_tokens[rows].astype(np.int32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """A share of the requests has its first token, and its tokens one after another, in these times (seconds).

    Requests that arrive in the first ``warm_s`` are not counted.
    """

    ttft_s: float
    tpot_s: float
    share: float = 0.9
    warm_s: float = 0.0

    def attainment(self, result: Result, trace: Trace) -> float:
        """The share of the requests of ``trace`` that was in time in both; those that did not end were not."""
        counted = int(np.count_nonzero(trace.arrival_s >= self.warm_s))
        good = (result["status"] == OK) & (result.ttft_s <= self.ttft_s) & ~(result.tpot_s > self.tpot_s)
        return float(np.count_nonzero(good & (result["arrival_s"] >= self.warm_s))) / max(counted, 1)

    def met(self, result: Result, trace: Trace) -> bool:
        """Whether enough were in time."""
        return self.attainment(result, trace) >= self.share


def alone_s(profile: Profile, result: Result) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Time to the first token and time per token of each request, had it been alone on a machine."""
    prompt = result["prompt_tokens"].astype(np.float64)
    output = np.maximum(result["output_tokens"].astype(np.float64), 1.0)
    first = profile.seconds_of(prompt, prefill_pairs=prompt * prompt / 2.0, requests=1.0)
    # The i-th of its output - 1 iterations, from 0, looks back at prompt + i tokens.
    each = profile.seconds_of(1.0, decode_context=prompt + np.maximum(output - 2.0, 0.0) / 2.0, requests=1.0)
    return first + profile.before_s + profile.after_s, each


def slowdowns(result: Result, reference: Profile) -> dict[str, tuple[float, ...]]:
    """How many times as slow as alone on the ``reference`` machine, at each of `QUANTILES`: ``ttft``, ``tbt`` (of
    answers of more than one token), ``e2e``. Infinite where a request was not served.
    """
    first, each = alone_s(reference, result)
    more = result["output_tokens"].astype(np.float64) - 1.0
    with np.errstate(invalid="ignore"):
        slower = {
            "ttft": result.ttft_s / first,
            "tbt": (result.tpot_s / each)[more > 0],
            "e2e": result.e2e_s / (first + np.maximum(more, 0.0) * each),
        }
    return {
        name: tuple(
            float(q) for q in np.quantile(np.nan_to_num(values, nan=np.inf), QUANTILES, method="lower")
        )
        if len(values)
        else (0.0,) * len(QUANTILES)
        for name, values in slower.items()
    }


def worst(result: Result, reference: Profile) -> tuple[float, str]:
    """The greatest of the `LIMITS` used, as a share of it (more than 1 is missed), and which it is."""
    if not len(result) or (result["status"] != OK).any():
        return float("inf"), "served"
    found = slowdowns(result, reference)
    return max(
        (used / limit, f"{name} p{round(100 * quantile)}")
        for name, limits in LIMITS.items()
        for used, limit, quantile in zip(found[name], limits, QUANTILES, strict=True)
    )


def highest(meets: Callable[[float], bool], low: float, high: float, tolerance: float = 0.02) -> float:
    """The highest rate between ``low`` and ``high`` that meets, to a relative ``tolerance``; 0 where not even
    ``low`` does.

    Steps up, then bisection on a logarithmic scale: it takes for granted that what a rate meets, every lower rate
    meets.
    """
    if not 0 < low <= high:
        raise PhasesError(
            f"Rates from {low!r} to {high!r} are no range.", field="low", fix="0 < low <= high."
        )
    if not meets(low):
        return 0.0
    while low < high:  # rates far above what is carried are the dearest to simulate
        above = min(3.0 * low, high)
        if not meets(above):
            high = above
            break
        low = above
    while high / low > 1.0 + tolerance:
        middle = (low * high) ** 0.5
        if meets(middle):
            low = middle
        else:
            high = middle
    return low
