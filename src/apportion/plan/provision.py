"""How many machines for prompts and how many for answers (Splitwise, section IV-D)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from apportion.simulate.disagg.goodput import highest
from apportion.simulate.disagg.link import PhasesError
from apportion.simulate.disagg.splitwise import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Provision:
    """A size of the pools, what it costs, and the rate that it carries within the objectives."""

    prompts: int
    tokens: int
    rate_per_s: float
    usd_per_hour: float
    watts: float


Meets = Callable[[int, int, float], bool]
"""Whether a cluster of so many prompt and token machines meets its objectives at a rate."""


def provision(
    prompt: Kind,
    token: Kind,
    meets: Meets,
    *,
    usd_per_hour: float | None = None,
    watts: float | None = None,
    rates: tuple[float, float] = (1.0, 1000.0),
    tolerance: float = 0.02,
) -> tuple[Provision, list[Provision]]:
    """The pool sizes that carry the most within a budget of money or of power, and everything that was tried.

    Every machine that the budget allows is bought: with p machines for prompts, as many for answers as it
    leaves. The rate over p rises while prompts are the bottleneck and falls from where answers are; the peak
    is found by a ternary search, and its neighbours are tried. Each rate is found by bisection on ``meets``,
    which simulates.

    Raises:
        PhasesError: no budget was given, or it pays for less than a machine of each kind.
    """
    if usd_per_hour is None and watts is None:
        raise PhasesError(
            "There is no budget.", field="usd_per_hour", fix="Give usd_per_hour, watts or both."
        )
    tried: dict[int, Provision] = {}

    def left(prompts: int) -> int:
        found = []
        if usd_per_hour is not None:
            found.append((usd_per_hour - prompts * prompt.usd_per_hour) / token.usd_per_hour)
        if watts is not None:
            found.append((watts - prompts * prompt.watts) / token.watts)
        return int(min(found) + 1e-9)

    def at(prompts: int) -> Provision:
        if prompts not in tried:
            tokens = left(prompts)
            rate = highest(lambda r: meets(prompts, tokens, r), *rates, tolerance)
            tried[prompts] = Provision(
                prompts=prompts,
                tokens=tokens,
                rate_per_s=rate,
                usd_per_hour=prompts * prompt.usd_per_hour + tokens * token.usd_per_hour,
                watts=prompts * prompt.watts + tokens * token.watts,
            )
        return tried[prompts]

    if left(1) < 1:
        raise PhasesError(
            "The budget does not pay for a machine of each kind.", field="usd_per_hour", fix="Raise it."
        )
    low, high = 1, 1
    while left(high + 1) >= 1:
        high += 1
    while high - low > 3:
        a, b = low + (high - low) // 3, high - (high - low) // 3
        if at(a).rate_per_s < at(b).rate_per_s:
            low = a + 1
        else:
            high = b
    return best(at(prompts) for prompts in range(low, high + 1)), sorted(
        tried.values(), key=lambda t: t.prompts
    )


def best(choices: Iterable[Provision]) -> Provision:
    """The one of the highest rate; of equal ones the cheapest, then the one with the fewest prompt machines."""
    return min(choices, key=lambda c: (-c.rate_per_s, c.usd_per_hour, c.prompts))
