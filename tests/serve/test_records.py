"""The ring of decisions: what is found, what is gone, what is said."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.core.cost import Cost
from apportion.core.decision import Decision
from apportion.core.option import Option
from apportion.measure.usage import Usage
from apportion.serve.call import NO_CONSTRAINTS
from apportion.serve.records import Attempt, Record, Records, cost, explain, owner, usd


def record(id: str, *attempts: Attempt, status: str = "ok") -> Record:
    return Record(
        id,
        "req_1",
        1.0,
        "alice",
        {},
        "chat",
        "m",
        False,
        NO_CONSTRAINTS,
        list(attempts),
        None,
        status,
        0.5,
        0.001,
    )


def attempt(units: int | None = 5, *, failure: str | None = None, estimated: bool = False) -> Attempt:
    options = [Option("a", 1.0, Cost(usd=0.5)), Option("b", 1.0, Cost(usd=0.7))]
    decision = Decision("dec_1", 0, "a", 1.0, {"usd": 1.0}, options, (0.5, 0.3), "the most worth")
    usage = Usage(input_tokens=3, output_tokens=2, estimated=estimated)
    return Attempt(
        decision,
        "a",
        "m",
        "failed" if failure else "ok",
        usage,
        units,
        0.1,
        1.0,
        1.5,
        None,
        "stop",
        failure,
        200,
        False,
    )


@given(st.integers(1, 20), st.integers(0, 60))
def test_the_latest_are_kept_and_no_others(capacity: int, count: int) -> None:
    records = Records(capacity, 3)
    ids = [f"dec_{records.number()}" for _ in range(count)]
    for id in ids:
        records.keep(record(id))
    for i, id in enumerate(ids):
        found = records.find(id)
        assert (found is not None) == (i >= count - capacity)
        assert found is None or found.id == id
        assert owner(id) == 3


def test_kept_out_of_order() -> None:
    """A long request is kept when it ends, maybe when its place is another's already: the younger stays."""
    records = Records(2, 0)
    ids = [f"dec_{records.number()}" for _ in range(4)]
    for i in (1, 2, 3, 0):
        records.keep(record(ids[i]))
    assert sum(records.find(i) is not None for i in ids) == 2


def test_ids_of_workers_and_of_restarts_differ() -> None:
    numbers = {Records(4, worker).number() for worker in (0, 1, 255) for _ in range(50)}
    assert len(numbers) == 150
    assert {owner(f"dec_{n}") for n in numbers} == {0, 1, 255}
    assert {len(n) for n in numbers} == {18}


@pytest.mark.parametrize(
    "id",
    [
        "",
        "dec_",
        "x",
        "dec_" + "0" * 17,
        "dec_" + "0" * 19,
        "0" * 18,
        "req_" + "0" * 18,
        "dec_" + "g" * 18,
        "dec_" + "0" * 10,
        "dec_" + "\u0660" * 18,
        "dec_-0000000000000000",
        "../../etc/passwd",
        "dec_" + "0" * 9 + "_" + "0" * 8,
        "dec_\0" + "0" * 17,
        "dec_01" + "f" * 12 + "\r\n\r\n",
        "dec_" + "0" * 17 + "\n",
        "dec_" + "0" * 18 + "\n",
        "dec_" + " " * 2 + "0" * 16,
    ],
)
def test_what_is_no_id_is_not_found(id: str) -> None:
    records = Records(4, 0)
    records.keep(record(f"dec_{records.number()}"))
    assert records.find(id) is None
    assert owner(id) is None


@given(st.text(max_size=30))
def test_any_id_may_be_asked_for(id: str) -> None:
    assert Records(4, 0).find(id) is None
    owner(id)


@given(st.integers(0, 10**20))
def test_dollars_are_exact(units: int) -> None:
    assert Decimal(usd(units)) * 10**12 == units
    assert "e" not in usd(units).lower()
    assert json.loads(usd(units), parse_float=Decimal, parse_int=Decimal) * 10**12 == units


@pytest.mark.parametrize(
    ("attempts", "said"),
    [
        ([], (None, "unknown")),
        ([attempt(5)], (5, "measured")),
        ([attempt(5), attempt(6)], (11, "measured")),
        ([attempt(5), attempt(6, estimated=True)], (11, "estimated")),
        ([attempt(5, estimated=True), attempt(6)], (11, "estimated")),
        ([attempt(5), attempt(None)], (None, "unknown")),
        ([attempt(0)], (0, "measured")),
    ],
)
def test_the_cost_of_all_attempts(attempts: list[Attempt], said: tuple[int | None, str]) -> None:
    assert cost(attempts) == said
    shown = explain(record("dec_1", *attempts))["outcome"]
    assert shown["cost_mark"] == said[1]
    assert shown["cost_usd"] == (None if said[0] is None else usd(said[0]))


def test_it_is_explained_in_words_and_numbers() -> None:
    shown = json.loads(
        json.dumps(explain(record("dec_1", attempt(0, failure="refused"), attempt(5 * 10**10))))
    )
    words = shown["explanation"]
    assert words.count("Chose a of 2 options") == 2
    assert "It failed: refused. Then another was tried." in words
    assert "It cost $0.05." in words
    first = shown["attempts"][0]
    assert [o["chosen"] for o in first["options"]] == [True, False]
    assert [o["worth_usd"] for o in first["options"]] == [0.5, 0.3]
    assert (first["duration_ms"], first["failure"], first["prices"]) == (500.0, "refused", {"usd": 1.0})
    assert (shown["outcome"]["input_tokens"], shown["outcome"]["output_tokens"]) == (6, 4)


def test_before_and_without_an_attempt() -> None:
    assert "being answered" in explain(record("dec_1", status="running"))["explanation"]
    assert "No endpoint" in explain(record("dec_1", status="refused"))["explanation"]
    unknown = explain(record("dec_1", attempt(None)))["explanation"]
    assert "What it cost is unknown." in unknown
