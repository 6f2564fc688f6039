"""Chooses the option with the most value left after paying for it at the current prices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, OneOf
from apportion.core.option import Option
from apportion.core.state import State
from apportion.policy.route._base import Router


@final
class Priced(Router):
    """Chooses the option with the most value left after paying for it at the current prices.

    The rule of the whole project, with the predictions taken as they are offered. Prices carry everything
    that binds: a dollar costs a dollar, and a budget that is being spent too fast adds a shadow price to
    its resource (`apportion.core.Pricer`), so that cheaper options win until spending is back on course.
    With the prices of the dual optimum this choice solves the budgeted problem, and with prices learned
    by mirror descent it loses O(sqrt(T)) of the optimum over T requests [1]_; the same rule with bandit
    feedback is [2]_.

        choose  argmax over o of  value(o) - sum over r of price[r] * cost(o)[r]

    Ties go to the lesser load, then to the option offered first.

    Parameters
    ----------
    unknown
        What becomes of an option whose cost is unknown in a resource that has a price: "last" chooses it
        only when no option is known (the most valuable of them then), "refuse" never chooses it, and
        chooses nothing when all are unknown.

    Complexity
    ----------
    O(n R) per decision for n options and R priced resources; nothing is learned (prices are learned
    outside, where spending is measured); O(1) memory.

    Notes
    -----
    It believes the predictions: it neither explores nor hedges. It chooses the best option even when its
    worth is below zero; whoever wants to be able to decline offers an option that is worth zero and costs
    nothing.

    See Also
    --------
    route/least_load : the baseline when options differ only in load.

    References
    ----------
    .. [1] S. Balseiro, H. Lu, V. Mirrokni (2023). "The Best of Many Worlds: Dual Mirror Descent for Online
       Allocation Problems." Operations Research 71(1). arXiv:2011.10124
    .. [2] A. Badanidiyuru, R. Kleinberg, A. Slivkins (2018). "Bandits with Knapsacks." Journal of the ACM
       65(3). arXiv:1305.2545

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> small = Option("small", 0.010, Cost(usd=0.001))
    >>> large = Option("large", 0.018, Cost(usd=0.005))
    >>> policy = Priced()
    >>> policy.decide(State(0.0, [small, large], prices={"usd": 1.0})).action
    'large'
    >>> decision = policy.decide(State(1.0, [small, large], prices={"usd": 2.5}))
    >>> decision.action
    'small'
    >>> print(decision.explain())  # doctest: +NORMALIZE_WHITESPACE
    Chose small of 2 options, most value left: $0.01 of value less $0.0025 of cost (0.001 usd at 2.5) leaves
    $0.0075. The alternatives would leave: large $0.0055.
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {"unknown": OneOf("last", "refuse")}

    def __init__(self, *, unknown: str = "last") -> None:
        self.unknown = unknown
        self.start()

    def decide(self, state: State) -> Decision:
        """Choose the option with the most left after paying."""
        options, prices = state.options, state.prices
        best = -math.inf
        choice = -1
        worths: list[float | None] = []
        for index, option in enumerate(options):
            paid = option.cost.at_prices(prices)
            worth = None if paid is None else option.value - paid
            if worth is None or worth != worth:
                worths.append(None)
                continue
            worths.append(worth)
            if choice < 0 or worth > best or (worth == best and _lighter(option.load, options[choice].load)):
                best, choice = worth, index
        if choice < 0:
            return self._unknown(state)
        return Decision(
            state.id, choice, options[choice].action, 1.0, prices, options, tuple(worths), "most value left"
        )

    def _unknown(self, state: State) -> Decision:
        """What to do when the worth of no option is known."""
        if not state.options:
            return self.nothing(state)
        if self.unknown == "refuse":
            return self.nothing(state, "no option has a known cost in every priced resource")
        choice = max(range(len(state.options)), key=lambda index: _rank(state.options[index], index))
        return self.chosen(state, choice, 1.0, "no cost is known, most value promised")

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """The strict rule."""
        yield {"unknown": "refuse"}


def _lighter(load: float | None, other: float | None) -> bool:
    """Whether ``load`` is known and less than ``other``, which counts as heaviest when unknown."""
    return load is not None and (other is None or load < other)


def _rank(option: Option, index: int) -> tuple[float, float, int]:
    """Greatest for the most value, then the least load, then the first place; unknown is worst."""
    value = option.value if option.value == option.value else -math.inf
    return (value, -option.load if option.load is not None else -math.inf, -index)
