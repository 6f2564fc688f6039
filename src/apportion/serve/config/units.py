"""Durations, sizes and moments as people write them: ``250ms``, ``1d``, ``20MiB``, ``2027-01-31T12:00:00Z``."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_NUMBER_AND_UNIT = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]*)\s*")

_DURATIONS_S = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}

_SIZES_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}


def duration_s(text: str) -> float | None:
    """Seconds of ``250ms``, ``30s``, ``5m``, ``1h``, ``1d`` or ``2w``; None if it is none of these."""
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None or match[2] not in _DURATIONS_S:
        return None
    number = float(match[1])
    # Dividing keeps 250ms at exactly 0.25, which multiplying by 0.001 would not promise.
    return number / 1000 if match[2] == "ms" else number * _DURATIONS_S[match[2]]


def size_bytes(text: str) -> int | None:
    """Bytes of ``512``, ``64KiB``, ``20MiB`` or ``1GB``; None if it is none of these or not whole."""
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None or (unit := match[2].lower() or "b") not in _SIZES_BYTES:
        return None
    size = float(match[1]) * _SIZES_BYTES[unit]
    return int(size) if size.is_integer() else None


def moment_s(text: str) -> float | None:
    """Unix seconds of an ISO 8601 date and time with its zone; None if it is none, or has no zone."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return None if moment.tzinfo is None else moment.timestamp()


def show_moment(seconds: float) -> str:
    """Unix seconds as ISO 8601 in UTC: ``2027-01-31T12:00:00Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def show_duration(seconds: float) -> str:
    """The shortest exact way to write a duration: ``250ms``, ``30s``, ``5m``, ``1h``, ``1d``."""
    if seconds == 0:
        return "0s"
    for unit in ("d", "h", "m", "s"):
        number = seconds / _DURATIONS_S[unit]
        if number.is_integer():
            return f"{int(number)}{unit}"
    milliseconds = round(seconds * 1000)
    return f"{milliseconds}ms" if milliseconds / 1000 == seconds else f"{seconds!r}s"


def show_size(size: int) -> str:
    """The shortest exact way to write a size: ``20MiB``, ``64KiB``, ``1000B``."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % _SIZES_BYTES[unit.lower()] == 0:
            return f"{size // _SIZES_BYTES[unit.lower()]}{unit}"
    return f"{size}B"
