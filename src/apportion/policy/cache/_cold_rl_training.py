"""Trains the network of cache/cold_rl offline, by replaying a log of requests through the cache itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from apportion.core.eviction import Key
from apportion.policy.cache._dueling import SHAPES, Array, describe


class Request(NamedTuple):
    """One line of a log."""

    now: float
    key: Key
    size: float
    cost: float = 1.0


def fresh(seed: int) -> dict[str, Any]:
    """A network that has learned nothing, as lists."""
    random = np.random.default_rng(seed)
    network = {}
    for name, shape in SHAPES.items():
        spread = math.sqrt(2.0 / shape[0]) if name[0] == "w" else 0.0
        network[name] = (random.standard_normal(shape) * spread).tolist()
    return network


def returns(log: Sequence[Request], patience: float, ttl_s: float = math.inf) -> list[float]:
    """For each request what keeping its entry is worth from then on: a point for every hit to come, one that is
    ``patience`` away counting 1 / e. What comes after the entry's life is over counts nothing.
    """
    worth = [0.0] * len(log)
    coming: dict[Key, tuple[float, float]] = {}
    for place in range(len(log) - 1, -1, -1):
        now, key = log[place].now, log[place].key
        if key in coming:
            then, onward = coming[key]
            if then - now <= ttl_s:
                worth[place] = math.exp(-(then - now) / patience) * (1.0 + onward)
        coming[key] = (now, worth[place])
    return worth


def train(
    log: Sequence[Request],
    capacity: float,
    *,
    k: int = 32,
    ttl_s: float = math.inf,
    patience: float = 2.0,
    rounds: int = 3,
    steps: int = 1500,
    seed: int = 0,
) -> dict[str, Any]:
    """Weights for ``ColdRL(capacity=..., network=...)`` from a log.

    In each round the log is replayed with the network so far (LRU at first), the samples it is asked about are
    collected with the true returns of keeping each entry, and the network is fitted to all collected. ``patience``
    is in usual ages of what LRU drops.
    """
    from apportion.policy.cache.cold_rl import ColdRL

    random = np.random.default_rng(seed)
    weights = {name: np.array(value) for name, value in fresh(seed).items()}
    network: dict[str, Any] | None = None
    found_x: list[Array] = []
    found_y: list[Array] = []
    scale = 0.0
    for _ in range(rounds):
        cache = ColdRL(capacity=capacity, network=network, k=k, ttl_s=ttl_s)
        if not scale:
            scale = patience * _usual_age(log, capacity)
        worth, last = returns(log, scale, ttl_s), dict[Key, int]()
        pace = max(len(log) // 4000, 1)
        for place, (now, key, size, cost) in enumerate(log):
            held = key in cache
            last[key] = place
            if held:
                cache.hit(key, now)
                continue
            entries = cache._entries
            if place % pace == 0 and len(entries) > k and cache._size + size > capacity:
                rows = [(name, entries[name]) for name, _ in zip(entries, range(k), strict=False)]
                usual = (cache._usual_age or 1.0, cache._size / len(entries), cache._usual_cost or 1.0)
                found_x.append(describe([row for _, row in rows], now, *usual, ttl_s))
                found_y.append(
                    np.array([_from_now(worth[last[name]], now - row[1], scale) for name, row in rows])
                )
            cache.insert(key, size, now, cost)
        if not found_x:
            break
        _fit(weights, np.stack(found_x), np.stack(found_y), steps, random)
        network = {name: value.tolist() for name, value in weights.items()}
    return network if network is not None else fresh(seed)


def _from_now(worth: float, age: float, patience: float) -> float:
    """A return counted from the last request, counted from ``age`` later instead: less of the wait is left."""
    return min(worth * math.exp(min(age / patience, 20.0)), 10.0)


def _usual_age(log: Sequence[Request], capacity: float) -> float:
    """How old entries get in LRU before they are dropped: half the log's length if none is."""
    from apportion.policy.cache.cold_rl import ColdRL

    cache = ColdRL(capacity=capacity)
    for now, key, size, cost in log:
        if key in cache:
            cache.hit(key, now)
        else:
            cache.insert(key, size, now, cost)
    return cache._usual_age or max((log[-1].now - log[0].now) / 2.0, 1.0)


def _fit(weights: dict[str, Array], x: Array, y: Array, steps: int, random: np.random.Generator) -> None:
    """Adam on the squared error of Q(keep) to the return and of Q(drop) to nothing; x (m, k, 6), y (m, k)."""
    first = {name: np.zeros_like(value) for name, value in weights.items()}
    second = {name: np.zeros_like(value) for name, value in weights.items()}
    for step in range(1, steps + 1):
        chosen = random.integers(0, len(x), 24)
        gradient = _gradient(weights, x[chosen], y[chosen])
        rate = 3e-3 * (1.0 - 0.9 * step / steps)
        for name, slope in gradient.items():
            first[name] = 0.9 * first[name] + 0.1 * slope
            second[name] = 0.999 * second[name] + 0.001 * slope * slope
            mean = first[name] / (1.0 - 0.9**step)
            spread = second[name] / (1.0 - 0.999**step)
            weights[name] -= rate * mean / (np.sqrt(spread) + 1e-8)


def _gradient(weights: dict[str, Array], x: Array, y: Array) -> dict[str, Array]:
    """Of the mean squared error, by hand; the forward pass is `_dueling.values` over many samples at once."""
    h1 = np.maximum(x @ weights["w1"] + weights["b1"], 0.0)
    h2 = np.maximum(h1 @ weights["w2"] + weights["b2"], 0.0)
    advantage = h2 @ weights["wa"] + weights["ba"]
    pooled = h2.mean(axis=1)
    value = pooled @ weights["wv"] + weights["bv"]
    q = value[:, None, None] + advantage - advantage.mean(axis=2, keepdims=True)
    error = q - np.stack([y, np.zeros_like(y)], axis=2)
    d_q = 2.0 * error / error.size
    d_a = d_q - d_q.mean(axis=2, keepdims=True)
    d_v = d_q.sum(axis=(1, 2))
    d_h2 = d_a @ weights["wa"].T + (d_v[:, None] * weights["wv"])[:, None, :] / x.shape[1]
    d_h2 = d_h2 * (h2 > 0.0)
    d_h1 = (d_h2 @ weights["w2"].T) * (h1 > 0.0)

    def flat(a: Array) -> Array:
        return a.reshape(-1, a.shape[-1])

    return {
        "w1": flat(x).T @ flat(d_h1),
        "b1": flat(d_h1).sum(axis=0),
        "w2": flat(h1).T @ flat(d_h2),
        "b2": flat(d_h2).sum(axis=0),
        "wv": pooled.T @ d_v,
        "bv": np.array([d_v.sum()]),
        "wa": flat(h2).T @ flat(d_a),
        "ba": flat(d_a).sum(axis=0),
    }
