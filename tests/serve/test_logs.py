"""The proxy's log: every fault is told, its traceback ever more rarely."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import msgspec
import pytest

from apportion.serve import logs
from apportion.serve.config.schema import Log

logger = logging.getLogger("apportion.tests.logs")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger("apportion")
    before = root.handlers[:], root.level, root.propagate
    yield
    root.handlers[:], root.level, root.propagate = before


def written(log: Log) -> io.StringIO:
    """Configure the log as the proxy does, and read what it writes."""
    logs.configure(log)
    handler = logging.getLogger("apportion").handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    out = io.StringIO()
    handler.setStream(out)
    return out


def fail(text: str, number: int) -> None:
    """Log a fault of two places."""
    try:
        if text == "here":
            raise ValueError(text)
        raise ValueError("there")
    except ValueError:
        logger.exception("request %d: failed", number)


@pytest.mark.parametrize("format", ["text", "json"])
def test_every_fault_is_told_and_its_traceback_at_the_powers_of_two(format: str) -> None:
    out = written(msgspec.convert({"format": format}, Log))
    for number in range(1, 21):
        fail("here", number)
    told = out.getvalue()
    assert told.count("Traceback (most recent call last)") == 5  # 1, 2, 4, 8, 16
    for number in range(1, 21):
        assert f"request {number}: failed" in told
    assert "request 20: failed (ValueError: here; time 20, as before)" in told
    assert "request 16: failed (" not in told


def test_faults_raised_in_another_place_are_others() -> None:
    out = written(msgspec.convert({}, Log))
    for number in range(3):
        fail("here", number)
    assert out.getvalue().count("Traceback (most recent call last)") == 2
    fail("there", 4)
    assert out.getvalue().count("Traceback (most recent call last)") == 3


def test_the_count_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_FAULTS", 1)
    out = written(msgspec.convert({}, Log))
    for number in range(6):
        fail("here" if number % 2 else "there", number)
    assert out.getvalue().count("Traceback (most recent call last)") == 6


def test_what_is_no_fault_stays_as_it_is() -> None:
    out = written(msgspec.convert({}, Log))
    logger.error("failed: %s", "why", exc_info=False)
    logger.error("failed", exc_info=(None, None, None))
    logger.exception("no fault under way")
    lines = out.getvalue().splitlines()
    assert lines[0].endswith("apportion.tests.logs: failed: why")
    assert "as before" not in out.getvalue()
