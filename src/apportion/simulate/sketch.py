"""Quantiles of more numbers than are kept: counts in buckets that grow by a constant factor.

Counts are plain arrays whose last axis are the buckets, so that sketches are added, weighted and resampled with
ordinary arithmetic. Every quantile is within a relative error of `ERROR` of a number that was counted.

References
----------
C. Masson, J. E. Rim, H. K. Lee (2019). "DDSketch: A Fast and Fully-Mergeable Quantile Sketch with Relative-Error
Guarantees." PVLDB 12(12). arXiv:1908.10693
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

ERROR: Final = 0.005
"""Relative error of a quantile."""
LEAST: Final = 1e-6
"""What is smaller counts as 0 (in seconds: a microsecond)."""
MOST: Final = 1e7
_WIDTH: Final = math.log((1.0 + ERROR) / (1.0 - ERROR))
BUCKETS: Final = math.ceil(math.log(MOST / LEAST) / _WIDTH) + 2
"""The first is for 0, the last for everything from `MOST` on."""


def bucket(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bucket of each number (none of them nan)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.ceil(np.log(values / LEAST) / _WIDTH)
    return np.where(values <= LEAST, 0.0, np.clip(place, 1, BUCKETS - 1)).astype(np.int64)


def count(values: ArrayLike) -> NDArray[np.int64]:
    """How many of ``values`` are in each bucket: shape (`BUCKETS`,). Those that are not a number are left out."""
    array = np.asarray(values, np.float64)
    return np.bincount(bucket(array[~np.isnan(array)]), minlength=BUCKETS)


def edges() -> NDArray[np.float64]:
    """What stands for each bucket: shape (`BUCKETS`,)."""
    power = np.arange(BUCKETS, dtype=np.float64)
    found: NDArray[np.float64] = LEAST * np.exp(power * _WIDTH) * (1.0 - ERROR)
    found[0] = 0.0
    return found


def quantile(
    counts: NDArray[Any], share: float, buckets: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """The quantile of each sketch: ``counts`` has shape (..., `BUCKETS`), the answer (...), nan where nothing is
    counted. Within `ERROR` of the number whose rank is share * (n - 1), rounded down. ``buckets`` says which ones
    the last axis has, where the others are empty.
    """
    stands = edges() if buckets is None else edges()[buckets]
    if not len(stands):
        return np.full(counts.shape[:-1], np.nan)
    summed = np.cumsum(counts, axis=-1, dtype=np.float64)
    total = summed[..., -1]
    rank = np.floor(share * np.maximum(total - 1.0, 0.0) + 1e-9)
    place = np.argmax(summed > rank[..., None], axis=-1)
    return np.where(total > 0, stands[place], np.nan)
