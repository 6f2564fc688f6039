"""Sums of 64-bit amounts that are exact beyond 64 bits on any database.

SQLite adds up in 64 bits, which hold 9.2 million dollars in pico-dollars. So the high and the low half of each number
are summed apart; each sum is good for four thousand million rows.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Integer, literal

_BITS: Final = 32
_LOW: Final = (1 << _BITS) - 1


def halves(amount: ColumnElement[Any]) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """The high and the low half of a number, to be summed apart. The high one carries the sign."""
    return amount.bitwise_rshift(literal(_BITS, Integer)), amount.bitwise_and(_LOW)


def whole(high: int | None, low: int | None) -> int:
    """What the two sums are together; 0 for those of no row."""
    return (int(high or 0) << _BITS) + int(low or 0)
