"""What words on an answer come to: persons before machines, the latest of each, taught when it is time and once."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.core.features import Features
from apportion.core.state import State
from apportion.serve.verdicts import Case, Kind, Packed, Verdict, Verdicts, Word, combined

KINDS: tuple[Kind, ...] = ("person", "exact", "check", "judge", "retry")
words = st.builds(Word, st.sampled_from(KINDS), st.sampled_from("abc"), st.floats(0, 1))


def case(number: int = 1, **more: object) -> Case:
    given = {"key": "red", "model": "chat", "action": "small", "endpoint": "small", "upstream_model": "m"}
    return Case(id=f"dec_00aaaaaaaa{number:08x}", at=0.0, state=None, **(given | more))  # type: ignore[arg-type]


class Class:
    """Is taught."""

    def __init__(self, capacity: int = 100) -> None:
        self.taught: list[Verdict] = []
        self.verdicts = Verdicts(capacity, self.taught.append)
        self.case = case()
        self.verdicts.remember(self.case)

    def say(
        self, kind: Kind, score: float, *, source: str = "x", now: float = 0.0, wait_s: float = 20.0
    ) -> bool:
        return self.verdicts.say(self.case, Word(kind, source, score), now, wait_s)

    @property
    def qualities(self) -> list[float]:
        return [verdict.quality for verdict in self.taught]


@given(st.lists(words, min_size=1, max_size=8))
def test_a_mean_lies_between_the_words(said: list[Word]) -> None:
    quality, weight = combined(said)
    assert min(w.score for w in said) - 1e-9 <= quality <= max(w.score for w in said) + 1e-9
    assert 0.0 < weight <= 1.0


@given(st.lists(words, min_size=1, max_size=8), st.floats(0, 1))
def test_a_person_decides(said: list[Word], score: float) -> None:
    machines = [word for word in said if word.kind != "person"]
    assert combined([*machines, Word("person", "p", score)]) == (score, 1.0)


@pytest.mark.parametrize(
    ("said", "quality"),
    [
        ([Word("check", "a", 1.0), Word("judge", "b", 0.0)], 1 / 5),
        ([Word("check", "a", 0.0), Word("judge", "b", 1.0)], 4 / 29),
        ([Word("exact", "a", 1.0), Word("check", "b", 0.0)], 100 / 125),
        ([Word("retry", "a", 0.0), Word("judge", "b", 1.0)], 4 / 6),
        ([Word("person", "a", 1.0), Word("person", "b", 0.0), Word("exact", "c", 0.0)], 1 / 2),
    ],
)
def test_precision_weighs(said: list[Word], quality: float) -> None:
    assert combined(said)[0] == pytest.approx(quality)


def test_more_evidence_weighs_more() -> None:
    passed, judged = Word("check", "a", 1.0), Word("judge", "b", 1.0)
    weights = [
        combined(said)[1] for said in ([passed], [judged], [passed, judged], [Word("person", "p", 1.0)])
    ]
    assert weights == sorted(weights)
    assert weights[0] == 0.5
    assert weights[-1] == 1.0


def test_a_person_is_heard_at_once_and_a_machine_after_a_while() -> None:
    school = Class()
    assert school.say("check", 1.0, now=5.0)
    school.verdicts.ripe(24.0)
    assert school.taught == []
    school.say("judge", 0.0, now=10.0)
    school.verdicts.ripe(25.0)
    assert school.qualities == [pytest.approx(0.2)]
    school.say("person", 1.0)
    assert school.qualities == [pytest.approx(0.2), 1.0]
    assert school.taught[1].earlier == pytest.approx(0.2)
    assert school.taught[1].outcome().revised


def test_a_person_takes_the_place_of_what_waits() -> None:
    school = Class()
    school.say("check", 0.0)
    school.say("person", 1.0)
    school.verdicts.ripe(math.inf)
    assert school.qualities == [1.0]


def test_the_same_word_again_teaches_nothing() -> None:
    school = Class()
    assert school.say("person", 1.0)
    assert not school.say("person", 1.0)
    assert school.qualities == [1.0]


def test_the_latest_word_of_a_source_counts_and_sources_are_averaged() -> None:
    school = Class()
    school.say("person", 1.0, source="ann")
    school.say("person", 0.0, source="ann")
    school.say("person", 1.0, source="bob")
    assert school.qualities == [1.0, 0.0, 0.5]


def test_what_comes_after_it_was_taught_is_taught_again() -> None:
    school = Class()
    school.say("check", 1.0, now=0.0)
    school.verdicts.ripe(20.0)
    school.say("judge", 0.5, now=100.0)
    assert school.qualities == [1.0, pytest.approx(0.6)]
    school.verdicts.ripe(math.inf)
    assert len(school.taught) == 2


def test_one_that_waits_long_holds_up_no_other() -> None:
    school = Class()
    school.say("check", 1.0, wait_s=1000.0)
    other = case(2)
    school.verdicts.remember(other)
    school.verdicts.say(other, Word("check", "x", 0.0), 1.0, 5.0)
    school.verdicts.ripe(10.0)
    assert [v.decision_id for v in school.taught] == [other.id]


def test_memory_is_bounded() -> None:
    school = Class(capacity=10)
    for number in range(1, 1000):
        one = case(number)
        school.verdicts.remember(one)
        for source in range(30):
            school.verdicts.say(one, Word("check", f"s{source}", 1.0), 0.0, 1.0)
        assert len(one.words) <= 16
    assert school.verdicts.find(case(5).id) is None
    assert school.verdicts.find(case(995).id) is not None
    assert school.verdicts.find("dec_nonsense") is None
    school.verdicts.ripe(math.inf)
    assert len(school.taught) <= 10


@pytest.mark.parametrize("vector", [None, (0.6, -0.8)])
def test_a_state_is_packed_and_comes_back(vector: tuple[float, ...] | None) -> None:
    state = State(3.0, [], "dec_1", {"a": 1}, {"usd": 1.0}, Features((1.0, 2.5, math.inf), vector))
    packed = Packed.of(state)
    assert isinstance(packed, Packed)
    again = packed.unpacked()
    assert again.features is not None
    assert again.features.lexical == (1.0, 2.5, math.inf)
    assert again.features.vector == (None if vector is None else pytest.approx(vector, abs=1e-7))
    assert (again.now, again.id, again.request, again.prices) == (3.0, "dec_1", {"a": 1}, {"usd": 1.0})
    assert state.features is not None
    plain = State(3.0, [])
    assert Packed.of(plain) is plain
