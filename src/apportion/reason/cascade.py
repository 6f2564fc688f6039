"""Asks the cheapest model first and passes on to a dearer one only answers whose energy says they may be wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any, ClassVar, final

from apportion.core.cost import Cost
from apportion.core.method import Constraint, Interval, Kind, OneOf
from apportion.core.option import Option
from apportion.core.strategy import Answer, Call, Plan
from apportion.reason._base import Case, Reasoner, content_of, cut_short, digest, log_probabilities
from apportion.reason._isotonic import at, fit


def free_energy(logits: Sequence[float], temperature: float = 1.0) -> float:
    """F = -T log sum over y of exp(logit_y / T): low where the model has seen the like, high where it has not."""
    top = max(logits)
    return -top - temperature * math.log(sum(math.exp((logit - top) / temperature) for logit in logits))


def sequence_score(content: Mapping[str, Any], temperature: float) -> float | None:
    """How sure a model was of its answer, higher is surer: the mean of -F over its tokens; with the chosen tokens'
    log probabilities alone, their mean; None with neither.
    """
    alternatives = content.get("top_logprobs")
    energies = [free_energy(token, temperature) for token in alternatives or () if token]
    if energies:
        return -sum(energies) / len(energies)
    chosen = content.get("logprobs")
    return sum(chosen) / len(chosen) if chosen else None


@final
class Cascade(Reasoner):
    """Asks the cheapest model first and passes on to a dearer one only answers whose energy says they may be wrong.

    The free energy of the small model's output is low on inputs like those it was trained on and high on
    others, so it says better than the largest probability whether to trust the answer [1]_. What it means is
    learned: a rising curve from score to the probability of being right, fitted to the outcomes that come
    back. The answer is kept unless the next model's gain is worth its price:

        score  s = mean over tokens of  T log sum_j exp(logprob_j / T)
        escalate  iff  worth (P[right | large, s] - P[right | small, s]) > price . cost(large)

    or, where an operator fixes the trade instead, by a threshold on the score, by the share of requests that
    may be passed on, or by the accuracy that a kept answer must have. It goes up endpoint by endpoint in order
    of price and begins higher where the first is not expected to pay for itself.

    Parameters
    ----------
    temperature
        T, in (0, 1) for the log probabilities of an interface. They are normalised, so at 1 the energy of a full
        distribution is 0 whatever the model thinks; below, -F is a Renyi entropy of order 1/T turned round, and
        towards 0 the largest log probability. The default is near what held-out data chose (see Notes).
    top_logprobs
        How many alternatives of each token are asked for, an integer from 0 (the chosen token's alone) to 20.
    threshold
        Keep an answer whose score is at least this; None decides otherwise.
    share
        Pass on this share of the answers, those with the lowest scores among the recent ones; None decides
        otherwise.
    accuracy
        Keep an answer whose probability of being right is at least this share of the next model's; None decides
        otherwise.
    policy
        The policy that decides each step from its value and cost when no rule above is set.
    explore
        Probability of passing on an answer all the same, in [0, 1], so that what the larger model makes of those
        that are kept stays known.
    window
        How many scores and outcomes are remembered, an integer of 16 or more.
    seed
        Start of the method's own random generator, an integer of zero or more.

    Complexity
    ----------
    O(tokens x top_logprobs) per reply and O(log window) per step; O(window log window) when a curve is fitted
    again, every eighth outcome; O(endpoints x window) memory.

    Notes
    -----
    The paper has the logits of a classifier; an interface gives normalised log probabilities of the best few
    tokens, which have lost the size of the logits. On the classifiers of our benchmark that is no loss: the energy
    of raw logits told right from wrong worse than that of normalised ones at a low temperature. The paper's
    threshold is swept by hand; here it follows from prices, a share or an accuracy. The specialised side model,
    trained on a part of the classes, is left out: a proxy trains no models. An answer that was cut short or is
    empty is never kept while another model is left; a call of a tool is scored by its tokens like any other.
    Without log probabilities the predicted quality decides. When the larger model agrees with the smaller, its
    outcome is the smaller one's too; when it is right and they differ, the smaller was wrong; otherwise nothing is
    learned of the smaller, as of long texts, which differ without disagreeing.

    See Also
    --------
    reason/best_of_k : more samples of one model in place of a larger one.

    References
    ----------
    .. [1] M. Akbari, A. Banitalebi-Dehkordi, Y. Zhang (2021). "EBJR: Energy-Based Joint Reasoning for Adaptive
       Inference." BMVC 2021. arXiv:2110.10343

    Examples
    --------
    >>> from apportion.core import Cost, Option, Reply, drive
    >>> offer = [
    ...     Option("small", 0.007, Cost(usd=0.0001), quality=0.7),
    ...     Option("large", 0.009, Cost(usd=0.001), quality=0.9),
    ... ]
    >>> def sure(call):
    ...     return Reply("ok", {"text": "Paris", "top_logprobs": [[-0.01, -5.0]]}, Cost(usd=0.0001))
    >>> def unsure(call):
    ...     return Reply("ok", {"text": "Lyon", "top_logprobs": [[-0.8, -0.9]]}, Cost(usd=0.0001))
    >>> strategy = Cascade(threshold=-0.3)
    >>> for model in (sure, unsure):
    ...     answer = drive(strategy.run({"options": offer, "prices": {"usd": 1.0}}, 0.0), model)
    ...     print(answer.details["action"], "-", answer.why)
    small - kept the answer of small
    large - passed on to large
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "temperature": Interval(float, 0.0, 1.0, "neither"),
        "top_logprobs": Interval(int, 0, 20),
        "threshold": Interval(float) | OneOf(None),
        "share": Interval(float, 0.0, 1.0) | OneOf(None),
        "accuracy": Interval(float, 0.0, 1.0) | OneOf(None),
        "policy": Kind(str),
        "explore": Interval(float, 0.0, 1.0),
        "window": Interval(int, 16),
        "seed": Interval(int, 0),
    }

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        top_logprobs: int = 5,
        threshold: float | None = None,
        share: float | None = None,
        accuracy: float | None = None,
        policy: str = "route/priced",
        explore: float = 0.0,
        window: int = 512,
        seed: int = 0,
    ) -> None:
        self.temperature = temperature
        self.top_logprobs = top_logprobs
        self.threshold = threshold
        self.share = share
        self.accuracy = accuracy
        self.policy = policy
        self.explore = explore
        self.window = window
        self.seed = seed
        self.start()

    def reset(self) -> None:
        """Forget scores and outcomes."""
        super().reset()
        self._random = Random(self.seed)
        self._seen: dict[str, list[list[float]]] = {}
        """For each ``small`` and ``small>large``: recent (score, right)."""
        self._curves: dict[str, list[list[float]]] = {}
        """Their knots."""
        self._news: dict[str, int] = {}
        """Outcomes since a curve was fitted."""
        self._scores: dict[str, list[float]] = {}

    def run(self, request: Mapping[str, object], now: float) -> Plan:
        """Up the endpoints by price until an answer is kept."""
        case = Case(request, now)
        ladder = sorted(case.options, key=case.paid)
        steps: list[dict[str, Any]] = []
        kept: Mapping[str, Any] | None = None
        chance: float | None = None
        why = "nothing was offered" if not ladder else "no call succeeded"
        index = self._entry(case, ladder)
        while index < len(ladder):
            option = ladder[index]
            index += 1
            if not case.affords(option):
                continue
            replies = yield [self._call(case, option)]
            case.book(replies, [option])
            content = content_of(replies[0])
            if content is None:
                continue
            score = sequence_score(content, self.temperature)
            short = cut_short(replies[0], case)
            steps.append({"action": option.action, "score": score, "answer": digest(content), "short": short})
            if kept is None or not short:
                kept, chance = content, self.chance(option, score)
                why = f"{'passed on to' if len(steps) > 1 else 'kept the answer of'} {option.action}"
                taken = option.action
            better = self._next(case, ladder, index, option, score, short)
            if better is None:
                break
            index = better
        if kept is None:
            return Answer(None, None, why, {"calls": case.calls, "action": None})
        details = {"calls": case.calls, "action": taken, "evidence": {"steps": steps}}
        return Answer(kept, chance, why, details)

    def chance(self, option: Option, score: float | None) -> float | None:
        """The probability that an answer of ``option`` with ``score`` is right."""
        if score is None:
            return option.quality
        known = at(self._curve(option.action), score)
        if known is not None:
            return known
        return math.exp(min(score, 0.0)) if option.quality is None else option.quality

    def _entry(self, case: Case, ladder: Sequence[Option]) -> int:
        """Where on the ladder to begin: the first of the first two whose answer is expected to save the next call."""
        if len(ladder) < 2 or any(rule is not None for rule in (self.threshold, self.share, self.accuracy)):
            return 0
        small, large = ladder[0], ladder[1]
        if small.quality is None or large.quality is None:
            return 0
        both = small.cost + (1.0 - small.quality) * large.cost
        ways = [
            Option("both", case.worth_usd * max(small.quality, large.quality), both),
            Option("small", case.worth_usd * small.quality, small.cost),
            Option("large", case.worth_usd * large.quality, large.cost),
        ]
        return 1 if self.choose(case, ways) == 2 else 0

    def _next(
        self,
        case: Case,
        ladder: Sequence[Option],
        index: int,
        option: Option,
        score: float | None,
        short: bool,
    ) -> int | None:
        """The place of the model to pass on to, None to keep the answer."""
        above = [i for i in range(index, len(ladder)) if case.affords(ladder[i])]
        if not above:
            return None
        if short or (self.explore and self._random.random() < self.explore):
            return above[0]
        here = self.chance(option, score)
        if self.share is not None and score is not None:
            return above[0] if self._among_lowest(option.action, score, self.share) else None
        if self.threshold is not None and score is not None:
            return above[0] if score < self.threshold else None
        here = 0.5 if here is None else here
        gains = [self._chance_above(option, ladder[i], score, here) for i in above]
        if self.accuracy is not None:
            return above[0] if here < self.accuracy * gains[0] else None
        steps = [Option("keep", case.worth_usd * here, Cost.of(dict.fromkeys(case.prices, 0.0)))]
        steps += [
            Option(ladder[i].action, case.worth_usd * gain, ladder[i].cost)
            for i, gain in zip(above, gains, strict=True)
        ]
        choice = self.choose(case, steps)
        return above[choice - 1] if choice else None

    def _chance_above(self, small: Option, large: Option, score: float | None, here: float) -> float:
        """The probability that ``large`` is right where ``small`` had this score."""
        known = None if score is None else at(self._curve(f"{small.action}>{large.action}"), score)
        if known is not None:
            return known
        return large.quality if large.quality is not None else 0.5 * (1.0 + here)

    def _among_lowest(self, action: str, score: float, share: float) -> bool:
        """Whether ``score`` is among the lowest ``share`` of the recent ones of ``action``; it is then one of them."""
        if action not in self._scores and len(self._scores) >= _MOST_CURVES:
            del self._scores[next(iter(self._scores))]
        scores = self._scores.setdefault(action, [])
        below = sum(other < score for other in scores) + 0.5 * sum(other == score for other in scores)
        lowest = below < share * len(scores) if scores else self._random.random() < share
        scores.append(score)
        del scores[: -self.window]
        return lowest

    def learn(self, details: Mapping[str, object], quality: float) -> None:
        """Draw what the outcome says of each model that was asked."""
        evidence = details.get("evidence")
        steps = evidence.get("steps") if isinstance(evidence, Mapping) else None
        if not isinstance(steps, list) or not 0.0 <= quality <= 1.0:
            return
        for last in [step for step in steps if step["action"] == details.get("action")][-1:]:
            for step in steps:
                self._take(step, last, quality)

    def _take(self, step: Mapping[str, Any], last: Mapping[str, Any], quality: float) -> None:
        """What the outcome of ``last``, whose answer was given, says of ``step``."""
        if step is last:
            self._remember(step["action"], step["score"], quality)
            return
        self._remember(f"{step['action']}>{last['action']}", step["score"], quality)
        if step["answer"] and step["answer"] == last["answer"]:
            self._remember(step["action"], step["score"], quality)
        elif quality > 0.5 and step["answer"] and last["answer"]:
            self._remember(step["action"], step["score"], 1.0 - quality)

    def calibrate(
        self, small: str, pairs: Iterable[tuple[float, float]], *, large: str | None = None
    ) -> None:
        """Learn (score of ``small``, right) from labelled data; with ``large``, right is the larger model's."""
        key = f"{small}>{large}" if large else small
        kept = [[score, right] for score, right in pairs if math.isfinite(score)]
        for score, right in kept[:1]:
            self._remember(key, score, right)  # makes room
        held = (self._seen.get(key, []) + kept[1:])[-self.window :]
        if len(held) >= _FEW:
            self._curves[key] = list(fit((pair[0], pair[1]) for pair in held))
        if held:
            self._seen[key] = held

    def gain(self, small: str, large: str, score: float) -> float:
        """What passing on an answer of ``small`` with ``score`` adds to the probability of being right, as learned."""
        return (at(self._curve(f"{small}>{large}"), score) or 0.0) - (at(self._curve(small), score) or 0.0)

    def _remember(self, key: str, score: float | None, right: float) -> None:
        if score is None or not math.isfinite(score):
            return
        if key not in self._seen and len(self._seen) >= _MOST_CURVES:
            oldest = next(iter(self._seen))
            for table in (self._seen, self._curves, self._news):
                table.pop(oldest, None)
        pairs = self._seen.setdefault(key, [])
        pairs.append([score, right])
        del pairs[: -self.window]
        news = self._news.get(key, 0) + 1
        if len(pairs) >= _FEW and (news >= _REFIT or key not in self._curves):
            self._curves[key] = list(fit((pair[0], pair[1]) for pair in pairs))
            news = 0
        self._news[key] = news

    def _curve(self, key: str) -> tuple[Sequence[float], Sequence[float]]:
        """The curve of ``key``; empty while there are few outcomes."""
        curve = self._curves.get(key)
        return (curve[0], curve[1]) if curve else ((), ())

    def _call(self, case: Case, option: Option) -> Call:
        fields = log_probabilities(case, self.top_logprobs)
        return Call(option.action, {"fields": fields, "append": [], "want": ("logprobs",)})

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """By threshold, by share, by accuracy, with exploration."""
        yield {"threshold": -0.2, "top_logprobs": 0}
        yield {"share": 0.3, "window": 64, "seed": 5}
        yield {"accuracy": 0.98, "temperature": 0.2, "explore": 0.1}


_FEW = 16
"""Outcomes below which no curve is fitted."""
_REFIT = 8
"""New outcomes after which it is fitted again."""
_MOST_CURVES = 256
"""Pairs of models that are remembered."""
