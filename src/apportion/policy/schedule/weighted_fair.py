"""Starts a job of the tenant that has had the least service for its weight."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval, OneOf
from apportion.core.option import Option
from apportion.core.outcome import Outcome
from apportion.core.state import State
from apportion.policy.schedule._base import Key, Scheduler, number, size


@final
class WeightedFair(Scheduler):
    """Starts a job of the tenant that has had the least service for its weight.

    Start-time fair queueing [1]_, a virtual-time form of weighted fair queueing. Each tenant has a tag: the
    service it has had divided by its weight. The tenant with the least tag is served; one that comes back
    from idleness starts at the virtual time, so it neither saves up credit nor pays for having used a server
    that nobody else wanted. A job's predicted service is charged when it starts and corrected by `learn` to
    what was measured, so wrong predictions cannot be used to take more than one's share.

        S(tenant) = max(v, F(tenant))
        start  argmin over jobs of  (S(tenant), -priority, expected service if `short_first`, arrived_s)
        v = S(chosen),   F(chosen) = S(chosen) + service / weight

    While two tenants both always have jobs waiting, the service each has had, divided by its weight, differs by at
    most (longest job) / weight of the one plus the same of the other [1]_. So no tenant starves whatever the others
    do, and within a tenant and a priority, without `short_first`, nobody starves.

    Parameters
    ----------
    unknown_s
        Seconds of service charged for a job of which none was predicted, above 0, until it is measured.
    short_first
        Whether a tenant's own jobs start shortest first rather than in order of arrival.
    kept_max
        How many tenants' tags, and how many charges of jobs under way, are kept, an integer of one or more; the
        least tags and the oldest charges are forgotten first.

    Attributes
    ----------
    virtual : the virtual time v.
    tags : tenant to F.
    charged : job under way to its tenant, the service charged and the tenant's weight.

    Complexity
    ----------
    O(n) per decision for n waiting jobs, O(1) per `learn`; memory O(kept_max).

    Notes
    -----
    The paper tags a packet when it arrives; here the tag is taken when a job could start, which is the same
    order, because the virtual time never passes the least tag of those that wait. Priority orders only
    the jobs of one tenant: nobody gains a larger share by calling everything urgent. ``weight`` is read from the job's
    facts; a tenant is what its facts call ``tenant``.

    See Also
    --------
    schedule/fcfs : a tenant with more jobs gets more.

    References
    ----------
    .. [1] P. Goyal, H. M. Vin, H. Cheng (1997). "Start-Time Fair Queueing: A Scheduling Algorithm for Integrated
       Services Packet Switching Networks." IEEE/ACM Transactions on Networking 5(5), 690-704.
       doi:10.1109/90.649569

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> def job(i, tenant, t):
    ...     return Option(i, 0.01, Cost(server_seconds=1.0), facts={"arrived_s": t, "tenant": tenant})
    >>> waiting = [job("a1", "a", 0.0), job("a2", "a", 0.1), job("a3", "a", 0.2), job("b1", "b", 0.3)]
    >>> policy = WeightedFair()
    >>> started = []
    >>> while waiting:
    ...     decision = policy.decide(State(1.0, waiting))
    ...     started.append(waiting.pop(decision.choice).action)
    >>> started
    ['a1', 'b1', 'a2', 'a3']
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "unknown_s": Interval(float, 0.0, math.inf, closed="neither"),
        "short_first": OneOf(True, False),
        "kept_max": Interval(int, 1),
    }
    why = "its tenant has had the least service for its weight"

    def __init__(self, *, unknown_s: float = 10.0, short_first: bool = False, kept_max: int = 4096) -> None:
        self.unknown_s = unknown_s
        self.short_first = short_first
        self.kept_max = kept_max
        self.start()

    def reset(self) -> None:
        """Everybody has had the same: nothing."""
        self.virtual = 0.0
        self.tags: dict[str, float] = {}
        self.charged: dict[str, tuple[str, float, float]] = {}

    def keys(self, state: State) -> list[Key]:
        """The tenant's tag, then the tenant's own order."""
        virtual, own = self.virtual, self._own
        started = {tenant: tag for tenant, tag in self.tags.items() if tag > virtual}
        return [(started.get(_tenant(o), virtual), *own(o)) for o in state.options]

    def decide(self, state: State) -> Decision:
        """Choose, and charge the chosen job's tenant."""
        decision = super().decide(state)
        if decision.choice is not None:
            option = state.options[decision.choice]
            tenant, charge, weight = _tenant(option), self._charge(option), _weight(option)
            self.virtual = max(self.virtual, self.tags.get(tenant, 0.0))
            self._tag(tenant, self.virtual + charge / weight)
            self.charged.pop(option.action, None)
            self.charged[option.action] = (tenant, charge, weight)
            if len(self.charged) > self.kept_max:
                del self.charged[next(iter(self.charged))]
        return decision

    def learn(self, outcome: Outcome) -> None:
        """Correct the tenant's tag by what was measured less what was charged, once for each job."""
        measured = outcome.cost.get("server_seconds")
        if outcome.revised or outcome.action is None or measured is None or not 0 <= measured < math.inf:
            return
        charged = self.charged.pop(outcome.action, None)
        if charged is not None:
            tenant, charge, weight = charged
            if tenant in self.tags:
                self._tag(tenant, self.tags[tenant] + (measured - charge) / weight)

    def order(self, state: State) -> list[int]:
        """The places in which all would start, the tags carried forward by what would be charged."""
        options = state.options
        own: dict[str, deque[int]] = {}
        for index in super().order(state):
            own.setdefault(_tenant(options[index]), deque()).append(index)
        heads: list[tuple[float, tuple[float, float, float], str, int, str]] = []

        def stand(tag: float, tenant: str) -> None:
            option = options[own[tenant][0]]
            heapq.heappush(heads, (tag, self._own(option), option.action, own[tenant][0], tenant))

        for tenant in own:
            stand(max(self.tags.get(tenant, 0.0), self.virtual), tenant)
        found = []
        while heads:
            tag, *_, index, tenant = heapq.heappop(heads)
            found.append(own[tenant].popleft())
            if own[tenant]:
                stand(tag + self._charge(options[index]) / _weight(options[index]), tenant)
        return found

    def _own(self, option: Option) -> tuple[float, float, float]:
        """What orders jobs whose tenants' tags are equal, above all the jobs of one tenant."""
        short = size(option) if self.short_first else 0.0
        return (-number(option, "priority", 0.0), short, number(option, "arrived_s", 0.0))

    def _charge(self, option: Option) -> float:
        charge = size(option)
        return charge if charge < math.inf else self.unknown_s

    def _tag(self, tenant: str, tag: float) -> None:
        """Set a tag, and forget the least ones when there are too many; who has none counts from v."""
        self.tags[tenant] = tag
        if len(self.tags) > self.kept_max:
            kept = heapq.nlargest(self.kept_max // 2, self.tags.items(), key=lambda item: (item[1], item[0]))
            self.tags = {name: tag for name, tag in kept if tag > self.virtual}

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """The short ones of a tenant first."""
        yield {"unknown_s": 2.0, "short_first": True, "kept_max": 16}


def _tenant(option: Option) -> str:
    return str(option.facts.get("tenant") or "") if option.facts else ""


def _weight(option: Option) -> float:
    weight = number(option, "weight", 1.0)
    return weight if 0.0 < weight < math.inf else 1.0
