"""Cold-RL's two workloads, generated: periodic bursts of what is asked for once, and sizes that differ widely."""

from __future__ import annotations

import itertools
import random

from benchmarks.eviction.traces import Trace


def bursts(seed: int, n: int = 40_000) -> Trace:
    """Favourites by Zipf's law, and every so often a burst of fresh entries that are asked for once, or twice."""
    generator = random.Random(seed)
    weights = list(itertools.accumulate(1.0 / (rank + 1) ** 0.9 for rank in range(2000)))
    sizes = [int(generator.lognormvariate(9.0, 0.6)) + 1 for _ in range(2000)]
    keys, found, fresh = list[int](), list[int](), 10**6
    while len(keys) < n:
        if len(keys) % 1000 < 600:
            key = generator.choices(range(2000), cum_weights=weights)[0]
            keys.append(key)
            found.append(sizes[key])
        else:
            fresh += 1
            size = int(generator.lognormvariate(9.5, 0.3)) + 1
            again = 1 + (generator.random() < 0.1)
            keys += [fresh] * again
            found += [size] * again
    return Trace("periodic bursts", keys[:n], found[:n])


def mixed_sizes(seed: int, n: int = 40_000) -> Trace:
    """Many small entries that are popular, some a thousand times as large that are not."""
    generator = random.Random(seed)
    weights = list(itertools.accumulate(1.0 / (rank + 1) ** 0.8 for rank in range(4000)))
    large = [generator.random() < 0.2 for _ in range(4000)]
    sizes = [int(generator.lognormvariate(12.0 if big else 7.0, 0.7)) + 1 for big in large]
    keys = generator.choices(range(4000), cum_weights=weights, k=n)
    return Trace("mixed sizes", keys, [sizes[key] for key in keys])
