"""Starts the job that came first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.method import Constraint, OneOf
from apportion.core.state import State
from apportion.policy.schedule._base import Key, Scheduler, number


@final
class Fcfs(Scheduler):
    """Starts the job that came first.

    First come, first served: the order that every serial server has by itself. Nobody starves, nothing has
    to be predicted, and one long job holds up everything behind it.

        start  argmin over jobs of  (-priority, arrived_s)

    Parameters
    ----------
    priorities
        Whether a job of higher priority goes before all of lower ones. Then only the highest priority
        cannot starve.

    Complexity
    ----------
    O(n) per decision for n waiting jobs; nothing is learned; O(1) memory.

    Notes
    -----
    Without priorities a job waits at most for those that were there before it.

    See Also
    --------
    schedule/predictive_sjf : lets short jobs pass.

    References: none, baseline.

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> jobs = [Option(i, 0.01, Cost(), facts={"arrived_s": t}) for i, t in [("late", 2.0), ("early", 1.0)]]
    >>> Fcfs().decide(State(3.0, jobs)).action
    'early'
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {"priorities": OneOf(True, False)}
    why = "it came first"

    def __init__(self, *, priorities: bool = True) -> None:
        self.priorities = priorities
        self.start()

    def keys(self, state: State) -> list[Key]:
        """Priority, then arrival."""
        if self.priorities:
            return [(-number(o, "priority", 0.0), number(o, "arrived_s", 0.0)) for o in state.options]
        return [(number(o, "arrived_s", 0.0),) for o in state.options]

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Strictly by arrival."""
        yield {"priorities": False}
