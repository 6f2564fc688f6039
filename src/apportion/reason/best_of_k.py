"""Draws as many samples as their next gain is worth, of the model where they are worth most, until one is accepted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, final

from apportion.core.cost import Cost
from apportion.core.errors import ParameterError
from apportion.core.method import Constraint, Interval, Kind
from apportion.core.option import Option
from apportion.core.strategy import Answer, Call, Plan
from apportion.reason import _curve, _rates
from apportion.reason._allocate import at_price
from apportion.reason._base import Case, Reasoner, content_of, cut_short, sampling


def search(
    curves: Sequence[Sequence[float]], prices: Sequence[float], worth: float, first: int, n: int, most: int
) -> tuple[list[float], float]:
    """What comes of beginning with ``n`` samples of model ``first``, and going on as is best until one is right:
    the expected calls of each model, and the probability that one is right.

    Best is to open next what has the highest chance for its price, while that pays: Weitzman's rule for boxes that hold
    ``worth`` or nothing, here with models taken as independent.
    """
    taken = [0] * len(curves)
    calls = [0.0] * len(curves)
    taken[first], calls[first] = n, float(n)
    wrong = 1.0 - curves[first][n]
    for _ in range(most - n):
        best, best_ratio = -1, 0.0
        for i, (q, k, price) in enumerate(zip(curves, taken, prices, strict=True)):
            chance = (q[k + 1] - q[k]) / (1.0 - q[k]) if k + 1 < len(q) and q[k] < 1.0 else 0.0
            ratio = chance / max(price, 1e-12)
            if worth * chance > price and ratio > best_ratio:
                best, best_ratio = i, ratio
        if best < 0:
            break
        q, k = curves[best], taken[best]
        calls[best] += wrong
        wrong *= (1.0 - q[k + 1]) / (1.0 - q[k])
        taken[best] = k + 1
    return calls, 1.0 - wrong


@final
class BestOfK(Reasoner):
    """Draws as many samples as their next gain is worth, of the model where they are worth most, until one is
    accepted.

    How likely one of k samples passes a check follows from how likely a single one does. That rate is uncertain:
    each model has a distribution of it, learned from how often its samples passed, and a request's own prediction
    (`Option.quality`, and how sure that is) shifts it, until enough requests with such a prediction were seen.
    The expected gain of each further sample falls, so buying the largest gain first is optimal over a batch with
    a budget [1]_; the budget's dual price, here the price of the resource, makes the same allocation request by
    request. Samples that fail are evidence too: hard requests are given up before their k is drawn, easy ones
    end with the first sample.

        q(k) = E[1 - (1 - rate)^k],   gain(k) = q(k + 1) - q(k)
        draw  while  worth P[right | failures]_o > price . cost_o  for some model o

    With several endpoints offered, the choice between a weak model often and a strong one once is made in the
    same comparison, at every step, given which samples have failed: a plan that begins with o goes on with whatever
    then has the highest chance for its price, the rule of [2]_ for searching boxes.

    Parameters
    ----------
    max_samples
        The most calls for one request, an integer of one or more.
    each
        The most samples of one endpoint, an integer of one or more; 1 where it always says the same.
    at_once
        Samples asked for at the same time, an integer of one or more: more are faster and dearer.
    accept
        What an answer must match: a regular expression somewhere in it, "json" for valid JSON, empty for the
        verdict of the checks that whoever serves runs (none: every complete answer is accepted).
    temperature
        Sampling temperature that calls ask for, zero or more.
    spill
        How much a failed sample of one model tells of another, from 0 (nothing) to 1 (as much as its own).
    policy
        The policy that decides each step from its value and cost.
    window
        Requests over which a model's distributions of rates are averaged, an integer of one or more.
    seed
        Seed that the first sample asks for, an integer of zero or more; each further one asks for the next.

    Complexity
    ----------
    O(endpoints max_samples (endpoints + G)) per step for a grid of G = 23 rates; O(G) to learn;
    O(endpoints x G) memory.

    Notes
    -----
    The paper's probe reads the hidden state of the model and is trained for the purpose; here the prediction is
    whatever the quality predictor says, and the shape of the distribution is learned online. The paper fixes k before
    the first sample, since its reranker sees them all; a check that is seen after each sample lets it stop
    early, and the gain is recomputed from the posterior. That one step ahead suffices holds because gains fall
    with every failure.

    See Also
    --------
    reason/vote : where nothing can be checked but answers can be compared.
    reason/cascade : one sample each of a small and a large model.

    References
    ----------
    .. [1] M. Damani, I. Shenfeld, A. Peng, A. Bobu, J. Andreas (2024). "Learning How Hard to Think: Input-Adaptive
       Allocation of LM Computation." arXiv:2410.04707
    .. [2] M. L. Weitzman (1979). "Optimal Search for the Best Alternative." Econometrica 47(3), 641-654.
       doi:10.2307/1910412

    Examples
    --------
    >>> from apportion.core import Cost, Option, Reply, drive
    >>> strategy = BestOfK(accept="json", max_samples=16)
    >>> def broken(call):
    ...     return Reply("ok", {"text": "{not json"}, Cost(usd=0.001))
    >>> for quality in (0.5, 0.02):
    ...     offer = [Option("model", 0.0, Cost(usd=0.001), quality=quality)]
    ...     request = {"options": offer, "prices": {"usd": 1.0}, "worth_usd": 0.02}
    ...     print(drive(strategy.run(request, 0.0), broken).details["calls"])
    6
    1
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "max_samples": Interval(int, 1, 1024),
        "each": Interval(int, 1, 1024),
        "at_once": Interval(int, 1, 1024),
        "accept": Kind(str),
        "temperature": Interval(float, 0.0),
        "spill": Interval(float, 0.0, 1.0),
        "policy": Kind(str),
        "window": Interval(int, 1),
        "seed": Interval(int, 0),
    }

    def __init__(
        self,
        *,
        max_samples: int = 8,
        each: int = 1024,
        at_once: int = 1,
        accept: str = "",
        temperature: float = 0.7,
        spill: float = 0.5,
        policy: str = "route/priced",
        window: int = 500,
        seed: int = 0,
    ) -> None:
        self.max_samples = max_samples
        self.each = each
        self.at_once = at_once
        self.accept = accept
        self.temperature = temperature
        self.spill = spill
        self.policy = policy
        self.window = window
        self.seed = seed
        self.start()

    def reset(self) -> None:
        """Forget the rates of success and what accepted answers were worth."""
        super().reset()
        try:
            re.compile(self.accept)
        except re.error as problem:
            raise ParameterError(
                f"The 'accept' parameter of BestOfK must be a regular expression, 'json' or empty: {problem}.",
                field="accept",
            ) from None
        self._rates: dict[str, _rates.Known] = {}
        """What is known of each model's rate of success."""
        self._accepted = [0.0, 0.0]
        """How many accepted answers were right, and how many outcomes came."""

    def run(self, request: Mapping[str, object], now: float) -> Plan:
        """Sample until one is accepted or the next is not worth its price."""
        case = Case(request, now)
        rates = {option.action: self.rates(option) for option in case.options}
        failed: dict[str, int] = {}
        broken: set[str] = set()
        best: tuple[float, Mapping[str, Any], str] | None = None
        why = "nothing was offered" if not case.options else "no call succeeded"
        while case.calls < self.max_samples:
            chosen = self._step(case, rates, failed, broken, must=best is None)
            if chosen is None:
                why = "the next sample is not worth its price" if best else why
                break
            option, n = chosen
            replies = yield [self._call(case, option, case.calls + i) for i in range(n)]
            case.book(replies, [option] * n)
            for reply in replies:
                content = content_of(reply)
                if content is None:
                    broken.add(option.action)
                    continue
                verdict = False if cut_short(reply, case) else self.accepts(content)
                rank = 2.0 if verdict else _sureness(content)
                if best is None or rank > best[0]:
                    best = (rank, content, option.action)
                failed[option.action] = failed.get(option.action, 0) + (not verdict)
            if best and best[0] == 2.0:
                why = (
                    f"sample {case.calls} of {best[2]} was accepted"
                    if n == 1
                    else f"accepted one of {best[2]}"
                )
                break
        else:
            why = f"none of {case.calls} samples was accepted"
        accepted = best is not None and best[0] == 2.0
        self._note(case.options, failed, best[2] if best and accepted else None)
        if best is None:
            return Answer(None, None, why, {"calls": case.calls, "action": None})
        details = {"calls": case.calls, "action": best[2], "evidence": {"accepted": accepted}}
        return Answer(best[1], self.trust() if accepted else 0.0, why, details)

    def accepts(self, content: Mapping[str, Any]) -> bool:
        """Whether an answer passes: the verdict that came with it, and the pattern."""
        if content.get("accepted") is not None and not content["accepted"]:
            return False
        if not self.accept or content.get("tool_calls"):
            return True
        text = str(content.get("text") or "")
        if self.accept != "json":
            return re.search(self.accept, text) is not None
        try:
            json.loads(text)
        except ValueError:
            return False
        return True

    def trust(self) -> float:
        """The probability that an accepted answer is right: 1 until outcomes say otherwise."""
        right, n = self._accepted
        return (right + 1.0) / (n + 1.0)

    def rates(self, option: Option) -> tuple[float, ...]:
        """The distribution of the rate of success of ``option``, shifted to its predicted quality."""
        return _rates.expected(
            self._rates.get(option.action) or _rates.nothing(), option.quality, option.quality_sd
        )

    def _step(
        self,
        case: Case,
        rates: Mapping[str, _curve.Weights],
        failed: Mapping[str, int],
        broken: set[str],
        must: bool,
    ) -> tuple[Option, int] | None:
        """What to sample next and how often, None to stop; ``must`` when there is no answer yet."""
        left = self.max_samples - case.calls
        worth = case.worth_usd * self.trust()
        drawn = {o.action: failed.get(o.action, 0) for o in case.options}
        offer = [
            o
            for o in case.options
            if o.action not in broken and drawn[o.action] < self.each and case.affords(o)
        ]
        curves, paid = [], [case.paid(option) for option in offer]
        for option in offer:
            own = drawn[option.action]
            others = sum(failed.values()) - own
            curves.append(
                _curve.curve(_curve.posterior(rates[option.action], 0.0, own + self.spill * others), left)
            )
        plans: list[tuple[Option, int]] = []
        steps: list[Option] = []
        for first, option in enumerate(offer):
            n = at_price(curves[first], paid[first] / worth) if worth > 0.0 else 1
            n = max(1, min(self.at_once, n, len(curves[first]) - 1))
            while n > 1 and not case.affords(option, n):
                n -= 1
            calls, right = search(curves, paid, worth, first, n, left)
            costs = [k * o.cost for o, k in zip(offer, calls, strict=True) if k]
            cost = sum(costs[1:], start=costs[0])
            plans.append((option, n))
            steps.append(Option(option.action, worth * right, cost, load=option.load, weight=option.weight))
        if not steps:
            return None
        if not must:
            steps.append(Option("stop", 0.0, Cost.of(dict.fromkeys(case.prices, 0.0))))
        choice = self.choose(case, steps)
        if choice is None:
            return plans[0] if must else None
        return None if choice == len(plans) else plans[choice]

    def _note(self, options: Sequence[Option], failed: Mapping[str, int], accepted: str | None) -> None:
        """Take in what the samples of one request say of each model."""
        for option in options:
            action = option.action
            if action not in failed:
                continue
            if action not in self._rates and len(self._rates) >= _MOST_MODELS:
                del self._rates[next(iter(self._rates))]
            known = self._rates.setdefault(action, _rates.nothing())
            right = float(action == accepted)
            _rates.note(
                known, option.quality, option.quality_sd, right, float(failed[action]), float(self.window)
            )

    def learn(self, details: Mapping[str, object], quality: float) -> None:
        """Take in whether an accepted answer was right."""
        evidence = details.get("evidence")
        if isinstance(evidence, Mapping) and evidence.get("accepted") and 0.0 <= quality <= 1.0:
            keep = 1.0 - 1.0 / self.window
            self._accepted = [keep * self._accepted[0] + quality, keep * self._accepted[1] + 1.0]

    def calibrate(self, action: str, rows: Iterable[tuple[float, float, float | None, float | None]]) -> None:
        """Learn a model's rate from past requests: right and wrong samples, the quality that was predicted and its
        standard deviation (None where there was no prediction).
        """
        self._rates[action] = _rates.fitted(rows, float(self.window))

    def _call(self, case: Case, option: Option, index: int) -> Call:
        fields = sampling(case, self.temperature, self.seed + index)
        return Call(option.action, {"fields": fields, "append": [], "want": ("accepted",)})

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """JSON, two at a time; a pattern, with models that fail on the same requests."""
        yield {"accept": "json", "at_once": 2, "max_samples": 5, "each": 2}
        yield {"accept": r"\d", "temperature": 1.0, "spill": 1.0, "window": 50, "seed": 3}


def _sureness(content: Mapping[str, Any]) -> float:
    """Below 1, for choosing among answers that were not accepted: their mean log probability."""
    chosen: Sequence[float] | None = content.get("logprobs")
    return sum(chosen) / len(chosen) if chosen else -1e9


_MOST_MODELS = 256
