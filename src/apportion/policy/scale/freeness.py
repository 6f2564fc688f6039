"""How many instances there are, by the freedom they have on average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval
from apportion.core.policy import Policy
from apportion.core.state import State
from apportion.policy.scale._changes import changes, decided, nearest


@final
class Freeness(Policy):
    """Chooses one instance more or one less, when the mean freeness has been out of bounds for a while.

    Freeness is for how many steps the batch of an instance can go on with the memory it has (`place/llumnix`);
    its mean says how loaded the instances are, whatever the lengths of requests are [1]_.

        out   if  freeness < low   for ``sustain_s``;      in   if  freeness > high  for ``sustain_s``;      else stay

    An option is an action with the fact ``change`` (instances more, or less); the request says ``freeness``.

    Parameters
    ----------
    low
        Mean freeness below which there are too few instances.
    high
        Mean freeness above which there are too many.
    sustain_s
        Seconds for which it has to stay out of bounds.

    Complexity
    ----------
    O(n) for n options; O(1) memory.

    Notes
    -----
    The time that is counted begins anew after every change.

    See Also
    --------
    scale/target_tracking : by the load, as many at a time as it takes.
    place/llumnix : who goes where.

    References
    ----------
    .. [1] B. Sun, Z. Huang, H. Zhao, W. Xiao and others (2024). "Llumnix: Dynamic Scheduling for Large Language Model
       Serving." OSDI. arXiv:2406.03243

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> offers = [Option(name, 0.0, Cost(), facts={"change": n}) for name, n in (("out", 1), ("stay", 0), ("in", -1))]
    >>> policy = Freeness(sustain_s=10.0)
    >>> seen = ((0, 5), (11, 4), (12, 80), (30, 90))
    >>> [policy.decide(State(t, offers, request={"freeness": f})).action for t, f in seen]
    ['stay', 'out', 'stay', 'in']
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "low": Interval(float),
        "high": Interval(float),
        "sustain_s": Interval(float, 0),
    }

    def __init__(self, *, low: float = 10.0, high: float = 60.0, sustain_s: float = 10.0) -> None:
        self.low = low
        self.high = high
        self.sustain_s = sustain_s
        self.start()

    def reset(self) -> None:
        """Forget since when it has been out of bounds."""
        self._side = 0
        self._since_s = 0.0

    def decide(self, state: State) -> Decision:
        """Choose the option whose change is the wanted one, else the one with the least change."""
        if not state.options:
            return self.nothing(state)
        freeness = state.request.get("freeness")
        side = 0
        if isinstance(freeness, (int, float)) and math.isfinite(freeness):
            side = 1 if freeness < self.low else -1 if freeness > self.high else 0
        if side != self._side:
            self._side, self._since_s = side, state.now
        wanted, why = 0, "within bounds, or not for long enough"
        if side and state.now - self._since_s >= self.sustain_s:
            wanted, why = side, "too little freedom" if side > 0 else "more freedom than is needed"
        offered = changes(state)
        choice = nearest(state, offered, wanted)
        if offered[choice]:
            self._since_s = state.now
        return decided(state, choice, why)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Parameter sets that the common tests use."""
        yield {"low": 5.0, "high": 100.0, "sustain_s": 60.0}
