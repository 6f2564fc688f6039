"""Workloads from ServeGen's tables: what each client sends, in rates and lengths by window, made into requests.

The tables (https://github.com/alibaba/ServeGen, arXiv:2505.09999) say how fast each client sent in each window of ten
minutes, the coefficient of variation of the gaps between its requests with the law that fitted them, and quantiles of
its prompt and answer lengths in each window of six hours. Requests are drawn from these: gaps from the law (scaled to
the rate), lengths by linear interpolation of the quantiles, each client on its own. Which prompt had which answer the
tables do not say: the two are drawn independently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from apportion.simulate.trace import Labels, Trace, TraceError
from apportion.simulate.workload import rows

WINDOW_S: Final = 600.0
_LEVELS: Final = np.array([0.0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0])
_QUANTILES: Final = ("p05", "p25", "p50", "p75", "p90", "p95", "p99", "max")
_RATES: Final = ("client", "t_s", "rate_rps", "cv", "arrival", "param1")

Window = tuple[int, float, float, str]
"""Client, requests a second, shape, law of the gaps."""


def pieces(
    path: Path, broken: Callable[[Sequence[tuple[int, str]]], None], rng: Generator, rows_at_once: int
) -> Iterator[Trace]:
    """Requests of all clients in order of time. ``path`` is a table of rates (``X_rates...``); that of the lengths
    (``X_lengths...``) lies beside it.

    Raises:
        TraceError: there is no table of lengths.
    """
    windows = _windows(path, broken)
    lengths = _Lengths(_beside(path), broken)
    clients = sorted({window[0] for found in windows.values() for window in found})
    places = {client: place for place, client in enumerate(clients)}
    names = tuple(f"client {client}" for client in clients)
    owed: dict[int, float] = {}
    waiting: list[tuple[NDArray[Any], ...]] = []
    count = 0
    for start in sorted(windows):
        parts = []
        for client, rate, shape, law in windows[start]:
            times = _arrivals(rate, shape, law, rng, owed, client) + start
            if len(times):
                prompts, outputs = lengths.draw(client, start, len(times), rng)
                parts.append((times, prompts, outputs, np.full(len(times), places[client], np.int32)))
        if parts:
            columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
            order = np.argsort(columns[0], kind="stable")
            waiting.append(tuple(column[order] for column in columns))
            count += len(order)
        while count >= rows_at_once:
            whole = [np.concatenate(column) for column in zip(*waiting, strict=True)]
            yield _trace([column[:rows_at_once] for column in whole], names, path)
            waiting = [tuple(column[rows_at_once:] for column in whole)]
            count -= rows_at_once
    if count:
        yield _trace([np.concatenate(column) for column in zip(*waiting, strict=True)], names, path)


def _trace(columns: Sequence[NDArray[Any]], names: tuple[str, ...], path: Path) -> Trace:
    times, prompts, outputs, clients = columns
    return Trace(
        arrival_s=times,
        prompt_tokens=prompts,
        output_tokens=outputs,
        tenant=Labels(clients, names),
        name=path.name.partition("_rates")[0],
        notes=("requests drawn from the rates and lengths of clients; prompts and answers are independent",),
    )


def _windows(
    path: Path, broken: Callable[[Sequence[tuple[int, str]]], None]
) -> Mapping[float, Sequence[Window]]:
    found: dict[float, list[Window]] = {}
    for chunk in rows.chunks(path, _RATES, 65536):
        wrong = list(chunk.broken)
        for line, *cells in zip(chunk.lines, *(chunk.columns[name] for name in _RATES), strict=True):
            try:
                client, start, rate, cv, law = int(cells[0]), *map(float, cells[1:4]), str(cells[4])
                if not (rate > 0 and cv > 0 and math.isfinite(rate) and math.isfinite(cv)):
                    raise ValueError
                shape = float(cells[5]) if law == "Weibull" else cv**-2.0
                if law not in ("Weibull", "Gamma", "Exponential") or not (shape > 0 and math.isfinite(shape)):
                    raise ValueError
            except ValueError:
                wrong.append((line, f"no window of a client: {', '.join(map(str, cells))}"))
                continue
            found.setdefault(start, []).append((client, rate, shape, law))
        broken(sorted(wrong))
    return found


def _arrivals(
    rate: float, shape: float, law: str, rng: Generator, owed: dict[int, float], client: int
) -> NDArray[np.float64]:
    """Times within one window. Gaps are drawn with mean 1 and run on from window to window (``owed``: what is left of
    the client's last gap), so that a rate means what it says however few requests a window has.
    """
    expected = rate * WINDOW_S
    at = owed.get(client)
    times: list[NDArray[np.float64]] = []
    if at is None:
        at = float(_gaps(1, shape, law, rng)[0] * rng.random())
    while at < expected:
        more = _gaps(max(8, int((expected - at) * 1.2)), shape, law, rng)
        drawn = at + np.concatenate(([0.0], np.cumsum(more)))
        times.append(drawn[:-1])
        at = float(drawn[-1])
    whole = np.concatenate(times) if times else np.empty(0)
    within = whole < expected
    beyond = whole[~within]
    owed[client] = float(beyond[0] if len(beyond) else at) - expected
    return whole[within] / rate


def _gaps(n: int, shape: float, law: str, rng: Generator) -> NDArray[np.float64]:
    if law == "Weibull":
        return rng.weibull(shape, n) / math.gamma(1.0 + 1.0 / shape)
    return rng.standard_gamma(1.0 if law == "Exponential" else shape, n) / (
        1.0 if law == "Exponential" else shape
    )


class _Lengths:
    """Quantiles of lengths by client, the window before or else the next."""

    def __init__(self, path: Path, broken: Callable[[Sequence[tuple[int, str]]], None]) -> None:
        names = ["client", "t_s", *(f"{side}_{q}" for side in ("in", "out") for q in _QUANTILES)]
        self._by_client: dict[int, list[tuple[float, NDArray[np.float64]]]] = {}
        for chunk in rows.chunks(path, names, 65536):
            wrong = list(chunk.broken)
            for line, *cells in zip(chunk.lines, *(chunk.columns[name] for name in names), strict=True):
                try:
                    client, start = int(cells[0]), float(cells[1])
                    quantiles = np.array(cells[2:], np.float64).reshape(2, -1)
                except ValueError:
                    wrong.append((line, "no quantiles of a client"))
                    continue
                least = np.maximum(1.0, 2 * quantiles[:, :1] - quantiles[:, 1:2])
                knots = np.maximum.accumulate(np.hstack([least, quantiles]), axis=1)
                self._by_client.setdefault(client, []).append((start, knots))
            broken(sorted(wrong))
        self._all = np.mean([knots for found in self._by_client.values() for _, knots in found], axis=0)

    def draw(
        self, client: int, at_s: float, n: int, rng: Generator
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """``n`` prompt and answer lengths; of a client without any, from the mean of all."""
        known = self._by_client.get(client)
        knots = (
            self._all if not known else min(known, key=lambda each: (each[0] > at_s, abs(each[0] - at_s)))[1]
        )
        sides = (np.interp(rng.random(n), _LEVELS, side) for side in knots)
        prompts, outputs = (np.maximum(1, np.rint(side)).astype(np.int32) for side in sides)
        return prompts, outputs


def _beside(path: Path) -> Path:
    beside = path.with_name(path.name.replace("_rates", "_lengths"))
    if beside == path or not beside.is_file():
        raise TraceError(
            f"{path} has rates; the table of lengths is missing.",
            field="TRACE",
            fix="Name it as the other, with `_lengths` for `_rates`, and lay it beside it.",
        )
    return beside
