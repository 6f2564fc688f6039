"""Questions that look alike and are not; questions that look different and are the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.serve.cache.check import Limits, conflict, difference, read, same, stem

LOOSE = Limits(most=1.0, least=0.0, balance=0.0, disorder=1.0)

DIFFERENT = [
    ("enable 2FA", "disable 2FA"),
    ("turn on 2FA", "turn off 2FA"),
    ("enable 2FA", "turn off 2FA"),
    ("turn the light off", "turn the light on"),
    ("How do I enable 2FA?", "How do I enable 3FA?"),
    ("How do I log in?", "How do I log out?"),
    ("Is ibuprofen safe with alcohol?", "Is ibuprofen safe without alcohol?"),
    ("What can I eat before surgery?", "What can I eat after surgery?"),
    ("Should I buy the stock?", "Should I sell the stock?"),
    ("flights from Paris to London", "flights from London to Paris"),
    ("flights from paris to london", "flights to paris from london"),
    ("convert celsius to fahrenheit", "convert fahrenheit to celsius"),
    ("Does Bob owe Ann?", "Does Ann owe Bob?"),
    ("3 red and 5 blue cars", "5 red and 3 blue cars"),
    ("What is 5% of 200?", "What is 15% of 200?"),
    ("10 km in miles", "10 kg in miles"),
    ("twenty-five cars", "twenty-six cars"),
    ("a dozen eggs", "half a dozen eggs"),
    ("the first king", "the second king"),
    ("Why can I vote?", "Why can't I vote?"),
    ("Which of them is alive?", "Which of them isn't alive?"),
    ("Who was Obama?", "When was Obama?"),
    ("When was Obama born?", "Where was Obama born?"),
    ("capital of France", "capital of Spain"),
    ("what is my name", "what is your name"),
    ("Did he win?", "Will he win?"),
    ("Did he win?", "Did she win?"),
    ("rename foo_bar", "rename foo_baz"),
    ("call f() first", "call g() first"),
    ("is x > 5", "is x < 5"),
    ("compute 5 - 3", "compute 5 + 3"),
    ("compute -5", "compute 5"),
    ('translate "cat"', 'translate "dog"'),
    ("Python 3.11.2", "Python 3.11.3"),
    ("open https://a.org/x", "open https://a.org/y"),
    ("mail bob@x.org", "mail rob@x.org"),
    ("sort ascending", "sort descending"),
    ("maximum of a list", "minimum of a list"),
    ("synchronous call", "asynchronous call"),
    ("what is x²", "what is x³"),
    ("Wie alt ist er?", "Wie groß ist er?"),
    ("¿Dónde está?", "¿Cuándo está?"),
    ("今天天气", "明天天气"),
    ("list all users", "list some users"),
    ("a[0]", "a{0}"),
    ("I like 👍", "I like 👎"),
]
ALIKE = [
    ("enable 2FA", "turn on 2FA"),
    ("How do I enable 2FA?", "how can I turn on 2FA"),
    ("turn the light off", "turn off the light"),
    ("What is the capital of France?", "Tell me the capital of France"),
    ("what's the capital of France", "What is the capital of France?"),
    ("Could you please tell me how to reset a password? Thanks!", "how to reset a password"),
    ("How many cats are there?", "how many cats are there"),
    ("twenty-five cars", "25 cars"),
    ("two hundred and six bones", "206 bones"),
    ("$5 coffee", "5 dollars coffee"),
    ("1,000 cars", "1000 car"),
    ("half of 80", "1/2 of 80"),
    ("50% of 80", "50 percent of 80"),
    ("5kg of flour", "5 kg flour"),
    ("buying a car", "purchase an automobile"),
    ("What can't I eat?", "what can not I eat"),
    ("the 3rd king", "the third king"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different(one: str, other: str) -> None:
    assert not same(read(one), read(other))
    assert not same(read(other), read(one))


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_alike(one: str, other: str) -> None:
    assert same(read(one), read(other))
    assert same(read(other), read(one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A shop sells 12 red cars.", "A shop sells 20 red cars."),
        ("He can enable it.", "He can disable it."),
        ("He has not seen it.", "He has seen it."),
        ("There Bob met Ann.", "There Ann met Bob."),
        ("Use `a` there.", "Use `b` there."),
        ("They counted 3 red and 5 blue ones.", "They counted 5 red and 3 blue ones."),
    ],
)
def test_some_differences_are_never_allowed(one: str, other: str) -> None:
    assert conflict(read(one), read(other)) is not None
    assert not same(read(one), read(other), LOOSE)


def test_a_small_edit_is_refused_where_another_wording_is_not() -> None:
    limits = Limits(most=0.9, disorder=1.0)
    asked = "Each day Tom eats 16 apples and 3 pears from his old garden behind the house"
    edited = "Each day Tom eats 16 apples and 3 pears from his old orchard behind the house"
    longer = f"{asked}, and afterwards another friend visits, bringing very tasty bread"
    reworded = "Tom consumes, daily, 16 apples plus 3 pears taken out of an ancient orchard near home"
    assert same(read(asked), read(reworded), limits)
    assert not same(read(asked), read(reworded))
    assert not same(read(asked), read(edited), limits)
    assert not same(read(asked), read(longer), limits)


words = st.lists(
    st.sampled_from("not 3 three cats Bob red to from enable disable the 'x' first % before why".split()),  # noqa: SIM905
    max_size=8,
).map(" ".join)
anything = st.text(max_size=40) | words


@settings(max_examples=300, deadline=None)
@given(anything, anything)
def test_symmetric_bounded_and_never_fails(one: str, other: str) -> None:
    a, b = read(one), read(other)
    assert (conflict(a, b) is None) == (conflict(b, a) is None)
    apart, back = difference(a, b), difference(b, a)
    assert apart.novelty == back.novelty
    assert apart.balance == back.balance
    assert abs(apart.disorder - back.disorder) < 1e-12
    assert all(0.0 <= share <= 1.0 for share in apart)
    assert same(a, b) == same(b, a)


@settings(max_examples=200, deadline=None)
@given(anything)
def test_the_same_text_is_the_same(text: str) -> None:
    assert same(read(text), read(text))
    assert same(read(text), read(f"  {text} "))


@settings(max_examples=200, deadline=None)
@given(words, st.integers(0, 7), st.sampled_from(["7", "not", "Paris", "blue", "`f`", "zwölf", "foo_bar"]))
def test_a_word_more_is_a_difference(text: str, place: int, word: str) -> None:
    parts = text.split()
    more = " ".join([*parts[:place], word, *parts[place:]])
    assert not same(read(text), read(more))


@pytest.mark.parametrize(
    "text", ["hi" + "!" * 4000, "please " * 500, "a." * 2000, "1" * 4000, "((" * 2000, "'" * 4000]
)
def test_long_and_strange_texts_are_read(text: str) -> None:
    assert same(read(text), read(text))


def test_stems() -> None:
    assert stem("running") == stem("runs") == stem("run")
    assert stem("cities") == stem("city")
    assert stem("boxes") == stem("box")
