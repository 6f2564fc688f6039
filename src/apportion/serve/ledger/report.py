"""A report of spending as text, written while it is read: JSON and CSV, with totals that nothing is missing from."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from apportion.serve.ledger.buckets import moment
from apportion.serve.ledger.spend import Question, Row, Spent, told

OTHERS: Final = "(others)"
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
_UTC: Final = ZoneInfo("UTC")


class Tally:
    """Adds up all rows that pass, and lets the first ``limit`` of them through (all if None)."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.shown = Spent()
        """What the rows cost that were let through."""
        self.total = Spent()
        self.left_out = 0

    @property
    def others(self) -> Spent:
        """What the rows cost that were not let through."""
        return self.total.minus(self.shown)

    def first(self, found: Iterable[Row]) -> Iterator[Row]:
        """The rows that fit; when they end, `total` is whole."""
        for count, row in enumerate(found, 1):
            self.total = self.total.plus(row.spent)
            if self.limit is None or count <= self.limit:
                self.shown = self.total
                yield row
            else:
                self.left_out += 1


def as_json(
    question: Question, found: Iterable[Row], limit: int | None = None, *, total: Spent | None = None
) -> Iterator[str]:
    """One JSON object in pieces, a row a line. ``total`` is given where ``found`` is not all there is."""
    tally = Tally(limit)
    head = msgspec.json.encode(
        {
            "since": shown(question.since_us),
            "until": shown(question.until_us),
            "time_zone": question.place.key,
            "by": question.by,
            "only": {name: list(values) for name, values in question.only.items()},
        }
    ).decode()
    yield f'{head[:-1]},"rows":['
    mark = "\n"
    for row in tally.first(found):
        yield mark + msgspec.json.encode(row_object(question, row)).decode()
        mark = ",\n"
    whole = tally.total if total is None else total
    others = told(whole.minus(tally.shown)) if tally.left_out else None
    tail = msgspec.json.encode({"others": others, "total": told(whole)}).decode()
    yield f"\n],{tail[1:]}\n"


def as_csv(question: Question, found: Iterable[Row], limit: int | None = None) -> Iterator[str]:
    """Lines of CSV (RFC 4180): the names, then a row each; what ``limit`` leaves out is the last row."""
    tally = Tally(limit)
    yield csv_line((*question.by, *Spent._fields))
    for row in tally.first(found):
        yield csv_line((*map(cell, row.group), *_amounts(row.spent)))
    if tally.left_out:
        yield csv_line((*(OTHERS for _ in question.by), *_amounts(tally.others)))


def row_object(question: Question, row: Row) -> dict[str, object]:
    """A row as JSON carries it: its group by name, then the amounts."""
    return {**dict(zip(question.by, row.group, strict=True)), **told(row.spent)}


def shown(at_us: int | None) -> str | None:
    """An instant in ISO 8601, UTC."""
    if at_us is None:
        return None
    return moment(at_us, _UTC).isoformat().replace("+00:00", "Z")


def cell(text: str) -> str:
    """A text as a cell that no spreadsheet takes for a formula (OWASP, CSV injection)."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def csv_line(cells: Iterable[str]) -> str:
    """A line of CSV with its end."""
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue()


def _amounts(spent: Spent) -> Iterator[str]:
    return ("" if value is None else str(value) for value in told(spent).values())
