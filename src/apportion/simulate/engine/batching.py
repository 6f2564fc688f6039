"""Which requests share an iteration: the batching of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from apportion.core.errors import ApportionError
from apportion.simulate.profile import Profile

Kind = Literal["prefill_first", "chunked", "mixed", "decode_first", "static", "slots"]


class EngineError(ApportionError):
    """An engine was set up, or asked for something, in a way that it cannot follow."""

    code = "engine"


@dataclass(frozen=True, slots=True)
class Batching:
    """How an engine fills an iteration.

    - ``prefill_first``: waiting prompts, whole and alone, go before decoding, which stalls meanwhile (vLLM before
      chunking). A prompt longer than the budget goes alone.
    - ``chunked``: every iteration takes a token of each decoding request and fills the rest of the budget with pieces
      of prompts: long ones are split, short ones share an iteration (SplitFuse, Sarathi). Never more than the budget.
    - ``mixed``: decoding requests and whole prompts together (Orca); the first prompt of an iteration may exceed the
      budget.
    - ``decode_first``: prompts only when nothing decodes; who has ended leaves.
    - ``static``: as ``decode_first``, but a batch also ends together: answers that are complete are computed on until
      the longest is, and all are handed over then.
    - ``slots``: as ``chunked``, but each place, a slot, has its fixed share of the memory, so that nothing waits for
      memory or is preempted (llama.cpp, ``--no-kv-unified``). Prompts go into an iteration by the number of their slot,
      not in order of arrival; and it takes a forward pass for each run of slots that lie side by side with as many
      tokens each, so that a prompt next to decoding slots takes two.

    ``batch_tokens`` is the budget, the tokens of an iteration, and ``slots`` the most requests at once; None takes the
    profile's. ``watermark`` is the share of the memory that a new request must leave free when others are running.
    """

    kind: Kind = "prefill_first"
    batch_tokens: int | None = None
    slots: int | None = None
    watermark: float = 0.01

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise EngineError(
                f"'batching.kind' is {self.kind!r}.",
                field="kind",
                fix=f"One of: {', '.join(get_args(Kind))}.",
            )
        for name in ("batch_tokens", "slots"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EngineError(
                    f"'batching.{name}' is {value}.", field=name, fix="Give 1 or more, or none."
                )
        if not 0.0 <= self.watermark < 1.0:
            raise EngineError(
                f"'batching.watermark' is {self.watermark}.",
                field="watermark",
                fix="Give a share from 0 to below 1.",
            )

    @property
    def fuse(self) -> bool:
        """Whether prompts and decoding share iterations."""
        return self.kind in ("chunked", "mixed", "slots")

    @property
    def split(self) -> bool:
        """Whether prompts are computed in pieces."""
        return self.kind in ("chunked", "slots")

    def budget(self, profile: Profile) -> int:
        """The tokens of an iteration."""
        return self.batch_tokens or profile.batch_tokens

    def places(self, profile: Profile) -> int:
        """The most requests at once: where decoding counts against the budget, not more than that."""
        places = self.slots or profile.slots
        return min(places, self.budget(profile)) if self.fuse else places

    def most_tokens(self, profile: Profile) -> int:
        """Tokens, prompt and answer, that one request can have at most."""
        blocks = profile.kv_tokens // profile.block_tokens
        if self.kind == "slots":
            return profile.kv_tokens // self.places(profile)
        return blocks * profile.block_tokens
