"""Where the window of a budget begins, in the record's microseconds."""

from __future__ import annotations

import math
from typing import Final

from apportion.core.budget import Budget
from apportion.serve.ledger.postings import AMOUNTS

US: Final = 1_000_000
_PARTS: Final = 60
"""A sliding window forgets in so many steps (`core.sliding`): what is older by less than one may still count."""


def counts(budget: Budget) -> bool:
    """Whether its present window is a stretch of entries. Buckets forget as they fill; ``parallel`` is never spent."""
    return budget.refill_per_s is None and budget.resource in AMOUNTS


def begin_us(budget: Budget, now_us: int) -> int:
    """From when on entries may count in the window of ``now_us``; 0 for ever."""
    if budget.sliding and budget.window_s is not None:
        return max(0, now_us - math.ceil(budget.window_s * US * (_PARTS + 1) / _PARTS))
    begin_s = budget.window(now_us / US)[0]
    return 0 if begin_s == -math.inf else max(0, math.floor(begin_s * US))


def over_us(budget: Budget, died_us: int, lease_s: float) -> int | None:
    """When nothing that was spent at ``died_us`` counts any more; None: never."""
    if budget.refill_per_s is not None:
        return died_us + math.ceil(2 * lease_s * US)
    if budget.sliding and budget.window_s is not None:
        return died_us + math.ceil(budget.window_s * US * (_PARTS + 1) / _PARTS)
    end_s = budget.window(died_us / US)[1]
    return None if end_s == math.inf else math.ceil(end_s * US)
