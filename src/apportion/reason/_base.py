"""What all strategies share: an inner policy that prices every step, and how requests and replies are read."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, cast

from apportion.core import catalogue
from apportion.core.option import Option
from apportion.core.policy import Policy
from apportion.core.state import State
from apportion.core.strategy import Reply, Strategy
from apportion.reason._extract import final


class Reasoner(Strategy):
    """A strategy whose steps are decided by the policy that its parameter ``policy`` names.

    Each step is a `State` of its own: the options are to stop with what is there, or to buy more, each with
    its value in dollars and what it would cost from here on, so that prices enter every step. The inner
    policy is told no outcomes; what is learned of answers, the strategy learns itself, in `learn`.
    """

    __slots__ = ("_inner",)  # not in ``vars``, which hold what is learned and saved here

    policy: str

    def reset(self) -> None:
        """Build the inner policy anew."""
        self._inner = cast("Policy", catalogue.build(self.policy))

    def learn(self, details: Mapping[str, object], quality: float) -> None:
        """Take in that the answer with these ``details`` was worth ``quality`` in [0, 1]: late, twice or never.
        Here: nothing.
        """

    def save(self) -> dict[str, Any]:
        """What was learned, and the inner policy's."""
        return {**super().save(), "policy": self._inner.save()}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` returned."""
        super().load(saved)
        self._inner.load(saved["policy"])

    def choose(self, case: Case, steps: Sequence[Option]) -> int | None:
        """The index of the step that the inner policy takes; None when it takes none."""
        return self._inner.decide(State(case.now, steps, id=case.id, prices=case.prices)).choice


class Case:
    """One request as a strategy sees it, with what was spent on it so far."""

    __slots__ = (
        "calls",
        "features",
        "id",
        "limit_usd",
        "now",
        "options",
        "prices",
        "request",
        "spent_usd",
        "worth_usd",
    )

    def __init__(self, request: Mapping[str, Any], now: float) -> None:
        self.request, self.now = request, now
        self.id = str(request.get("id", ""))
        self.options: list[Option] = list(request.get("options") or ())
        self.prices: Mapping[str, float] = request.get("prices") or {}
        self.features = request.get("features")
        self.limit_usd: float | None = request.get("max_usd")
        self.worth_usd = _worth(request.get("worth_usd"), self.options)
        self.spent_usd = 0.0
        self.calls = 0

    def paid(self, option: Option) -> float:
        """What one call of ``option`` costs in dollars at the prices; without end when it is not known."""
        paid = option.cost.at_prices(self.prices)
        return float("inf") if paid is None else paid

    def affords(self, option: Option, calls: int = 1) -> bool:
        """Whether ``calls`` more calls of ``option`` stay within the request's own limit on dollars."""
        if self.limit_usd is None:
            return True
        usd = option.cost.get("usd")
        return usd is not None and self.spent_usd + calls * usd <= self.limit_usd

    def book(self, replies: Sequence[Reply], options: Sequence[Option]) -> None:
        """Note what ``replies`` cost, by the prediction where that is not known."""
        for reply, option in zip(replies, options, strict=True):
            self.calls += 1
            self.spent_usd += reply.cost.get(
                "usd", option.cost.get("usd", 0.0) if reply.status != "refused" else 0.0
            )


def sampling(case: Case, temperature: float, seed: int) -> dict[str, object]:
    """The fields that ask for another sample, as the interface of the request writes them."""
    if case.request.get("api", "chat") in ("chat", "completions"):
        return {"temperature": temperature, "seed": seed}
    return {"temperature": temperature}


def log_probabilities(case: Case, alternatives: int) -> dict[str, object]:
    """The fields that ask for log probabilities with so many alternatives of each token; none where there are none."""
    api = case.request.get("api", "chat")
    if api == "completions":
        return {"logprobs": alternatives}
    if api != "chat":
        return {}
    return {"logprobs": True, "top_logprobs": alternatives} if alternatives else {"logprobs": True}


def content_of(reply: Reply) -> Mapping[str, Any] | None:
    """What a reply says, None when there is nothing to use: it failed, or is no mapping with a text."""
    content = reply.content
    if not isinstance(content, Mapping) or not (reply.status == "ok" or reply.censored):
        return None
    if not str(content.get("text") or "").strip() and not content.get("tool_calls"):
        return None
    return content


def digest(content: Mapping[str, Any], kind: str = "auto") -> str:
    """A fingerprint of the final answer by which answers can be compared without keeping them; empty for a call of a
    tool and for a long text, which another may differ from without disagreeing.
    """
    answer = None if content.get("tool_calls") else final(str(content.get("text") or ""), kind)
    if answer is None or len(answer) > _LONGEST_ANSWER:
        return ""
    return hashlib.blake2b(answer.encode("utf-8", "replace"), digest_size=8).hexdigest()


def cut_short(reply: Reply, case: Case) -> bool:
    """Whether the answer ends early for another reason than that the client asked for no more."""
    content = reply.content
    ended = content.get("finish") if isinstance(content, Mapping) else None
    return (
        reply.censored
        or ended == "content_filter"
        or (ended == "length" and case.request.get("max_output_tokens") is None)
    )


def _worth(stated: object, options: Sequence[Option]) -> float:
    """Dollars that a right answer is worth: as stated, else read back from value and quality of the options."""
    if isinstance(stated, int | float):
        return float(stated)
    read = [option.value / option.quality for option in options if option.quality]
    if read:
        return statistics.median(read)
    return max((option.value for option in options), default=0.0)


_LONGEST_ANSWER = 80
"""Characters of an answer that is compared as a whole."""
