"""Counts of keys in little memory, with ageing: how often was this asked for lately?"""

from __future__ import annotations

import zlib

from apportion.core.eviction import Key
from apportion.policy.cache._saved import Part

_MOST = 15
_HALF = bytes(count >> 1 for count in range(256))
_ODD = 0x9E3779B97F4A7C15
_LOW = 0xFFFFFFFF
"""Rows take their index from low and high half of a product, added up in four ways."""


def number(key: Key) -> int:
    """A number for ``key``, the same in every process (the built-in hash of a string is not)."""
    return key if isinstance(key, int) else zlib.crc32(str(key).encode("utf-8", "surrogatepass"))


class CountMin(Part):
    """A count-min sketch of four rows of counters up to 15, all halved after ten additions per entry.

    Never counts too little since the last halving, too much where keys collide in all rows. The rows are doubled
    as the number of entries grows: a row's index is the low bits of a hash, so two copies of a row, end to end,
    say what it said.
    """

    def __init__(self) -> None:
        self._rows = [bytearray(64) for _ in range(4)]
        self._additions = 0

    def fit(self, entries: int) -> None:
        """Make room for this many entries: at least two counters each."""
        while len(self._rows[0]) < 2 * entries:
            self._rows = [row + row for row in self._rows]

    def add(self, key: Key) -> None:
        """``key`` was asked for."""
        mixed = (key if isinstance(key, int) else number(key)) * _ODD
        index, step = mixed & _LOW, mixed >> 32 & _LOW
        first, second, third, fourth = self._rows
        mask = len(first) - 1
        at = index & mask
        if first[at] < _MOST:
            first[at] += 1
        at = index + step & mask
        if second[at] < _MOST:
            second[at] += 1
        at = (index >> 16) + 3 * step & mask
        if third[at] < _MOST:
            third[at] += 1
        at = step & mask
        if fourth[at] < _MOST:
            fourth[at] += 1
        self._additions += 1
        if self._additions > 5 * mask:
            self._additions >>= 1
            self._rows = [row.translate(_HALF) for row in self._rows]

    def count(self, key: Key) -> int:
        """How often ``key`` was asked for, older requests counting less."""
        mixed = (key if isinstance(key, int) else number(key)) * _ODD
        index, step = mixed & _LOW, mixed >> 32 & _LOW
        first, second, third, fourth = self._rows
        mask = len(first) - 1
        return min(
            first[index & mask],
            second[index + step & mask],
            third[(index >> 16) + 3 * step & mask],
            fourth[step & mask],
        )
