"""What kind of question it is, told by its words alone, and how answers of that kind are kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from apportion.serve.cache.check import Limits
from apportion.serve.cache.settings import Category


class Rules(NamedTuple):
    """How answers of a category are kept; the fields are those of `settings.Category`."""

    threshold: float
    novelty: float
    disorder: float
    ttl_s: float
    quota: float | None
    relaxes: bool

    @property
    def limits(self) -> Limits:
        """How far two wordings may differ."""
        return Limits(most=self.novelty, disorder=self.disorder)


_DAY_S: Final = 86_400.0
BUILT_IN: Final[dict[str, Rules]] = {
    "volatile": Rules(threshold=1.0, novelty=0.0, disorder=0.0, ttl_s=60.0, quota=None, relaxes=False),
    "problem": Rules(threshold=0.75, novelty=0.6, disorder=0.4, ttl_s=7 * _DAY_S, quota=None, relaxes=True),
    "code": Rules(threshold=0.94, novelty=0.0, disorder=0.0, ttl_s=7 * _DAY_S, quota=None, relaxes=True),
    "factual": Rules(threshold=0.94, novelty=0.0, disorder=0.0, ttl_s=_DAY_S, quota=None, relaxes=True),
    "chat": Rules(threshold=0.94, novelty=0.0, disorder=0.0, ttl_s=3600.0, quota=None, relaxes=True),
}
"""The thresholds are near what `benchmarks/semantic_cache` finds by cross-validation for false hits of at most 0.1%."""

_VOLATILE: Final = re.compile(
    r"\b(?:today|tonight|yesterday|tomorrow|now|nowadays|currently|current|latest|newest|recent(?:ly)?|live|breaking|"
    r"right now|at the moment|up.to.date|this (?:morning|afternoon|evening|week|weekend|month|year)|so far|"
    r"(?:last|next) (?:night|week|weekend|month|year|hour)|weather|forecast|temperature (?:in|outside)|"
    r"rain(?:ing)?|snow(?:ing)?|traffic|news|headlines?|stock|share price|price of|how much (?:is|are|does)|"
    r"exchange rate|scores?|standings|schedule|what time|what day|what(?:'s| is) the (?:time|date)|"
    r"opening hours|open until|in stock|available now|trending|random|joke|dice|coin|near(?:est|by| me)|closest|"
    r"where am i|my (?:current )?location|credit score|flight status|on time|delayed|"
    r"(?:what(?:'?s| is| are)|show|tell me|check|how much|how many|how is|do i have|give me|is there) (?:\w+ ){0,4}?my "
    r"(?:\w+ ){0,3}?(?:balance|score|bills?|points|rewards|days|pto|order|package|flight|account|gas|tank|ride|uber)|"
    r"how long (?:will|would|does|until|till) (?:\w+ ){0,3}?(?:take|get|drive|arrive|be|here)|how far)\b"
)
_CODE: Final = re.compile(
    r"```|`[^`]+`|\b(?:def|class|function|import|return|const|let|var|public|static|void|SELECT|INSERT|UPDATE|"
    r"async|await|lambda|regex|python|javascript|typescript|java|rust|golang|c\+\+|sql|bash|html|css|api|json|yaml|"
    r"git|docker|kubernetes|compile|debug|stack ?trace|exception|segfault|refactor|unit test|code)\b|"
    r"[{};]\s*$|(?<=\w)\(\)|=>|==|!=|</\w+>",
    re.MULTILINE,
)
_NUMBER: Final = re.compile(
    r"\d[\d.,]*|\b(?:two|three|four|five|six|seven|eight|nine|ten|half|twice|double|third|quarter|dozen)\b"
)
_FACTUAL: Final = re.compile(
    r"^\W*(?:who|what|when|where|which|why|whose|how (?:many|much|long|far|old|tall|big|do|does|did|can|to)|"
    r"is|are|was|were|does|do|did|can|define|explain|tell me (?:about|what|who|when|where|how)|name|list)\b|\d"
)


def kind(text: str) -> str:
    """One of the built-in categories. Where in doubt it changes by itself: that costs a look-up, not a lie."""
    lower = text.lower()  # patterns that ignore case themselves take five times as long
    if text.count(" ") >= 20 and len(_NUMBER.findall(lower)) >= 3 and not _CODE.search(text):
        return "problem"
    if _VOLATILE.search(lower):
        return "volatile"
    if _CODE.search(text):
        return "code"
    return "factual" if _FACTUAL.search(lower) else "chat"


class Categories:
    """The configured categories before the built-in ones."""

    def __init__(self, configured: Mapping[str, Category]) -> None:
        self._matched = [
            (name, [re.compile(pattern, re.IGNORECASE) for pattern in category.match], category)
            for name, category in configured.items()
        ]
        self._rules = dict(BUILT_IN)
        for name, category in configured.items():
            built_in = BUILT_IN.get(name, BUILT_IN["chat"])
            given = {field: getattr(category, field) for field in Rules._fields}
            self._rules[name] = built_in._replace(**{k: v for k, v in given.items() if v is not None})

    def __getitem__(self, name: str) -> Rules:
        """The rules of a category."""
        return self._rules[name]

    def of(self, text: str | None, model: str, tags: Sequence[str] = ()) -> str:
        """The category of a question; without a text that of ``chat`` unless its model or a tag tells."""
        for name, patterns, category in self._matched:
            if model in category.models or any(tag in category.tags for tag in tags):
                return name
            if text is not None and any(pattern.search(text) for pattern in patterns):
                return name
        return "chat" if text is None else kind(text)

    def quotas(self) -> dict[str, float]:
        """The categories with a part of the cache for themselves."""
        return {name: rules.quota for name, rules in self._rules.items() if rules.quota}


def patterns_at_fault(configured: Mapping[str, Category]) -> list[tuple[str, str, str]]:
    """Category, pattern and what is wrong with it, for the check of a configuration."""
    found = []
    for name, category in configured.items():
        for pattern in category.match:
            try:
                re.compile(pattern)
            except re.error as error:
                found.append((name, pattern, str(error)))
    return found
