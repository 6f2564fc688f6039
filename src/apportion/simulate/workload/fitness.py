"""How well a fitted workload fits: gaps and lengths by window, and how much counts of arrivals vary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from apportion.simulate.trace import Trace, TraceError
from apportion.simulate.workload import conversations, gaps, lengths
from apportion.simulate.workload.generate import generate
from apportion.simulate.workload.model import Model

Floats = NDArray[np.float64]

FOLDS: Final = 5
SCALES_S: Final = (1.0, 10.0, 60.0)
"""Widths of the bins in which arrivals are counted."""
_LEAST_BINS: Final = 60
_MOST_BINS: Final = 10_000_000
_LEAST_ROWS: Final = 100
"""Windows with fewer requests are not judged: a distance of 0.1 would be chance."""
_RUNS: Final = 10
"""Generated workloads whose mean dispersion is compared."""


def ks(values: Floats, law: Callable[[Floats], Floats] | Floats, *, discrete: bool = False) -> float:
    """The Kolmogorov-Smirnov distance between values and a law (its distribution function), or between two sets of
    values.

    ``discrete``: the law is on whole numbers, so that only the distribution functions at them are compared.
    """
    x = np.sort(np.asarray(values, np.float64))
    if not callable(law):
        y = np.sort(np.asarray(law, np.float64))
        points = np.concatenate([x, y])
        at = np.searchsorted(x, points, side="right") / len(x)
        return float(np.abs(at - np.searchsorted(y, points, side="right") / len(y)).max())
    if discrete:
        points = np.unique(np.concatenate([x, x - 1.0]))
        return float(np.abs(np.searchsorted(x, points, side="right") / len(x) - law(points)).max())
    below = law(x)
    places = np.arange(len(x))
    return float(max((below - places / len(x)).max(), ((places + 1) / len(x) - below).max()))


def dispersion(times: Floats, width: float, *, start: float = 0.0, end: float | None = None) -> float:
    """Index of dispersion of counts: variance over mean of the arrivals in bins of ``width`` seconds; 1 for a Poisson
    process.
    """
    end = float(times[-1]) if end is None else end
    bins = int((end - start) // width)
    counts = np.histogram(times, bins, (start, start + bins * width))[0]
    return float(counts.var() / counts.mean())


def spread(times: Floats, seed: int) -> tuple[Floats, float]:
    """Times recorded in coarse steps, spread over the step in which they fall; and the step in seconds, 0 if there is
    none.

    A trace has steps if a fifth of its gaps are 0 and no other is shorter than a millisecond; the shortest is the
    step.
    """
    gaps_s = np.diff(times)
    positive = gaps_s[gaps_s > 0]
    if len(positive) == 0 or np.mean(gaps_s == 0) < 0.2 or positive.min() < 1e-3:
        return times, 0.0
    step_s = float(positive.min())
    cells = np.floor((times - times[0]) / step_s + 0.01)
    inside = np.random.default_rng(seed).random(len(times))
    return np.sort(times[0] + (cells + inside) * step_s), step_s


def windows(duration_s: float, width: float) -> int:
    if not width > 0:
        raise TraceError(f"A window of {width:g} s is none.", field="window_s")
    return max(1, round(duration_s / width))


def folds(values: NDArray[Any]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """(a run of a fifth, all others) for each of five runs of consecutive values."""
    parts = np.array_split(np.arange(len(values)), FOLDS)
    return [(values[part], np.delete(values, part)) for part in parts if len(part)]


def halves(values: NDArray[Any]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """(every other value, the rest), and the same the other way round."""
    return [(values[::2], values[1::2]), (values[1::2], values[::2])]


def report(model: Model, trace: Trace, *, seed: int = 0) -> dict[str, Any]:
    """How near a fitted workload comes to its trace.

    ``arrivals`` and ``lengths`` have a row for each window with 100 requests or more: ``ks`` is the Kolmogorov-Smirnov
    distance of the window to its law, ``held_out`` the mean distance of every other of its requests to a law fitted to
    the rest, and the reverse (chance alone makes it 0.9 / sqrt of their number). ``dispersion`` compares the index of
    dispersion of counts of the trace with the mean of ten generated workloads.
    """
    times, _ = spread(trace.arrival_s, seed)
    times = times - times[0]
    answered = trace.output_tokens > 0
    if trace.failed is not None:
        answered &= ~trace.failed
    if model.talk is not None:
        found = conversations.turns(trace)
        if found is not None:
            answered[found.rows[~found.first]] = False
    arrivals = _arrivals(model, times)
    long = _lengths(model, trace, times, answered)
    return {
        "arrivals": arrivals,
        "lengths": long,
        "worst": {
            name: max((row[name] for row in rows), default=float("nan"))
            for rows in (arrivals, long)
            for name in (rows[0] if rows else ())
            if name.startswith(("ks", "held_out"))
        },
        "dispersion": _dispersions(model, times, seed),
    }


def _arrivals(model: Model, times: Floats) -> list[dict[str, Any]]:
    rows = []
    edges = np.searchsorted(times, np.arange(len(model.rates) + 1) * model.window_s)
    for window, law in enumerate(model.law):
        found = np.diff(times[edges[window] : edges[window + 1]])
        if len(found) < _LEAST_ROWS:
            continue
        own = model.gaps[law]
        exponential = ks(found / found.mean(), gaps.Gaps().cdf)
        held_out = [ks(held / others.mean(), gaps.fit(others).cdf) for held, others in halves(found)]
        rows.append(
            {
                "start_s": window * model.window_s,
                "requests": len(found) + 1,
                "law": own.kind,
                "shape": gaps.fit(found, most_parts=1).shapes[0],
                "cv2": own.cv2,
                "ks": ks(gaps.relative(found), own.cdf),
                "held_out": float(np.mean(held_out)),
                "exponential": exponential,
                # Lilliefors 1969: the distance that 5% of exponential samples exceed, their mean being estimated.
                "exponential_fits": bool(exponential < 1.06 / np.sqrt(len(found))),
            }
        )
    return rows


def _lengths(model: Model, trace: Trace, times: Floats, answered: NDArray[np.bool_]) -> list[dict[str, Any]]:
    rows = []
    count = windows(model.duration_s, model.length_window_s)
    edges = np.searchsorted(times, np.arange(count + 1) * model.length_window_s)
    edges[-1] = len(times)
    for window, (begin, end) in enumerate(pairwise(edges.tolist())):
        inside = np.flatnonzero(answered[begin:end]) + begin
        if len(inside) < _LEAST_ROWS:
            continue
        row: dict[str, Any] = {"start_s": window * model.length_window_s, "requests": len(inside)}
        for side in ("prompt", "output"):
            values = getattr(trace, f"{side}_tokens")[inside]
            row[f"ks_{side}"] = ks(values, _length_cdf(model, window, side), discrete=True)
            row[f"held_out_{side}"] = float(
                np.mean(
                    [
                        ks(
                            held,
                            partial(lengths.cdf, tuple(lengths.quantiles(others).tolist())),
                            discrete=True,
                        )
                        for held, others in halves(values)
                    ]
                )
            )
        rows.append(row)
    return rows


def _length_cdf(model: Model, window: int, side: str) -> Callable[[Floats], Floats]:
    """The law of all kinds together in a window."""
    shares = np.array([kind.share * (1.0 - kind.failed) for kind in model.kinds])
    knots = [getattr(kind.lengths[window % len(kind.lengths)], f"{side}s") for kind in model.kinds]

    def below(at: Floats) -> Floats:
        each = np.array([lengths.cdf(law, at) for law in knots])
        return np.asarray(shares @ each / shares.sum())

    return below


def scales_s(duration_s: float) -> list[float]:
    """The widths of bins of which a time has enough for a variance, and not too many to count."""
    return [width for width in SCALES_S if _LEAST_BINS <= duration_s / width <= _MOST_BINS]


def generated_dispersion(model: Model, widths: Sequence[float], seed: int, *, runs: int) -> Floats:
    """Indices of dispersion of generated workloads (shape runs x widths)."""
    made = (generate(model, seed + run).arrival_s for run in range(runs))
    return np.array([[dispersion(times, width, end=model.duration_s) for width in widths] for times in made])


def _dispersions(model: Model, times: Floats, seed: int) -> dict[str, dict[str, float]]:
    widths = scales_s(model.duration_s)
    # Other seeds than those that the fit may have looked at.
    drawn = generated_dispersion(model, widths, seed + 1000, runs=_RUNS if widths else 0)
    found = {}
    for place, width in enumerate(widths):
        seen, made = dispersion(times, width, end=model.duration_s), float(drawn[:, place].mean())
        found[f"{width:g}"] = {
            "trace": seen,
            "generated": made,
            "off": made / seen - 1.0,
            "spread": float(drawn[:, place].std(ddof=1)),
        }
    return found
