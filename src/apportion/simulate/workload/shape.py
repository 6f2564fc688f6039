"""What can be done to a workload: faster or denser, windows of it, some of its models or tenants, several together.

Every function takes and returns a `Trace`; those that need not see all of it have a form that goes through pieces
(``..._pieces``) and gives the same rows. No random choice is made without a seed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from apportion.simulate.trace import Labels, Trace, TraceError, empty, joined

MOST_REQUESTS = 200_000_000
"""That `scaled` makes: beyond it, some ten gigabytes and more."""


def compressed(trace: Trace, factor: float) -> Trace:
    """All requests in 1/``factor`` of the time: the rate is ``factor`` times as high. The pauses of people within
    their conversations shrink with it; `scaled` does not do that.
    """
    _positive("factor", factor)
    return replace(trace, arrival_s=trace.arrival_s / factor)


def scaled(trace: Trace, factor: float, *, seed: int = 0) -> Trace:
    """``factor`` times as many requests in the same time.

    Below 1 each conversation (or request that belongs to none) is kept with that probability. Above 1 whole copies are
    laid over the trace, each moved by a random time and wrapped around the end, as traffic of others of the same kind;
    a copy is a stranger: its conversations and prompt blocks are its own. Burstiness is averaged out as it is when
    independent users are added; `compressed` keeps it.

    Raises:
        TraceError: ``factor`` is not positive, or there would be more than `MOST_REQUESTS`.
    """
    _positive("factor", factor)
    if len(trace) * factor > MOST_REQUESTS:
        raise TraceError(
            f"{factor:g} times {len(trace):,} requests are more than fit into memory.",
            field="rate",
            fix=f"At most {MOST_REQUESTS / len(trace):,.3g} times, or cut the trace.",
        )
    rng = np.random.default_rng(seed)
    whole, part = int(factor), factor - int(factor)
    copies = [trace] * bool(whole) + [_moved(trace, rng) for _ in range(whole - 1)]
    if part > 1e-12:
        other = trace if not whole else _moved(trace, rng)
        copies.append(thinned(other, part, seed=int(rng.integers(2**31))))
    return mixed(copies, name=trace.name)


def thinned(trace: Trace, share: float, *, seed: int = 0) -> Trace:
    """Each conversation, or request that belongs to none, with probability ``share``.

    Raises:
        TraceError: ``share`` is not between 0 and 1.
    """
    return trace.take(_Thinning(share, seed).keeps(trace))


def thinned_pieces(traces: Iterable[Trace], share: float, *, seed: int = 0) -> Iterator[Trace]:
    """`thinned`, piece by piece."""
    thinning = _Thinning(share, seed)
    for trace in traces:
        yield trace.take(thinning.keeps(trace))


class _Thinning:
    """A draw for each conversation from its number, and one for each other request from its place."""

    def __init__(self, share: float, seed: int) -> None:
        if not 0 <= share <= 1:
            raise TraceError(f"A share of {share:g} is not between 0 and 1.", field="share")
        self._share, self._seed, self._place = share, seed, 0

    def keeps(self, trace: Trace) -> NDArray[np.bool_]:
        own = np.arange(self._place, self._place + len(trace), dtype=np.uint64) * np.uint64(2)
        self._place += len(trace)
        if trace.session is not None:
            of_session = trace.session.astype(np.uint64) * np.uint64(2) + np.uint64(1)
            own = np.where(trace.session < 0, own, of_session)
        return uniform(own, self._seed) < self._share


def uniform(keys: NDArray[np.uint64], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each key, the same for equal keys: SplitMix64 (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        x = keys + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return np.asarray((x >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def window(trace: Trace, start_s: float = 0.0, end_s: float = np.inf) -> Trace:
    """The requests that arrive in [``start_s``, ``end_s``), at the times they have."""
    first, last = np.searchsorted(trace.arrival_s, [start_s, end_s])
    return trace.take(slice(first, last))


def window_pieces(traces: Iterable[Trace], start_s: float = 0.0, end_s: float = np.inf) -> Iterator[Trace]:
    """`window`, piece by piece; ends when the window does."""
    for trace in traces:
        if len(trace) and trace.arrival_s[0] >= end_s:
            return
        found = window(trace, start_s, end_s)
        if len(found):
            yield found


def moved(trace: Trace, by_s: float) -> Trace:
    """All times later by ``by_s``."""
    return replace(trace, arrival_s=trace.arrival_s + by_s)


def from_zero(trace: Trace) -> Trace:
    """Moved so that the first request arrives at 0."""
    return moved(trace, -float(trace.arrival_s[0])) if len(trace) else trace


def only(
    trace: Trace, *, models: Collection[str] | None = None, tenants: Collection[str] | None = None
) -> Trace:
    """The requests for these models, by these tenants.

    Raises:
        TraceError: the trace does not say, or does not know one of them.
    """
    kept = np.ones(len(trace), bool)
    for field, wanted, column in (("model", models, trace.model), ("tenant", tenants, trace.tenant)):
        if wanted is not None:
            kept &= _is_one_of(field, column, wanted)
    return trace.take(kept)


def _is_one_of(field: str, column: Labels | None, wanted: Collection[str]) -> NDArray[np.bool_]:
    if column is None:
        raise TraceError(f"The trace does not say the {field} of a request.", field=field)
    unknown = sorted(set(wanted) - set(column.names))
    if unknown:
        raise TraceError(
            f"The trace has no {field} {', '.join(unknown)}.",
            field=field,
            fix=f"It has: {', '.join(column.names[:20])}{' ...' if len(column.names) > 20 else ''}.",
        )
    return np.isin(column.codes, [column.names.index(name) for name in wanted])


def mixed(traces: Sequence[Trace], *, name: str = "", apart: bool = True) -> Trace:
    """All requests of several workloads at their times, in order; of equal times those of the earlier trace first.

    Conversations and blocks of different traces are kept apart, unless ``apart`` is false.
    """
    whole = joined(traces, name=name, apart=apart)
    return whole.take(np.argsort(whole.arrival_s, kind="stable"))


def mixed_pieces(streams: Sequence[Iterable[Trace]], *, rows: int = 65536) -> Iterator[Trace]:
    """`mixed` of workloads in pieces, in bounded memory. Conversations and blocks that have equal numbers are taken
    for the same.

    Models and tenants keep their names; codes are those of the piece.
    """
    heads = [(trace, source) for source in map(iter, streams) if (trace := _next(source)) is not None]
    waiting: list[Trace] = []
    count = 0
    while heads:
        # Everything up to the earliest end of a head is there: nothing that comes later is before it.
        until = min(trace.arrival_s[-1] for trace, _ in heads)
        parts, left = [], []
        for trace, source in heads:
            place = int(np.searchsorted(trace.arrival_s, until, side="right"))
            parts.append(trace.take(slice(0, place)))
            rest: Trace | None = trace.take(slice(place, None))
            if place == len(trace):
                rest = _next(source)
                while rest is not None and rest.arrival_s[0] <= until:  # more of the same moment
                    more = int(np.searchsorted(rest.arrival_s, until, side="right"))
                    parts[-1] = joined([parts[-1], rest.take(slice(0, more))])
                    rest = rest.take(slice(more, None)) if more < len(rest) else _next(source)
            if rest is not None:
                left.append((rest, source))
        heads = left
        waiting.append(mixed([part for part in parts if len(part)], apart=False))
        count += len(waiting[-1])
        if count >= rows or not heads:
            whole = joined(waiting)
            for begin in range(0, len(whole), rows):
                if begin + rows <= len(whole) or not heads:
                    yield whole.take(slice(begin, begin + rows))
            waiting = [whole.take(slice(len(whole) // rows * rows, None))] if heads else []
            count = sum(map(len, waiting))


def _next(source: Iterator[Trace]) -> Trace | None:
    return next((trace for trace in source if len(trace)), None)


def repeated(trace: Trace, times: int, *, period_s: float | None = None, apart: bool = True) -> Trace:
    """The workload ``times`` times, one after the other, each begun ``period_s`` after the one before it.

    The default period is the trace's length and one mean gap. Conversations and blocks of each round are its own
    unless ``apart`` is false.
    """
    period_s = _period_s(trace) if period_s is None else period_s
    if times < 1 or period_s < trace.duration_s:
        raise TraceError(
            f"A trace of {trace.duration_s:g} s cannot be repeated {times} times every {period_s:g} s.",
            field="times",
        )
    return joined([moved(trace, period_s * round) for round in range(times)], apart=apart)


def after(traces: Sequence[Trace], *, gap_s: float = 0.0) -> Trace:
    """Workloads one after the other: each begins ``gap_s`` after the last request of the one before it."""
    if gap_s < 0:
        raise TraceError(f"A gap of {gap_s:g} s is below 0.", field="gap_s")
    placed, end_s = [], None
    for trace in traces:
        if len(trace):
            placed.append(trace if end_s is None else moved(from_zero(trace), end_s + gap_s))
            end_s = float(placed[-1].arrival_s[-1])
    return joined(placed, apart=True) if placed else empty()


def _moved(trace: Trace, rng: np.random.Generator) -> Trace:
    """The trace moved by a random time, its end wrapped around to the beginning."""
    if trace.duration_s == 0:
        return trace
    start, period_s = float(trace.arrival_s[0]), _period_s(trace)
    times = (trace.arrival_s - start + rng.random() * period_s) % period_s + start
    order = np.argsort(times, kind="stable")
    return replace(trace.take(order), arrival_s=times[order])


def _period_s(trace: Trace) -> float:
    return trace.duration_s * len(trace) / max(1, len(trace) - 1)


def _positive(name: str, value: float) -> None:
    if not (value > 0 and np.isfinite(value)):
        raise TraceError(f"'{name}' is {value:g}; it has to be above 0.", field=name)
