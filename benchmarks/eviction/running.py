"""Replays traces through the evictions of the catalogue."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from apportion.core import catalogue
from apportion.core.eviction import Eviction
from apportion.policy.cache._cold_rl_training import train
from apportion.policy.cache.cold_rl import ColdRL
from apportion.policy.cache.mark0 import Mark0
from apportion.policy.cache.mark_and_predict import MarkAndPredict
from apportion.simulate.bounds import belady, fewest_misses_with_sizes
from benchmarks.eviction.adversarial import bursts, mixed_sizes
from benchmarks.eviction.best import phases
from benchmarks.eviction.traces import SHARES, Trace

CLASSICAL = ("lru", "lfu", "sieve", "s3_fifo", "w_tinylfu", "gdsf")
LEARNED = ("mark0", "mark_and_predict")


class Replay(NamedTuple):
    """What came of a trace: misses of all requests, processor time per request."""

    misses: int
    us: float


def replay(cache: Eviction, trace: Trace, before: Callable[[int], None] | None = None) -> Replay:
    """Ask ``cache`` for everything in turn."""
    hit, insert = cache.hit, cache.insert
    misses, start = 0, time.process_time()
    for place, (key, size) in enumerate(zip(trace.keys, trace.sizes, strict=True)):
        if before is not None:
            before(place)
        if key in cache:
            hit(key, place)
        else:
            misses += 1
            insert(key, size, place)
    return Replay(misses, 1e6 * (time.process_time() - start) / len(trace.keys))


def build(name: str, capacity: float) -> Eviction:
    """A method of the family."""
    cache = catalogue.build(f"cache/{name}", capacity=capacity)
    assert isinstance(cache, Eviction)
    return cache


def compare(trace: Trace) -> list[dict[str, Any]]:
    """Miss ratios of everything at three cache sizes."""
    found = []
    n = len(trace.keys)
    for share in SHARES:
        capacity = trace.capacity(share)
        ours, us = dict[str, float](), dict[str, float]()
        for name in (*CLASSICAL, *LEARNED):
            came = replay(build(name, capacity), trace)
            ours[name], us[name] = came.misses / n, came.us
        if trace.sized:
            best = fewest_misses_with_sizes(trace.keys, trace.sizes, capacity)
        else:
            best = belady(trace.keys, capacity)[0]
        peers = peer_results(trace, capacity)
        found.append(
            {
                "trace": trace.name,
                "requests": n,
                "share": share,
                "capacity": capacity,
                "sized": trace.sized,
                "best": best / n,
                "ours": ours,
                "us": us,
                "peers": {name: ratio for name, ratio, _ in peers},
                "peers_us": {name: spent for name, _, spent in peers},
            }
        )
        print(
            f"{trace.name:24s} {share:5.0%}",
            {name: round(ratio, 3) for name, ratio in ours.items()},
            flush=True,
        )
    return found


def peer_results(trace: Trace, capacity: int) -> list[tuple[str, float, float]]:
    """Of the libraries in another Python: rule, miss ratio, microseconds; nothing where there is none."""
    python = os.environ.get("APPORTION_PEERS")
    if not python:
        return []
    asked = {"keys": trace.keys, "sizes": trace.sizes, "capacity": capacity}
    found = []
    for rule in _peer(python, {"sized": trace.sized}) or ():
        came = _peer(python, {**asked, "rule": rule})
        if came is not None:
            found.append((rule, came[0], came[1]))
    return found


def _peer(python: str, asked: dict[str, Any]) -> Any:
    """One answer of ``peers.py``; None where it failed or took over two minutes of its own."""
    script = str(Path(__file__).with_name("peers.py"))
    try:
        done = subprocess.run(
            [python, script], input=json.dumps(asked), capture_output=True, text=True, check=True, timeout=120
        )
    except (subprocess.SubprocessError, OSError) as error:
        print(f"peer {asked.get('rule', python)}: {type(error).__name__}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def paging(trace: Trace) -> list[dict[str, Any]]:
    """S289: misses with right, half-wrong, wrong and learned bits, of LRU and Marker, and the bound."""
    found = []
    for share in SHARES:
        k = trace.capacity(share)
        best, discards = belady(trace.keys, k)
        of_phases = phases(trace.keys, k)
        generator = np.random.default_rng(0)
        row: dict[str, Any] = {"trace": trace.name, "k": k, "requests": len(trace.keys), "belady": best}
        row["harmonic"] = float(np.sum(1.0 / np.arange(1, k + 1)))
        row["lru"] = replay(build("lru", k), trace).misses
        for name, cls, right in (
            ("mark0", Mark0, discards),
            ("mark_and_predict", MarkAndPredict, of_phases),
        ):
            row[f"{name} learned"] = replay(cls(capacity=k), trace).misses
            for error in ERRORS:
                flips = generator.random(len(right)) < error
                bits = (np.array(right) != flips).tolist()
                cache = cls(capacity=k)
                came = replay(cache, trace, lambda place, cache=cache, bits=bits: cache.foresee(bits[place]))
                row[f"{name} {error:g}"] = came.misses
        marker = Mark0(capacity=k)
        row["marker"] = replay(marker, trace, lambda place, cache=marker: cache.foresee(False)).misses
        found.append(row)
        print(
            {key: value for key, value in row.items() if "learned" in key or key in ("trace", "k", "lru")},
            flush=True,
        )
    return found


ERRORS = (0.0, 0.1, 0.3, 1.0)
"""Shares of wrong bits."""
SMALL_MID_LARGE = (0.03, 0.08, 0.8)


def cold_rl(sized: list[Trace], quick: bool) -> list[dict[str, Any]]:
    """S090: trained on one half (or one draw) of a log, compared on the other."""
    pairs = [(bursts(1), bursts(2)), (mixed_sizes(1), mixed_sizes(2))]
    for trace in sized:
        middle = len(trace.keys) // 2
        pairs.append(
            (
                Trace(trace.name, trace.keys[:middle], trace.sizes[:middle]),
                Trace(trace.name, trace.keys[middle:], trace.sizes[middle:]),
            )
        )
    found = []
    for past, later in pairs:
        for share in SMALL_MID_LARGE:
            capacity = later.capacity(share)
            row: dict[str, Any] = {"trace": later.name, "share": share, "capacity": capacity}
            n = len(later.keys)
            for name in ("lru", "lfu", "s3_fifo", "w_tinylfu", "gdsf"):
                row[name] = 1.0 - replay(build(name, capacity), later).misses / n
            row["best"] = 1.0 - fewest_misses_with_sizes(later.keys, later.sizes, capacity) / n
            start = time.process_time()
            network = train(past.log(), capacity, rounds=2 if quick else 3, steps=400 if quick else 1500)
            row["training_s"] = time.process_time() - start
            cache = ColdRL(capacity=capacity, network=network)
            evictions = list[float]()
            misses = 0
            for place, (key, size) in enumerate(zip(later.keys, later.sizes, strict=True)):
                if key in cache:
                    cache.hit(key, place)
                    continue
                misses += 1
                start_us = time.thread_time()
                if cache.insert(key, size, place):
                    evictions.append(1e6 * (time.thread_time() - start_us))
            row["cold_rl"] = 1.0 - misses / n
            quantiles = np.quantile(evictions, [0.5, 0.95, 0.99]).tolist() if evictions else [0.0] * 3
            row["p50_us"], row["p95_us"], row["p99_us"] = quantiles
            found.append(row)
            print(
                {key: value if isinstance(value, str) else round(value, 3) for key, value in row.items()},
                flush=True,
            )
    return found
