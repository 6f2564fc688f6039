"""Starts the job that is least likely to be long, unless one has waited too long."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.method import Constraint, Interval
from apportion.core.state import State
from apportion.policy.schedule._base import Key, Scheduler, number


@final
class PredictiveSjf(Scheduler):
    """Starts the job that is least likely to be long, unless one has waited too long.

    Clairvoyant [1]_: for the order of a queue it is enough to rank jobs, so a classifier's probability that the
    answer will be long serves as the key, and no length has to be right. A job that has waited
    `starvation_s` goes to the front, the earliest first, whatever was predicted of it.

        overdue = now - arrived_s >= starvation_s
        start  argmin over jobs of  (not overdue,  arrived_s if overdue else (-priority, p_long, arrived_s))

    Once overdue a job is passed by none that came after it. So with m slots it waits at most

        starvation_s + (service of the jobs waiting when it came) / m + (longest service)

    Parameters
    ----------
    starvation_s
        Seconds of waiting after which a job goes to the front, above 0; infinite turns that off.
    unknown
        The probability taken for a job of which none was predicted, in [0, 1].

    Complexity
    ----------
    O(n) per decision for n waiting jobs; nothing is learned; O(1) memory.

    Notes
    -----
    The paper's 19 features and boosted trees are the predictor's part, which also learns from the served
    lengths (the family ``length``); this method only orders by what it says. Priority, which the paper has
    not, orders jobs that are not overdue.

    See Also
    --------
    schedule/fcfs : the baseline that it should beat.
    schedule/sjf : by predicted seconds, without a limit to waiting.

    References
    ----------
    .. [1] A. Sundaresan (2026). "Clairvoyant: Predictive SJF Scheduling to Mitigate Head-of-Line Blocking in
       Serial LLM Backends." arXiv:2606.07248

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> jobs = [Option("essay", 0.01, Cost(), facts={"arrived_s": 0.0, "p_long": 0.9}),
    ...         Option("fact", 0.01, Cost(), facts={"arrived_s": 5.0, "p_long": 0.1})]
    >>> policy = PredictiveSjf(starvation_s=30.0)
    >>> policy.decide(State(6.0, jobs)).action
    'fact'
    >>> policy.decide(State(31.0, jobs)).action
    'essay'
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "starvation_s": Interval(float, 0.0, math.inf, closed="right"),
        "unknown": Interval(float, 0.0, 1.0),
    }
    why = "least likely to be long, or overdue"

    def __init__(self, *, starvation_s: float = 60.0, unknown: float = 0.5) -> None:
        self.starvation_s = starvation_s
        self.unknown = unknown
        self.start()

    def keys(self, state: State) -> list[Key]:
        """Overdue ones first by arrival, the others by priority and chance of being long."""
        due_s = state.now - self.starvation_s
        unknown = self.unknown
        found: list[Key] = []
        for option in state.options:
            arrived_s = number(option, "arrived_s", state.now)
            if arrived_s <= due_s:
                found.append((0.0, arrived_s))
            else:
                found.append(
                    (1.0, -number(option, "priority", 0.0), number(option, "p_long", unknown), arrived_s)
                )
        return found

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Impatient, and never overdue."""
        yield {"starvation_s": 5.0, "unknown": 1.0}
        yield {"starvation_s": math.inf}
