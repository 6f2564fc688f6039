"""Starts the job that is predicted to be the shortest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from apportion.core.method import Constraint
from apportion.core.state import State
from apportion.policy.schedule._base import Key, Scheduler, number, size


@final
class Sjf(Scheduler):
    """Starts the job that is predicted to be the shortest.

    Shortest job first. With true lengths and no job to come it has the least mean waiting time of all orders
    on one server [1]_; with arrivals it stays the best that does not interrupt jobs when they come at random.
    A job of unknown length comes after all others of its priority.

        start  argmin over jobs of  (-priority, predicted service seconds)

    Parameters
    ----------

    Complexity
    ----------
    O(n) per decision for n waiting jobs; nothing is learned; O(1) memory.

    Notes
    -----
    A long job starves as long as short ones keep coming: it has no ageing. Use it to see what prediction
    can gain, and one of the methods below to serve with.

    See Also
    --------
    schedule/predictive_sjf : with a limit to how long a job is passed over.
    schedule/alise : with levels and ageing.

    References
    ----------
    .. [1] W. E. Smith (1956). "Various Optimizers for Single-Stage Production." Naval Research Logistics
       Quarterly 3(1-2), 59-66. doi:10.1002/nav.3800030106

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> jobs = [Option(i, 0.01, Cost(server_seconds=s)) for i, s in [("essay", 20.0), ("fact", 0.5)]]
    >>> Sjf().decide(State(0.0, jobs)).action
    'fact'
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {}
    why = "predicted to be the shortest"

    def __init__(self) -> None:
        self.start()

    def keys(self, state: State) -> list[Key]:
        """Priority, then predicted service."""
        return [(-number(o, "priority", 0.0), size(o)) for o in state.options]
