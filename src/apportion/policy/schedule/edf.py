"""Starts the job whose deadline is nearest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.method import Constraint, Interval
from apportion.core.state import State
from apportion.policy.schedule._base import Key, Scheduler, number


@final
class Edf(Scheduler):
    """Starts the job whose deadline is nearest.

    Earliest deadline first. Whenever some order of jobs that are all there meets every deadline, this one
    does [1]_. A job without a deadline is given one, `patience_s` after it came, so that it cannot be passed
    over forever.

        start  argmin over jobs of  (-priority, deadline_s or arrived_s + patience_s)

    Parameters
    ----------
    patience_s
        Seconds after its arrival at which a job without a deadline counts as due, above 0.

    Complexity
    ----------
    O(n) per decision for n waiting jobs; nothing is learned; O(1) memory.

    Notes
    -----
    Under overload it serves jobs that will be late anyway and may then miss most deadlines; schedule/priced
    gives up those that cannot be met. Within a priority a job without a deadline is passed only by jobs due
    before ``arrived_s + patience_s``.

    See Also
    --------
    schedule/priced : weighs lateness in dollars.

    References
    ----------
    .. [1] J. R. Jackson (1955). "Scheduling a Production Line to Minimize Maximum Tardiness." Management
       Science Research Project Report 43, University of California, Los Angeles. See C. L. Liu, J. W. Layland
       (1973). Journal of the ACM 20(1), 46-61. doi:10.1145/321738.321743

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> jobs = [Option("calm", 0.01, Cost(), facts={"arrived_s": 0.0}),
    ...         Option("urgent", 0.01, Cost(), facts={"arrived_s": 1.0, "deadline_s": 4.0})]
    >>> Edf().decide(State(2.0, jobs)).action
    'urgent'
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "patience_s": Interval(float, 0.0, math.inf, closed="neither")
    }
    why = "its deadline is nearest"

    def __init__(self, *, patience_s: float = 60.0) -> None:
        self.patience_s = patience_s
        self.start()

    def keys(self, state: State) -> list[Key]:
        """Priority, then deadline."""
        patience_s = self.patience_s
        return [
            (
                -number(o, "priority", 0.0),
                number(o, "deadline_s", number(o, "arrived_s", 0.0) + patience_s),
            )
            for o in state.options
        ]

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Little patience."""
        yield {"patience_s": 5.0}
