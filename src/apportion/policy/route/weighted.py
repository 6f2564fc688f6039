"""Chooses at random in proportion to the weights that the configuration gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval
from apportion.core.state import State
from apportion.policy.route._base import Router


@final
class Weighted(Router):
    """Chooses at random in proportion to the weights that the configuration gives.

    The usual way to split traffic: 95 to the old model, 5 to the new one. An option with weight zero is never
    chosen, which is how an endpoint is drained; when no option has a weight above zero, nothing is chosen.
    A weight that is not a finite number above zero counts as zero.

        P(o) = weight(o) / sum of all weights

    Parameters
    ----------
    seed
        Start of the method's own random generator, an integer of zero or more.

    Complexity
    ----------
    O(n) per decision; nothing is learned; O(1) memory.

    Notes
    -----
    The split holds on average, not in every short run: after N requests the share p of an option is off
    by about sqrt(p * (1 - p) / N). In return every decision has a known probability.

    See Also
    --------
    route/random : equal weights.

    References: none, baseline

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> offer = [Option("old", 0.01, Cost(), weight=3.0), Option("new", 0.01, Cost(), weight=1.0)]
    >>> policy = Weighted(seed=1)
    >>> [policy.decide(State(0.0, offer)).action for _ in range(6)]
    ['old', 'new', 'new', 'old', 'old', 'old']
    >>> policy.decide(State(0.0, offer)).probability
    0.75
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {"seed": Interval(int, 0)}

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self.start()

    def reset(self) -> None:
        """Start the generator anew from the seed."""
        self._random = Random(self.seed)

    def decide(self, state: State) -> Decision:
        """Draw one option by its weight."""
        weights = [o.weight if 0.0 < o.weight < math.inf else 0.0 for o in state.options]
        largest = max(weights, default=0.0)
        if not largest:
            return self.nothing(state, "every option has weight 0") if weights else self.nothing(state)
        weights = [weight / largest for weight in weights]
        total = sum(weights)
        left = self._random.random() * total
        index = last = 0
        for index, weight in enumerate(weights):
            if weight:
                last = index
                left -= weight
                if left < 0.0:
                    break
        else:
            index = last
        return self.chosen(state, index, weights[index] / total, "drawn in proportion to the weights")

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Another seed."""
        yield {"seed": 7}
