"""Offsets of a zone: every change found to the second, none made up."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from apportion.core.errors import ParameterError
from apportion.serve.ledger.buckets import instant_us, moment, offsets, zone

HOUR_US = 3_600_000_000


def at(text: str) -> int:
    return instant_us(datetime.fromisoformat(text).replace(tzinfo=UTC))


def test_a_year_in_berlin() -> None:
    found = offsets(zone("Europe/Berlin"), at("2026-01-01"), at("2027-01-01"))
    assert found == [
        (at("2026-01-01"), HOUR_US),
        (at("2026-03-29T01:00"), 2 * HOUR_US),
        (at("2026-10-25T01:00"), HOUR_US),
    ]


def test_half_an_hour_on_lord_howe() -> None:
    found = offsets(zone("Australia/Lord_Howe"), at("2026-06-01"), at("2026-12-01"))
    assert [offset_us / HOUR_US for _, offset_us in found] == [10.5, 11]
    assert found[1][0] == at("2026-10-03T15:30")


def test_a_day_that_never_was() -> None:
    found = offsets(zone("Pacific/Apia"), at("2011-12-29"), at("2012-01-02"))
    assert found == [(at("2011-12-29"), -10 * HOUR_US), (at("2011-12-30T10:00"), 14 * HOUR_US)]


def test_nothing_changes_in_utc_nor_in_no_time() -> None:
    assert offsets(zone("UTC"), 0, at("2100-01-01")) == [(0, 0)]
    assert offsets(zone("Europe/Berlin"), at("2026-03-29"), at("2026-03-29")) == [(at("2026-03-29"), HOUR_US)]


def test_moments_go_there_and_back() -> None:
    place = zone("America/New_York")
    for text in ("2026-11-01T05:30", "2026-11-01T06:30", "2026-03-08T07:00"):
        assert instant_us(moment(at(text), place)) == at(text)


@pytest.mark.parametrize(
    "name", ["", "Mars/Olympus", "../etc/passwd", "/etc/passwd", "Europe", "x" * 500, "a\0b"]
)
def test_what_is_no_zone(name: str) -> None:
    with pytest.raises(ParameterError) as caught:
        zone(name)
    assert caught.value.field == "time_zone"
