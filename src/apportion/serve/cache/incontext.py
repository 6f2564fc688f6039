"""Past answers of a large model as examples for a small one.

A small model that is shown how a larger one answered similar questions often answers as well, at a fraction of the
cost [1]_. An example is chosen in two stages: the nearest questions of the same tenant, then those of the most use,
learned from how good the small model's answers with them were. What all that are chosen add together is predicted from
how near they are and how far they agree, with a bonus for what is little known (an upper confidence bound [2]_).
Whether to ask the small model, the small one with examples or the large one is the router's business, by options whose
cost, wait and predicted quality differ.

What stays is what brings most for its bytes: how often it is chosen, times what it adds, times the dollars an answer
of the large model would have cost. Examples that are often near although their own answer was poor are worth asking
the large model again for (`replays`), when there is idle capacity for it.

Departures from the paper: its second stage is a small neural network, here it is a line with a mean for each example;
its router draws from a posterior, here a bound is taken, so that a rehearsal decides the same; load acts through the
prices of time and not through a bias.

References
----------
.. [1] Y. Yu et al. (2025). "IC-Cache: Efficient Large Language Model Serving via In-context Caching." SOSP 2025.
   arXiv:2501.12689
.. [2] L. Li, W. Chu, J. Langford, R. Schapire (2010). "A Contextual-Bandit Approach to Personalized News Article
   Recommendation." WWW 2010. arXiv:1003.0146
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from apportion.serve.cache.semantic import Near, packed

_NEAREST: Final = 5
"""So many times what is asked for is near enough for the second stage."""
_WORDS_CHARS: Final = 2000
"""So much of an answer is compared with the others'."""
_OVERHEAD_BYTES: Final = 1024
_CURIOSITY: Final = 0.2
"""What examples that were never tried are given in advance, all together."""
_NOVELTY: Final = 0.05
"""What one of them is given before the others: little, or the nearest would be left for the sake of trying."""
_MEMORY: Final = 0.95
"""What one more observation leaves of an average that follows what changes."""
_HALF_LIFE_S: Final = 86_400.0


class Example(msgspec.Struct):
    """A question and the large model's answer to it. ``quality`` is the answer's own, in [0, 1]; ``asked`` is what the
    large model was sent, empty where it must not be sent again; ``decision_id`` says who made the answer."""

    id: str
    tenant: str
    question: str
    answer: str
    vector: bytes
    quality: float
    usd: float
    used_s: float
    decision_id: str = ""
    asked: bytes = b""
    uses: float = 0.0
    """Times it was chosen, of late: halved every day."""
    wanted: float = 0.0
    """Times it was among the nearest, of late, whether it was chosen or not."""
    wanted_s: float = 0.0
    gain: float = 0.0
    """What it added to the small model's quality, on average and of late."""
    told: float = 0.0

    @property
    def known_gain(self) -> float:
        """The gain, shrunk to nothing while little is known."""
        return self.gain * self.told / (self.told + 3.0)

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        text = 4 * (len(self.question) + len(self.answer))
        return _OVERHEAD_BYTES + text + len(self.asked) + 3 * len(self.vector)


class Chosen(NamedTuple):
    """Examples for one request, the most useful last: next to the question it counts most."""

    ids: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    utility: float
    """What they are predicted to add to the quality, all together."""
    features: tuple[tuple[float, ...], ...]
    """Of each: similarity, its answer's quality, 1."""
    together: tuple[float, ...] = ()
    """Of all: similarity of the nearest, agreement, their product, mean quality, 1."""


class Replay(NamedTuple):
    """An example that is worth another answer of the large model, and what it is expected to bring in dollars, what the
    answer costs already taken off."""

    id: str
    asked: bytes
    worth_usd: float


class Examples:
    """The examples of all tenants, each seen by its own only.

    ``capacity_bytes`` bounds them; nearer than ``similarity`` (cosine) is similar; ``least`` is the quality below which
    an answer is no example; ``curiosity`` is the quality that what was never tried is given in advance.
    """

    def __init__(
        self,
        capacity_bytes: int,
        *,
        similarity: float = 0.5,
        least: float = 0.5,
        curiosity: float = _CURIOSITY,
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.similarity = similarity
        self.least = least
        self.curiosity = curiosity
        self._held: dict[str, Example] = {}
        self._made: dict[str, str] = {}
        """Examples by the decision that made them."""
        self._near = Near()
        self._bytes = 0
        self._next = 0
        self._plain = _Mean(0.5)
        """Quality of the small model without examples, where nobody predicts it."""
        self._right = _Mean(0.75, 4.0)
        """Quality of the large model's answers."""
        self._each = _Line((0.5, 0.1, -0.2))
        self._all = _Line((0.05, 0.05, 0.05, 0.05, 0.05))

    def __len__(self) -> int:
        return len(self._held)

    @property
    def size_bytes(self) -> int:
        """The sizes of all examples."""
        return self._bytes

    def add(
        self,
        tenant: str,
        question: str,
        vector: Sequence[float],
        answer: str,
        *,
        quality: float,
        usd: float,
        now: float,
        decision_id: str = "",
        asked: bytes = b"",
    ) -> str | None:
        """Keep an answer of the large model; its id, None if it is not worth its place."""
        bits = packed(vector)
        if quality < self.least or not bits:
            return None
        self._next += 1
        id = f"ex_{self._next}"
        made = Example(id, tenant, question, answer, bits, quality, usd, now, decision_id, asked)
        if made.size_bytes > self.capacity_bytes:
            return None
        self._held[id] = made
        if decision_id:
            self._made[decision_id] = id
        self._bytes += made.size_bytes
        self._near.add((tenant, ""), id, bits)
        self._shrink(now)
        return id if id in self._held else None

    def choose(self, tenant: str, vector: Sequence[float], k: int, now: float) -> Chosen:
        """Up to ``k`` examples, those that are predicted to help most; none that is known to harm, perhaps none."""
        near = self._near.search((tenant, ""), packed(vector), self.similarity, _NEAREST * k)
        rated = []
        for rank, (similarity, id) in enumerate(near):
            held = self._held[id]
            if rank < k:
                held.wanted = 1.0 + held.wanted * _faded(now - held.wanted_s)
                held.wanted_s = now
            features = (similarity, held.quality, 1.0)
            bonus = _NOVELTY / math.sqrt(1.0 + held.told)
            own = held.known_gain + bonus
            if own > 0.0 and held.quality >= self.least:
                rated.append((self._each(features) + own, id, features))
        best = sorted(rated, reverse=True)[:k][::-1]
        if not best:
            return Chosen((), (), 0.0, ())
        chosen = [self._held[id] for _, id, _ in best]
        for held in chosen:
            held.uses = 1.0 + held.uses * _faded(now - held.used_s)
            held.used_s = now
        features_of = tuple(features for _, _, features in best)
        nearest, agreement = max(f[0] for f in features_of), _agreement([held.answer for held in chosen])
        quality = sum(held.quality for held in chosen) / len(chosen)
        together = (nearest, agreement, nearest * agreement, quality, 1.0)
        return Chosen(
            ids=tuple(held.id for held in chosen),
            pairs=tuple((held.question, held.answer) for held in chosen),
            utility=self._all(together) + self.curiosity * self._all.doubt(together),
            features=features_of,
            together=together,
        )

    def learn(self, chosen: Chosen, quality: float, plain: float | None = None) -> None:
        """The small model's answer with these examples (or without any) had this quality; ``plain`` was predicted of it
        without them."""
        if not chosen.ids:
            self._plain.add(quality)
            return
        gain = quality - (self._plain.value if plain is None else plain)
        self._all.learn(chosen.together, gain)
        for id, features in zip(chosen.ids, chosen.features, strict=True):
            held = self._held.get(id)
            if held is not None:
                # What one example does again and again says less and less of the others.
                self._each.learn(features, gain - held.known_gain, 1.0 / (1.0 + held.told))
                held.told = 1.0 + _MEMORY * held.told
                held.gain += (gain - held.gain) / held.told

    def judged(self, decision_id: str, quality: float) -> None:
        """An answer of the large model had this quality. A poor one is shown no more, until it is asked for again."""
        self._right.add(quality)
        held = self._held.get(self._made.get(decision_id, ""))
        if held is not None:
            held.quality = quality

    def replays(self, most: int, *, worth_usd: float, now: float) -> list[Replay]:
        """The examples that are worth asking the large model again for, when a right answer is worth ``worth_usd``; the
        best first.

        A new answer is right as often as its answers are; then the example adds what a right one as near adds, in as
        many requests as it was near to of late. It costs what the first answer did.
        """
        best, right = self._each((1.0, 1.0, 1.0)), self._right.value
        found = []
        for held in self._held.values():
            if held.asked and held.quality < 1.0:
                shown = held.quality >= self.least
                adds = max(0.0, self._each((1.0, held.quality, 1.0)) + held.known_gain) if shown else 0.0
                wanted = held.wanted * _faded(now - held.wanted_s)
                worth = wanted * right * (best - adds) * worth_usd - held.usd
                if worth > 0.0:
                    found.append(Replay(held.id, held.asked, worth))
        return sorted(found, key=lambda replay: -replay.worth_usd)[:most]

    def tried(self, id: str, now: float) -> None:
        """It has been asked again: whoever wants it again has to come first."""
        held = self._held.get(id)
        if held is not None:
            held.wanted, held.wanted_s = 0.0, now

    def replayed(self, id: str, answer: str, quality: float, now: float, decision_id: str = "") -> bool:
        """Another answer of the large model; kept if it is better."""
        self._right.add(quality)
        held = self._held.get(id)
        if held is None or quality <= held.quality:
            return False
        self._bytes -= held.size_bytes
        self._made.pop(held.decision_id, None)
        held.answer, held.quality, held.told, held.decision_id = answer, quality, 0.0, decision_id
        if decision_id:
            self._made[decision_id] = id
        self._bytes += held.size_bytes
        self._shrink(now)
        return id in self._held

    def remove(self, tenant: str) -> int:
        """Forget a tenant's examples; how many there were."""
        ids = [held.id for held in self._held.values() if held.tenant == tenant]
        for id in ids:
            self._drop(id)
        return len(ids)

    def _shrink(self, now: float) -> None:
        if self._bytes <= self.capacity_bytes:
            return
        # A tenth more goes at once, so that not every example that is added costs a look at all of them.
        order = sorted(self._held.values(), key=lambda held: self._density(held, now))
        for held in order:
            if self._bytes <= 0.9 * self.capacity_bytes:
                break
            self._drop(held.id)

    def _density(self, held: Example, now: float) -> float:
        """Dollars a byte. A new example has the benefit of the doubt: one use, and what similar ones add."""
        if held.quality < self.least:
            return 0.0
        uses = (held.uses + 1.0) * _faded(now - held.used_s)
        gain = max(0.0, self._each((1.0, held.quality, 1.0)) + held.known_gain)
        return uses * (gain + 1e-6) * (held.usd + 1e-9) / held.size_bytes

    def _drop(self, id: str) -> None:
        held = self._held.pop(id)
        self._made.pop(held.decision_id, None)
        self._bytes -= held.size_bytes
        self._near.remove((held.tenant, ""), id)


def _agreement(answers: Sequence[str]) -> float:
    """How far the others say the same as the last: the words they share over those of both, one half for the doubt."""
    *others, last = (frozenset(answer[:_WORDS_CHARS].casefold().split()) for answer in answers)
    shared = sum(len(last & other) / max(1, len(last | other)) for other in others)
    return (shared + 0.5) / (len(others) + 1.0)


def _faded(seconds: float) -> float:
    return math.exp2(-max(0.0, seconds) / _HALF_LIFE_S)


class _Mean:
    """A mean that follows; ``value`` before anything is known, which counts as ``n`` observations."""

    def __init__(self, value: float, n: float = 0.0) -> None:
        self.value, self._n = value, n

    def add(self, value: float) -> None:
        self._n = 1.0 + 0.99 * self._n
        self.value += (value - self.value) / self._n


class _Line:
    """Recursive least squares with a ridge of one around ``weights``."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._w = list(weights)
        self._p = [[float(i == j) for j in range(len(self._w))] for i in range(len(self._w))]

    def __call__(self, x: Sequence[float]) -> float:
        return sum(w * value for w, value in zip(self._w, x, strict=True))

    def doubt(self, x: Sequence[float]) -> float:
        """The standard deviation at ``x``, as a share of what it was before anything was known."""
        px = (sum(p * value for p, value in zip(row, x, strict=True)) for row in self._p)
        left = sum(a * b for a, b in zip(px, x, strict=True))
        return math.sqrt(max(0.0, left) / sum(value * value for value in x))

    def learn(self, x: Sequence[float], y: float, weight: float = 1.0) -> None:
        root = math.sqrt(weight)
        x, y = [root * value for value in x], root * y
        px = [sum(p * value for p, value in zip(row, x, strict=True)) for row in self._p]
        scale = 1.0 + sum(a * b for a, b in zip(px, x, strict=True))
        off = y - self(x)
        for i, a in enumerate(px):
            self._w[i] += a / scale * off
            for j, b in enumerate(px):
                self._p[i][j] -= a * b / scale
