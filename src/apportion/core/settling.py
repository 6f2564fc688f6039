"""When finished requests are settled: many at a time, a moment later.

The client has its answer already; settling a few milliseconds later, many at a time, costs a third of settling each
on its own. Whoever decides meanwhile has not been told of them yet, live and in simulation.
"""

from __future__ import annotations

from typing import Final

DELAY_S: Final = 0.004
"""Seconds after the first that waits."""
BATCH: Final = 32
"""So many are settled at once, however soon."""
