"""Whether looking pays: what hits of a kind have saved against what the looks have cost.

With a hit rate h, a hit that saves ``s`` and a look that costs ``c`` (all in dollars), looking pays while h s > c:
the break-even hit rate is c / s [1]_. Both are measured, per category and with forgetting. A kind that does not pay is
still looked up now and then, so that a change is noticed.

.. [1] "Category-Aware Semantic Caching for Heterogeneous LLM Workloads" (2025).
"""

from __future__ import annotations

from typing import Final

_LEAST: Final = 200
"""Looks before anything is concluded."""
_MEMORY: Final = 4000
"""After so many looks all counts are halved."""
_EVERY: Final = 20
"""Of what does not pay, one look in so many is made."""


class BreakEven:
    """The account of one category. ``second_usd`` is what a second costs, of looking and of waiting alike."""

    __slots__ = ("_hits", "_looked_s", "_looks", "_passed", "_saved_usd", "second_usd")

    def __init__(self, second_usd: float) -> None:
        self.second_usd = second_usd
        self._looks = self._hits = self._saved_usd = self._looked_s = 0.0
        self._passed = 0

    @property
    def rate(self) -> float:
        """Hits per look, of late."""
        return self._hits / self._looks if self._looks else 0.0

    @property
    def pays(self) -> bool:
        """Whether looks bring more than they cost, as far as is known."""
        return self._looks < _LEAST or self._saved_usd >= self._looked_s * self.second_usd

    def due(self) -> bool:
        """Whether to look now."""
        if self.pays:
            return True
        self._passed += 1
        return self._passed % _EVERY == 0

    def looked(self, seconds: float) -> None:
        """A look was made and took so long."""
        if self._looks >= _MEMORY:
            self._looks, self._hits = self._looks / 2, self._hits / 2
            self._saved_usd, self._looked_s = self._saved_usd / 2, self._looked_s / 2
        self._looks += 1
        self._looked_s += seconds

    def hit(self, usd: float, seconds: float) -> None:
        """It found an answer that had cost so much and taken so long."""
        self._hits += 1
        self._saved_usd += usd + seconds * self.second_usd
