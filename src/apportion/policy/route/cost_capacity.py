"""Fills the cheapest pools while there is room, and spreads over all of them when there is not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval, Kind
from apportion.core.option import Option
from apportion.core.outcome import Outcome
from apportion.core.state import State
from apportion.policy.route._base import Router, worths

_TIMES = 64
"""Answers whose latency decides whether the target is met."""


@final
class CostCapacity(Router):
    """Fills the cheapest pools while there is room, and spreads over all of them when there is not.

    A control loop with two modes [1]_. In cost mode the request goes to the pool that leaves most after
    paying, as long as its load is below ``full``; the next pool is used when it is not. When all pools
    together are loaded above ``enter``, or latency misses its target, capacity is short and the loop goes to
    capacity mode: the least loaded pool, whatever it costs. It goes back when the load has stayed below
    ``leave`` and latency within its target for ``hold_s``; the gap between the two levels and the time keep
    it from flapping. A pool that fails is left alone for ``hold_s``, with its capacity counted as lost.

        cost mode      choose  argmax of value - sum_r price_r cost_r   over pools with load < full capacity
        mode  choose  argmin of load to capacity    when  sum load capacity / sum capacity > enter,  or more
        than 1 in 20 of the last 64 answers is late to cost        when  neither, and load < leave, for hold_s

    Parameters
    ----------
    full
        Load of a pool from which the next one is used, above 0.
    enter
        Load of all healthy pools together above which capacity is short, above 0.
    leave
        Load below which it is no longer short, at most ``enter``.
    hold_s
        Seconds for which it must not be short before cost counts again, and for which a failed pool is left
        alone, zero or more.
    target_s
        Latency that 95 of 100 answers should meet, above 0; None looks at load only.

    Complexity
    ----------
    O(n) per decision and per outcome for n pools; a fixed number of latencies and one number a failed pool.

    Notes
    -----
    Where cost mode lasted less than ``hold_s`` the next calm must be twice as long, up to eight times: an
    addition against flapping. Pools are options: ``load`` is work in flight over capacity,
    ``facts["capacity"]`` the slots (1 where missing: pools are then equally large), ``facts["healthy"]``
    False takes a pool out. An unknown load counts as 0 in cost mode and as heaviest in capacity mode. The
    paper also sets scale targets; a router has none, but `mode` is there to be read. In its capacity mode
    requests go round robin; here to the least load, which is never worse. One failed pool of several is
    avoided; when all are, all are tried. A failed attempt without another is not retried here; that is the
    proxy's part.

    See Also
    --------
    route/least_load : always in capacity mode.
    route/priced : always in cost mode, without a look at load.

    References
    ----------
    .. [1] Y. Biran, I. Kissos (2025). "Adaptive Orchestration for Large-Scale Inference on Heterogeneous Accelerator
       Systems Balancing Cost, Performance, and Resilience." arXiv:2503.20074

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> def pools(cheap, dear):
    ...     cheap = Option("cheap", 0.0, Cost(usd=0.001), load=cheap)
    ...     return [cheap, Option("dear", 0.0, Cost(usd=0.004), load=dear)]
    >>> policy = CostCapacity()
    >>> [policy.decide(State(t, pools(*loads), prices={"usd": 1.0})).action
    ...  for t, loads in enumerate([(0.5, 0.1), (0.9, 0.1), (1.0, 0.9), (0.4, 0.5)])]
    ['cheap', 'dear', 'dear', 'cheap']
    >>> policy.mode
    'capacity'
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "full": Interval(float, 0.0, closed="neither"),
        "enter": Interval(float, 0.0, closed="neither"),
        "leave": Interval(float, 0.0),
        "hold_s": Interval(float, 0.0),
        "target_s": Interval(float, 0.0, closed="neither") | Kind(type(None)),
    }

    def __init__(
        self,
        *,
        full: float = 0.8,
        enter: float = 0.85,
        leave: float = 0.65,
        hold_s: float = 30.0,
        target_s: float | None = None,
    ) -> None:
        self.full = full
        self.enter = enter
        self.leave = leave
        self.hold_s = hold_s
        self.target_s = target_s
        self.start()

    def reset(self) -> None:
        """Cost mode, with nothing measured."""
        self.mode = "cost"
        """ "cost" or "capacity"."""
        self._calm_since: float | None = None
        self._since: float | None = None
        """When cost mode began, None if it always was."""
        self._patience = 1.0
        """How many times ``hold_s`` it must be calm: doubled when cost mode was left again at once."""
        self._failed: dict[str, float] = {}
        """Pool to the time of its failure, as far as the time is known."""
        self._late: list[bool] = []

    def decide(self, state: State) -> Decision:
        """Look at the capacity, set the mode, choose by it."""
        options = state.options
        if not options:
            return self.nothing(state)
        up = [k for k, option in enumerate(options) if self._healthy(option, state.now)]
        self._steer(state, up)
        up = up or list(range(len(options)))
        left = worths(state)
        if self.mode == "cost":
            roomy = [k for k in up if (options[k].load or 0.0) < self.full]
            if roomy:
                index = max(roomy, key=lambda k: (_known(left[k]), -_heavy(options[k]), -k))
                why = "cost mode, cheapest pool with room"
                return Decision(state.id, index, options[index].action, 1.0, state.prices, options, left, why)
        index = min(up, key=lambda k: (_heavy(options[k]), -_known(left[k]), k))
        why = (
            "capacity mode, least loaded pool" if self.mode == "capacity" else "cost mode, every pool is full"
        )
        return Decision(state.id, index, options[index].action, 1.0, state.prices, options, left, why)

    def learn(self, outcome: Outcome) -> None:
        """Take in a latency, or that a pool failed."""
        if outcome.action is None or outcome.revised:
            return
        if outcome.status == "failed":
            self._failed.pop(outcome.action, None)
            if len(self._failed) >= _TIMES:
                del self._failed[next(iter(self._failed))]
            if outcome.state is not None:
                self._failed[outcome.action] = outcome.state.now + (outcome.latency_s or 0.0)
        elif outcome.status in ("ok", "timeout"):
            self._failed.pop(outcome.action, None)
            if self.target_s is not None and outcome.latency_s is not None:
                self._late.append(outcome.latency_s > self.target_s)
                del self._late[:-_TIMES]

    def _healthy(self, option: Option, now: float) -> bool:
        """Whether a pool says so, and did not just fail."""
        if option.facts is not None and option.facts.get("healthy") is False:
            return False
        failed = self._failed.get(option.action)
        return failed is None or now >= failed + self.hold_s

    def _steer(self, state: State, up: list[int]) -> None:
        """Change the mode when capacity is short, or has not been for long enough."""
        work = capacity = 0.0
        for k in up:
            option = state.options[k]
            slots = _slots(option)
            capacity += slots
            if option.load is not None and option.load < math.inf:
                work += slots * option.load
        load = work / capacity if capacity else math.inf
        late = len(self._late) == _TIMES and 20 * sum(self._late) > _TIMES
        if load > self.enter or late:
            if self.mode == "cost":
                self.mode = "capacity"
                short = self._since is not None and state.now - self._since < self.hold_s
                self._patience = min(8.0, 2.0 * self._patience) if short else 1.0
                self._late.clear()
            self._calm_since = None
        elif self.mode == "capacity":
            if load >= self.leave:
                self._calm_since = None
            elif self._calm_since is None:
                self._calm_since = state.now
            if self._calm_since is not None and state.now - self._calm_since >= self._patience * self.hold_s:
                self.mode, self._calm_since, self._since = "cost", None, state.now
                self._late.clear()

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """With a target, and without patience."""
        yield {"target_s": 0.5, "hold_s": 0.0}
        yield {"full": 0.5, "enter": 1.5, "leave": 0.3}


def _slots(option: Option) -> float:
    """How much a pool can hold at once."""
    slots = option.facts.get("capacity") if option.facts is not None else None
    return float(slots) if isinstance(slots, float | int) and 0.0 <= slots < math.inf else 1.0


def _heavy(option: Option) -> float:
    return option.load if option.load is not None and option.load == option.load else math.inf


def _known(worth: float | None) -> float:
    return -math.inf if worth is None else worth
