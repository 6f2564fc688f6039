"""The log of decisions: what is written is read again, whatever became of the files in between."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.core.cost import Cost
from apportion.core.features import Features
from apportion.core.option import Option
from apportion.measure.decision_log import (
    VERSION,
    DecisionLogError,
    Entry,
    Header,
    Offered,
    Word,
    line,
    read,
    records,
)

numbers = st.none() | st.floats(0, 1)
options = st.lists(
    st.builds(
        lambda action, value, usd, load, quality, sd, weight: Option(
            action, value, Cost(usd=usd), load=load, quality=quality, quality_sd=sd, weight=weight
        ),
        st.text(min_size=1, max_size=10),
        st.floats(-1, 1),
        st.floats(0, 1),
        numbers,
        numbers,
        numbers,
        st.floats(0, 10),
    ),
    min_size=1,
    max_size=5,
)


def entry(id: str = "dec_1", at: float = 1.0, **more: object) -> Entry:
    given = {
        "model": "chat",
        "options": [Offered("small", 0.01, {"usd": 0.001}), Offered("large", 0.02, {"usd": 0.01})],
        "choice": 1,
        "probability": 0.25,
    }
    return Entry(id=id, at=at, **(given | more))  # type: ignore[arg-type]


@given(options=options, at=st.floats(0, 1e10), lexical=st.none() | st.lists(st.floats(-1e6, 1e6), max_size=4))
def test_a_state_comes_back(
    tmp_path_factory: pytest.TempPathFactory, options: list[Option], at: float, lexical: list[float] | None
) -> None:
    file = tmp_path_factory.mktemp("log") / "a.jsonl"
    written = entry(at=at, options=[Offered.of(o) for o in options], choice=0, lexical=lexical)
    file.write_bytes(line(Header(VERSION, 0, 0.0)) + line(written))
    (row,) = read([file]).rows
    state = row.entry.state()
    assert state.options == options
    assert (state.now, state.id) == (at, "dec_1")
    assert state.features == (None if lexical is None else Features(tuple(lexical)))
    assert row.entry.action == options[0].action


def test_what_json_cannot_carry_is_unknown(tmp_path: Path) -> None:
    option = Option(
        "a", math.nan, Cost(usd=math.inf, tokens=3.0), load=math.inf, facts={"a": object(), "b": 1}
    )
    written = entry(options=[Offered.of(option)], choice=0, prices={"usd": math.nan}, lexical=(1.0, math.inf))
    (tmp_path / "a.jsonl").write_bytes(line(written))
    (row,) = read([tmp_path]).rows
    state = row.entry.state()
    assert state.options == [Option("a", 0.0, Cost(tokens=3.0), facts={"b": 1})]
    assert state.prices == {}
    assert state.features == Features((1.0, 0.0))


def test_the_latest_word_counts_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(line(entry()) + line(entry("dec_2")))
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        for at, quality in ((5.0, 1.0), (9.0, 0.0), (7.0, 0.5)):
            file.write(line(Word(id="dec_1", at=at, source="user", score=quality, quality=quality)))
    log = read([tmp_path])
    assert [(row.entry.id, row.quality) for row in log.rows] == [("dec_1", 0.0), ("dec_2", None)]
    assert log.words == 3


def test_a_word_is_on_the_attempt_that_answered(tmp_path: Path) -> None:
    failed, answered = entry(attempt=1, status="failed"), entry(attempt=2, choice=0)
    word = Word(id="dec_1", at=2.0, source="user", score=1.0, quality=1.0)
    (tmp_path / "a.jsonl").write_bytes(line(failed) + line(answered) + line(word))
    assert [(r.entry.attempt, r.quality) for r in read([tmp_path]).rows] == [(1, None), (2, 1.0)]


def test_torn_and_foreign_lines_are_counted(tmp_path: Path) -> None:
    whole = line(entry())
    (tmp_path / "a.jsonl").write_bytes(b"\n" + whole + b'{"kind":"other"}\n' + whole[:40])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(line(entry("dec_2")) * 500)[:-20])
    log = read([tmp_path])
    assert {row.entry.id for row in log.rows} >= {"dec_1"}
    assert log.broken == 3


def test_a_file_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(line(entry()))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line(entry())))
    assert len(read([tmp_path]).rows) == 1


def test_one_model_can_be_read_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(line(entry()) + line(entry("dec_2", model="other")))
    assert [row.entry.id for row in read([tmp_path], model="other").rows] == ["dec_2"]


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(line(Header(VERSION + 1, 0, 0.0)))
    with pytest.raises(DecisionLogError, match="newer apportion"):
        list(records([tmp_path]))


@pytest.mark.parametrize("name", ["absent", "."])
def test_no_log_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DecisionLogError):
        read([tmp_path / name])
