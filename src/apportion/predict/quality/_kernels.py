"""What the heads compute, as loops for numba, where that is installed.

The same sums as the heads make in arrays, in another order, so that they agree to rounding. A loop in machine code
asks for a few kilobytes of code where a dozen calls of numpy ask for a hundred times as much, which between two
requests nobody keeps warm; and it does not let other threads have the interpreter in the middle, as numpy does for
every array of over 500 numbers.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

logger = logging.getLogger("apportion.predict")

_REORDER = {"reassoc", "contract", "nsz"}
"""What lets a sum be made in vectors. NaN stays NaN: it says that nothing is known."""


class Kernels(NamedTuple):
    """The compiled loops; each writes into its last argument, all but the first means and standard deviations."""

    marks: Callable[..., None]
    near: Callable[..., None]
    line: Callable[..., None]
    trees: Callable[..., None]
    mix: Callable[..., None]
    calibrate: Callable[..., None]


@functools.cache
def kernels() -> Kernels | None:
    """The loops, compiled for the types that the heads have; None without numba.

    The first call takes seconds where nothing was kept from an earlier one, else a quarter of a second.
    """
    try:
        from numba import njit
    except ImportError:
        return None

    def compiled(function: Callable[..., None], signature: str, reorder: set[str]) -> Callable[..., None]:
        made: Callable[..., None] = njit(
            signature, cache=True, error_model="numpy", fastmath=reorder, nogil=False
        )(function)
        return made

    try:
        return Kernels(
            compiled(_marks, "void(f8,f8[::1],f8[::1],f8[::1])", set()),
            compiled(
                _near,
                "void(f8[::1],f4[::1],f4[:,::1],f4[::1],i8,i8,f8,f4[:,::1],f4[:,::1],f8[:,::1],f8,f8[:,::1])",
                _REORDER,
            ),
            compiled(_line, "void(f8[::1],f8[:,::1],f8[:,:,::1],f8[::1],f8,f8[:,::1])", _REORDER),
            compiled(
                _trees,
                "void(f8[::1],i4[::1],i4[::1],f4[::1],i4[:,::1],f4[:,::1],f4[::1],f8[::1],f8[::1],f8[:,::1])",
                set(),
            ),
            compiled(_mix, "void(f8[:,:,::1],f8[::1],f8[:,::1])", set()),
            compiled(_calibrate, "void(f8[:,::1],f8[:,:,::1],f8,f8,f8[:,::1])", set()),
        )
    except Exception:  # no place to keep machine code in, or a numba that does not fit: arrays do it too
        logger.info("predicting without numba", exc_info=True)
        return None


def _marks(limit: float, centre: Any, scale: Any, marks: Any) -> None:
    """`View.row`, in place."""
    for i in range(marks.shape[0]):
        mark = (math.asinh(marks[i]) - centre[i]) / scale[i]
        marks[i] = limit if mark > limit else -limit if mark < -limit else mark


def _near(
    x: Any,
    metric: Any,
    points: Any,
    norms: Any,
    size: int,
    k: int,
    reach: float,
    worth: Any,
    weight: Any,
    base: Any,
    shrink: float,
    said: Any,
) -> None:
    """`KNNHead.raw`: the nearest are kept in a heap, the farthest of them first."""
    width, models = points.shape[1], base.shape[0]
    point = np.empty(width, np.float32)
    own = np.float32(0.0)
    for j in range(width):
        point[j] = np.float32(x[j] * metric[j])
        own += point[j] * point[j]
    most = min(size, k)
    far = np.empty(most, np.float32)
    place = np.empty(most, np.int64)
    held = 0
    for i in range(size):
        dot = np.float32(0.0)
        for j in range(width):
            dot += points[i, j] * point[j]
        distance = norms[i] - np.float32(2.0) * dot + own
        if held < most:
            at = held
            held += 1
            while at > 0 and far[(at - 1) >> 1] < distance:
                far[at], place[at] = far[(at - 1) >> 1], place[(at - 1) >> 1]
                at = (at - 1) >> 1
            far[at], place[at] = distance, i
        elif distance < far[0]:
            at = 0
            while 2 * at + 1 < most:
                below = 2 * at + 1
                if below + 1 < most and far[below + 1] > far[below]:
                    below += 1
                if far[below] <= distance:
                    break
                far[at], place[at] = far[below], place[below]
                at = below
            far[at], place[at] = distance, i
    for model in range(models):
        said[0, model], said[1, model] = 0.0, shrink
    for n in range(most):
        fade = 1.0
        if reach > 0.0:
            away = far[n] / (1.5 * reach) if not far[n] < 0.0 else 0.0
            fade = 1.0 / (1.0 + (away * away) * (away * away))
        for model in range(models):
            said[0, model] += fade * worth[place[n], model]
            said[1, model] += fade * weight[place[n], model]
    for model in range(models):
        total, count, heard = base[model, 0], base[model, 1], said[1, model]
        p = math.nan
        if count > 0.0:
            p = (said[0, model] + shrink * (total + 0.5) / (count + 1.0)) / heard
        said[0, model] = p
        said[1, model] = math.sqrt(max(p * (1.0 - p), 0.0) / (heard + 1.0)) if p == p else math.nan


def _line(x: Any, weights: Any, spread: Any, rows: Any, flat: float, said: Any) -> None:
    """`LinearHead.raw`."""
    width = x.shape[0]
    for model in range(weights.shape[0]):
        if not rows[model] > 0.0:
            said[0, model] = said[1, model] = math.nan
            continue
        mean = weights[model, 0]
        for j in range(width):
            mean += weights[model, 1 + j] * x[j]
        variance = 0.0
        for i in range(1 + width):
            along = spread[model, i, 0]
            for j in range(width):
                along += spread[model, i, 1 + j] * x[j]
            variance += along * x[i - 1] if i else along
        variance = max(variance, 0.0)
        p = 0.5 * (1.0 + math.tanh(0.5 * mean / math.sqrt(1.0 + flat * variance)))
        said[0, model] = p
        said[1, model] = min(p * (1.0 - p) * math.sqrt(variance), math.sqrt(p * (1.0 - p)))


def _trees(
    x: Any,
    roots: Any,
    mark: Any,
    cut: Any,
    child: Any,
    value: Any,
    rarity: Any,
    base: Any,
    scale: Any,
    said: Any,
) -> None:
    """`BoostedHead.raw`, by walking down."""
    models = base.shape[0]
    for model in range(models):
        said[0, model] = base[model]
    wide = 0.0
    for tree in range(roots.shape[0]):
        node = roots[tree]
        while child[node, 0] != node:
            node = child[node, 1 if np.float32(x[mark[node]]) > cut[node] else 0]
        wide += rarity[node]
        for model in range(models):
            said[0, model] += value[node, model]
    wide = math.sqrt(wide / max(roots.shape[0], 1))
    for model in range(models):
        if said[0, model] == said[0, model]:
            said[0, model] = min(max(said[0, model], 1e-3), 1.0 - 1e-3)
        said[1, model] = scale[model] * wide


def _mix(parts: Any, shares: Any, said: Any) -> None:
    """`mixture.combine`; ``parts`` (members, 2, models) are what the members say."""
    for model in range(said.shape[1]):
        total = mean = 0.0
        absent = False
        for member in range(shares.shape[0]):
            p = parts[member, 0, model]
            if p == p:
                total += shares[member]
                mean += shares[member] * p
            else:
                absent = True
        if not absent:
            total = 1.0
        if not total > 0.0:
            said[0, model] = said[1, model] = math.nan
            continue
        mean /= total
        wide = 0.0
        for member in range(shares.shape[0]):
            p, sd = parts[member, 0, model], parts[member, 1, model]
            if p == p:
                wide += shares[member] * (sd * sd + (p - mean) ** 2)
        said[0, model] = mean
        said[1, model] = math.sqrt(wide / total)


def _calibrate(line: Any, spread: Any, margin: float, floor: float, said: Any) -> None:
    """`Calibrator.apply`, in place."""
    for model in range(said.shape[1]):
        mean, wide = said[0, model], said[1, model]
        if mean != mean:
            said[1, model] = math.nan
            continue
        slope = line[model, 1]
        inner = min(max(mean, margin), 1.0 - margin)
        raw = math.log(inner / (1.0 - inner))
        out = 0.5 * (1.0 + math.tanh(0.5 * (line[model, 0] + slope * raw)))
        steep = out * (1.0 - out)
        own = spread[model, 0, 0] + raw * (2.0 * spread[model, 0, 1] + raw * spread[model, 1, 1])
        scaled = wide * slope * steep / (inner * (1.0 - inner))
        said[0, model] = out
        said[1, model] = math.sqrt(min(steep * steep * max(own, 0.0) + scaled * scaled, steep + floor))
