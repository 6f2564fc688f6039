"""Reports as text: whole totals, exact amounts, cells that are no formulas."""

from __future__ import annotations

import csv
import io
import json

import pytest

from apportion.serve.ledger.report import Tally, as_csv, as_json, cell
from apportion.serve.ledger.spend import Question, Row, Spent

FOUND = [
    Row((f"k{n}", "2026-11-21"), Spent(requests=1, attempts=1, usd=10**n, joules=n or None)) for n in range(5)
]
QUESTION = Question(by=("key", "day"), since_us=0, only={"team": ("red",)})


def test_json_is_one_object() -> None:
    made = json.loads("".join(as_json(QUESTION, iter(FOUND))))
    assert made["by"] == ["key", "day"]
    assert (made["since"], made["until"], made["time_zone"]) == ("1970-01-01T00:00:00Z", None, "UTC")
    assert made["only"] == {"team": ["red"]}
    assert [row["key"] for row in made["rows"]] == ["k0", "k1", "k2", "k3", "k4"]
    assert made["rows"][1]["usd"] == "0.00000000001"
    assert made["rows"][0]["joules"] is None
    assert made["total"]["usd"] == "0.000000011111"
    assert made["others"] is None


def test_what_a_limit_leaves_out_is_in_the_total() -> None:
    made = json.loads("".join(as_json(QUESTION, iter(FOUND), 2)))
    assert len(made["rows"]) == 2
    assert made["others"]["usd"] == "0.0000000111"
    assert made["others"]["requests"] == 3
    assert made["total"]["usd"] == "0.000000011111"


def test_a_total_may_be_known_already() -> None:
    made = json.loads("".join(as_json(QUESTION, iter(FOUND[:3]), 2, total=Spent(usd=10**6, requests=50))))
    assert made["others"]["requests"] == 48
    assert made["total"]["usd"] == "0.000001"


def test_nothing_at_all_is_still_json() -> None:
    made = json.loads("".join(as_json(Question(by=("key",)), iter(()))))
    assert made["rows"] == []
    assert made["total"]["usd"] == "0"


def test_csv() -> None:
    lines = list(csv.reader(io.StringIO("".join(as_csv(QUESTION, iter(FOUND), 3)))))
    assert lines[0][:4] == ["key", "day", "requests", "attempts"]
    assert len({len(cells) for cells in lines}) == 1
    usd = lines[0].index("usd")
    assert [cells[usd] for cells in lines[1:]] == [
        "0.000000000001",
        "0.00000000001",
        "0.0000000001",
        "0.000000011",
    ]
    assert lines[4][:3] == ["(others)", "(others)", "2"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_spreadsheet_takes_a_name_for_a_formula(start: str) -> None:
    hostile = f'{start}HYPERLINK("http://evil")'
    row = Row((hostile, "x"), Spent(usd=-5))
    lines = list(csv.reader(io.StringIO("".join(as_csv(QUESTION, iter([row]))), newline="")))
    assert lines[1][0] == f"'{hostile}"
    assert lines[1][lines[0].index("usd")] == "-0.000000000005"
    assert cell("harmless=1") == "harmless=1"


def test_rows_are_written_as_they_come() -> None:
    taken = []

    def rows():  # type: ignore[no-untyped-def]
        for row in FOUND:
            taken.append(row)
            yield row

    made = as_csv(QUESTION, rows())
    next(made)
    assert taken == []
    next(made)
    assert len(taken) == 1


def test_a_tally_keeps_no_rows() -> None:
    tally = Tally(1)
    assert len(list(tally.first(FOUND))) == 1
    assert (tally.left_out, tally.shown.usd, tally.others.usd, tally.total.usd) == (4, 1, 11110, 11111)
