"""What all admission policies share: ways to serve are offered, and to refuse, which is free."""

from __future__ import annotations

from apportion.core.decision import Decision
from apportion.core.policy import Policy
from apportion.core.state import State

REFUSE = "refuse"
"""The action of the option that turns a request away."""


class Admission(Policy):
    """Chooses whether to serve a request, and which of the offered ways.

    Options are ways to serve it and one whose action is "refuse", worth nothing and free.
    """

    def reset(self) -> None:
        """Nothing to forget."""

    def turned_away(
        self, state: State, worths: tuple[float | None, ...], probability: float, why: str
    ) -> Decision:
        """The decision to refuse: the option that says so, or nothing where none was offered."""
        for index, option in enumerate(state.options):
            if option.action == REFUSE:
                return Decision(
                    state.id, index, REFUSE, probability, state.prices, state.options, worths, why
                )
        return Decision(state.id, None, None, probability, state.prices, state.options, worths, why)


def admission_worths(state: State) -> tuple[float | None, ...]:
    """For each option the dollars left after paying; 0 for refusing; None where a cost is unknown."""
    found: list[float | None] = []
    for option in state.options:
        paid = 0.0 if option.action == REFUSE else option.cost.at_prices(state.prices)
        worth = None if paid is None else (0.0 if option.action == REFUSE else option.value) - paid
        found.append(worth if worth is not None and abs(worth) < float("inf") else None)
    return tuple(found)
