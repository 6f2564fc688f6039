"""What is asked of an endpoint to measure it, and what was heard; how an answer's pieces become times of tokens."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from apportion.core.errors import ApportionError


class CalibrationError(ApportionError):
    """An endpoint cannot be measured: it does not answer, does not stream, or too little was heard of it."""

    code = "calibration"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: about ``prompt_tokens`` that no request had before, and at most ``output_tokens``. With
    ``after_tokens`` it is sent when the first request of its round has had so many tokens; ``again`` is the same prompt
    as the first one's, sent when that has ended.
    """

    prompt_tokens: int
    output_tokens: int
    after_tokens: int = 0
    again: bool = False


@dataclass(slots=True)
class Heard:
    """What came back, in seconds of one clock: when it was sent and each token came; what the endpoint counted."""

    sent_s: float
    token_s: list[float] = field(default_factory=list)
    ended_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    failure: str | None = None

    @property
    def ttft_s(self) -> float:
        """From sending to the first token."""
        return self.token_s[0] - self.sent_s


@dataclass(frozen=True, slots=True)
class Round:
    """Requests that are under way together. ``kind`` says what it is for, ``setting`` which one of its kind."""

    kind: str
    setting: str
    asks: tuple[Ask, ...]


class Client(Protocol):
    """Sends one request and streams its answer; failures are told in `Heard.failure`, never raised."""

    async def ask(self, prompt: str, output_tokens: int, on_token: Callable[[], None]) -> Heard:
        """Send ``prompt``; ``on_token`` is called as each token comes."""
        ...


class Prompts:
    """Prompts of wanted lengths that share nothing: random common words, of which most tokenisers make one token each.

    How many tokens a word makes, and how many the template adds, is learned from what the endpoint counts.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.per_word = 1.0
        self.base = 0.0
        self._seen: dict[int, int] = {}

    def words(self, tokens: int) -> int:
        """How many words make about so many tokens."""
        return max(1, round((tokens - self.base) / self.per_word))

    def make(self, tokens: int) -> tuple[str, int]:
        """A prompt of about ``tokens``, and its number of words."""
        n = self.words(tokens)
        return " ".join(self._rng.choices(_WORDS, k=n)), n

    def learn(self, words: int, tokens: int) -> None:
        """The endpoint counted ``tokens`` for ``words``."""
        if tokens <= 0:
            return
        self._seen[words] = tokens
        low, high = min(self._seen), max(self._seen)
        if high >= 2 * low:
            self.per_word = max(0.5, (self._seen[high] - self._seen[low]) / (high - low))
            self.base = max(0.0, self._seen[low] - self.per_word * low)


# fmt: off
_WORDS: Final = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school",
    "state", "family", "student", "group", "country", "problem", "hand", "part", "place", "case",
    "week", "company", "system", "program", "question", "work", "number", "night", "point", "home",
    "water", "room", "mother", "area", "money", "story", "fact", "month", "lot", "right", "study",
    "book", "eye", "job", "word", "business", "issue", "side", "kind", "head", "house", "service",
    "friend", "father", "power", "hour", "game", "line", "end", "member", "law", "car", "city", "name",
    "team", "minute", "idea", "kid", "body", "back", "parent", "face", "level", "office", "door",
    "health", "person", "art", "war", "history", "party", "result", "change", "morning", "reason",
    "research", "girl", "guy", "moment", "air", "teacher", "force", "education",
)
# fmt: on
