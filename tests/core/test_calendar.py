"""Days, weeks and months begin when the clocks of their place first show them, whatever is done to the clocks."""

from __future__ import annotations

import zoneinfo
from bisect import bisect_right
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apportion.core import Account, Budget, BudgetError
from apportion.core.calendar import CALENDARS, Calendar

PLACES = [
    ("UTC", 2024),
    ("Europe/Berlin", 2024),
    ("America/New_York", 2025),
    ("Asia/Kathmandu", 2023),
    ("Australia/Lord_Howe", 2024),  # moves by half an hour
    ("America/Sao_Paulo", 2017),  # puts midnight forward to one o'clock
    ("Africa/Cairo", 2024),  # has one day of 23 hours that begins at one o'clock
    ("America/Havana", 2024),  # has midnight twice
    ("America/St_Johns", 2006),  # is set back from a minute past midnight to the day before
    ("Pacific/Apia", 2011),  # left out the 30th of December
    ("America/Toronto", 1919),  # was put forward from 23:30 to 00:30
]
ZONES = sorted(zoneinfo.available_timezones() - {"localtime", "Factory"})


def first_day(calendar: Calendar, day: date) -> date:
    if calendar == "month":
        return day.replace(day=1)
    return day - timedelta(days=day.weekday()) if calendar == "week" else day


def observed_starts(calendar: Calendar, name: str, year: int) -> list[tuple[float, date]]:
    """By looking at the clock each quarter of an hour, then each second: when a later first day is shown."""
    place = zoneinfo.ZoneInfo(name)
    start = int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) - 40 * 86400

    def shown(at: int) -> date:
        return first_day(calendar, datetime.fromtimestamp(at, place).date())

    found: list[tuple[float, date]] = []
    latest = shown(start)
    for at in range(start, start + 440 * 86400, 900):
        if shown(at) > latest:
            second = next(s for s in range(at - 899, at + 1) if shown(s) > latest)
            latest = shown(second)
            found.append((float(second), latest))
    return found


@pytest.mark.parametrize("calendar", get_args(Calendar))
@pytest.mark.parametrize(("name", "year"), PLACES)
def test_windows_are_those_that_the_clocks_show(calendar: Calendar, name: str, year: int) -> None:
    budget = Budget("b", "tokens", 1, calendar=calendar, time_zone=name)
    observed = observed_starts(calendar, name, year)
    assert len(observed) > {"day": 430, "week": 60, "month": 13}[calendar]
    starts = [at for at, _ in observed]
    windows = list(pairwise(starts))
    for start, end in windows:
        for at in (start, start + 0.5, (start + end) / 2, end - 1.0, end - 1e-6):
            assert budget.window(at) == (start, end)
    numbers = [budget.number(start) for start in starts]
    left_out = 1 if (name, calendar) == ("Pacific/Apia", "day") else 0
    assert numbers[-1] - numbers[0] == len(numbers) - 1 + left_out


def test_the_observer_sees_what_is_known() -> None:
    """One day of 23 hours and one of 25 a year in Berlin; the summer began on 31 March 2024 at 01:00 UTC."""
    starts = [at for at, _ in observed_starts("day", "Europe/Berlin", 2024)]
    lengths = [b - a for a, b in pairwise(starts)]
    assert sorted(set(lengths)) == [23 * 3600.0, 24 * 3600.0, 25 * 3600.0]
    at = datetime(2024, 3, 31, 1, tzinfo=UTC).timestamp()
    assert lengths[bisect_right(starts, at) - 1] == 23 * 3600.0


@settings(max_examples=400, deadline=None)
@given(
    calendar=st.sampled_from(get_args(Calendar)),
    name=st.sampled_from(ZONES),
    now=st.floats(0.0, 4e9),
)
@example("day", "America/St_Johns", 1162092000.0)
@example("month", "Asia/Tokyo", 951868799.9999999)
def test_a_window_begins_with_its_first_day_everywhere(calendar: Calendar, name: str, now: float) -> None:
    budget = Budget("b", "tokens", 1, calendar=calendar, time_zone=name)
    start, end = budget.window(now)
    assert start <= now < end
    assert budget.window(start) == (start, end)
    assert budget.window(end)[0] == end
    place = zoneinfo.ZoneInfo(name)
    shown = datetime.fromtimestamp(start, place).date()
    before = datetime.fromtimestamp(start - 1.0, place).date()
    assert first_day(calendar, shown) == shown > before
    assert abs((end - start) / CALENDARS[calendar] - 1.0) < (0.1 if calendar != "day" else 1.01)


def test_an_account_is_full_again_at_midnight_of_its_place() -> None:
    budget = Budget("b", "tokens", 100, calendar="day", time_zone="America/New_York")
    short = datetime(2025, 3, 9, 12, tzinfo=UTC).timestamp()  # a day of 23 hours
    midnight = datetime(2025, 3, 10, 4, tzinfo=UTC).timestamp()
    account = Account(budget)
    assert account.spend(100, short)
    assert account.wait_s(1, short) == 16 * 3600.0
    assert account.available_units(midnight - 1e-6) == 0
    assert account.window_spent_units(midnight - 1e-6) == 100
    assert account.available_units(midnight) == 100
    assert account.window_spent_units(midnight) == 0
    account.settle(0, 250, midnight)
    wait = account.wait_s(1, midnight)
    assert wait == 2 * 86400.0, "150 are owed, so two more days go by"


def test_a_month_and_a_leap_day() -> None:
    budget = Budget("b", "tokens", 100, calendar="month")
    leap = datetime(2024, 2, 29, 23, tzinfo=UTC).timestamp()
    account = Account(budget)
    assert account.reserve(70, leap)
    assert account.available_units(leap + 3599.0) == 30
    assert account.wait_s(31, leap) is None, "an open reservation keeps its room"
    account.settle(70, 70, leap)
    assert account.wait_s(31, leap) == 3600.0
    assert account.available_units(leap + 3600.0) == 100


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "Europe"])
def test_an_unknown_place_is_named(name: str) -> None:
    with pytest.raises(BudgetError, match="a time zone that this machine knows") as caught:
        Budget("b", "tokens", 1, calendar="day", time_zone=name)
    assert caught.value.field == "time_zone"
