"""Starts the job that loses the most dollars by waiting for each second of service it takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.method import Constraint, Interval
from apportion.core.option import Option
from apportion.core.state import State
from apportion.policy.schedule._base import Key, Scheduler, number, size


@final
class Priced(Scheduler):
    """Starts the job that loses the most dollars by waiting for each second of service it takes.

    A job's worth w is its value less what it costs at the current prices. Waiting takes from it in three ways:
    every second costs the price of ``seconds`` (somebody is waiting); the answer itself may age, its value
    halving every `half_life_s`; and after its deadline it is worth nothing. A second of the server goes where
    it saves the most: the c-mu rule, which is optimal for waiting costs that are linear in time [1]_, with
    the answer's ageing by Rothkopf's index [2]_ and a deadline by the apparent tardiness cost [3]_. While it is
    served all others wait, which costs C dollars a second: the price of the server's time. A job with a deadline
    has to be worth that as well, or is let go, since it ends by itself and the others do not. One that can
    no longer meet its deadline, or is not worth what it costs, comes after all others.

        c = price[seconds] * priority_factor^priority * (1 + waited / doubles_s)
        a = h^2 * w / (exp(h * s) - 1),                         h = ln 2 / half_life_s
        d = (w - s C) / K * exp(-(deadline_s - now - s) / K),           K = look_ahead * (mean of the s that wait)
        start  argmax over jobs of  (c + d) / s + a,            s = predicted service seconds

    Parameters
    ----------
    second_usd
        What a second of waiting costs where the state has no price of ``seconds``, in dollars, above 0.
    priority_factor
        How many times as dear a second becomes with each step of priority, in [1, 100].
    half_life_s
        Seconds in which an answer's value halves, above 0; infinite: it does not age.
    doubles_s
        Seconds of waiting after which a second costs twice as much as the first, then three times, and so on, above
        0; infinite: always the same.
    look_ahead
        How many mean services before its last moment a deadline begins to press, above 0; 2 as in [3]_.
    unknown_s
        Seconds of service taken for a job of which none was predicted, above 0.

    Complexity
    ----------
    O(n R) per decision for n waiting jobs and R priced resources; nothing is learned; O(1) memory.

    Notes
    -----
    The sum of the three indices is a heuristic: each alone is optimal (the first two) or the best known rule
    (the third) for its own kind of loss. Nothing here bounds a single wait: a long job waits as long as more urgent
    ones keep coming, which is what a linear price asks for; `doubles_s` makes long waits dear (a quadratic cost,
    for which the growing index is the optimum under heavy load), and the queue's `max_wait_s` ends them.

    See Also
    --------
    schedule/sjf : what it becomes when every second and every job is worth the same.

    References
    ----------
    .. [1] D. R. Cox, W. L. Smith (1961). "Queues." Methuen, London. For the growing cost: J. A. Van Mieghem (1995),
       Annals of Applied Probability 5(3), 809-833. doi:10.1214/aoap/1177004706
    .. [2] M. H. Rothkopf (1966). "Scheduling Independent Tasks on Parallel Processors." Management Science 12(5),
       437-447. doi:10.1287/mnsc.12.5.437
    .. [3] A. P. J. Vepsalainen, T. E. Morton (1987). "Priority Rules for Job Shops with Weighted Tardiness Costs."
       Management Science 33(8), 1035-1047. doi:10.1287/mnsc.33.8.1035

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> jobs = [Option("essay", 0.02, Cost(server_seconds=20.0), facts={"arrived_s": 0.0}),
    ...         Option("fact", 0.01, Cost(server_seconds=0.5), facts={"arrived_s": 0.0}),
    ...         Option("due", 0.05, Cost(server_seconds=5.0), facts={"arrived_s": 0.0, "deadline_s": 8.0})]
    >>> policy = Priced()
    >>> policy.decide(State(0.0, jobs, prices={"seconds": 1e-4})).action
    'due'
    >>> policy.decide(State(0.0, jobs, prices={"seconds": 1e-1})).action
    'fact'
    >>> policy.decide(State(4.0, jobs, prices={"seconds": 1e-4})).action  # it would be late
    'fact'
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "second_usd": Interval(float, 0.0, math.inf, closed="neither"),
        "priority_factor": Interval(float, 1.0, 100.0),
        "half_life_s": Interval(float, 0.0, math.inf, closed="right"),
        "doubles_s": Interval(float, 0.0, math.inf, closed="right"),
        "look_ahead": Interval(float, 0.0, math.inf, closed="neither"),
        "unknown_s": Interval(float, 0.0, math.inf, closed="neither"),
    }
    why = "loses the most by waiting, for the service it takes"

    def __init__(
        self,
        *,
        second_usd: float = 1e-4,
        priority_factor: float = 2.0,
        half_life_s: float = math.inf,
        doubles_s: float = math.inf,
        look_ahead: float = 2.0,
        unknown_s: float = 10.0,
    ) -> None:
        self.second_usd = second_usd
        self.priority_factor = priority_factor
        self.half_life_s = half_life_s
        self.doubles_s = doubles_s
        self.look_ahead = look_ahead
        self.unknown_s = unknown_s
        self.start()

    def keys(self, state: State) -> list[Key]:
        """Worthless ones last; of the others the greatest loss for each second of service first."""
        options, now = state.options, state.now
        second_usd = state.prices.get("seconds") or self.second_usd
        prices = {name: price for name, price in state.prices.items() if price and name != "seconds"}
        rate, growth = math.log(2.0) / self.half_life_s, 1.0 / self.doubles_s
        sizes = [min(max(_SHORTEST_S, size(option, self.unknown_s)), _LONGEST_S) for option in options]
        waits = [max(0.0, now - number(option, "arrived_s", now)) for option in options]
        losses = [
            self._loss(option, second_usd * (1.0 + growth * w))
            for option, w in zip(options, waits, strict=True)
        ]
        everybody = sum(losses)
        reach_s = self.look_ahead * sum(sizes) / len(sizes)
        found: list[Key] = []
        for option, service_s, waited_s, loss in zip(options, sizes, waits, losses, strict=True):
            worth = option.value
            if rate:
                worth *= math.exp(-rate * waited_s)
            if prices:
                worth -= option.cost.at_prices(prices) or 0.0
            index = loss / service_s
            slack_s = number(option, "deadline_s", math.inf) - now - service_s
            if slack_s < math.inf:
                worth -= service_s * (everybody - loss)
                if slack_s >= 0.0:
                    index += worth / reach_s * math.exp(-slack_s / reach_s) / service_s
            if not (worth > 0.0 and slack_s >= 0.0):
                found.append(_WORTHLESS)
                continue
            if 0.0 < rate * service_s < _FAR:
                index += rate * rate * worth / math.expm1(rate * service_s)
            found.append((0.0, -index))
        return found

    def _loss(self, option: Option, second_usd: float) -> float:
        """What a second of the job's waiting costs, with its priority."""
        priority = number(option, "priority", 0.0)
        if priority:
            second_usd *= math.pow(self.priority_factor, min(max(priority, -_STEPS), _STEPS))
        return second_usd

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Answers that age, seconds that grow dearer."""
        yield {"half_life_s": 30.0, "doubles_s": 60.0, "priority_factor": 4.0, "second_usd": 1e-3}
        yield {"look_ahead": 0.5, "unknown_s": 1.0}


_WORTHLESS: Key = (1.0, 0.0)
_FAR = 700.0
"""Half-lives away beyond which exp overflows and an answer's ageing no longer counts."""
_SHORTEST_S = 1e-3
"""Shorter services count as this, so that none is infinitely urgent."""
_LONGEST_S = 1e9
"""And longer ones as this, so that sums stay finite."""
_STEPS = 30.0
"""More steps of priority than this make no difference."""
