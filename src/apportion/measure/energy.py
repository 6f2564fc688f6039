"""What an answer takes in energy and emits, exactly: whole numbers of micro-joules and micro-grams of CO2.

A machine that draws P watts while it works takes P joules in each server-second (of which requests at the same time
each have their share), and a grid that emits G grams for a kilowatt-hour emits G grams for each 3.6 million joules.
What is not known is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Self

Number = int | float | Decimal

_NS = 10**9
_JOULES_PER_KWH = 3_600_000


@dataclass(frozen=True, slots=True)
class Power:
    """The power that an endpoint draws while it works, and what the grid there emits for it."""

    joule: tuple[int, int]
    """Micro-joules in a nanosecond, as numerator and denominator."""
    gram: tuple[int, int] | None
    """Micro-grams of CO2 in a nanosecond; None where the grid is not known."""

    @classmethod
    def of(cls, watts: Number, gco2_per_kwh: Number | None = None) -> Self:
        """The power of ``watts`` from a grid that emits ``gco2_per_kwh`` grams for a kilowatt-hour.

        Floats count as the decimal numbers they are written as.
        """
        joules = Fraction(str(watts)) * 10**6 / _NS
        grams = None if gco2_per_kwh is None else joules * Fraction(str(gco2_per_kwh)) / _JOULES_PER_KWH
        return cls(joules.as_integer_ratio(), None if grams is None else grams.as_integer_ratio())

    def joules_units(self, server_ns: int) -> int:
        """Micro-joules of ``server_ns`` nanoseconds of work, to the nearest, halves up."""
        return _times(self.joule, server_ns)

    def gco2_units(self, server_ns: int) -> int | None:
        """Micro-grams of CO2 of ``server_ns`` nanoseconds of work, to the nearest, halves up; None: not known."""
        return None if self.gram is None else _times(self.gram, server_ns)

    def joules(self, server_s: float) -> float:
        """Joules of ``server_s`` seconds of work, for predictions."""
        return server_s * self.joule[0] / self.joule[1] * 1e3

    def gco2(self, server_s: float) -> float | None:
        """Grams of CO2 of ``server_s`` seconds of work, for predictions; None: not known."""
        return None if self.gram is None else server_s * self.gram[0] / self.gram[1] * 1e3


def _times(rate: tuple[int, int], server_ns: int) -> int:
    numerator, denominator = rate
    return (2 * numerator * server_ns + denominator) // (2 * denominator)
