"""Starts a job of the level with the least predicted remaining time; waiting lifts jobs level by level."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.method import Constraint, Interval
from apportion.core.state import State
from apportion.policy.schedule._base import Key, Scheduler, number, size


@final
class Alise(Scheduler):
    """Starts a job of the level with the least predicted remaining time; waiting lifts jobs level by level.

    ALISE's speculative scheduler [1]_: jobs stand in a multi-level queue by the service time they are predicted
    still to need, levels growing geometrically, so that a prediction may be off by a factor `base` before it
    does harm. Every `ageing_s` of waiting lifts a job one level; within a level the earliest goes first.

        level  = clip(floor(log_base(remaining / quantum_s)) + 1 - priority, 0, levels - 1)
        level' = max(0, level - floor(waited / ageing_s))
        start  argmin over jobs of  (level', arrived_s)

    After ``(levels - 1) * ageing_s`` a job is in the first level, where none that came later passes it. So
    with m slots it waits at most

        (levels - 1) * ageing_s + (service of the jobs waiting when it came) / m + (longest service)

    Parameters
    ----------
    levels
        How many levels there are, an integer in [1, 64]; one level is schedule/fcfs.
    quantum_s
        Predicted seconds below which a job is in the first level, above 0.
    base
        How much longer the jobs of the next level are, in (1, 1000].
    ageing_s
        Seconds of waiting that lift a job by one level, above 0; infinite turns ageing off.

    Complexity
    ----------
    O(n log levels) per decision for n waiting jobs; nothing is learned; O(levels) memory.

    Notes
    -----
    The paper's engine also pre-empts: it swaps a running job's attention keys and values out, int8-quantised,
    when a shorter one comes. An OpenAI-compatible endpoint offers no such thing, so here a job that has started
    runs to its end, and only the order of starting is ALISE's. Priority, which the paper has not, counts as
    one level a step. A job of unknown length enters at the last level.

    See Also
    --------
    schedule/fcfs : the baseline that it should beat.
    schedule/predictive_sjf : two classes and a timeout in place of levels and ageing.

    References
    ----------
    .. [1] Y. Zhao, J. Wang (2024). "ALISE: Accelerating Large Language Model Serving with Speculative
       Scheduling." arXiv:2410.23537

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> jobs = [Option("essay", 0.01, Cost(server_seconds=20.0), facts={"arrived_s": 0.0}),
    ...         Option("fact", 0.01, Cost(server_seconds=0.4), facts={"arrived_s": 9.0})]
    >>> policy = Alise(ageing_s=10.0)
    >>> policy.decide(State(10.0, jobs)).action
    'fact'
    >>> policy.decide(State(60.0, jobs)).action
    'essay'
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "levels": Interval(int, 1, 64),
        "quantum_s": Interval(float, 0.0, math.inf, closed="neither"),
        "base": Interval(float, 1.0, 1000.0, closed="right"),
        "ageing_s": Interval(float, 0.0, math.inf, closed="right"),
    }
    why = "of the first level, the earliest"

    def __init__(
        self, *, levels: int = 6, quantum_s: float = 0.5, base: float = 2.0, ageing_s: float = 10.0
    ) -> None:
        self.levels = levels
        self.quantum_s = quantum_s
        self.base = base
        self.ageing_s = ageing_s
        self.start()

    def reset(self) -> None:
        """Where the levels end follows from the parameters; nothing is learned."""
        self._bounds = [self.quantum_s * self.base**i for i in range(self.levels - 1)]

    def level(self, remaining_s: float, priority: float = 0.0) -> float:
        """The level at which a job enters; 0 is served first."""
        level = bisect_right(self._bounds, remaining_s)
        return float(min(max(level - priority, 0), self.levels - 1)) if priority else float(level)

    def keys(self, state: State) -> list[Key]:
        """Level after ageing, then arrival."""
        now, ageing_s = state.now, self.ageing_s
        found: list[Key] = []
        for option in state.options:
            arrived_s = number(option, "arrived_s", now)
            level = self.level(size(option), number(option, "priority", 0.0))
            if level and now > arrived_s:
                level = max(0.0, level - (now - arrived_s) // ageing_s)
            found.append((level, arrived_s))
        return found

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Few levels; no ageing."""
        yield {"levels": 2, "quantum_s": 2.0, "base": 4.0, "ageing_s": 1.0}
        yield {"ageing_s": math.inf}
