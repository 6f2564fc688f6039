"""Miss ratios of installed libraries; run by itself, in a Python that has them: JSON in, JSON out.

pip install libcachesim theine cachetools      (in an environment of its own)
APPORTION_PEERS=/that/environment/bin/python python -m benchmarks.eviction
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time

SIMULATED = ("S3FIFO", "Sieve", "WTinyLFU", "ARC", "LIRS", "TwoQ", "LHD", "LFUDA", "Cacheus")
SIZED = ("S3FIFO", "Sieve", "WTinyLFU", "GDSF", "LHD", "LFUDA")


def rules(sized: bool) -> list[str]:
    """What can be asked of the libraries that are installed."""
    found = []
    if importlib.util.find_spec("libcachesim"):
        found += [f"libcachesim {rule}" for rule in (SIZED if sized else SIMULATED)]
    if importlib.util.find_spec("theine") and not sized:
        found.append("theine W-TinyLFU")
    if importlib.util.find_spec("cachetools"):
        found.append("cachetools LRU")
    return found


def play(rule: str, keys: list[int], sizes: list[int], capacity: int) -> tuple[float, float]:
    """Miss ratio, processor time in microseconds per request."""
    library, _, name = rule.partition(" ")
    misses, start = 0, time.process_time()
    if library == "libcachesim":
        import libcachesim

        cache = getattr(libcachesim, name)(cache_size=capacity)
        request = libcachesim.Request()
        start = time.process_time()
        for place, (key, size) in enumerate(zip(keys, sizes, strict=True)):
            request.obj_id, request.obj_size, request.clock_time = key, size, place
            misses += not cache.get(request)
    elif library == "theine":
        import theine

        cache = theine.Cache(capacity)
        start = time.process_time()
        for key in keys:
            if cache.get(key)[1] is False:
                misses += 1
                cache.set(key, 1)
    else:
        import cachetools

        cache = cachetools.LRUCache(capacity, getsizeof=dict(zip(keys, sizes, strict=True)).__getitem__)
        start = time.process_time()
        for key, size in zip(keys, sizes, strict=True):
            if cache.get(key) is None:
                misses += 1
                if size <= capacity:
                    cache[key] = key  # getsizeof sees the value
    return misses / len(keys), 1e6 * (time.process_time() - start) / len(keys)


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    if "rule" in asked:
        print(
            "\n" + json.dumps(play(asked["rule"], asked["keys"], asked["sizes"], asked["capacity"])),
            flush=True,
        )
    else:
        print("\n" + json.dumps(rules(asked["sized"])), flush=True)
    os._exit(0)  # some libraries leave threads behind
