"""Streams of short customer messages with their intents, and what a large model is recorded to have answered."""

from __future__ import annotations

import hashlib
import random
from typing import Any, NamedTuple

import numpy as np

from benchmarks.routing.encode import embed
from benchmarks.semantic_cache.data import rows

WARM = 1500
"""Requests that the large model has answered before the stream begins."""
LENGTHS = {"banking77": 250, "clinc150": 250}
"""Requests of each stream."""
INTENTS = {"banking77": 77, "clinc150": 40}
"""With all 150 of `clinc150` too few messages would have one like them before them."""
ERROR = 0.10
"""The large model is wrong in so many answers."""
SYSTEM = "You sort the messages of customers by what they want. Answer with the name of the intent only."


class Stream(NamedTuple):
    """Messages in the order of their arrival, `WARM` of them before the stream begins.

    ``right`` is the intent, ``large`` what the large model answers, ``vectors`` have unit length (n, 384).
    """

    name: str
    texts: list[str]
    right: list[str]
    large: list[str]
    vectors: Any

    @property
    def similar(self) -> float:
        """Share of the stream's messages for which one with a cosine of 0.7 came before."""
        near = self.vectors @ self.vectors.T
        best = [near[i, :i].max() for i in range(WARM, len(self.texts))]
        return float(np.mean(np.array(best) >= 0.7))


def stream(name: str) -> Stream | None:
    """The stream of a data set; None where it is absent."""
    found = [(r["text"], r.get("intent") or r.get("category") or "") for r in rows(name, "queries")]
    found = [one for one in found if one[1] != "oos"]
    if not found:
        return None
    intents = sorted({intent for _, intent in found})
    kept = set(random.Random(name).sample(intents, INTENTS[name]))
    found = [one for one in found if one[1] in kept]
    random.Random(f"incontext/{name}").shuffle(found)
    found = found[: WARM + LENGTHS[name]]
    texts, right = [text for text, _ in found], [intent.replace("_", " ") for _, intent in found]
    vectors = embed(texts, f"incontext-{name}")
    return Stream(name, texts, right, _recorded(texts, right, vectors), vectors)


def _recorded(texts: list[str], right: list[str], vectors: Any) -> list[str]:
    """The intent, or, for `ERROR` of the messages (by a hash, the same each time), the intent it is nearest to."""
    named = sorted(set(right))
    mine = np.array([named.index(intent) for intent in right])
    centres = np.stack([vectors[mine == i].mean(axis=0) for i in range(len(named))])
    near = vectors @ centres.T
    near[np.arange(len(texts)), mine] = -np.inf
    wrong = near.argmax(axis=1)
    return [named[wrong[i]] if _draw(text) < ERROR else right[i] for i, text in enumerate(texts)]


def _draw(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2.0**64
