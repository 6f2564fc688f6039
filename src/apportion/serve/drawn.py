"""Log probabilities in a stream of chat completions: how likely each token was, and where the text wanted to end."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from apportion.core.guard import Drawn

_ENDS: Final = frozenset(
    (
        "</s>",
        "<eos>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|eot|>",
        "<|end|>",
        "<|return|>",
        "<end_of_turn>",
        "<turn|>",
        "<|END_OF_TURN_TOKEN|>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    )
)
"""What ends an answer, as servers write it that show such tokens (vLLM and its kin)."""

_LEAST: Final = -20.0
"""No model has so many tokens that the likeliest would be less likely."""


class _Top(msgspec.Struct, gc=False):
    token: str = ""
    logprob: float = -math.inf
    bytes: list[int] | None = None

    def ends(self) -> bool:
        """Whether it is no text but a mark: llama.cpp shows none of its characters, others write it out."""
        return self.token in _ENDS if self.token else not self.bytes


class _Token(_Top, gc=False):
    top_logprobs: list[_Top] | None = None


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_Token] | None = None


_decode = msgspec.json.Decoder(_Logprobs).decode


def drawn_at_least(p: float, temperature: float) -> float:
    """How probable, at a ``temperature`` of 0 to 1, the draw of a token is that has probability ``p`` at 1 and is the
    likeliest: least where the others are as likely, as far as they go. Cutting off the unlikely only raises it.
    """
    if temperature <= 0.0:
        return 1.0
    others, rest = divmod(1.0 - p, p)
    return 1.0 / (1.0 + others + math.pow(rest / p, 1.0 / temperature))


class DrawnReader:
    """Reads the ``logprobs`` objects of one stream, one after the other, drawn at ``temperature`` (0 to 1; None: it is
    higher, or the end of the text may be forbidden where it was likely, so that nothing is said of it).
    """

    __slots__ = ("_goes_on", "_temperature", "found")

    def __init__(self, temperature: float | None = 1.0) -> None:
        self.found: list[Drawn] = []
        """What has been read and not been taken away yet."""
        self._temperature = temperature
        self._goes_on = temperature is None

    def read(self, raw: bytes) -> None:
        """One ``logprobs`` object; anything else is passed over."""
        try:
            tokens = _decode(raw).content
        except (ValueError, RecursionError):
            return
        for token in tokens or ():
            if not math.isfinite(token.logprob):
                continue
            end = None
            if token.ends():
                self._goes_on = True  # if it does: then such a mark is no end here
            elif token.top_logprobs and not self._goes_on and self._temperature is not None:
                best = max(token.top_logprobs, key=lambda top: top.logprob)
                if best.ends() and best.logprob > max(token.logprob, _LEAST):
                    end = math.log(drawn_at_least(math.exp(min(best.logprob, 0.0)), self._temperature))
            self.found.append(Drawn(min(token.logprob, 0.0), end))
