"""Samples one model until the answer that leads will very likely go on leading, and gives that answer."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, final

from apportion.core.cost import Cost
from apportion.core.method import Constraint, Interval, Kind, OneOf
from apportion.core.option import Option
from apportion.core.strategy import Answer, Call, Plan
from apportion.reason._base import Case, Reasoner, content_of, digest, sampling


@functools.lru_cache(maxsize=65_536)
def leads(first: float, second: float) -> float:
    """P(p > 1/2) for p ~ Beta(first, second), ``first >= second``: how likely the answer that leads is the more
    frequent one.

    The regularised incomplete beta function at one half, by its continued fraction.
    """
    n = first + second
    scale = math.exp(math.lgamma(n) - math.lgamma(first) - math.lgamma(second) - n * math.log(2.0))
    return 1.0 - scale * _fraction(first, second) / first


def _fraction(a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function at x = 1/2 (converges fast for a >= b)."""
    tiny, x = 1e-300, 0.5
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    total = d
    for m in range(1, 300):
        for top in (
            m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0)),
        ):
            d = 1.0 + top * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + top / c
            c = c if abs(c) > tiny else tiny
            total *= d * c
        if abs(d * c - 1.0) < 1e-12:
            break
    return total


@functools.lru_cache(maxsize=16_384)
def futures(first: float, second: float, more: int) -> tuple[tuple[float, float], ...]:
    """After ``more`` further votes between two answers: (probability, how likely the then leading one leads for good).

    The votes are beta-binomial: each is drawn from a share that is itself drawn from Beta(first, second).
    """
    base = (
        math.lgamma(first + second)
        - math.lgamma(first)
        - math.lgamma(second)
        - math.lgamma(first + second + more)
    )
    found = []
    for j in range(more + 1):
        a, b = first + more - j, second + j
        chance = math.comb(more, j) * math.exp(base + math.lgamma(a) + math.lgamma(b))
        found.append((chance, leads(max(a, b), min(a, b))))
    return tuple(found)


@final
class Vote(Reasoner):
    """Samples one model until the answer that leads will very likely go on leading, and gives that answer.

    The answer that a model gives most often is right more often than any single one [1]_, and most votes are
    decided long before the last. After each sample the shares of the two leading answers have a Beta
    posterior, which says how likely the leader is the more frequent one for good [2]_. How often the most frequent
    answer is right, and how often another one, is learned from outcomes. More votes are bought while what they
    are expected to add to the probability of being right is worth their price, looking ahead as far as it takes
    to change the leader.

        c = P(p > 1/2),  p ~ Beta(v1 + prior, v2 + prior)
        g(c) = c P[right | most frequent] + (1 - c) P[right | not]
        draw m more  iff  worth (E[g(c after m)] - g(c)) > m price . cost,   m with the most left

    Parameters
    ----------
    max_samples
        The most calls for one request, an integer of one or more.
    at_once
        Samples asked for at the same time, an integer of one or more.
    kind
        What is compared: "number", "choice", "text", or "auto" (what was marked as the answer, else a short text
        as it is, else the last number).
    confidence
        Stop as soon as c reaches this, as in [2]_; None decides by price.
    prior
        Pseudo-votes of each of the two answers, above zero; less means that samples are expected to agree.
    temperature
        Sampling temperature that calls ask for, zero or more.
    policy
        The policy that decides each step from its value and cost, and first which endpoint is asked.
    window
        Over how many outcomes the two chances of being right are averaged, an integer of one or more.
    seed
        Seed that the first sample asks for, an integer of zero or more; each further one asks for the next.

    Complexity
    ----------
    O(max_samples) per step from tables that are computed once; O(1) to learn; O(1) memory besides the tables.

    Notes
    -----
    In [2]_ the stopping level is fixed; here it follows from worth and price, and a fixed one is an option. Answers
    beyond the second leading one count as samples without effect. Texts without a short answer cannot be
    compared: after two of them it stops. Before the first outcome, g(c) = c.

    See Also
    --------
    reason/best_of_k : where a check says which sample is right.

    References
    ----------
    .. [1] X. Wang, J. Wei, D. Schuurmans, Q. Le, E. Chi, S. Narang, A. Chowdhery, D. Zhou (2023). "Self-Consistency
       Improves Chain of Thought Reasoning in Language Models." ICLR 2023. arXiv:2203.11171
    .. [2] P. Aggarwal, A. Madaan, Y. Yang, Mausam (2023). "Let's Sample Step by Step: Adaptive-Consistency for
       Efficient Reasoning and Coding with LLMs." EMNLP 2023. arXiv:2305.11860

    Examples
    --------
    >>> from apportion.core import Cost, Option, Reply, drive
    >>> offer = [Option("model", 0.0, Cost(usd=0.001))]
    >>> strategy = Vote(max_samples=16)
    >>> for answers in ("4444444444444444", "4545455555555555"):
    ...     votes = iter(answers)
    ...     sample = lambda call: Reply("ok", {"text": f"The answer is {next(votes)}."}, Cost(usd=0.001))
    ...     request = {"options": offer, "prices": {"usd": 1.0}, "worth_usd": 0.1}
    ...     answer = drive(strategy.run(request, 0.0), sample)
    ...     print(answer.content["text"], answer.details["calls"])
    The answer is 4. 2
    The answer is 5. 8
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "max_samples": Interval(int, 1, 256),
        "at_once": Interval(int, 1, 256),
        "kind": OneOf("auto", "number", "choice", "text"),
        "confidence": Interval(float, 0.5, 1.0) | OneOf(None),
        "prior": Interval(float, 0.0, closed="neither"),
        "temperature": Interval(float, 0.0),
        "policy": Kind(str),
        "window": Interval(int, 1),
        "seed": Interval(int, 0),
    }

    def __init__(
        self,
        *,
        max_samples: int = 16,
        at_once: int = 1,
        kind: str = "auto",
        confidence: float | None = None,
        prior: float = 0.5,
        temperature: float = 0.7,
        policy: str = "route/priced",
        window: int = 512,
        seed: int = 0,
    ) -> None:
        self.max_samples = max_samples
        self.at_once = at_once
        self.kind = kind
        self.confidence = confidence
        self.prior = prior
        self.temperature = temperature
        self.policy = policy
        self.window = window
        self.seed = seed
        self.start()

    def reset(self) -> None:
        """Forget how often leading answers were right."""
        super().reset()
        self._sums = [0.0] * 5
        """Over outcomes: of c^2, c (1 - c), (1 - c)^2, c right, (1 - c) right."""

    def run(self, request: Mapping[str, object], now: float) -> Plan:
        """Sample until the vote is decided or the next sample is not worth its price."""
        case = Case(request, now)
        open_to = list(case.options)
        votes: Counter[str] = Counter()
        found: dict[str, tuple[float, Mapping[str, Any], str]] = {}
        option = self._endpoint(case, open_to)
        why = "no call succeeded" if option else "nothing was offered"
        n = 1 if self.confidence is None else 2
        while option is not None:
            n = min(max(n, 1), self.at_once, self.max_samples - case.calls)
            replies = yield [self._call(case, option, case.calls + i) for i in range(n)]
            case.book(replies, [option] * n)
            for reply in replies:
                content = content_of(reply)
                if content is None:
                    continue
                vote = digest(content, self.kind)
                votes[vote] += 1
                sure = _sureness(content)
                if vote not in found or sure > found[vote][0]:
                    found[vote] = (sure, content, option.action)
            if all(content_of(reply) is None for reply in replies):
                open_to.remove(option)
                option = self._endpoint(case, open_to)
            if case.calls >= self.max_samples or option is None:
                why = f"the votes of all {case.calls} samples" if found else why
                break
            n = self._more(case, option, votes) if found else 1
            if n == 0:
                why = f"decided after {case.calls} samples"
                break
        if not found:
            return Answer(None, None, why, {"calls": case.calls, "action": None})
        leader = _ranked(votes)[0][0] if votes.keys() - {""} else ""
        c = self.decided(votes)
        details = {"calls": case.calls, "action": found[leader][2], "evidence": {"decided": c}}
        return Answer(found[leader][1], None if c is None else self.chance(c), why, details)

    def decided(self, votes: Mapping[str, int]) -> float | None:
        """c: how likely the leading answer is the more frequent for good; None when nothing could be compared."""
        ranked = _ranked(votes)
        if not ranked:
            return None
        second = ranked[1][1] if len(ranked) > 1 else 0
        return leads(ranked[0][1] + self.prior, second + self.prior)

    def chance(self, c: float) -> float:
        """g(c): the probability that a leading answer is right."""
        most, other = self._right
        return c * most + (1.0 - c) * other

    @property
    def _right(self) -> tuple[float, float]:
        """How often the most frequent answer is right, and how often another: least squares, within [0, 1]."""
        cc, cd, dd, cy, dy = self._sums
        cc, dd, cy = cc + _TRUST, dd + _TRUST, cy + _TRUST
        other = (cc * dy - cd * cy) / (cc * dd - cd * cd)
        other = min(max(other, 0.0), 1.0)
        return min(max((cy - cd * other) / cc, other), 1.0), other

    def _more(self, case: Case, option: Option, votes: Mapping[str, int]) -> int:
        """How many more votes to draw, 0 to stop."""
        ranked = _ranked(votes)
        left = self.max_samples - case.calls
        while left and not case.affords(option, left):
            left -= 1
        if not left:
            return 0
        if not ranked:
            return 1 if sum(votes.values()) < 2 else 0
        first, second = ranked[0][1], ranked[1][1] if len(ranked) > 1 else 0
        c = leads(first + self.prior, second + self.prior)
        if self.confidence is not None:
            return 0 if c >= self.confidence else 1
        ahead = first - second
        looks = sorted({m for m in (1, 2, ahead, ahead + 1, ahead + 2, 2 * ahead + 2, left) if 0 < m <= left})
        effect = (first + second) / sum(votes.values())
        steps = [Option("stop", case.worth_usd * self.chance(c), Cost.of(dict.fromkeys(case.prices, 0.0)))]
        for m in looks:
            after = futures(first + self.prior, second + self.prior, max(1, round(m * effect)))
            value = sum(chance * self.chance(then) for chance, then in after)
            steps.append(Option(f"{m} more", case.worth_usd * value, m * option.cost))
        choice = self.choose(case, steps)
        return looks[choice - 1] if choice else 0

    def _endpoint(self, case: Case, options: Sequence[Option]) -> Option | None:
        """Which of ``options`` is asked."""
        affordable = [option for option in options if case.affords(option)]
        if not affordable or case.calls >= self.max_samples:
            return None
        choice = self.choose(case, affordable)
        return affordable[choice or 0]

    def learn(self, details: Mapping[str, object], quality: float) -> None:
        """Take in whether an answer that led so clearly was right."""
        evidence = details.get("evidence")
        c = evidence.get("decided") if isinstance(evidence, Mapping) else None
        if not isinstance(c, float) or not 0.0 <= quality <= 1.0:
            return
        keep, d = 1.0 - 1.0 / self.window, 1.0 - c
        seen = (c * c, c * d, d * d, c * quality, d * quality)
        self._sums = [keep * old + new for old, new in zip(self._sums, seen, strict=True)]

    def _call(self, case: Case, option: Option, index: int) -> Call:
        fields = sampling(case, self.temperature, self.seed + index)
        return Call(option.action, {"fields": fields, "append": [], "want": ()})

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """A fixed level; numbers, four at a time."""
        yield {"confidence": 0.95, "max_samples": 40, "prior": 1.0}
        yield {"kind": "number", "at_once": 4, "temperature": 1.0, "window": 50, "seed": 9}


def _ranked(votes: Mapping[str, int]) -> list[tuple[str, int]]:
    """The answers that can be compared, most votes first, ties to the one that came first."""
    return sorted(((vote, n) for vote, n in votes.items() if vote), key=lambda pair: -pair[1])


def _sureness(content: Mapping[str, Any]) -> float:
    chosen: Sequence[float] | None = content.get("logprobs")
    return sum(chosen) / len(chosen) if chosen else -1e9


_TRUST = 2.0
"""Outcomes that the belief g(c) = c is worth."""
