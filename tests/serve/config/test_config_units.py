"""Durations and sizes, read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.serve.config.units import duration_s, show_duration, show_size, size_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("30s", 30), ("1.5m", 90), ("1h", 3600), ("1d", 86400), ("2w", 1209600), (" 5 s ", 5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("20MiB", 20971520), ("64KiB", 65536), ("1.5kb", 1500), ("512", 512)]
)
def test_sizes(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "s", "-5s", "5 parsecs", "1h30m", "nan", "1e400s", "5S"])
def test_what_is_no_duration(text: str) -> None:
    assert duration_s(text) is None


@pytest.mark.parametrize("text", ["", "MiB", "-1MiB", "0.3B", "5 pounds"])
def test_what_is_no_size(text: str) -> None:
    assert size_bytes(text) is None


@given(st.integers(0, 10**8))
def test_what_is_written_is_read_again(number: int) -> None:
    assert duration_s(show_duration(number / 1000)) == number / 1000
    assert size_bytes(show_size(number)) == number
