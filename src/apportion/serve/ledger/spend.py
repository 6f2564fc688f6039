"""Where the money went: what was booked in a stretch of time, grouped by the database, summed exactly.

Counted are the entries that say what something cost: settlements, presumed settlements and their corrections, each
when it was booked. A corrected presumption counts as what it was corrected to: its two entries have one status and
one mark. The database does the grouping and answers are streamed, so millions of entries need no memory here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from apportion.core.errors import ParameterError
from apportion.core.resource import GCO2, JOULES, SERVER_SECONDS, USD
from apportion.serve.config.units import duration_s
from apportion.serve.ledger.buckets import PERIODS, bucket, instant_us, month_begin
from apportion.serve.ledger.entries import CORRECT, PRESUME, SETTLE
from apportion.serve.ledger.schema import entries
from apportion.serve.ledger.sums import halves, whole

COLUMNS: Final = (
    "organisation",
    "team",
    "key",
    "user",
    "session",
    "model",
    "endpoint",
    "upstream_model",
    "api",
    "status",
    "mark",
)
"""What a report can be grouped by and filtered on, besides `PERIODS` (grouping only) and tags."""
TAG: Final = "tag:"
"""``tag:NAME`` groups by the tag called NAME."""
CORRECTION: Final = "correction"
"""Groups apart what corrects a presumption of an earlier month; "" for all the rest."""
SORTS: Final = ("usd", "by")
"""Most money first, or in the order of the groups' own values."""

_COST: Final = (SETTLE, PRESUME, CORRECT)
_GROUPS: Final = 8
_ROWS_AT_ONCE: Final = 2000


class Spent(NamedTuple):
    """Sums over some entries, in the smallest part of each resource.

    ``usd`` is what is known; of it ``usd_estimated`` was counted and not measured, and ``usd_presumed`` is the most
    that requests may have cost whose process died. ``unpriced`` attempts with ``unpriced_tokens`` had no price and
    are in no dollar amount. ``joules`` and ``gco2`` are None where no entry knows them.
    """

    requests: int = 0
    attempts: int = 0
    tokens: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    usd: int = 0
    usd_estimated: int = 0
    usd_presumed: int = 0
    unpriced: int = 0
    unpriced_tokens: int = 0
    server_seconds: int = 0
    joules: int | None = None
    gco2: int | None = None

    def plus(self, other: Spent) -> Spent:
        """Both together."""
        return Spent._make(
            None if a is None and b is None else (a or 0) + (b or 0) for a, b in zip(self, other, strict=True)
        )

    def minus(self, other: Spent) -> Spent:
        """What is left of this without the other, which is a part of it."""
        return Spent._make(None if a is None else a - (b or 0) for a, b in zip(self, other, strict=True))


_UNITS: Final = {
    "usd": USD,
    "usd_estimated": USD,
    "usd_presumed": USD,
    "server_seconds": SERVER_SECONDS,
    "joules": JOULES,
    "gco2": GCO2,
}
"""Of what each amount is a number of smallest parts; the others are counts."""


class Row(NamedTuple):
    """One group: its values in the order of `Question.by`, and what was spent."""

    group: tuple[str, ...]
    spent: Spent


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the ledger.

    ``by`` are columns, periods or tags (`grouping`). ``[since_us, until_us)`` in Unix microseconds; None is open.
    ``only`` maps columns, and ``tag:NAME``, to the values that count. Periods are those of ``place``.
    """

    by: tuple[str, ...] = ()
    since_us: int | None = None
    until_us: int | None = None
    place: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sort: str = "usd"


def grouping(text: str) -> tuple[str, ...]:
    """The groups named in ``model,team,day``. Raises `ParameterError` for one that does not exist."""
    names = tuple(name for part in text.split(",") if (name := part.strip()))
    known = (*COLUMNS, *PERIODS)
    for name in names:
        if name in known or (name.startswith(TAG) and len(name) > len(TAG)):
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ParameterError(
            f"Spending cannot be grouped by {name[:60]!r}.",
            field="by",
            fix=f"{hint}Known: {', '.join(known)}, {TAG}NAME.",
        )
    if len(set(names)) < len(names) or len(names) > _GROUPS:
        raise ParameterError(
            f"Spending can be grouped by up to {_GROUPS} different things.", field="by", fix="Name each once."
        )
    return names


_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ].*)?", re.ASCII)


def instant(text: str, now_s: float, place: ZoneInfo, field: str) -> int:
    """The instant meant by ``7d`` (before ``now_s``), ``2026-11-01`` or ``2026-11-01T08:00`` (on the clocks of
    ``place``, or with an offset of its own), in Unix microseconds. Raises `ParameterError` naming ``field``.
    """
    before_s = duration_s(text)
    try:
        if before_s is not None:
            return max(0, int(now_s * 1_000_000) - int(before_s * 1_000_000))
        if _DATE.fullmatch(text.strip()):
            told = datetime.fromisoformat(text.strip())
            return max(0, instant_us(told if told.tzinfo is not None else told.replace(tzinfo=place)))
    except (ValueError, OverflowError):
        pass
    raise ParameterError(
        f"{text[:60]!r} is no time.", field=field, fix="Use 7d, 12h, 2026-11-01 or 2026-11-01T08:00."
    )


def rows(connection: sa.Connection, question: Question, limit: int | None = None) -> Iterator[Row]:
    """The groups, the first ``limit`` of them, read from the database as they are taken. Without `Question.by` one
    row, even if nothing was booked.
    """
    question = _bounded(connection, question)
    dialect = connection.dialect.name
    sums = _sums(question)
    found = [_group(name, question, dialect) for name in question.by]
    groups = [value.label(f"group_{place}") for place, (value, _) in enumerate(found)]
    names = [group.name for group in groups]
    first = [_usd(sums).desc()] if question.sort == "usd" else []
    select = (
        sa.select(*groups, *(column for each in sums for column in each.columns))
        .where(*conditions(question, dialect))
        .group_by(*names)
        .order_by(*first, *names)
        .limit(limit)
    )
    streaming = {"stream_results": limit is None, "max_row_buffer": _ROWS_AT_ONCE}
    with connection.execute(select, execution_options=streaming) as read:
        for row in read:
            group = tuple(label(value) for (_, label), value in zip(found, row, strict=False))
            taken = iter(row[len(groups) :])
            yield Row(group, Spent._make(each.read(taken) for each in sums))


def total(connection: sa.Connection, question: Question) -> Spent:
    """All groups together."""
    ((_, spent),) = rows(connection, replace(question, by=()))
    return spent


def conditions(question: Question, dialect: str) -> list[sa.ColumnElement[bool]]:
    """What an entry must be to count for the question."""
    at_us = entries.c.at_us
    found: list[sa.ColumnElement[bool]] = [entries.c.kind.in_(_COST)]
    if question.since_us is not None:
        found.append(at_us >= question.since_us)
    if question.until_us is not None:
        found.append(at_us < question.until_us)
    for name, values in question.only.items():
        found.append(_column(name, question, dialect).in_(tuple(values)))
    return found


def told(spent: Spent) -> dict[str, object]:
    """The amounts as JSON carries them: counts are numbers, amounts exact decimal strings in their unit."""
    return {
        name: value if value is None or name not in _UNITS else exact(name, value)
        for name, value in spent._asdict().items()
    }


def exact(name: str, units: int) -> str:
    """An amount of `Spent` as a decimal number without exponent and without idle zeros."""
    text = f"{_UNITS[name].from_units(units):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def effective(column: str, question: Question) -> sa.ColumnElement[str]:
    """``status`` or ``mark`` of an entry; of a presumption what its correction says, if there is one by then."""
    later = entries.alias("later")
    said = [later.c.reservation == entries.c.reservation, later.c.kind == CORRECT]
    if question.until_us is not None:
        said.append(later.c.at_us < question.until_us)
    correction = sa.select(later.c[column]).where(*said).correlate(entries).scalar_subquery()
    own = entries.c[column]
    return sa.case((entries.c.kind == PRESUME, sa.func.coalesce(correction, own)), else_=own)


def tag(name: str, dialect: str) -> sa.ColumnElement[str]:
    """The value of the tag ``name`` of an entry as text; empty without."""
    tags = entries.c.tags
    if dialect == "sqlite":
        each = sa.func.json_each(tags).table_valued("key", "value")
        value: sa.ColumnElement[Any] = (
            sa.select(sa.cast(each.c.value, sa.Text)).where(each.c.key == name).correlate(entries)
        ).scalar_subquery()
        readable = tags != ""
    else:
        value = sa.cast(tags, JSONB)[name].astext
        # PostgreSQL has no text with NUL in it and would refuse the whole report for one such tag.
        readable = sa.and_(tags != "", sa.not_(tags.contains("\\u0000", autoescape=True)))
    return sa.case((readable, sa.func.coalesce(value, "")), else_="")


class _Sum:
    """The sum of one column in whole numbers of any size: what is not a count is summed in halves."""

    def __init__(self, name: str, value: sa.ColumnElement[Any]) -> None:
        self.halved = name in _UNITS
        parts = halves(value) if self.halved else (value,)
        self.columns = [sa.func.sum(part).label(f"{name}_{place}") for place, part in enumerate(parts)]
        self.empty = None if name in ("joules", "gco2") else 0

    def read(self, taken: Iterator[Any]) -> int | None:
        """The sum, from the next values of a row."""
        high = next(taken)
        if not self.halved:
            return self.empty if high is None else int(high)
        low = next(taken)
        return self.empty if high is None else whole(high, low)


def _sums(question: Question) -> list[_Sum]:
    c = entries.c
    mark = effective("mark", question)
    counted = sa.case((c.kind == CORRECT, 0), else_=1)
    unpriced = c.usd.is_(None)
    values: dict[str, sa.ColumnElement[Any]] = {
        "attempts": counted,
        "usd_estimated": sa.case((mark == "estimated", c.usd), else_=0),
        "usd_presumed": sa.case((mark == "presumed", c.usd), else_=0),
        "unpriced": sa.case((unpriced, counted), else_=0),
        "unpriced_tokens": sa.case((unpriced, c.tokens), else_=0),
    }
    return [_Sum(name, values[name] if name in values else c[name]) for name in Spent._fields]


def _usd(sums: Sequence[_Sum]) -> sa.ColumnElement[Any]:
    """Something to order by: exact on PostgreSQL, on SQLite beyond 64 bits to 15 digits."""
    high, low = sums[Spent._fields.index("usd")].columns
    return sa.func.coalesce(high * 2**32 + low, 0)


def _bounded(connection: sa.Connection, question: Question) -> Question:
    """The question with both ends known, where periods need them: whatever is written meanwhile is left out."""
    if not set(question.by) & {*PERIODS, CORRECTION}:
        return question
    first, end = extent(connection)
    since_us = first if question.since_us is None else max(first, question.since_us)
    until_us = end if question.until_us is None else min(end, question.until_us)
    return replace(question, since_us=since_us, until_us=max(since_us, until_us))


def extent(connection: sa.Connection) -> tuple[int, int]:
    """``[first, end)``: from when to when there are entries, in Unix microseconds; (0, 0) without any."""
    first, last = (connection.scalar(sa.select(end(entries.c.at_us))) for end in (sa.func.min, sa.func.max))
    return (0, 0) if first is None or last is None else (int(first), int(last) + 1)


def _group(name: str, question: Question, dialect: str) -> tuple[sa.ColumnElement[Any], Callable[[Any], str]]:
    within = (entries.c.at_us, question.place, question.since_us or 0, question.until_us or 0)
    if name in PERIODS:
        found = bucket(name, *within)
        return found.number, lambda value: found.label(int(value))
    if name == CORRECTION:
        begin_us = month_begin(*within)
        before = entries.alias("before")
        presumed_us = (
            sa.select(before.c.at_us)
            .where(before.c.reservation == entries.c.reservation, before.c.kind == PRESUME)
            .correlate(entries)
            .scalar_subquery()
        )
        late = sa.and_(entries.c.kind == CORRECT, presumed_us < begin_us)
        return sa.case((late, CORRECTION), else_=""), str
    return _column(name, question, dialect), str


def _column(name: str, question: Question, dialect: str) -> sa.ColumnElement[str]:
    if name.startswith(TAG):
        return tag(name.removeprefix(TAG), dialect)
    return effective(name, question) if name in ("status", "mark") else entries.c[name]
