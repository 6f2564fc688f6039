"""Laws beside traces: ours, the one of the BurstGPT paper, a Poisson process; windows left out whole; ServeGen's
clients.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from apportion.simulate.trace import Trace
from apportion.simulate.workload import fit, fitness, gaps, lengths, open_trace
from apportion.simulate.workload.gaps import Gaps
from apportion.simulate.workload.model import Memory, Model

TRACES = {
    "azure_conv": "azure_llm_2023/azure_conv.csv.gz",
    "azure_code": "azure_llm_2023/azure_code.csv.gz",
    "mooncake_conversation": "mooncake_fast25/mooncake_conversation.csv.gz",
    "mooncake_synthetic": "mooncake_fast25/mooncake_synthetic.csv.gz",
}


class DataAbsent(Exception):
    """A data set is not there."""


def data() -> Path:
    """The folder of the data sets."""
    folder = Path(os.environ.get("APPORTION_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not folder.is_dir():
        raise DataAbsent(f"there are no data at {folder}: set APPORTION_DATA to the folder of the data sets")
    return folder


def fits(folder: Path) -> Iterator[dict[str, Any]]:
    """Each trace with its fits."""
    for name, file in TRACES.items():
        trace = open_trace(folder / file)
        begun = time.process_time()
        ours = fit(trace)
        seconds = time.process_time() - begun
        yield {
            "trace": name,
            "requests": len(trace),
            "fit_cpu_s": seconds,
            "window_s": ours.window_s,
            "length_window_s": ours.length_window_s,
            "notes": list(ours.notes),
            "memory": msgspec.to_builtins(ours.memory),
            "talk": None
            if ours.talk is None
            else {"mean_turns": ours.talk.mean_turns, "one_turn": ours.talk.turns[0]},
            "fitness": ours.fitness,
            "laws": {
                "one Poisson process": _judged(_poisson(ours), trace),
                "gamma by window, Zipf prompts": _judged(_paper(ours, trace), trace),
                "ours": ours.fitness["worst"] | {"dispersion": ours.fitness["dispersion"]},
            },
            "left_out": _left_out(ours, trace),
        }


def _judged(model: Model, trace: Trace) -> dict[str, Any]:
    report = fitness.report(model, trace)
    return {
        **{k: v for k, v in report["worst"].items() if k.startswith("ks")},
        "dispersion": report["dispersion"],
    }


def _poisson(ours: Model) -> Model:
    """One rate, exponential gaps; the lengths are ours."""
    rate = ours.requests / ours.duration_s
    return msgspec.structs.replace(
        ours, rates=(rate,) * len(ours.rates), gaps=(Gaps(),), law=(0,) * len(ours.rates), memory=Memory()
    )


def _paper(ours: Model, trace: Trace) -> Model:
    """Gamma gaps by window, independent of each other; prompts by Zipf's law, answers a mixture of log-normal ones."""
    times, _ = fitness.spread(trace.arrival_s, 0)
    times = times - times[0]
    edges = np.searchsorted(times, np.arange(len(ours.rates) + 1) * ours.window_s)
    laws = tuple(
        gaps.fit(np.diff(times[begin:end]), most_parts=1) if end - begin > 40 else Gaps()
        for begin, end in pairwise(edges.tolist())
    )
    plain = fit(
        trace,
        window_s=ours.duration_s,
        length_window_s=ours.length_window_s,
        prompt_law="zipf",
        output_law="lognormal",
    )
    return msgspec.structs.replace(
        ours, gaps=laws, law=tuple(range(len(laws))), kinds=plain.kinds, talk=plain.talk, memory=Memory()
    )


def _left_out(model: Model, trace: Trace) -> dict[str, Any]:
    """Every window whole, under the law of its two neighbours: gaps relative to the mean, prompts and answers."""
    times, _ = fitness.spread(trace.arrival_s, 0)
    times = times - times[0]
    found: dict[str, list[float]] = {"gaps": [], "prompt": [], "output": []}
    count = len(model.rates) if len(model.rates) >= 3 else 5
    width = model.duration_s / count
    edges = np.searchsorted(times, np.arange(count + 1) * width)
    for window in range(count):
        beside = [w for w in (window - 1, window + 1) if 0 <= w < count]
        inside = np.arange(edges[window], edges[window + 1])
        near = [np.arange(edges[w], edges[w + 1]) for w in beside]
        if len(inside) < 200 or min(map(len, near)) < 200:
            continue
        relative = np.concatenate([np.diff(times[rows]) / np.diff(times[rows]).mean() for rows in near])
        own = np.diff(times[inside])
        found["gaps"].append(fitness.ks(own / own.mean(), gaps.fit(relative).cdf))
        for side in ("prompt", "output"):
            column = getattr(trace, f"{side}_tokens")
            knots = tuple(lengths.quantiles(column[np.concatenate(near)]).tolist())
            found[side].append(
                fitness.ks(column[inside], lambda at, k=knots: lengths.cdf(k, at), discrete=True)
            )
    return {
        "window_s": width,
        **{
            name: {"windows": len(values), "median": float(np.median(values)), "worst": max(values)}
            for name, values in found.items()
            if values
        },
    }


def servegen(folder: Path) -> dict[str, Any]:
    """What was drawn from ServeGen's tables beside them: rate and coefficient of variation of clients' windows."""
    import csv
    import gzip

    path = folder / "servegen_clients" / "deepseek_r1_rates.csv.gz"
    drawn = open_trace(path, seed=1)
    with gzip.open(path, "rt") as file:
        table = list(csv.DictReader(file))
    assert drawn.tenant is not None
    by_client = {
        name: drawn.arrival_s[drawn.tenant.codes == place] for place, name in enumerate(drawn.tenant.names)
    }
    rates, shapes = [], []
    for row in table:
        times, start = by_client[f"client {row['client']}"], float(row["t_s"])
        inside = times[np.searchsorted(times, start) : np.searchsorted(times, start + 600)]
        if float(row["rate_rps"]) * 600 < 200 or len(inside) < 3:
            continue
        rates.append(len(inside) / 600 / float(row["rate_rps"]) - 1)
        own = np.diff(inside)
        shapes.append(float(own.std() / own.mean()) / float(row["cv"]) - 1)
    return {
        "requests": len(drawn),
        "windows": len(rates),
        "rate_off_median": float(np.median(np.abs(rates))),
        "rate_off_total": float(np.mean(rates)),
        "cv_off_median": float(np.median(np.abs(shapes))),
    }
