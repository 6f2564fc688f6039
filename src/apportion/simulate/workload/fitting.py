"""Fits a workload to a trace: rates and gap laws by window, how gaps hang together, lengths, models, failures,
conversations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from apportion.simulate.trace import Trace, TraceError
from apportion.simulate.workload import conversations, fitness, gaps, lengths
from apportion.simulate.workload.fitness import FOLDS, folds, spread, windows
from apportion.simulate.workload.gaps import Gaps
from apportion.simulate.workload.lengths import Law, Lengths
from apportion.simulate.workload.model import Kind, Memory, Model

Floats = NDArray[np.float64]

WINDOWS_S: Final = (60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Widths that are tried, and the whole trace as one."""
_LEAST_GAPS: Final = 40
"""A window with fewer has the law of the nearest one that has as many."""
_LEAST_MEAN: Final = 1000
"""Requests that the average window has at least, so that a law can be judged in it: chance alone makes a
Kolmogorov-Smirnov distance beyond 0.09 between its halves in one window of twenty.
"""
_LEAST_ROWS: Final = 200
"""A model and tenant, or a window, with fewer requests has the lengths of all."""
_MOST_KINDS: Final = 32
_KEEPS: Final = (0.5, 0.8, 0.95, 0.99)
_RUNS: Final = 8
_LAGS: Final = np.array([1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50, 64])


def fit(
    trace: Trace,
    *,
    window_s: float | None = None,
    length_window_s: float | None = None,
    prompt_law: Law = "empirical",
    output_law: Law = "empirical",
    seed: int = 0,
) -> Model:
    """A workload like ``trace``, which needs 100 requests at least.

    ``window_s`` is the width of the windows within which rate and law of the gaps stay the same, ``length_window_s``
    that for lengths; left out, both are chosen by five-fold cross-validation: each window is cut into five runs of
    requests, and the law of four is judged on the fifth. ``seed`` is for arrivals that were recorded in coarse steps:
    they are spread evenly at random over a step.

    Raises:
        TraceError: too few requests, or all at one time.
    """
    if len(trace) < 100 or trace.duration_s <= 0:
        raise TraceError(
            f"{trace.name or 'The trace'} has {len(trace)} requests in {trace.duration_s:g} s; 100 at different times "
            "are needed to fit a workload.",
            field="TRACE",
        )
    notes = []
    times, step_s = spread(trace.arrival_s, seed)
    if step_s:
        notes.append(f"arrivals were recorded in steps of {step_s:g} s; they are spread evenly over a step")
    start = float(times[0])
    duration_s = float(times[-1]) - start
    times = times - start
    width = window_s or _best_window(times, duration_s)
    count = windows(duration_s, width)
    width = duration_s * (1 + 1 / len(times)) / count
    counts, laws, law = _laws(times, width, count)
    found = conversations.turns(trace)
    talk = None if found is None else conversations.fit(trace, found)
    opening = np.ones(len(trace), bool)
    if talk is not None and found is not None:
        opening[found.rows[~found.first]] = False
    answered = opening & (trace.output_tokens > 0)
    if trace.failed is not None:
        answered &= ~trace.failed
    if np.count_nonzero(answered) < 50:
        raise TraceError("Fewer than 50 requests were answered.", field="output_tokens")
    long_width = length_window_s or _best_length_window(trace, times, answered, duration_s)
    long_count = windows(duration_s, long_width)
    long_width = duration_s * (1 + 1 / len(times)) / long_count
    place = np.minimum(times // long_width, long_count - 1).astype(np.int64)
    model = Model(
        name=trace.name,
        window_s=width,
        rates=tuple((counts / width).tolist()),
        gaps=tuple(laws),
        law=tuple(law),
        kinds=_kinds(trace, answered, place, long_count, prompt_law, output_law),
        length_window_s=long_width,
        memory=memory(times, width, laws, law),
        talk=talk,
        blocks=trace.blocks is not None and talk is not None,
        notes=tuple(notes),
    )
    model = msgspec.structs.replace(model, memory=_matched(model, times, seed))
    return msgspec.structs.replace(model, fitness=fitness.report(model, trace, seed=seed))


def _laws(times: Floats, width: float, count: int) -> tuple[NDArray[np.int64], list[Gaps], list[int]]:
    """Requests in each window, laws of gaps, and which window has which."""
    edges = np.searchsorted(times, np.arange(count + 1) * width)
    edges[-1] = len(times)
    counts = np.diff(edges)
    own = [
        window
        for window in range(count)
        if counts[window] > _LEAST_GAPS and np.ptp(times[edges[window] : edges[window + 1]]) > 0
    ]
    if not own:
        return counts, [gaps.fit(np.diff(times))], [0] * count
    laws = [gaps.fit(np.diff(times[edges[window] : edges[window + 1]])) for window in own]
    nearest = np.abs(np.arange(count)[:, None] - np.array(own)[None, :]).argmin(axis=1)
    return counts, laws, nearest.tolist()


# --- the widths of windows --------------------------------------------------------------------------


def _best_window(times: Floats, duration_s: float) -> float:
    best, most = duration_s, -np.inf
    for width in (*WINDOWS_S, duration_s):
        count = windows(duration_s, width)
        if width > duration_s or (count > 1 and len(times) / count < _LEAST_MEAN):
            continue
        value = _arrivals_score(times, duration_s / count, count)
        if value > most:
            best, most = width, value
    return best


def _arrivals_score(times: Floats, width: float, count: int) -> float:
    """Log-likelihood of each fifth of the gaps of each window under the gamma law (and mean) of the other four."""
    edges = np.searchsorted(times, np.arange(count + 1) * width)
    total = 0.0
    for window in range(count):
        found = np.diff(times[edges[window] : edges[window + 1]])
        if len(found) < _LEAST_GAPS or found.max() <= 0:
            continue
        found = np.maximum(found, found[found > 0].min() / 2)
        for held, others in folds(found):
            mean = float(others.mean())
            law = gaps.fit(others, most_parts=1)
            total += gaps.log_likelihood(law, held / mean) - len(held) * math.log(mean)
    return total


def _best_length_window(trace: Trace, times: Floats, answered: NDArray[np.bool_], duration_s: float) -> float:
    """The width whose held-out fifths are nearest to the others (mean Kolmogorov-Smirnov distance of both lengths)."""
    columns = [trace.prompt_tokens[answered], trace.output_tokens[answered]]
    at = times[answered]
    best, least = duration_s, np.inf
    for width in (*WINDOWS_S, duration_s):
        count = windows(duration_s, width)
        if width > duration_s or (count > 1 and len(at) / count < _LEAST_MEAN):
            continue
        edges = np.searchsorted(at, np.arange(count + 1) * duration_s / count)
        edges[-1] = len(at)
        distances = [
            (fitness.ks(held, others), len(held))
            for column in columns
            for begin, end in itertools.pairwise(edges.tolist())
            if end - begin >= FOLDS * 10
            for held, others in folds(column[begin:end])
        ]
        value = (
            float(np.average([d for d, _ in distances], weights=[n for _, n in distances]))
            if distances
            else np.inf
        )
        if value < least:
            best, least = width, value
    return best


# --- how gaps hang together -------------------------------------------------------------------------


def memory(times: Floats, width: float, laws: Sequence[Gaps], law: Sequence[int]) -> Memory:
    """Autocorrelation of the normal scores of gaps within windows, as a sum of first-order autoregressions
    (non-negative least squares). None where it is no larger than chance.
    """
    count = len(law)
    edges = np.searchsorted(times, np.arange(count + 1) * width)
    top, pairs = np.zeros(len(_LAGS)), np.zeros(len(_LAGS))
    for window in range(count):
        found = np.diff(times[edges[window] : edges[window + 1]])
        if len(found) < _LEAST_GAPS:
            continue
        z = laws[law[window]].normal(gaps.relative(found))
        for place, lag in enumerate(_LAGS):
            if lag < len(z):
                top[place] += float(z[lag:] @ z[:-lag])
                pairs[place] += len(z) - lag
    if not np.all(pairs > 0):
        return Memory()
    seen = top / pairs
    if np.abs(seen).max() < 3.0 / math.sqrt(pairs.max()):
        return Memory()
    shapes = np.array([[keep**lag for keep in _KEEPS] for lag in _LAGS])
    shares = _non_negative(shapes * np.sqrt(pairs)[:, None], seen * np.sqrt(pairs))
    if shares.sum() > 0.95:
        shares *= 0.95 / shares.sum()
    kept = [(float(s), k) for s, k in zip(shares, _KEEPS, strict=True) if s > 1e-3]
    return Memory(tuple(s for s, _ in kept), tuple(k for _, k in kept))


def _matched(model: Model, times: Floats, seed: int) -> Memory:
    """The memory, stronger or weaker by one factor, so that generated counts vary as much as those of the trace
    (simulated method of moments on the index of dispersion, geometric mean over its scales). Left as it is within 5%.
    """
    widths = fitness.scales_s(model.duration_s)
    if not widths:
        return model.memory
    seen = [fitness.dispersion(times, width, end=model.duration_s) for width in widths]
    bare = msgspec.structs.replace(model, talk=None)

    def excess(memory: Memory) -> float:
        tried = msgspec.structs.replace(bare, memory=memory)
        made = fitness.generated_dispersion(tried, widths, seed, runs=_RUNS)
        return float(np.mean(np.log(np.mean(made, axis=0) / seen)))

    found = model.memory
    if abs(excess(found)) < 0.05:
        return found
    shares, keeps = (found.shares, found.keeps) if found.shares else ((0.5, 0.5), (0.95, 0.99))
    low, high = 0.0, 0.95 / sum(shares)
    for _ in range(8):
        middle = (low + high) / 2.0
        tried = Memory(tuple(middle * share for share in shares), keeps)
        low, high = (middle, high) if excess(tried) < 0 else (low, middle)
    return Memory(tuple((low + high) / 2.0 * share for share in shares), keeps)


def _non_negative(a: Floats, b: Floats) -> Floats:
    """Least squares with no coefficient below 0, by trying every set of columns (there are few)."""
    best, least = np.zeros(a.shape[1]), float(b @ b)
    for size in range(1, a.shape[1] + 1):
        for chosen in itertools.combinations(range(a.shape[1]), size):
            x, *_ = np.linalg.lstsq(a[:, chosen], b, rcond=None)
            error = float(np.sum((a[:, chosen] @ x - b) ** 2))
            if np.all(x >= 0) and error < least:
                best, least = np.zeros(a.shape[1]), error
                best[list(chosen)] = x
    return best


# --- who asks for what ------------------------------------------------------------------------------


def _kinds(
    trace: Trace,
    answered: NDArray[np.bool_],
    place: NDArray[np.int64],
    count: int,
    prompt_law: Law,
    output_law: Law,
) -> tuple[Kind, ...]:
    """Models and tenants with their lengths, the most frequent first; beyond `_MOST_KINDS` the rest is one without
    names.
    """
    n = len(trace)
    models = trace.model.codes if trace.model is not None else np.full(n, -1)
    tenants = trace.tenant.codes if trace.tenant is not None else np.full(n, -1)
    pairs, group, sizes = np.unique(
        np.stack([models, tenants]), axis=1, return_inverse=True, return_counts=True
    )
    group = np.asarray(group).reshape(-1)
    order = np.argsort(-sizes, kind="stable")

    def law(rows: NDArray[np.bool_]) -> Lengths:
        return lengths.fit(
            trace.prompt_tokens[rows], trace.output_tokens[rows], prompt_law=prompt_law, output_law=output_law
        )

    def laws(rows: NDArray[np.bool_], otherwise: Sequence[Lengths]) -> tuple[Lengths, ...]:
        if np.count_nonzero(rows) < _LEAST_ROWS:
            return tuple(otherwise)
        whole = law(rows)
        each = (rows & (place == window) for window in range(count))
        found = tuple(law(those) if np.count_nonzero(those) >= _LEAST_ROWS else whole for those in each)
        return found if any(each is not whole for each in found) else (whole,)

    everyone = laws(answered, (law(answered),))
    if len(order) == 1:
        everyone_named = [(int(order[0]), everyone)]
    else:
        everyone_named = [(int(k), laws(answered & (group == k), everyone)) for k in order[:_MOST_KINDS]]
    failed = trace.failed if trace.failed is not None else np.zeros(n, bool)
    kinds = [
        Kind(
            trace.model.names[pairs[0, k]] if trace.model is not None and pairs[0, k] >= 0 else "",
            trace.tenant.names[pairs[1, k]] if trace.tenant is not None and pairs[1, k] >= 0 else "",
            float(sizes[k] / n),
            found,
            float(failed[group == k].mean()),
        )
        for k, found in everyone_named
    ]
    if len(order) > _MOST_KINDS:
        rest = np.isin(group, order[_MOST_KINDS:])
        kinds.append(Kind("", "", float(rest.mean()), everyone, float(failed[rest].mean())))
    return tuple(kinds)
