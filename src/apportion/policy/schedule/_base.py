"""What all schedulers share: of the waiting jobs the one with the least key starts next."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from apportion.core.decision import Decision
from apportion.core.option import Option
from apportion.core.policy import Policy
from apportion.core.state import State

Key = tuple[float, ...]


class Scheduler(Policy):
    """Chooses which waiting job starts next: the one with the least `key`, then the earliest, then the least id.

    An option is a job: ``action`` its id, ``cost`` what serving it is predicted to take, ``facts`` what is
    known of it (``arrived_s``, ``deadline_s``, ``priority``, ``tenant``, ``weight``, ``p_long``, ``expected_s``,
    ``attained_s``; any may be missing or None). Times are in the clock of ``state.now``.
    """

    why = "first in order"

    def reset(self) -> None:
        """Nothing to forget."""

    @abstractmethod
    def keys(self, state: State) -> list[Key]:
        """For each option what it is ordered by, least first; ties go by arrival, then by id."""

    def decide(self, state: State) -> Decision:
        """Choose the job that starts next."""
        options = state.options
        if not options:
            return self.nothing(state)
        index = 0
        if len(options) > 1:
            keys = self.keys(state)
            least = min(keys)
            index = keys.index(least)
            if keys.count(least) > 1:
                tied = [i for i, key in enumerate(keys) if key == least]
                index = min(tied, key=lambda i: (number(options[i], "arrived_s", 0.0), options[i].action, i))
        return self.started(state, index)

    def started(self, state: State, index: int) -> Decision:
        """The decision for job ``index``; only its own worth is looked at, as a thousand may be waiting."""
        options, prices = state.options, state.prices
        option = options[index]
        paid = option.cost.at_prices(prices)
        worths: list[float | None] = [None] * len(options)
        worths[index] = None if paid is None else finite(option.value - paid)
        return Decision(state.id, index, option.action, 1.0, prices, options, tuple(worths), self.why)

    def order(self, state: State) -> list[int]:
        """The places of all options in the order in which they would start if nothing changed."""
        options = state.options
        keys = self.keys(state)
        return sorted(
            range(len(options)),
            key=lambda i: (keys[i], number(options[i], "arrived_s", 0.0), options[i].action, i),
        )


def finite(amount: float) -> float | None:
    """``amount`` if it is a finite number."""
    return amount if -math.inf < amount < math.inf else None


def number(option: Option, name: str, missing: float) -> float:
    """The fact ``name``, a number; ``missing`` where it is not known."""
    known: Any = option.facts
    value = known.get(name) if known is not None else None
    return missing if value is None else value


def size(option: Option, missing: float = math.inf) -> float:
    """The seconds of service that a job still needs: ``expected_s``, else its predicted server-seconds, less
    what it has had; ``missing`` where neither is known. One that has had more than was predicted is taken to need
    as much again.
    """
    known: Any = option.facts
    need = had = None
    if known is not None:
        need, had = known.get("expected_s"), known.get("attained_s")
    if need is None:
        need = option.cost.get("server_seconds")
        if need is None:
            return missing
    if had:
        need = need - had if had < need else had
    return need if need > 0.0 else 0.0
