"""Chooses the server whose queue grows the least in weighted waiting, by speeds that are only predicted or ranked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, final

from apportion.core.decision import Decision
from apportion.core.method import Constraint, Interval, Kind, OneOf
from apportion.core.option import Option
from apportion.core.outcome import Outcome
from apportion.core.state import State
from apportion.policy.route._base import Router

_NOTHING = (0.0, 0.0, 0.0, 0.0, 0.0)
_DOUBT = 1.0
"""How much evidence, in measurements and in squared logarithms, it takes to believe half of a correction."""


def _learned(line: Sequence[float], x: float, error: float, newest: float) -> tuple[float, ...]:
    """The moments after one more measurement, the older ones weighing less."""
    count, mean_x, mean_error, spread, along = line
    count = (1.0 - newest) * count + 1.0
    step_x, step_error = x - mean_x, error - mean_error
    mean_x += step_x / count
    mean_error += step_error / count
    spread = (1.0 - newest) * spread + step_x * (x - mean_x)
    along = (1.0 - newest) * along + step_x * (error - mean_error)
    return count, mean_x, mean_error, spread, along


def _error(line: Sequence[float], x: float) -> float:
    """The expected error of a prediction whose logarithm is ``x``."""
    count, mean_x, mean_error, spread, along = line
    return mean_error * count / (count + _DOUBT) + along / (spread + _DOUBT) * (x - mean_x)


def increase(weight: float, service_s: float, pending: Iterable[tuple[float, float]]) -> float:
    """How much a job adds to the sum of weighted completion times of a server that serves by weight over
    service (Smith's rule): its own wait and service, and what it makes the less urgent ones wait.

    ``pending`` are the (weight, seconds) of the jobs there.
    """
    density = weight / service_s
    ahead_s = behind = 0.0
    for other_weight, other_s in pending:
        if other_weight >= density * other_s:
            ahead_s += other_s
        else:
            behind += other_weight
    return weight * (ahead_s + service_s) + service_s * behind


@final
class SpeedOblivious(Router):
    """Chooses the server whose queue grows the least in weighted waiting, by speeds that are only predicted or ranked.

    For servers of unequal and job-dependent speed, the aim being the sum of weighted completion times [1]_.
    "greedy" knows a prediction of each job's seconds on each server, and takes the server where the job adds
    least to the sum; it is O(mu^2)-competitive when predictions are wrong by at most a factor mu. "fair"
    knows no job sizes, only predicted speeds, and takes the server that would give the job the largest share
    of speed if all jobs there shared it by weight. "ordered" knows only which server is faster, not by how
    much: the fastest free one, and when none is free the one with the fewest jobs for its slots. What is
    measured corrects the predictions of a server by a line through their errors on a logarithmic scale: one
    that is always wrong by a factor is set right, one that is mostly noise is drawn towards the server's
    mean.

        greedy   Q = w (p + sum of p_k, k at least as urgent) + p (sum of w_k, k less urgent),   urgent: w / p
        fair     Q = w / (speed * min(1, slots w / (w + sum of w_k)))
        choose   argmax over servers of  value - cost at prices - price[seconds] * Q

    Parameters
    ----------
    rule
        "greedy", "fair" or "ordered".
    fastest_first
        For "ordered": the servers from fastest to slowest; those not named come last. Empty: as learned.
    newest
        The weight of the newest measurement in a server's correction, in [0, 1]; 0 takes predictions as
        they are.
    second_usd
        What a second of waiting costs where the state has no price of ``seconds``, in dollars, above 0.

    Attributes
    ----------
    lines : server to the running moments (count, means and co-moments of the logarithm of the prediction
        and of its error) of the line that corrects its predictions.
    means_s : server to the mean seconds of a request.

    Complexity
    ----------
    O(n + k) per decision for n servers with k jobs pending on them in all; O(1) per `learn`; memory O(n).

    Notes
    -----
    What is pending on a server is read from its facts: ``pending``, a sequence of (weight, seconds), and
    ``slots``; where it is not said, ``load`` times ``slots`` jobs of the same size are assumed. The weight of
    the request is ``weight`` of ``state.request``, 1 where not given. The paper's "fair" and speed-ordered
    algorithms interrupt and move running jobs; no OpenAI-compatible endpoint can do that, so here each
    decides once, on arrival, and their guarantees do not carry over. With several slots, what is ahead is
    divided by them.

    See Also
    --------
    route/least_load : blind to speed.

    References
    ----------
    .. [1] A. Lindermayr, N. Megow, M. Rapp (2023). "Speed-Oblivious Online Scheduling: Knowing (Precise) Speeds is
       not Necessary." ICML 2023. arXiv:2302.00985

    Examples
    --------
    >>> from apportion.core import Cost, Option, State
    >>> big = Option("big", 0.01, Cost(server_seconds=1.0), facts={"pending": [(1.0, 1.0)] * 3})
    >>> little = Option("little", 0.01, Cost(server_seconds=3.0), facts={"pending": []})
    >>> policy = SpeedOblivious()
    >>> policy.decide(State(0.0, [big, little])).action
    'little'
    >>> from apportion.core import Outcome
    >>> for k in range(20):
    ...     policy.learn(Outcome(str(k), "ok", "little", Cost(server_seconds=9.0), state=State(0.0, [big, little])))
    >>> policy.decide(State(1.0, [big, little])).action
    'big'
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "rule": OneOf("greedy", "fair", "ordered"),
        "fastest_first": Kind(list, tuple),
        "newest": Interval(float, 0.0, 1.0),
        "second_usd": Interval(float, 0.0, math.inf, closed="neither"),
    }

    def __init__(
        self,
        *,
        rule: str = "greedy",
        fastest_first: Sequence[str] = (),
        newest: float = 0.03,
        second_usd: float = 1e-4,
    ) -> None:
        self.rule = rule
        self.fastest_first = fastest_first
        self.newest = newest
        self.second_usd = second_usd
        self.start()

    def reset(self) -> None:
        """Predictions are as good as they say."""
        self.lines: dict[str, Sequence[float]] = {}
        self.means_s: dict[str, float] = {}

    def decide(self, state: State) -> Decision:
        """Choose the server that leaves the most after paying for the waiting that the job causes there."""
        options = state.options
        if not options:
            return self.nothing(state)
        prices = {name: price for name, price in state.prices.items() if price and name != "seconds"}
        second_usd = state.prices.get("seconds") or self.second_usd
        weight = state.request.get("weight")
        if not isinstance(weight, (int, float)) or not 0.0 < weight < math.inf:
            weight = 1.0
        worths: list[float | None] = []
        for option in options:
            paid = option.cost.at_prices(prices)
            left = option.value - (paid or 0.0) - second_usd * self._delay(option, weight)
            worths.append(left if paid is not None and -math.inf < left < math.inf else None)
        choice = self._ordered(options) if self.rule == "ordered" else _best(worths, options)
        why = "least weighted waiting added" if self.rule != "ordered" else "the fastest that is free"
        return Decision(
            state.id, choice, options[choice].action, 1.0, state.prices, options, tuple(worths), why
        )

    def learn(self, outcome: Outcome) -> None:
        """Correct the server's speed by a whole service; one that was cut short or failed says too little."""
        measured = outcome.cost.get("server_seconds")
        action, newest = outcome.action, self.newest
        if (
            action is None or outcome.revised or outcome.censored or outcome.status != "ok"
            or measured is None or not 0.0 < measured < math.inf
        ):  # fmt: skip
            return
        if action not in self.means_s and len(self.means_s) >= _SERVERS_MAX:
            oldest = next(iter(self.means_s))
            del self.means_s[oldest]
            self.lines.pop(oldest, None)
        mean_s = self.means_s.get(action, measured)
        self.means_s[action] = mean_s + newest * (measured - mean_s)
        for option in outcome.state.options if outcome.state is not None else ():
            predicted = option.cost.get("server_seconds")
            if option.action == action and newest and predicted is not None and 0.0 < predicted < math.inf:
                x = math.log(predicted)
                self.lines[action] = _learned(
                    self.lines.get(action, _NOTHING), x, math.log(measured) - x, newest
                )

    def seconds(self, option: Option) -> float:
        """What the request is predicted to take there, corrected; the server's mean where nothing is predicted."""
        predicted = option.cost.get("server_seconds")
        if predicted is None or not 0.0 < predicted < math.inf:
            return self.means_s.get(option.action, 1.0)
        line = self.lines.get(option.action)
        return predicted if line is None else predicted * math.exp(_error(line, math.log(predicted)))

    def _delay(self, option: Option, weight: float) -> float:
        """Weighted seconds that the request adds there."""
        facts: Any = option.facts or {}
        slots = float(facts.get("slots") or 1)
        service_s = self.seconds(option)
        pending = facts.get("pending")
        if pending is None:
            pending = [(1.0, service_s)] * math.ceil(min((option.load or 0.0) * slots, _JOBS_MAX))
        if self.rule == "greedy":
            if slots == 1.0:
                return increase(weight, service_s, pending)
            ahead = increase(weight, service_s, pending) - weight * service_s
            return weight * service_s + ahead / slots
        speed = float(facts.get("speed") or 1.0 / service_s)
        share: float = weight + sum(other for other, _ in pending)
        return weight / speed * max(1.0, share / (slots * weight))

    def _ordered(self, options: Sequence[Option]) -> int:
        """The fastest with a free slot, else the one with the fewest jobs for its slots."""
        rank = {name: place for place, name in enumerate(self.fastest_first)}

        def key(index: int) -> tuple[float, float, float, int]:
            option = options[index]
            load = option.load if option.load is not None else math.inf
            place = rank.get(option.action, len(rank))
            learned = 0.0 if rank else self.means_s.get(option.action, math.inf)
            return (max(load, _FREE), place, learned, index)

        return min(range(len(options)), key=key)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """The other rules; no correction."""
        yield {"rule": "fair", "second_usd": 0.01}
        yield {"rule": "ordered", "fastest_first": ["option-2", "option-0"]}
        yield {"rule": "greedy", "newest": 0.0}


_FREE = 1.0 - 1e-9
"""Below this load a server has a slot free, and how many makes no difference."""
_JOBS_MAX = 1000.0
_SERVERS_MAX = 1000


def _best(worths: Sequence[float | None], options: Sequence[Option]) -> int:
    """The greatest worth, then the least load, then the first; unknown is worst."""

    def key(index: int) -> tuple[float, float, int]:
        worth, load = worths[index], options[index].load
        return (-worth if worth is not None else math.inf, load if load is not None else math.inf, index)

    return min(range(len(options)), key=key)
