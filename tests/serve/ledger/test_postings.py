"""Which accounts an entry falls under, and with how much."""

from __future__ import annotations

import pytest
from teller import an_entry

from apportion.serve.ledger.entries import CORRECT, PRESUME, RELEASE, RESERVE, SETTLE
from apportion.serve.ledger.postings import Postings, posting, subject_of, subjects, token

SPENT = an_entry("r", SETTLE, tokens=7, usd=None, joules=3, requests=1, team="", user="a:b@c")


def test_subjects() -> None:
    assert subjects(SPENT) == [
        "all",
        "organisation:default",
        "key:alice",
        "user:a:b@c",
        "model:small",
        "endpoint:here",
    ]


@pytest.mark.parametrize(
    ("subject", "resource", "units"),
    [
        ("all", "tokens", 7),
        ("user:a:b@c", "tokens", 7),
        ("user:a", "tokens", 0),
        ("key:alice", "joules", 3),
        ("key:bob", "joules", 0),
        ("team:", "tokens", 0),
        ("team:red", "tokens", 0),
        ("all", "usd", 0),
        ("all", "gco2", 0),
        ("all", "parallel", 0),
        ("tags:x", "tokens", 0),
    ],
)
def test_one_account(subject: str, resource: str, units: int) -> None:
    assert posting(SPENT, subject, resource) == units
    together = Postings([("id", "b", subject, resource)])
    together.charge(SPENT)
    assert together.spent == {"id": units}


@pytest.mark.parametrize(
    ("kind", "counts"), [(RESERVE, 0), (SETTLE, 1), (RELEASE, 0), (PRESUME, 1), (CORRECT, 1)]
)
def test_only_what_was_spent_counts(kind: int, counts: int) -> None:
    entry = an_entry("r", kind, tokens=7)
    assert posting(entry, "all", "tokens") == 7 * counts
    assert Postings([("id", "b", "all", "tokens")]).charge(entry) == ",b," * counts


def test_a_correction_is_charged_where_the_presumption_was() -> None:
    both = Postings([("one", "a", "all", "tokens"), ("two", "b", "key:alice", "tokens")])
    assert both.charge(an_entry("r", CORRECT, tokens=-5), {"two"}) == ",b,"
    assert both.spent == {"one": 0, "two": -5}


def test_names_with_commas_stay_apart() -> None:
    charged = Postings([("1", "a,b", "all", "tokens"), ("2", "a%2Cb", "all", "tokens")]).charge(SPENT)
    assert charged.strip(",").split(",") == [token("a,b"), token("a%2Cb")]
    assert len({token(name) for name in ("a,b", "a%2Cb", "a%252Cb", "a", "b")}) == 5


def test_the_subject_of_an_account() -> None:
    assert subject_of("daily@team:red", "daily") == "team:red"
    assert subject_of("requests_per_minute@key:a@b", "requests_per_minute") == "key:a@b"
    assert subject_of("x@y@all", "x@y") == "all"
