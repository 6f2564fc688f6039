"""The lexical features: what they must tell apart, in several languages, and what must not break them."""

from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import catalogue
from apportion.core.errors import ParameterError
from apportion.predict.text import lexical as module
from apportion.predict.text.lexical import Lexical

LEXICAL = Lexical()


def said(turn: str, before: str = "", **facts: float) -> dict[str, float]:
    return dict(zip(LEXICAL.names, LEXICAL.features(turn, before, facts), strict=True))


@given(
    st.text(max_size=300),
    st.text(max_size=300),
    st.dictionaries(
        st.sampled_from(["messages", "tools", "images", "files", "system_chars"]), st.integers(0, 10**6)
    ),
)
@settings(max_examples=200, deadline=None)
def test_any_text_gives_as_many_modest_numbers(turn: str, before: str, facts: dict[str, float]) -> None:
    found = LEXICAL.features(turn, before, facts)
    assert len(found) == len(LEXICAL.names) == len(set(LEXICAL.names))
    assert all(math.isfinite(value) and 0.0 <= value <= 5.0 for value in found)
    assert found == LEXICAL.features(turn, before, facts)


SEQUENCES = (
    ". ",
    ".\n",
    "B.",
    "B)",
    "\nB",
    "\n- ",
    "\n* ",
    "\n2",
    "\n•",
    "```",
    "___",
    "...",
    "http",
    "sqrt",
    "def ",
    "return ",
)
SCRAPS = st.sampled_from((*SEQUENCES, *'aBπ≤?？؟,，、。！"{$7é-*_` '))
COUNTED = {
    "stops": ((". ", ".\n", "。", "！", "।"), 5.0),
    "asks": (("?", "？", "؟"), 3.0),
    "commas": ((",", "，", "、"), 5.0),
    "code": (("```", "def ", "return ", *"{};<>=_#"), 5.0),
    "maths": (("sqrt", *"√∫∑≤≥π", *"\\$^+|"), 5.0),
    "choices": (("\nB", "B)", "B."), 3.0),
    "bullets": (("\n- ", "\n* ", "\n2", "\n•"), 4.0),
    "quotes": (('"',), 4.0),
    "links": (("http",), 3.0),
    "blanks": (("___", "..."), 3.0),
}


@given(st.lists(SCRAPS | st.text(max_size=5), max_size=60).map("".join))
@settings(max_examples=500, deadline=None)
def test_marks_are_counted_as_if_one_by_one(text: str) -> None:
    found = said(text)
    for name, (marks, scale) in COUNTED.items():
        assert found[name] == math.log1p(sum(text.count(mark) for mark in marks)) / scale, name
    chars = len(text) or 1
    for name, kind in (("digits", "0123456789"), ("capitals", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")):
        assert found[name] == min(sum(text.count(mark) for mark in kind) / chars * 5.0, 1.0), name


def test_lone_surrogates_and_long_texts_do_no_harm() -> None:
    assert all(map(math.isfinite, LEXICAL.features("\ud800" * 5_000, "\udfff")))
    assert all(0 <= value < 2 for value in LEXICAL.features("a, b. 1 " * 200_000))


@pytest.mark.parametrize(
    ("turn", "tokens"),
    [
        ("Write an essay of 2000 words on bees.", 2600),
        ("Write an essay of 2,000 words on bees.", 2600),
        ("A 500-word story, please", 650),
        ("Answer in one word.", 1.3),
        ("In two short sentences: what is entropy?", 50),
        ("Schreibe drei Absätze über Bienen", 360),
        ("Écris un texte de 300 mots", 420),
        ("写一篇2000字的文章", 2000),
        ("Напиши текст на 400 слов", 1000),
        ("Give me 10 examples", 500),
        ("What is a word?", 1.3),
        ("Sentences are made of words.", 0),
        ("Tell me about 1984 and the pages of history", 0),
    ],
)
def test_the_length_that_is_asked_for(turn: str, tokens: float) -> None:
    found = said(turn)
    assert found["asked_length"] == pytest.approx(math.log1p(tokens) / 10)
    assert found["asks_length"] == float(tokens > 0)


@pytest.mark.parametrize(
    ("kind", "turns"),
    [
        ("write", ["Write a poem", "Schreibe ein Gedicht", "Écris un poème", "напиши стих", "写诗"]),
        ("translate", ["Translate this", "Übersetze das", "traduce esto", "переведи это", "翻译这个"]),
        ("asks_why", ["Why is it so?", "Warum ist das so?", "pourquoi pas", "почему так", "なぜですか"]),
        ("brief", ["be brief", "kurz bitte", "brevemente", "кратко и коротко", "简短回答"]),
        (
            "implement",
            ["implement quicksort", "schreib eine Funktion", "una función", "напиши код", "写代码"],
        ),
        ("asks_what", ["what is it", "welche Farbe", "¿Qué es esto?", "что это", "这是什么"]),
    ],
)
def test_demands_are_seen_in_several_languages(kind: str, turns: list[str]) -> None:
    for turn in turns:
        assert said(turn)[kind] == 1.0, turn
    assert said("The sky above the port was grey.")[kind] == 0.0


def test_marks() -> None:
    code = said("```python\ndef f(x):\n    return {x: 1}\n```")
    maths = said(r"Compute $\int_0^1 x^2 + \sqrt{x}$")
    choices = said("Which is it?\nA. one\nB. two\nC. three\nD. four")
    plain = said("Which of these is the tallest building in the world today")
    assert code["code"] > 0.3 > plain["code"]
    assert maths["maths"] > 0.3 > plain["maths"]
    assert choices["choices"] > 0.2 > plain["choices"]
    assert said("Is it?")["ends_with_question"] == said("是吗？")["ends_with_question"] == 1.0
    assert said("It is.")["ends_with_question"] == 0.0
    assert said("数据")["wide"] > said("данные")["wide"] > said("data")["wide"] == 0.0


def test_yes_after_a_plan_is_not_trivial() -> None:
    plan = "Here is my plan:\n" + "\n".join(f"- step {i}: implement and debug function {i}" for i in range(9))
    alone, answering = said("yes"), said("yes", plan, messages=6)
    assert answering["implement"] == answering["answers"] == 1.0
    assert alone["implement"] == alone["answers"] == 0.0
    assert answering["bullets"] > alone["bullets"]
    assert answering["turn_chars"] == alone["turn_chars"]
    assert answering["before_chars"] > 0.4
    new = said(
        "Now something else entirely: "
        + "what is the tallest mountain of the whole continent of Asia, and by how much?",
        plan,
    )
    assert new["implement"] == new["answers"] == 0.0


def test_tools_do_not_make_everything_complex() -> None:
    """97 tools move the one number that is theirs."""
    with_, without = said("What time is it?", tools=97), said("What time is it?")
    assert {name for name in with_ if with_[name] != without[name]} == {"tools"}


def test_facts_are_taken_from_the_whole_where_the_text_was_cut() -> None:
    cut = said("abc", "x" * 100, turn_chars=50_000, before_chars=90_000)
    assert cut["turn_chars"] == pytest.approx(math.log1p(50_000) / 10)
    assert cut["before_chars"] == pytest.approx(math.log1p(90_000) / 12)
    capped = said("abc", max_output_tokens=256, json=True)
    assert (capped["capped"], capped["json"]) == (1.0, 1.0)
    assert capped["cap"] == pytest.approx(math.log1p(256) / 12)


def test_it_is_a_method_of_the_catalogue() -> None:
    assert isinstance(catalogue.build("text/lexical", short_turn_chars=10), Lexical)
    assert catalogue.describe("text/lexical").papers
    with pytest.raises(ParameterError, match="short_turn_chars"):
        Lexical(short_turn_chars=-1)
    assert doctest.testmod(module).failed == 0
