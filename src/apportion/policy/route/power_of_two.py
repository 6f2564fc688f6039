"""Draws two options and chooses the less loaded of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval
from apportion.core.state import State
from apportion.policy.route._base import Router


def chance(loads: list[float], index: int, d: int) -> float:
    """The probability that option ``index`` is the least of ``d`` drawn without replacement, ties split
    evenly.

    Of the C(n, d) draws, those from the ``higher + equal`` options that are no lighter than it, less
    those from the ``higher`` alone, have their minimum at its load; the ``equal`` ones share them.
    """
    mine = loads[index]
    higher = sum(load > mine for load in loads)
    equal = sum(load == mine for load in loads)
    draws = math.comb(higher + equal, d) - math.comb(higher, d)
    return draws / math.comb(len(loads), d) / equal


@final
class PowerOfTwo(Router):
    """Draws two options and chooses the less loaded of them.

    Looking at two random queues instead of one makes the longest queue exponentially shorter, and looking
    at more adds little [1]_. Unlike always joining the shortest, it stays good when load figures are old,
    because not everyone runs to the same place [2]_. An option whose load is unknown counts as heavier
    than every other.

        D = d options drawn without replacement
        choose  argmin over o in D of  load(o),   ties with equal chances

    Parameters
    ----------
    d
        How many options are drawn, an integer of one or more; 2 is the value the result is named after.
        With as many as are offered, or more, it is route/least_load.
    seed
        Start of the method's own random generator, an integer of zero or more.

    Complexity
    ----------
    O(d) load look-ups to choose and O(n) for the recorded probability and worths; nothing is learned;
    O(1) memory.

    Notes
    -----
    The papers draw with replacement; drawing without is never worse and differs only for few options.

    See Also
    --------
    route/least_load : looks at all.
    route/random : the baseline that it should beat.

    References
    ----------
    .. [1] M. Mitzenmacher (2001). "The Power of Two Choices in Randomized Load Balancing." IEEE
       Transactions on Parallel and Distributed Systems 12(10), 1094-1104. doi:10.1109/71.963420
    .. [2] M. Mitzenmacher (2000). "How Useful Is Old Information?" IEEE Transactions on Parallel and
       Distributed Systems 11(1), 6-20. doi:10.1109/71.824633

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> offer = [Option(name, 0.01, Cost(), load=load) for name, load in [("a", 0.9), ("b", 0.2), ("c", 0.5)]]
    >>> policy = PowerOfTwo(seed=3)
    >>> [policy.decide(State(0.0, offer)).action for _ in range(6)]
    ['c', 'b', 'b', 'c', 'b', 'c']
    >>> round(policy.decide(State(0.0, offer)).probability, 3)
    0.333
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {"d": Interval(int, 1), "seed": Interval(int, 0)}

    def __init__(self, *, d: int = 2, seed: int = 0) -> None:
        self.d = d
        self.seed = seed
        self.start()

    def reset(self) -> None:
        """Start the generator anew from the seed."""
        self._random = Random(self.seed)

    def decide(self, state: State) -> Decision:
        """Draw ``d`` options, choose the lightest of them."""
        loads = [o.load if o.load is not None and o.load == o.load else math.inf for o in state.options]
        n = len(loads)
        if not n:
            return self.nothing(state)
        d = min(self.d, n)
        drawn = self._draw(n, d)
        index = min(drawn, key=loads.__getitem__)
        return self.chosen(
            state, index, chance(loads, index, d), f"least loaded of {d} drawn" if d > 1 else "drawn"
        )

    def _draw(self, n: int, d: int) -> list[int]:
        """``d`` of ``range(n)`` in random order, so that taking the first minimum splits ties evenly."""
        draw = self._random.random
        if d == 1:
            return [int(draw() * n)]
        if d > 2:
            return self._random.sample(range(n), d)
        first = int(draw() * n)
        second = int(draw() * (n - 1))
        return [first, second + (second >= first)]

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """More and fewer draws."""
        yield {"d": 3, "seed": 7}
        yield {"d": 1}
