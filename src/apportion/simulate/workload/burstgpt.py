"""A workload of the size of BurstGPT, from what was published of it by the minute, the hour and the day.

BurstGPT (arXiv:2401.17644) has 10.31 million requests of 213 days. From its aggregates come the requests of each day
that is there, the profile of the hours, and, from the tokens of every minute of the first week, how bursty arrivals
are. What the aggregates do not say is assumed, and each assumption is a parameter or a constant here:

- Days that are missing are drawn from those of the same weekday and scaled to the total.
- An hour's shape is that of gamma gaps whose counts vary as the minutes of an hour of the first week do: the variance
of a
  minute's tokens is mean count x (index of dispersion x mean tokens squared + variance of tokens). The tokens of
  single requests are seen in the minutes of quiet hours, few of which have two.
- Prompts are Zipf up to 8,192 tokens, with the exponent that gives the day its tokens for each request;
  answers are of two kinds, short and long (the paper's figures show both; the aggregates show neither).
- 1.8% fail, as in the first two months (1,429.7 thousand rows, of which 1,404.3 thousand did not).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from apportion.simulate.trace import TraceError
from apportion.simulate.workload import lengths, rows
from apportion.simulate.workload.gaps import Gaps
from apportion.simulate.workload.lengths import Lengths
from apportion.simulate.workload.model import Kind, Model

DAYS: Final = 213
REQUESTS: Final = 10_310_000
FAILED: Final = 1.0 - 1404.3 / 1429.7
LONGEST_PROMPT: Final = 8_192
LONGEST_OUTPUT: Final = 12_500
ANSWERS: Final = ((0.25, 15.0, 0.8), (0.75, 280.0, 0.7))
"""Share, median in tokens and log standard deviation of short and of long answers."""
SHAPES: Final = (0.05, 2.0)
"""Shapes outside are taken for these."""
_HOUR_S: Final = 3600.0
_QUIET: Final = 0.2
"""Requests a minute below which a minute with tokens is taken for one request."""
_SHAPES: Final = np.geomspace(*SHAPES, 48)


def model(folder: str | Path, *, days: int = DAYS, requests: int = REQUESTS, seed: int = 0) -> Model:
    """The workload. ``folder`` has ``daily``, ``hourly_profile`` and ``week1_minute_tokens`` (``.csv`` or
    ``.csv.gz``).

    Raises:
        TraceError: a table is missing or malformed.
    """
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    daily = _table(folder, "daily", "requests", "total_tokens")
    hours = _table(folder, "hourly_profile", "mean_requests_per_hour")[0]
    minute, tokens_per_s = _table(folder, "week1_minute_tokens", "minute", "total_tokens_per_s")
    source = _days(len(daily[0]), days, rng)
    counts = daily[0][source]
    known = min(days, len(daily[0]))
    rest = max(0.0, requests - counts[:known].sum())
    if days > known and rest > 0:
        counts[known:] *= rest / counts[known:].sum()
    else:
        counts = counts * (requests / counts.sum())
    rates = (counts[:, None] * hours / hours.sum() / _HOUR_S).reshape(-1)
    share, median, sigma = np.array(ANSWERS).T
    outputs = lengths.mixture_quantiles(share, median, sigma, LONGEST_OUTPUT)
    laws = [_lengths(float(each), outputs) for each in (daily[1] / daily[0])]
    shapes = _hour_shapes(minute, tokens_per_s, daily)
    drawn = rng.choice(shapes, size=len(rates))
    law = np.abs(np.log(_SHAPES)[None, :] - np.log(drawn)[:, None]).argmin(axis=1)
    return Model(
        name="burstgpt_sized",
        window_s=_HOUR_S,
        rates=tuple(rates.tolist()),
        gaps=tuple(Gaps((1.0,), (float(shape),), (1.0,)) for shape in _SHAPES),
        law=tuple(law.tolist()),
        kinds=(Kind("", "", 1.0, tuple(laws[day] for day in source), FAILED),),
        length_window_s=24 * _HOUR_S,
        notes=("made from BurstGPT's aggregates; lengths of single requests and missing days are assumed",),
    )


def _days(there: int, wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which day stands for each: itself, or one of the same weekday."""
    days = np.arange(wanted)
    for day in range(there, wanted):
        days[day] = rng.choice(np.arange(day % 7, there, 7)) if there >= 7 else rng.integers(there)
    return days


def _hour_shapes(
    minute: NDArray[np.float64], tokens_per_s: NDArray[np.float64], daily: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Shapes of the hours of the first week with ten requests or more."""
    whole = np.zeros(int(minute.max()) // 60 * 60 + 60)
    whole[minute.astype(int)] = tokens_per_s * 60.0
    hours = whole.reshape(-1, 60)
    day = np.minimum(np.arange(len(hours)) // 24, len(daily[0]) - 1)
    each = daily[1][day] / daily[0][day]
    counts = hours.mean(axis=1) / each
    alone = hours[(counts > 0) & (counts < _QUIET)]
    alone = alone[alone > 0]
    relative = float(alone.var() / alone.mean() ** 2) if len(alone) > 20 else 1.0
    busy = counts * 60 >= 10
    if not np.any(busy):
        raise TraceError("No hour of the first week has ten requests.", field="week1_minute_tokens")
    dispersion = hours[busy].var(axis=1) / counts[busy] / each[busy] ** 2 - relative
    return np.asarray(np.clip(1.0 / np.maximum(dispersion, 1e-6), *SHAPES))


def _lengths(tokens: float, outputs: NDArray[np.float64]) -> Lengths:
    """Lengths with ``tokens`` for a request on the average."""
    answer = _mean(outputs)
    low, high = 0.0, 4.0
    for _ in range(30):
        middle = (low + high) / 2.0
        low, high = (middle, high) if answer + _zipf_mean(middle) > tokens else (low, middle)
    return lengths.independent(lengths.zipf_quantiles((low + high) / 2.0, LONGEST_PROMPT), outputs)


@cache
def _zipf_mean(exponent: float) -> float:
    return _mean(lengths.zipf_quantiles(exponent, LONGEST_PROMPT))


def _mean(quantiles: NDArray[np.float64]) -> float:
    return float(np.sum(np.diff(lengths.LEVELS) * (quantiles[1:] + quantiles[:-1]) / 2.0))


def _table(folder: Path, name: str, *columns: str) -> list[NDArray[np.float64]]:
    path = next((p for end in (".csv", ".csv.gz") if (p := folder / f"{name}{end}").is_file()), None)
    if path is None:
        raise TraceError(
            f"{folder} has no {name}.csv.gz.", field="FOLDER", fix="Name the folder of BurstGPT's aggregates."
        )
    parts: dict[str, list[Any]] = {column: [] for column in columns}
    for chunk in rows.chunks(path, columns, 65536):
        if chunk.broken:
            raise TraceError(f"{path}, line {chunk.broken[0][0]}: {chunk.broken[0][1]}.", field=name)
        for column in columns:
            parts[column] += chunk.columns[column]
    try:
        found = [np.array(parts[column], np.float64) for column in columns]
    except ValueError as error:
        raise TraceError(f"{path}: {error}.", field=name) from None
    if not all(len(each) and np.all(np.isfinite(each)) and np.all(each >= 0) for each in found):
        raise TraceError(f"{path} has no rows, or numbers below 0.", field=name)
    return found
