"""Routes by past requests and answers that are alike, and lets one model combine several answers where that pays."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, ClassVar, final

import numpy as np

from apportion.core.cost import Cost
from apportion.core.method import Constraint, Interval, Kind
from apportion.core.option import Option
from apportion.core.strategy import Answer, Call, Plan, Reply
from apportion.reason._bank import Array, Bank, Vector, pack, unpack
from apportion.reason._base import Case, Reasoner, content_of, cut_short


@final
class JiSi(Reasoner):
    """Routes by past requests and answers that are alike, and lets one model combine several answers where that pays.

    A bank holds past requests and the models' answers to them as vectors, with how good each answer was; nothing is
    trained [1]_. The models are scored on the requests most like this one (the support set), and the one worth
    most is asked. Its answer is compared with its past answers: two requests that read alike but are answered
    differently are not equally hard, so the mix of both similarities scores the models again. Then a
    switch: keep the answer, route to another model, or ask the next best as well and have an aggregator, chosen by its
    general and its domain skill, combine them; whichever has the most value left after paying.

        sim_i = mix cos(q, q_i) + (1 - mix) cos(r, r_i),    w_i = exp((sim_i - max sim) / bandwidth)
        score_m = (sum_i w_i quality_im + shrink general_m) / (sum_i w_i + shrink)
        aggregator = argmax_a  domain score_a + (1 - domain) general_a
        P[right | aggregated] = best + skill_a (P[any right] - best)

    Parameters
    ----------
    neighbours
        Size of the support set, an integer of one or more.
    bandwidth
        Fall of similarity over which a neighbour's weight falls by 1/e, above zero.
    mix
        Share of the request's similarity against the answer's, in [0, 1]; 1 looks at requests alone.
    shrink
        Neighbours that a model's general quality counts as, above zero.
    candidates
        The most answers that are combined, an integer of one or more; 1 never aggregates.
    domain
        Share of domain skill against general skill in the choice of the aggregator, in [0, 1].
    capacity
        Requests in the bank, an integer of one or more; the oldest is forgotten first.
    policy
        The policy that decides each step from its value and cost.

    Complexity
    ----------
    O(capacity x dimensions) per step, twice per request: 0.6 ms for 4096 x 384 on one core; O(dimensions) to learn;
    O(capacity x dimensions) memory for requests and for each model's answers.

    Notes
    -----
    Written from the paper's description; its constants are not known to us, those here come from
    cross-validation on other data. In the paper answers of several models are compared before the switch; here one
    is asked first, so that an easy request costs one call. The chance of the combination assumes that the
    models err independently until aggregated answers have been judged, which then have a score of their own
    (``+model``) in the bank. Without a vector of the request it routes by general quality. Calls of tools are
    not combined.

    See Also
    --------
    reason/cascade : decides from how sure the first model was, without neighbours.

    References
    ----------
    .. [1] S. Tang, W. Lin, J. Ye, H. Li, B. Zhang, S. Hu, T. Chen, W. Ouyang, L. Bai, P. Ye (2026). "Beyond
       Gemini-3-Pro: Revisiting LLM Routing and Aggregation at Scale." ICML 2026. arXiv:2601.01330

    Examples
    --------
    >>> from apportion.core import Cost, Features, Option, Reply, drive
    >>> strategy = JiSi(neighbours=2)
    >>> for _ in range(8):
    ...     strategy.remember((1.0, 0.0), {"poet": 1.0, "coder": 0.0})
    ...     strategy.remember((0.0, 1.0), {"poet": 0.0, "coder": 1.0})
    >>> offer = [Option(name, 0.0, Cost(usd=0.001)) for name in ("poet", "coder")]
    >>> for vector in ((0.9, 0.1), (0.2, 0.8)):
    ...     request = {"options": offer, "prices": {"usd": 1.0}, "worth_usd": 0.005, "features": Features((), vector)}
    ...     print(drive(strategy.run(request, 0.0), lambda call: Reply("ok", {"text": "x"}, Cost())).details["action"])
    poet
    coder
    """

    __slots__ = ("_bank",)

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "neighbours": Interval(int, 1),
        "bandwidth": Interval(float, 0.0, closed="neither"),
        "mix": Interval(float, 0.0, 1.0),
        "shrink": Interval(float, 0.0, closed="neither"),
        "candidates": Interval(int, 1, 16),
        "domain": Interval(float, 0.0, 1.0),
        "capacity": Interval(int, 1),
        "policy": Kind(str),
    }

    def __init__(
        self,
        *,
        neighbours: int = 40,
        bandwidth: float = 0.1,
        mix: float = 0.5,
        shrink: float = 2.0,
        candidates: int = 3,
        domain: float = 0.5,
        capacity: int = 4096,
        policy: str = "route/priced",
    ) -> None:
        self.neighbours = neighbours
        self.bandwidth = bandwidth
        self.mix = mix
        self.shrink = shrink
        self.candidates = candidates
        self.domain = domain
        self.capacity = capacity
        self.policy = policy
        self.start()

    def reset(self) -> None:
        """Empty the bank."""
        super().reset()
        self._bank = Bank(self.capacity)
        self._general: dict[str, list[float]] = {}
        """For each model the sum of its qualities, and their number."""

    def run(self, request: Mapping[str, object], now: float) -> Plan:
        """Ask the model worth most; keep its answer, route on, or combine several."""
        case = Case(request, now)
        query = getattr(case.features, "vector", None)
        near = self.near(query)
        contents: dict[str, Mapping[str, Any]] = {}
        failed: set[str] = set()
        short: set[str] = set()
        why = "nothing was offered" if not case.options else "no call succeeded"

        # the first answer, by the request alone
        scores = self.scores(case.options, near)
        while not contents:
            offer = [o for o in case.options if o.action not in failed and case.affords(o)]
            choice = self.choose(case, [_worth(o, case.worth_usd * scores[o.action]) for o in offer])
            if choice is None:
                break
            yield from self._ask(case, [offer[choice]], contents, failed, short)
        if not contents:
            return Answer(None, None, why, {"calls": case.calls, "action": None})
        first = next(iter(contents))
        taken, why = first, f"routed to {first}"

        # the switch, by request and answer
        near = self._mixed(near, first, contents[first])
        scores = self.scores(case.options, near)
        rest = [o for o in case.options if o.action != first and o.action not in failed and case.affords(o)]
        answer, chance = contents[first], scores[first]
        if rest and not contents[first].get("tool_calls"):
            keep = 0.0 if first in short else scores[first]
            steps = [Option("keep", case.worth_usd * keep, Cost.of(dict.fromkeys(case.prices, 0.0)))]
            steps += [_worth(o, case.worth_usd * scores[o.action]) for o in rest]
            panel = sorted(rest, key=lambda o: -scores[o.action])[: self.candidates - 1]
            aggregator = self._aggregator(case.options, scores, failed)
            together = self._together([first, *(o.action for o in panel)], aggregator, scores, near)
            price = sum((o.cost for o in panel), start=(1.0 + len(panel)) * aggregator.cost)
            if panel and case.affords(Option("all", 0.0, price)):
                steps.append(Option("aggregate", case.worth_usd * together, price))
            choice = self.choose(case, steps) or 0
            if choice == len(rest) + 1:
                yield from self._ask(case, panel, contents, failed, short)
                replies = yield [self._combine(aggregator, list(contents.values()))]
                case.book(replies, [aggregator])
                combined = content_of(replies[0])
                if combined is not None:
                    answer, chance, taken = combined, together, f"+{aggregator.action}"
                    why = f"{aggregator.action} combined {len(contents)} answers"
                else:
                    taken = max(contents, key=lambda action: scores[action])
                    answer, chance = contents[taken], scores[taken]
            elif choice:
                other = rest[choice - 1].action
                yield from self._ask(case, [rest[choice - 1]], contents, failed, short)
                if other in contents:
                    taken, answer, chance = other, contents[other], scores[other]
                    why = f"the answer of {first} led on to {other}"
        return Answer(answer, chance, why, self._details(case, query, taken, contents))

    def near(self, query: Sequence[float] | None) -> Array:
        """How similar each request of the bank is to ``query``; empty without a vector or a bank."""
        return self._bank.similar(query) if query is not None else np.zeros(0, np.float32)

    def scores(self, options: Sequence[Option], near: Array) -> dict[str, float]:
        """For each option the quality expected on requests as similar as ``near`` says."""
        order = self._order(near)
        return {
            o.action: self._score(o.action, self._mean(o.action, o.quality), near, order) for o in options
        }

    def remember(
        self,
        query: Sequence[float],
        quality: Mapping[str, float],
        replies: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Put a past request into the bank: its vector, the quality of each model's answer in [0, 1], the answers'
        vectors.
        """
        self._take(query, quality, replies or {})

    def _take(self, query: Vector, quality: Mapping[str, float], replies: Mapping[str, Vector]) -> None:
        for model, value in quality.items():
            if model not in self._general and len(self._general) >= _MOST_MODELS:
                return
            general = self._general.setdefault(model, [0.0, 0.0])
            keep = 1.0 - 1.0 / self.capacity
            general[0], general[1] = keep * general[0] + value, keep * general[1] + 1.0
        self._bank.add(query, quality, replies)

    def learn(self, details: Mapping[str, object], quality: float) -> None:
        """Put a judged request into the bank."""
        evidence = details.get("evidence")
        action = details.get("action")
        if not isinstance(evidence, Mapping) or not isinstance(action, str) or not 0.0 <= quality <= 1.0:
            return
        query = unpack(str(evidence.get("query") or ""), np.float16)
        replies = {model: unpack(text, np.float16) for model, text in (evidence.get("replies") or {}).items()}
        if query.size:
            self._take(query, {action: quality}, replies)

    def save(self) -> dict[str, Any]:
        """The bank and the inner policy's state."""
        return {**super().save(), "bank": self._bank.save()}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` returned."""
        super().load(saved)
        self._bank.load(saved["bank"])

    def _mean(self, model: str, quality: float | None) -> float:
        """How good ``model`` is in general, where its predicted ``quality`` counts as one observation."""
        total, n = self._general.get(model, (0.0, 0.0))
        return (total + (0.5 if quality is None else quality)) / (n + 1.0)

    def _order(self, near: Array) -> Array:
        """The most similar requests, more than one support set of them, best first."""
        some = min(4 * self.neighbours, near.size)
        found = np.argpartition(-near, some - 1)[:some] if some < near.size else np.arange(near.size)
        return found[np.argsort(-near[found], kind="stable")]

    def _score(self, model: str, prior: float, near: Array, order: Array) -> float:
        """The mean quality of ``model`` on its support set, drawn to ``prior``."""
        bank = self._bank
        if not near.size or model not in bank.models:
            return prior
        right = bank.quality[: bank.size, bank.models.index(model)]
        known = order[np.isfinite(right[order])][: self.neighbours]
        if known.size < self.neighbours and order.size < near.size:
            asked = np.flatnonzero(np.isfinite(right))
            known = asked[np.argsort(-near[asked], kind="stable")][: self.neighbours]
        if not known.size:
            return prior
        weights = np.exp((near[known] - near[known[0]]) / self.bandwidth)
        return float((weights @ right[known] + self.shrink * prior) / (weights.sum() + self.shrink))

    def _mixed(self, near: Array, model: str, content: Mapping[str, Any]) -> Array:
        """The similarity of requests, mixed with that of ``model``'s answers where both are known."""
        vector = content.get("vector")
        if vector is None or not near.size or self.mix == 1.0:
            return near
        alike = self._bank.similar_replies(model, vector)
        if alike is None:
            return near
        return np.where(np.isnan(alike), near, self.mix * near + (1.0 - self.mix) * alike)

    def _aggregator(self, options: Sequence[Option], scores: Mapping[str, float], failed: set[str]) -> Option:
        """The model with the most skill, in this domain and in general."""
        able = [o for o in options if o.action not in failed]
        return max(
            able,
            key=lambda o: (
                self.domain * scores[o.action] + (1.0 - self.domain) * self._mean(o.action, o.quality)
            ),
        )

    def _together(
        self, models: Sequence[str], aggregator: Option, scores: Mapping[str, float], near: Array
    ) -> float:
        """The probability that the combined answer is right."""
        wrong = 1.0
        for model in models:
            wrong *= 1.0 - scores[model]
        best = max(scores[model] for model in models)
        skill = self.domain * scores[aggregator.action]
        skill += (1.0 - self.domain) * self._mean(aggregator.action, aggregator.quality)
        prior = best + skill * (1.0 - wrong - best)
        return self._score(f"+{aggregator.action}", prior, near, self._order(near))

    def _ask(
        self,
        case: Case,
        options: Sequence[Option],
        contents: dict[str, Mapping[str, Any]],
        failed: set[str],
        short: set[str],
    ) -> Generator[Sequence[Call], Sequence[Reply], None]:
        """Call ``options`` at the same time and sort the replies."""
        replies = yield [Call(o.action, {"fields": {}, "append": [], "want": ("vector",)}) for o in options]
        case.book(replies, options)
        for option, reply in zip(options, replies, strict=True):
            content = content_of(reply)
            if content is None:
                failed.add(option.action)
            else:
                contents[option.action] = content
                if cut_short(reply, case):
                    short.add(option.action)

    def _combine(self, aggregator: Option, answers: Sequence[Mapping[str, Any]]) -> Call:
        listed = "\n\n".join(
            f"Answer {i}:\n{answer.get('text') or ''}" for i, answer in enumerate(answers, 1)
        )
        message = {"role": "user", "content": f"{_INSTRUCTION}\n\n{listed}"}
        return Call(aggregator.action, {"fields": {}, "append": [message], "want": ()})

    def _details(
        self, case: Case, query: Sequence[float] | None, taken: str, contents: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, object]:
        evidence: dict[str, object] = {}
        if query is not None:
            evidence["query"] = pack(np.asarray(query, np.float16))
            evidence["replies"] = {
                action: pack(np.asarray(content["vector"], np.float16))
                for action, content in contents.items()
                if content.get("vector") is not None
            }
        return {"calls": case.calls, "action": taken, "evidence": evidence}

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Routing alone; requests alone; a small bank."""
        yield {"candidates": 1, "neighbours": 5, "bandwidth": 0.02}
        yield {"mix": 1.0, "shrink": 0.5, "domain": 1.0, "capacity": 64}


def _worth(option: Option, value: float) -> Option:
    return Option(option.action, value, option.cost, load=option.load, weight=option.weight)


_INSTRUCTION = (
    "Several assistants answered the message above independently. Some of their answers may be wrong. Weigh them "
    "critically against each other, keep what is right, and give the single best answer to the message, in the "
    "form it asks for and without mentioning the assistants."
)
_MOST_MODELS = 256
