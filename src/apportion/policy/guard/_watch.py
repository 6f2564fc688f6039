"""Watches an answer as it comes: does it repeat itself, did it want to end, is it sure of every word, does it end?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from apportion.core.guard import Drawn
from apportion.policy.guard._repeats import Novelty, Repeats

_TELLING = 48
"""Characters that are looked at together."""
_CERTAIN = 0.1
"""The surprise of a token (in nats) at which it speaks neither for a loop nor against one."""
_MOST = 0.999
"""The most that is believed of the probability of an end."""


class Watch:
    """What ends an answer, each O(1) per character or token.

    *Text*: it repeats itself or goes round in circles (`Repeats`, `Novelty`). *Length*: more than ``most_tokens``.
    *End*: where the end of the text was to be drawn with probability p at least (`Drawn`), going on had one of at
    most 1 - p. The product of 1 / (1 - p) over such places is therefore a supermartingale, and exceeds 1 / a with
    probability a at most (Ville): beyond ``1 / false_ends`` the end has been suppressed. *Calm*: the recursion
    c = max(0, c + 1 - s / 0.1) over the surprise s of the tokens (in nats), about the length of the stretch in
    which the model was sure of every token; more than ``most_calm`` is a loop, whatever changes in it.
    ``heard_calm`` is told the greatest c of an answer that ended by itself.
    """

    def __init__(
        self,
        repeat_tokens: int,
        loop_tokens: int,
        most_tokens: float = math.inf,
        *,
        false_ends: float = 0.0,
        most_calm: float = math.inf,
        heard_calm: Callable[[float], None] | None = None,
    ) -> None:
        self._most_tokens = most_tokens
        self._most_wished = -math.log(false_ends) if false_ends > 0.0 else math.inf
        self._most_calm = most_calm
        self._heard_calm = heard_calm
        self.tokens = 0
        self._repeats = Repeats(repeat_tokens)
        self._novelty = Novelty(loop_tokens)
        self._waiting: list[str] = []
        self._waiting_chars = self._waiting_tokens = 0
        self._drawn = 0
        self._wished = self._calm = self._greatest_calm = 0.0

    def feed(self, text: str, n_tokens: int = 1, drawn: Sequence[Drawn] = ()) -> str | None:
        """The next piece of the answer; why it must be stopped now, or None."""
        self.tokens += n_tokens
        if self.tokens > self._most_tokens:
            return f"runs on: {self.tokens} tokens, beyond what its like took"
        if drawn and (why := self._draw(drawn)):
            return why
        self._waiting.append(text)
        self._waiting_chars += len(text)
        self._waiting_tokens += n_tokens
        if self._waiting_chars < _TELLING:
            return None
        piece, tokens = "".join(self._waiting), self._waiting_tokens
        self._waiting.clear()
        self._waiting_chars = self._waiting_tokens = 0
        return self._repeats.feed(piece, tokens) or self._novelty.feed(piece.lower())

    def ended(self) -> None:
        """The answer has ended by itself."""
        if self._heard_calm is not None and self._drawn:
            self._heard_calm(self._greatest_calm)

    def _draw(self, drawn: Sequence[Drawn]) -> str | None:
        self._drawn += len(drawn)
        for logprob, end_logprob in drawn:
            if end_logprob is not None:
                self._wished -= math.log1p(-min(math.exp(end_logprob), _MOST))
            self._calm = max(self._calm + 1.0 + logprob / _CERTAIN, 0.0)
            self._greatest_calm = max(self._greatest_calm, self._calm)
        if self._wished > self._most_wished:
            return (
                f"does not end: that it goes on by itself had a probability of {math.exp(-self._wished):.1g}"
            )
        if self._greatest_calm > self._most_calm:
            return f"loops: sure of every word for {self._calm:.0f} tokens"
        return None
