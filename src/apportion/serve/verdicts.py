"""How good answers were, as far as anybody has said: the latest decisions, the words on each, what they come to.

Words come late, twice, in contradiction or never. Of each source the latest counts. Where a person has spoken only
persons count: their mean. Otherwise it is the mean of what the automatic sources say, each weighted by its precision
(the inverse of its variance): a failed form check says much, a passed one little. What it all comes to is taught when
a person speaks, or once the automatic ones have had their time; and again whenever it changes.

Memory is bounded: the latest decisions of this worker in a ring, a few words on each.
"""

from __future__ import annotations

import heapq
from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Literal, NamedTuple

import msgspec

from apportion.core.cost import Cost
from apportion.core.features import Features
from apportion.core.outcome import Outcome
from apportion.core.state import State

Kind = Literal["person", "exact", "check", "judge", "retry"]

_MOST_WORDS: Final = 16
"""Sources that are kept of one decision; the oldest goes."""
_MOST_RECALLED: Final = 1000
_SAME: Final = 1e-9
_PRECISION: Final[dict[Kind, tuple[float, float]]] = {
    "exact": (100.0, 100.0),
    "check": (25.0, 1.0),
    "judge": (4.0, 4.0),
    "retry": (2.0, 0.5),
}
"""Of a score below and above one half: that the form is wrong, or that somebody asks again, says more than that not."""


class Word(NamedTuple):
    """What one source says of an answer: ``score`` is in [0, 1]."""

    kind: Kind
    source: str
    score: float

    @property
    def precision(self) -> float:
        """How much it says, where no person has spoken."""
        bad, good = _PRECISION[self.kind]
        return bad if self.score < 0.5 else good


class Verdict(NamedTuple):
    """What is taught of a decision: ``quality`` in [0, 1] with a ``weight`` in (0, 1]. ``state`` is what was known when
    it was made. ``earlier`` is what was taught of it before.
    """

    decision_id: str
    model: str
    action: str
    endpoint: str
    upstream_model: str
    state: State | None
    quality: float
    weight: float
    sources: tuple[str, ...]
    predicted: float | None
    earlier: float | None

    def outcome(self) -> Outcome:
        """What a policy is told."""
        return Outcome(
            self.decision_id, "ok", self.action, Cost(), self.quality, state=self.state, revised=True
        )


class Packed(NamedTuple):
    """A state with its features as bytes: an embedding takes a tenth of the memory so. It comes back with single
    precision.
    """

    state: State
    lexical: bytes
    vector: bytes | None

    @classmethod
    def of(cls, state: State) -> Packed | State:
        """``state``, packed if it has features."""
        features = state.features
        if features is None:
            return state
        vector = features.vector
        return cls(
            replace(state, features=None),
            array("f", features.lexical).tobytes(),
            None if vector is None else array("f", vector).tobytes(),
        )

    def unpacked(self) -> State:
        """The state again."""
        vector = None if self.vector is None else tuple(array("f", self.vector))
        return replace(self.state, features=Features(tuple(array("f", self.lexical)), vector))


class Case(msgspec.Struct, kw_only=True):
    """One decision that words may come on."""

    id: str
    at: float
    key: str
    model: str
    action: str
    endpoint: str
    upstream_model: str
    state: State | Packed | None
    predicted: float | None = None
    """The quality that was predicted of the choice."""
    words: dict[tuple[Kind, str], Word] = msgspec.field(default_factory=dict)
    taught: float | None = None
    waiting: bool = False

    @property
    def quality(self) -> float:
        """What all words on it come to."""
        return combined([*self.words.values()])[0]


def combined(words: list[Word]) -> tuple[float, float]:
    """What at least one word comes to: quality, and weight in (0, 1]."""
    persons = [word.score for word in words if word.kind == "person"]
    if persons:
        return sum(persons) / len(persons), 1.0
    precision = sum(word.precision for word in words)
    quality = sum(word.precision * word.score for word in words) / precision
    return quality, precision / (1.0 + precision)


class Verdicts:
    """The latest ``capacity`` cases of one worker. ``teach`` is told what each comes to."""

    def __init__(self, capacity: int, teach: Callable[[Verdict], None]) -> None:
        self._capacity = max(1, capacity)
        self._ring: list[Case | None] = [None] * self._capacity
        self._teach = teach
        self._waiting: list[tuple[float, str]] = []
        self._recalled: OrderedDict[str, Case] = OrderedDict()

    def remember(self, case: Case) -> None:
        """Words may come on it from now on."""
        self._ring[self._place(case.id)] = case

    def recall(self, case: Case) -> None:
        """Remember an older one again, beside the latest."""
        self._recalled[case.id] = case
        if len(self._recalled) > _MOST_RECALLED:
            self._recalled.popitem(last=False)

    def find(self, id: str) -> Case | None:
        """The case of a decision id, if it is still kept here."""
        recalled = self._recalled.get(id)
        if recalled is not None:
            return recalled
        try:
            case = self._ring[self._place(id)]
        except ValueError:
            return None
        return case if case is not None and case.id == id else None

    def say(self, case: Case, word: Word, now: float, wait_s: float | None) -> bool:
        """Take a word; True if it changes what all come to. An automatic one is taught ``wait_s`` later; with None it
        waits until another one is.
        """
        words = case.words
        before = combined([*words.values()])[0] if words else None
        place = (word.kind, word.source)
        words.pop(place, None)
        words[place] = word
        if len(words) > _MOST_WORDS:
            del words[next(iter(words))]
        quality, _ = combined([*words.values()])
        if word.kind == "person" or (case.taught is not None and not case.waiting):
            self._conclude(case)
        elif not case.waiting and wait_s is not None:
            case.waiting = True
            heapq.heappush(self._waiting, (now + wait_s, case.id))
        return before is None or abs(before - quality) > _SAME

    def ripe(self, now: float) -> None:
        """Teach what has waited long enough. All of it: ``now`` is infinite."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= now:
            case = self.find(heapq.heappop(waiting)[1])
            if case is not None and case.waiting:
                self._conclude(case)

    def _conclude(self, case: Case) -> None:
        case.waiting = False
        words = [*case.words.values()]
        quality, weight = combined(words)
        earlier = case.taught
        if earlier is not None and abs(earlier - quality) <= _SAME:
            return
        case.taught = quality
        self._teach(
            Verdict(
                case.id,
                case.model,
                case.action,
                case.endpoint,
                case.upstream_model,
                case.state.unpacked() if isinstance(case.state, Packed) else case.state,
                quality,
                weight,
                tuple(word.source for word in words),
                case.predicted,
                earlier,
            )
        )

    def _place(self, id: str) -> int:
        return int(id[-8:], 16) % self._capacity
