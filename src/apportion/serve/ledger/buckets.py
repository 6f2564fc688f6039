"""Hours, days, weeks and months of a time zone as whole numbers that a database computes from ``at_us``.

The database knows no time zones (SQLite has none, PostgreSQL its own tables of them). It is told the few instants
at which the zone's offset from UTC changed; between them a day is plain arithmetic. So a day in which the clock is
put forward has 23 hours on every database, and the two hours of the same name in autumn stay two hours.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import sqlalchemy as sa

from apportion.core.errors import ParameterError

PERIODS: Final = ("hour", "day", "week", "month")
"""What a report can be grouped by in time. Weeks begin on Monday (ISO 8601)."""

_HOUR_US: Final = 3_600_000_000
_DAY_US: Final = 24 * _HOUR_US
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY: Final = date(1970, 1, 1)
_MICROSECOND: Final = timedelta(microseconds=1)
_MONDAY: Final = 3
"""1970-01-01 was a Thursday, three days after a Monday."""


class Bucket(NamedTuple):
    """``number`` is what the database computes for a row, ``label`` how that number is written."""

    number: sa.ColumnElement[int]
    label: Callable[[int], str]


def zone(name: str) -> ZoneInfo:
    """The IANA time zone called ``name``. Raises `ParameterError` if there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ParameterError(
            f"There is no time zone {name[:60]!r}.",
            field="time_zone",
            fix="Use an IANA name such as UTC, Europe/Berlin or America/New_York.",
        ) from None


def instant_us(moment: datetime) -> int:
    """Whole microseconds of Unix time; ``moment`` has a zone."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(at_us: int, place: ZoneInfo) -> datetime:
    """The date and time on the clocks of ``place``."""
    return (_EPOCH + timedelta(microseconds=at_us)).astimezone(place)


def bucket(
    period: str, at_us: sa.ColumnElement[int], place: ZoneInfo, since_us: int, until_us: int
) -> Bucket:
    """The ``period`` (one of `PERIODS`) in which ``at_us`` falls, right for rows of ``[since_us, until_us)``."""
    if period == "month":
        return Bucket(_by_month(at_us, _months(place, since_us, until_us)), _month_label)
    offset_us = _offset(at_us, place, since_us, until_us)
    if period == "hour":
        # The instant at which the hour began: hours of one name with different offsets are different hours.
        return Bucket(
            (at_us + offset_us) // _HOUR_US * _HOUR_US - offset_us,
            lambda at: moment(at, place).isoformat(timespec="minutes").replace("+00:00", "Z"),
        )
    day = (at_us + offset_us) // _DAY_US
    if period == "week":
        return Bucket((day + _MONDAY) // 7, _week_label)
    return Bucket(day, _day_label)


def offsets(place: ZoneInfo, since_us: int, until_us: int) -> list[tuple[int, int]]:
    """``(from_us, offset_us)``: the offsets from UTC in ``[since_us, until_us)``, each with the instant from which
    it holds; the first holds from ``since_us``.
    """
    found = [(since_us, _offset_us(place, since_us))]
    low = since_us
    while low < until_us:
        high = min(low + _DAY_US, until_us)
        offset_us = _offset_us(place, high)
        if offset_us != found[-1][1]:
            before, after = low, high
            while after - before > 1:
                middle = (before + after) // 2
                if _offset_us(place, middle) == found[-1][1]:
                    before = middle
                else:
                    after = middle
            found.append((after, offset_us))
        low = high
    return found


def _offset_us(place: ZoneInfo, at_us: int) -> int:
    offset = moment(at_us, place).utcoffset()
    return 0 if offset is None else offset // _MICROSECOND


def _offset(
    at_us: sa.ColumnElement[int], place: ZoneInfo, since_us: int, until_us: int
) -> sa.ColumnElement[int]:
    found = offsets(place, since_us, until_us)
    last = sa.literal(found[-1][1], sa.BigInteger)
    if len(found) == 1:
        return last
    ends = [
        (at_us < end_us, sa.literal(offset_us, sa.BigInteger))
        for (_, offset_us), (end_us, _) in pairwise(found)
    ]
    return sa.case(*ends, else_=last)


def month_begin(
    at_us: sa.ColumnElement[int], place: ZoneInfo, since_us: int, until_us: int
) -> sa.ColumnElement[int]:
    """The instant at which the month of ``at_us`` began, right for rows of ``[since_us, until_us)``."""
    return _by_month(at_us, [(begin_us, begin_us) for begin_us, _ in _months(place, since_us, until_us)])


def _months(place: ZoneInfo, since_us: int, until_us: int) -> list[tuple[int, int]]:
    """``(begin_us, number)`` of the months that `[since_us, until_us)` touches; numbered since year 0."""
    first = moment(since_us, place)
    number = first.year * 12 + first.month - 1
    found: list[tuple[int, int]] = []
    while True:
        year, month = divmod(number, 12)
        begin_us = instant_us(datetime(year, month + 1, 1, tzinfo=place))
        if found and begin_us >= until_us:
            return found
        found.append((begin_us, number))
        number += 1


def _by_month(at_us: sa.ColumnElement[int], months: list[tuple[int, int]]) -> sa.ColumnElement[int]:
    """The value that belongs to the month of ``at_us``; the latest month is looked at first."""
    (_, earliest), *later = [(begin_us, sa.literal(value, sa.BigInteger)) for begin_us, value in months]
    if not later:
        return earliest
    return sa.case(*((at_us >= begin_us, value) for begin_us, value in reversed(later)), else_=earliest)


def _day_label(number: int) -> str:
    return (_EPOCH_DAY + timedelta(days=number)).isoformat()


def _week_label(number: int) -> str:
    year, week, _ = (_EPOCH_DAY + timedelta(days=number * 7 - _MONDAY)).isocalendar()
    return f"{year}-W{week:02d}"


def _month_label(number: int) -> str:
    return f"{number // 12:04d}-{number % 12 + 1:02d}"
