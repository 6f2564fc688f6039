"""Shapes of common open models, from their published configurations: what a token costs in work and in bytes."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Final

from apportion.simulate.profile import ProfileError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder. ``inner`` is the width of a feed-forward layer (of one expert, where there are ``experts``, of which
    each token uses ``active``); ``matrices`` how many matrices it has: 3 gated, 2 not.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    head: int = 128
    matrices: int = 3
    experts: int = 1
    active: int = 1
    tied: bool = False
    """The input embedding is the output matrix."""

    @property
    def attention(self) -> int:
        """Parameters of the attention of one layer."""
        return self.hidden * self.head * (2 * self.heads + 2 * self.kv_heads)

    @property
    def expert(self) -> int:
        """Parameters of one expert, or of the whole feed-forward part, of one layer."""
        return self.matrices * self.hidden * self.inner

    @property
    def parameters(self) -> int:
        """All of them."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * (self.attention + self.experts * self.expert) + embeddings

    @property
    def active_parameters(self) -> int:
        """Those that one token is multiplied with, but the output matrix."""
        return self.layers * (self.attention + self.active * self.expert)

    def kv_bytes(self, bits: int = 16) -> float:
        """Keys and values of one token."""
        return self.layers * 2 * self.kv_heads * self.head * bits / 8

    def touched(self, tokens: float) -> float:
        """Parameters that must be read for a batch of ``tokens``; of the experts, those that are expected to be hit."""
        missed: float = (1.0 - self.active / self.experts) ** tokens
        hit = self.experts * (1.0 - missed)
        return self.layers * (self.attention + hit * self.expert) + self.vocabulary * self.hidden


def _dense(name: str, layers: int, hidden: int, heads: int, kv: int, inner: int, vocabulary: int) -> Shape:
    return Shape(
        name=name, layers=layers, hidden=hidden, heads=heads, kv_heads=kv, inner=inner, vocabulary=vocabulary
    )


SHAPES: Final = {
    each.name: each
    for each in (
        _dense("llama2-7b", 32, 4096, 32, 32, 11008, 32000),
        _dense("llama2-13b", 40, 5120, 40, 40, 13824, 32000),
        _dense("llama2-70b", 80, 8192, 64, 8, 28672, 32000),
        _dense("codellama-34b", 48, 8192, 64, 8, 22016, 32000),
        _dense("llama3.1-8b", 32, 4096, 32, 8, 14336, 128256),
        _dense("llama3.1-70b", 80, 8192, 64, 8, 28672, 128256),
        _dense("llama3.1-405b", 126, 16384, 128, 8, 53248, 128256),
        _dense("mistral-7b", 32, 4096, 32, 8, 14336, 32000),
        _dense("qwen2.5-7b", 28, 3584, 28, 4, 18944, 152064),
        _dense("qwen2.5-32b", 64, 5120, 40, 8, 27648, 152064),
        _dense("qwen2.5-72b", 80, 8192, 64, 8, 29568, 152064),
        _dense("qwen3-8b", 36, 4096, 32, 8, 12288, 151936),
        _dense("qwen3-14b", 40, 5120, 40, 8, 17408, 151936),
        _dense("qwen3-32b", 64, 5120, 64, 8, 25600, 151936),
        Shape(
            name="mixtral-8x7b",
            layers=32,
            hidden=4096,
            heads=32,
            kv_heads=8,
            inner=14336,
            vocabulary=32000,
            experts=8,
            active=2,
        ),
        Shape(
            name="qwen3-30b-a3b",
            layers=48,
            hidden=2048,
            heads=32,
            kv_heads=4,
            inner=768,
            vocabulary=151936,
            experts=128,
            active=8,
        ),
        Shape(
            name="qwen3-235b-a22b",
            layers=94,
            hidden=4096,
            heads=64,
            kv_heads=4,
            inner=1536,
            vocabulary=151936,
            experts=128,
            active=8,
        ),
        Shape(
            name="bloom-176b",
            layers=70,
            hidden=14336,
            heads=112,
            kv_heads=112,
            inner=57344,
            vocabulary=250880,
            matrices=2,
            tied=True,
        ),
        Shape(
            name="smollm2-135m",
            layers=30,
            hidden=576,
            heads=9,
            kv_heads=3,
            head=64,
            inner=1536,
            vocabulary=49152,
            tied=True,
        ),
    )
}


def shape(name: str) -> Shape:
    """The model called ``name``; raises `ProfileError` with near names."""
    found = SHAPES.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), SHAPES, n=3) or list(SHAPES)
        raise ProfileError(
            f"The shape of {name!r} is not known.", field="model", fix=f"Known: {', '.join(near)}."
        )
    return found
