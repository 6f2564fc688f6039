"""Accepts every request."""

from __future__ import annotations

from typing import final

from apportion.core.decision import Decision
from apportion.core.state import State
from apportion.policy.admit._base import REFUSE, Admission, admission_worths


@final
class Always(Admission):
    """Accepts every request.

    The baseline of admission: the most valuable way to serve that is offered, whatever is left of the budgets
    and however busy it is. Hard budgets still hold, because what could break one is not offered.

        choose  argmax of value over the options that are not "refuse"

    Complexity
    ----------
    O(n) per decision for n options; nothing is learned; O(1) memory.

    Notes
    -----
    When only refusing is offered, it refuses.

    See Also
    --------
    admit/time_fair : keeps room for what is worth more.

    References: none, baseline

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> offer = [Option("serve", 0.01, Cost(usd=0.001)), Option("refuse", 0.0, Cost(usd=0.0))]
    >>> Always().decide(State(0.0, offer, prices={"usd": 1.0})).action
    'serve'
    """

    def __init__(self) -> None:
        self.start()

    def decide(self, state: State) -> Decision:
        """Accept."""
        if not state.options:
            return self.nothing(state)
        left = admission_worths(state)
        serving = [k for k, option in enumerate(state.options) if option.action != REFUSE]
        if not serving:
            return self.turned_away(state, left, 1.0, "nothing else was offered")
        index = max(serving, key=lambda k: (state.options[k].value, -k))
        action = state.options[index].action
        return Decision(state.id, index, action, 1.0, state.prices, state.options, left, "accepts all")
