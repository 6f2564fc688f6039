"""Chooses the option with the least work in flight for its capacity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval
from apportion.core.state import State
from apportion.policy.route._base import Router, lightest


@final
class LeastLoad(Router):
    """Chooses the option with the least work in flight for its capacity.

    Joining the shortest line is optimal for identical servers that work off one line each [1]_, and hard
    to beat when loads are fresh. An option whose load is unknown is chosen only when no load is known.
    Ties are drawn with equal chances, because sending every tie to the first option lets several routers
    crowd it together.

        choose  argmin over o of  load(o),   load = work in flight / capacity

    Parameters
    ----------
    seed
        Start of the method's own random generator, an integer of zero or more; it draws only ties.

    Complexity
    ----------
    O(n) per decision; nothing is learned; O(1) memory.

    Notes
    -----
    The theorem is for exponential service times, identical servers and current queue lengths. When many
    routers act on load that is a little old they all join the same line; route/power_of_two does not.

    See Also
    --------
    route/power_of_two : robust against old load figures.
    route/round_robin : the baseline that it should beat.

    References
    ----------
    .. [1] W. Winston (1977). "Optimality of the Shortest Line Discipline." Journal of Applied Probability
       14(1), 181-189. doi:10.2307/3213271

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> offer = [Option("a", 0.01, Cost(), load=0.9), Option("b", 0.01, Cost(), load=0.2)]
    >>> LeastLoad().decide(State(0.0, offer)).action
    'b'
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {"seed": Interval(int, 0)}

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self.start()

    def reset(self) -> None:
        """Start the generator anew from the seed."""
        self._random = Random(self.seed)

    def decide(self, state: State) -> Decision:
        """Choose the least loaded option, drawing ties."""
        if not state.options:
            return self.nothing(state)
        ties = lightest(state)
        n = len(ties)
        index = ties[int(self._random.random() * n)] if n > 1 else ties[0]
        return self.chosen(state, index, 1.0 / n, "least loaded")

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Another seed."""
        yield {"seed": 7}
