"""The traces: requests as (key, size) in order."""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path
from typing import NamedTuple

from apportion.policy.cache._cold_rl_training import Request

DATA = Path(os.environ.get("APPORTION_DATA", Path(__file__).parents[3] / "shared" / "data"))
SHARES = (0.01, 0.05, 0.2)
"""Cache sizes, as shares of the sizes of all distinct keys."""


class Trace(NamedTuple):
    """Keys renumbered by first use, and their sizes."""

    name: str
    keys: list[int]
    sizes: list[int]

    @property
    def sized(self) -> bool:
        """Whether sizes differ."""
        return len(set(self.sizes)) > 1

    @property
    def footprint(self) -> int:
        """The sizes of all distinct keys together."""
        return sum(dict(zip(self.keys, self.sizes, strict=True)).values())

    def capacity(self, share: float) -> int:
        """A cache for this share of the footprint: ten entries at least."""
        return max(int(share * self.footprint), 10)

    def log(self) -> list[Request]:
        """As Cold-RL is trained on it, a request per second."""
        return [
            Request(float(place), key, size)
            for place, (key, size) in enumerate(zip(self.keys, self.sizes, strict=True))
        ]


def load(most: int) -> list[Trace]:
    """All traces that are there; the first ``most`` requests of each."""
    if not DATA.is_dir():
        raise SystemExit(f"There is no data at {DATA}: set APPORTION_DATA.")
    found = [_keys(path) for path in sorted(DATA.glob("cache_traces_caffeine/*.csv.gz"))]
    found += [_keys(path) for path in sorted(DATA.glob("cache_trace_arc_oltp/*.csv.gz"))]
    found += [_blocks(path) for path in sorted(DATA.glob("cache_trace_cloudphysics/*.csv.gz"))]
    found += [_prefixes(path) for path in sorted(DATA.glob("mooncake_fast25/*.csv.gz"))]
    return [Trace(trace.name, trace.keys[:most], trace.sizes[:most]) for trace in found]


def _name(path: Path) -> str:
    return path.name.removesuffix(".csv.gz")


def _rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") as file:
        return list(csv.DictReader(file))


def _keys(path: Path) -> Trace:
    rows = _rows(path)
    keys = [int(row["key"]) for row in rows]
    first: dict[int, int] = {}
    for key, row in zip(keys, rows, strict=True):
        first.setdefault(key, max(int(row.get("size_bytes") or 1), 1))
    return Trace(_name(path), keys, [first[key] for key in keys])


def _blocks(path: Path) -> Trace:
    """A read or write of some bytes at a place; another length at the same place is another entry."""
    numbers: dict[tuple[str, int], int] = {}
    pairs = [(row["lbn"], max(int(row["size"]), 1)) for row in _rows(path)]
    keys = [numbers.setdefault(pair, len(numbers)) for pair in pairs]
    return Trace("cloudphysics", keys, [size for _, size in pairs])


def _prefixes(path: Path) -> Trace:
    """The blocks of 512 prompt tokens of every request, in order."""
    keys = [int(block) for row in _rows(path) for block in row["block_ids"].split()]
    return Trace(_name(path), keys, [1] * len(keys))
