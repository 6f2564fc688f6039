"""How many instances there are, so that the load on each stays at a target."""

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
class TargetTracking(Policy):
    """Chooses as many instances as would bring the load on each to a target: out at once, in only after a while.

    The rule of the Kubernetes horizontal autoscaler [1]_, and the field's baseline. The load of the ready instances,
    spread over as many as there are wanted, is to be ``target`` on each. A small deviation changes nothing. More
    instances come at once; fewer only as far as nothing in the last ``window_s`` asked for more, so that a lull
    between two bursts does not send away what the next one needs.

        total    =  ready * load
        desired  =  instances                       if |total / (instances * target) - 1| <= tolerance
                    ceil(total / target)            else
        choose      desired                                                    if desired >= instances
                    min(instances, max of desired in the last window_s)        else

    An option is an action with the fact ``change`` (instances more, or less). The request says ``instances`` (those
    that are ready or on their way), ``ready``, and ``load`` (work in flight and waiting on a ready instance, over
    what it works on at once).

    Parameters
    ----------
    target
        The load to be kept on each instance. 0.7 is what Knative aims at of what an instance takes at once [2]_.
    tolerance
        Relative deviation from the target that changes nothing; the autoscaler's 0.1.
    window_s
        Seconds for which nothing may have asked for more before there are fewer; the autoscaler's 300.

    Attributes
    ----------
    _asked
        Of the numbers desired in the last ``window_s`` those that are or may become the largest of it: pairs of time
        and number, times rising, numbers falling.

    Complexity
    ----------
    O(n) for n options; memory of at most one pair for each number of instances that is on offer.

    Notes
    -----
    The autoscaler also limits the pace (by default at most twice as many, or four more, in 15 s); give
    ``Scaling.every_s`` and ``most`` for that. It looks at a mean over the pods that are ready; those on their way
    count as idle while more are wanted, and here always: else a cold start would be mistaken for too few.
    It knows nothing of what instances cost or of how long they take to come: where that is longer than a burst,
    more instances come too late.

    See Also
    --------
    scale/freeness : by the memory that is left, one instance at a time.

    References
    ----------
    .. [1] The Kubernetes Authors. "Horizontal Pod Autoscaling: Algorithm details."
       https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/
    .. [2] The Knative Authors. "Configuring concurrency: target utilization."
       https://knative.dev/docs/serving/autoscaling/concurrency/

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> offers = [Option(str(n), 0.0, Cost(), facts={"change": n - 2}) for n in (1, 2, 3, 4, 5)]
    >>> policy = TargetTracking(target=0.5, window_s=60.0)
    >>> seen = ((0, 0.5), (15, 0.52), (30, 0.9), (45, 0.1), (100, 0.1))
    >>> ask = lambda t, load: State(t, offers, request={"instances": 2, "ready": 2, "load": load})
    >>> [policy.decide(ask(t, load)).action for t, load in seen]
    ['2', '2', '4', '2', '1']
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "target": Interval(float, 0, closed="neither"),
        "tolerance": Interval(float, 0),
        "window_s": Interval(float, 0),
    }

    def __init__(self, *, target: float = 0.7, tolerance: float = 0.1, window_s: float = 300.0) -> None:
        self.target = target
        self.tolerance = tolerance
        self.window_s = window_s
        self.start()

    def reset(self) -> None:
        """Forget what was asked for."""
        self._asked: list[tuple[float, float]] = []

    def decide(self, state: State) -> Decision:
        """Choose the option whose change leads nearest to the wanted number; ties go to the first name."""
        if not state.options:
            return self.nothing(state)
        offered = changes(state)
        instances, ready, load = (_told(state, name) for name in ("instances", "ready", "load"))
        if instances is None or ready is None or load is None:
            return decided(state, nearest(state, offered, 0.0), "nothing is known of the load")
        if not self._asked:
            self._note(state.now, instances)  # whoever set it up so had a reason
        desired = wanted_instances(instances, ready * load, self.target, self.tolerance)
        desired = min(max(desired, instances + min(offered)), instances + max(offered))
        self._note(state.now, desired)
        why = "the load is at its target"
        if desired > instances:
            why = "more load than the target"
        elif desired < instances:
            desired = min(instances, self._asked[0][1])
            why = "less load than the target" if desired < instances else "more was wanted not long ago"
        return decided(state, nearest(state, offered, desired - instances), why)

    def _note(self, now_s: float, desired: float) -> None:
        """Keep what may be the largest of the window, now or later."""
        kept = [(at, n) for at, n in self._asked if at > now_s - self.window_s and n > desired]
        self._asked = [*kept, (now_s, desired)]

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Quick to leave, and slow."""
        yield {"target": 0.5, "tolerance": 0.0, "window_s": 0.0}
        yield {"target": 2.0, "tolerance": 0.2, "window_s": 900.0}


def wanted_instances(instances: float, total: float, target: float, tolerance: float) -> float:
    """How many instances bring a ``total`` load to ``target`` on each; as many as there are if that is near enough."""
    if instances > 0 and abs(total / (instances * target) - 1.0) <= tolerance:
        return instances
    return float(math.ceil(round(total / target, 9)))


def _told(state: State, name: str) -> float | None:
    found = state.request.get(name)
    return float(found) if isinstance(found, (int, float)) and math.isfinite(found) and found >= 0 else None
