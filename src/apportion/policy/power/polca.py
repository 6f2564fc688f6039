"""POLCA: lock the frequencies of less important machines first, and of the others only when that is not enough."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval
from apportion.core.policy import Policy
from apportion.core.state import State


@final
class Polca(Policy):
    """Chooses how far the machines of a row are slowed, by what the row draws of what it may.

    More machines than the row could feed at their peaks are put into it, because they seldom peak together [1]_.
    When they do, frequencies are locked, in steps: machines with work of low priority above a first threshold, those
    with work of high priority, too, above a second one. Each step is taken back only when the row draws less than its
    threshold by a margin, so that steps do not alternate. A brake in the hardware stands behind all this; that it never
    has to act is what the thresholds are for. An option is a step, with the fact ``speed``: the mean frequency of
    the machines under it, as a share of the highest; the steps count from the fastest.

        step  =  2  if power >= t2;   max(step, 1)  if power >= t1
        step  =  1  if step = 2 and power < t2 - margin;   0  if step = 1 and power < t1 - margin

    The request says ``power``: watts that the row draws over watts that it may. With two options there is one
    threshold only.

    Parameters
    ----------
    t1
        Share of the row's limit from which the first step is taken; the paper's choice for its traffic is the default.
    t2
        Share from which the second is; not below ``t1``. Between it and 1 must be room for what the draw can
        rise by until a command has reached the machines (`simulate.power.tune` chooses both by a history).
    margin
        How far below a threshold the draw has to fall for its step to be taken back.

    Complexity
    ----------
    O(n log n) for n steps; O(1) memory: the present step.

    Notes
    -----
    The paper fixes the frequencies of each step; here they are the options'. With more than three options the
    others are never chosen.

    See Also
    --------
    simulate.power : a row of machines under it.

    References
    ----------
    .. [1] P. Patel, E. Choukse, C. Zhang and others (2024). "Characterizing Power Management Opportunities for LLMs in
       the Cloud." ASPLOS. First as "POLCA: Power Oversubscription in LLM Cloud Providers", arXiv:2308.12908

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> speeds = {"free": 1.0, "low": 0.95, "all": 0.85}
    >>> steps = [Option(name, 0.0, Cost(), facts={"speed": speed}) for name, speed in speeds.items()]
    >>> policy = Polca()
    >>> [policy.decide(State(0.0, steps, request={"power": p})).action for p in (0.7, 0.82, 0.78, 0.9, 0.86, 0.8)]
    ['free', 'low', 'low', 'all', 'all', 'low']
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "t1": Interval(float, 0, 1, closed="neither"),
        "t2": Interval(float, 0, 1, closed="neither"),
        "margin": Interval(float, 0, 1, closed="left"),
    }

    def __init__(self, *, t1: float = 0.80, t2: float = 0.89, margin: float = 0.05) -> None:
        self.t1 = t1
        self.t2 = t2
        self.margin = margin
        self.start()

    def reset(self) -> None:
        """Nothing is slowed."""
        self._step = 0

    def decide(self, state: State) -> Decision:
        """Choose a step; without a known draw the present one."""
        options = state.options
        if not options:
            return self.nothing(state)
        power = state.request.get("power")
        share = float(power) if isinstance(power, (int, float)) and math.isfinite(power) else None
        why = "the draw is not known"
        if share is not None:
            self._step, why = self._next(share)
        order = sorted(range(len(options)), key=lambda i: (-_speed(options[i].facts), options[i].action))
        choice = order[min(self._step, len(order) - 1)]
        paid = options[choice].cost.at_prices(state.prices)
        worths: list[float | None] = [None] * len(options)
        worths[choice] = None if paid is None else options[choice].value - paid
        return Decision(
            state.id, choice, options[choice].action, 1.0, state.prices, options, tuple(worths), why
        )

    def _next(self, share: float) -> tuple[int, str]:
        """The step at a draw of ``share``, and why."""
        second = max(self.t1, self.t2)
        if share >= second:
            return 2, "above the second threshold"
        step = self._step
        if step == 2 and share < second - self.margin:
            step = 1
        if share >= self.t1:
            return max(step, 1), "above the first threshold"
        if step == 1 and share < self.t1 - self.margin:
            step = 0
        return step, "below the thresholds" if step == 0 else "not far enough below the threshold"

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Parameter sets that the common tests use."""
        yield {"t1": 0.7, "t2": 0.95, "margin": 0.02}


def _speed(facts: Mapping[str, object] | None) -> float:
    speed = facts.get("speed") if facts is not None else None
    return float(speed) if isinstance(speed, (int, float)) and math.isfinite(speed) else 1.0
