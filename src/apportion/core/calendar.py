"""Days, weeks and months of a time zone as intervals of Unix time, numbered one after the other."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, tzinfo
from functools import lru_cache
from typing import Final, Literal

Calendar = Literal["day", "week", "month"]

CALENDARS: Final[dict[str, float]] = {"day": 86400.0, "week": 604800.0, "month": 2629746.0}
"""Mean lengths in seconds (of a Gregorian month: 400 years are 4800 of them)."""


@lru_cache(maxsize=64)
def zone(name: str) -> tzinfo | None:
    """The time zone called ``name`` in the IANA database; None if this machine knows none of that name.

    UTC needs no database.
    """
    if name == "UTC":
        return UTC
    import zoneinfo  # most budgets need none

    try:
        return zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return None


def index(calendar: Calendar, place: tzinfo, time_s: float) -> int:
    """The number of the interval that ``time_s`` (Unix seconds) falls in."""
    day = datetime.fromtimestamp(math.floor(time_s), place).date()
    if calendar == "month":
        found = day.year * 12 + day.month - 1
    else:
        found = day.toordinal() if calendar == "day" else (day.toordinal() - 1) // 7
    while start_s(calendar, place, found + 1) <= time_s:
        found += 1  # clocks were set back over midnight: the next day has begun, though they show this one
    return found


def start_s(calendar: Calendar, place: tzinfo, number: int) -> float:
    """When interval ``number`` begins: the first moment at which the clocks there show its first day.

    Weeks begin on Monday. ``number`` + 1 begins where it ends; a day that was left out is empty.
    """
    if calendar == "month":
        day = date(number // 12, number % 12 + 1, 1)
    else:
        day = date.fromordinal(number if calendar == "day" else number * 7 + 1)
    midnight = datetime(day.year, day.month, day.day, tzinfo=place)
    late = int(midnight.timestamp())
    if _shows(late, place) == midnight.replace(tzinfo=None):
        return float(late)
    early = late - 2 * 86400  # there is no such midnight: the day begins when the clocks are put forward
    while late - early > 1:
        middle = (early + late) // 2
        if _shows(middle, place).date() < day:
            early = middle
        else:
            late = middle
    return float(late)


def _shows(time_s: int, place: tzinfo) -> datetime:
    return datetime.fromtimestamp(time_s, place).replace(tzinfo=None, fold=0)
