"""A small duelling network over the entries that may go: worth of keeping each, on arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FEATURES = ("age", "size", "hits", "gap", "ttl_left", "cost")
"""Of one entry, each on a logarithmic scale relative to what is usual in the cache (`describe`)."""
SHAPES = {
    "w1": (len(FEATURES), 32),
    "b1": (32,),
    "w2": (32, 32),
    "b2": (32,),
    "wv": (32,),
    "bv": (1,),
    "wa": (32, 2),
    "ba": (2,),
}


def describe(
    rows: Sequence[Sequence[float]],
    now: float,
    usual_age: float,
    usual_size: float,
    usual_cost: float,
    ttl: float,
) -> Array:
    """Features (n, 6) of n entries given as (size, last request, born, hits, gap, cost)."""
    table = np.array(rows, dtype=np.float64)
    found = np.empty((len(table), 6))
    found[:, 0] = np.log1p(np.maximum(now - table[:, 1], 0.0) / usual_age)
    found[:, 1] = 0.5 * np.log(table[:, 0] / usual_size)
    found[:, 2] = np.log1p(table[:, 3])
    found[:, 3] = np.log1p(table[:, 4] / usual_age)
    found[:, 4] = np.clip(1.0 - (now - table[:, 2]) / ttl, 0.0, 1.0)
    found[:, 5] = 0.5 * np.log1p(table[:, 5] / usual_cost)
    return np.nan_to_num(found, nan=0.0, posinf=20.0, neginf=-20.0)


def values(network: Mapping[str, Array], features: Array) -> Array:
    """Q (n, 2) of keeping and of dropping each of n entries: V(all) + A(entry) - mean A(entry)."""
    hidden = np.maximum(features @ network["w1"] + network["b1"], 0.0)
    hidden = np.maximum(hidden @ network["w2"] + network["b2"], 0.0)
    advantage: Array = hidden @ network["wa"] + network["ba"]
    value = hidden.mean(axis=0) @ network["wv"] + network["bv"]
    result: Array = value + advantage - advantage.mean(axis=1, keepdims=True)
    return result


def arrays(network: Mapping[str, Any]) -> dict[str, Array]:
    """The network's lists as arrays; raises `ValueError` where a shape is wrong."""
    found = {name: np.asarray(network[name], dtype=np.float64) for name in SHAPES if name in network}
    wrong = [name for name, shape in SHAPES.items() if name not in found or found[name].shape != shape]
    if wrong or network.keys() != SHAPES.keys():
        raise ValueError(f"a network has the arrays {SHAPES}; wrong or missing: {wrong or sorted(network)}")
    return found
