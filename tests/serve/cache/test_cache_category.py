"""What kind of question it is, and whether looking for it pays."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.serve.cache import category
from apportion.serve.cache.breakeven import BreakEven
from apportion.serve.cache.category import BUILT_IN, Categories, kind, patterns_at_fault
from apportion.serve.cache.settings import Category


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("What is the weather in Paris?", "volatile"),
        ("latest news on rust", "volatile"),
        ("what is my account balance", "volatile"),
        ("where is the nearest station", "volatile"),
        ("Write a Python function that sorts a list", "code"),
        ("`x = 3` fails, why", "code"),
        ("Who wrote Faust?", "factual"),
        ("I feel tired", "chat"),
        (
            "Tom has 3 apples and buys 4 more for 5 dollars each, then eats two of them. How many apples has he left?",
            "problem",
        ),
    ],
)
def test_built_in_kinds(text: str, want: str) -> None:
    assert kind(text) == want


_OF_PATTERNS = sorted(
    set(
        re.findall(
            r"[a-z]+", category._VOLATILE.pattern + category._NUMBER.pattern + category._FACTUAL.pattern
        )
    )
)


@given(st.lists(st.sampled_from([*_OF_PATTERNS, "the", "cat", "3", "1.5"]), max_size=30), st.randoms())
def test_capitals_make_no_difference(words: list[str], random: Random) -> None:
    text = " ".join(random.choice((word, word.upper(), word.title())) for word in words)
    for pattern in (category._VOLATILE, category._NUMBER, category._FACTUAL):
        ignoring = re.compile(pattern.pattern, re.IGNORECASE)
        assert pattern.findall(text.lower()) == [found.lower() for found in ignoring.findall(text)]


def test_configured_kinds_go_first_and_fill_in_from_the_built_in_ones() -> None:
    categories = Categories(
        {
            "billing": Category(match=["invoice"], ttl_s=5.0, quota=0.2),
            "live": Category(tags=["live"], models=["oracle"]),
            "code": Category(threshold=0.99),
        }
    )
    assert categories.of("my Invoice is wrong", "m") == "billing"
    assert categories.of("Who wrote Faust?", "m", ("live",)) == "live"
    assert categories.of(None, "oracle") == "live"
    assert categories.of(None, "m") == "chat"
    assert categories["billing"] == BUILT_IN["chat"]._replace(ttl_s=5.0, quota=0.2)
    assert categories["code"] == BUILT_IN["code"]._replace(threshold=0.99)
    assert categories.quotas() == {"billing": 0.2}


def test_patterns_at_fault_are_named() -> None:
    faults = patterns_at_fault({"a": Category(match=["(", "fine"])})
    assert [fault[:2] for fault in faults] == [("a", "(")]


def test_looking_pays_exactly_above_break_even() -> None:
    """A look costs 0.1 s, a hit saves 2 s: the break-even hit rate is 5%."""
    for rate, pays in ((0.04, False), (0.06, True)):
        account = BreakEven(second_usd=0.01)
        for number in range(1000):
            account.looked(0.1)
            if number % 100 < 100 * rate:
                account.hit(0.0, 2.0)
        assert account.rate == pytest.approx(rate)
        assert account.pays is pays


def test_what_does_not_pay_is_tried_now_and_then_and_may_come_back() -> None:
    account = BreakEven(second_usd=1.0)
    for _ in range(200):
        assert account.due()
        account.looked(1.0)
    assert sum(account.due() for _ in range(200)) == 10
    for _ in range(300):
        account.looked(1.0)
        account.hit(10.0, 0.0)
    assert account.due()
    for _ in range(20_000):
        account.looked(1.0)
    assert not account.pays
