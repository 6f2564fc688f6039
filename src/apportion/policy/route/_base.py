"""What all routers share: a choice is one option, recorded with what every option was worth."""

from __future__ import annotations

from apportion.core.decision import Decision
from apportion.core.policy import Policy
from apportion.core.state import State


class Router(Policy):
    """Chooses one option for a request. Most routers learn nothing; those that do override `learn` and
    `reset`.
    """

    def reset(self) -> None:
        """Nothing to forget."""

    def chosen(self, state: State, index: int, probability: float, why: str) -> Decision:
        """The decision for option ``index``."""
        options = state.options
        return Decision(
            state.id, index, options[index].action, probability, state.prices, options, worths(state), why
        )


def worths(state: State) -> tuple[float | None, ...]:
    """For each option the dollars left after paying: value minus cost at the state's prices; None if
    unknown.
    """
    prices = state.prices
    found: list[float | None] = []
    for option in state.options:
        paid = option.cost.at_prices(prices)
        if paid is None:
            found.append(None)
        else:
            worth = option.value - paid
            found.append(worth if worth == worth else None)
    return tuple(found)


def lightest(state: State) -> list[int]:
    """The options with the least load, in order; one without a known load counts only if none has one."""
    least = float("inf")
    found: list[int] = []
    for index, option in enumerate(state.options):
        load = option.load if option.load is not None else float("inf")
        if load < least:
            least, found = load, [index]
        elif load == least:
            found.append(index)
    return found or list(range(len(state.options)))
