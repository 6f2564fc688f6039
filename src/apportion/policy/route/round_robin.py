"""Chooses the option that was chosen longest ago."""

from __future__ import annotations

from typing import final

from apportion.core.decision import Decision
from apportion.core.state import State
from apportion.policy.route._base import Router


@final
class RoundRobin(Router):
    """Chooses the option that was chosen longest ago.

    With a fixed offer that is the usual turn-taking. Because turns are remembered by action and not by
    place, it stays fair when options are reordered, vanish and come back: one that returns is next, once.
    One that was never chosen is first of all; ties go to the option offered first.

        choose  argmin over o of  turn(action(o)),   turn = 0 if never chosen

    Attributes
    ----------
    turns : dict from action to the number of its last turn, at most 4096 of them
    turn : the number of decisions so far

    Complexity
    ----------
    O(n) per decision; nothing is learned from outcomes; O(actions) memory, at most 4096 actions.

    Notes
    -----
    Past 4096 actions the older half is forgotten, and counts as never chosen.

    See Also
    --------
    route/least_load : the same evenness in work instead of in requests.

    References: none, baseline

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> a, b, c = (Option(name, 0.01, Cost()) for name in "abc")
    >>> policy = RoundRobin()
    >>> [policy.decide(State(0.0, offer)).action for offer in ([a, b, c], [a, b, c], [a, b], [c, a, b])]
    ['a', 'b', 'a', 'c']
    """

    def __init__(self) -> None:
        self.start()

    def reset(self) -> None:
        """Forget whose turn it was."""
        self.turns: dict[str, int] = {}
        self.turn = 0

    def decide(self, state: State) -> Decision:
        """Choose the option whose last turn is longest ago."""
        if not state.options:
            return self.nothing(state)
        turns = self.turns
        oldest = self.turn + 1
        choice = 0
        for index, option in enumerate(state.options):
            turn = turns.get(option.action, 0)
            if turn < oldest:
                oldest, choice = turn, index
        self.turn += 1
        action = state.options[choice].action
        turns.pop(action, None)
        turns[action] = self.turn
        if len(turns) > _REMEMBERED:
            self.turns = dict(list(turns.items())[_REMEMBERED // 2 :])
        return self.chosen(state, choice, 1.0, "its turn")


_REMEMBERED = 4096
