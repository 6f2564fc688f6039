"""Chooses among the options with equal chances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random as Generator
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval
from apportion.core.state import State
from apportion.policy.route._base import Router


@final
class Random(Router):
    """Chooses among the options with equal chances.

    Ignores values, costs and load. Every option keeps being tried, and every decision has the same known
    probability, so a log of its decisions is the cleanest data for judging other policies.

        P(o) = 1 / n

    Parameters
    ----------
    seed
        Start of the method's own random generator, an integer of zero or more.

    Complexity
    ----------
    O(1) per decision for the choice and O(n) for the record; nothing is learned; O(1) memory.

    See Also
    --------
    route/weighted : unequal chances.
    route/power_of_two : almost as cheap, and far better balanced.

    References: none, baseline

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> offer = [Option("small", 0.01, Cost(usd=0.001)), Option("large", 0.02, Cost(usd=0.005))]
    >>> policy = Random(seed=1)
    >>> [policy.decide(State(0.0, offer)).action for _ in range(6)]
    ['small', 'large', 'large', 'small', 'small', 'small']
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {"seed": Interval(int, 0)}

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self.start()

    def reset(self) -> None:
        """Start the generator anew from the seed."""
        self._random = Generator(self.seed)

    def decide(self, state: State) -> Decision:
        """Draw one option."""
        n = len(state.options)
        if not n:
            return self.nothing(state)
        return self.chosen(state, int(self._random.random() * n), 1.0 / n, "drawn with equal chances")

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Another seed."""
        yield {"seed": 7}
