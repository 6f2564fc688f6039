"""S165: how much more traffic ALISE's order carries at equal normalised latency, on real traces of lengths."""

from __future__ import annotations

import csv
import gzip
import math
import os
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.queueing.events import (
    Served,
    Work,
    concordance,
    figures,
    interrupt,
    serve,
    shortest_remaining,
)
from benchmarks.queueing.sweep import policy

SLOTS = (1, 4, 16)
LIMITS = (3.0, 5.0, 10.0)
"""Normalised latency allowed, in times of that of an idle server."""


RESUME_S = 0.02
"""To bring an interrupted answer's keys and values back: 320 kB a token, some 1,500 tokens, 25 GB/s."""
LOADS = (*(0.05 * step for step in range(3, 20)), 0.98)


class DataAbsent(Exception):
    """The shared data are not where they were looked for."""


def data() -> Path:
    """The folder of the data sets: ``$APPORTION_DATA``, else ``../shared/data`` beside the repository."""
    folder = Path(os.environ.get("APPORTION_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")
    if not folder.is_dir():
        raise DataAbsent(f"there are no data at {folder}: set APPORTION_DATA to the folder of the data sets")
    return folder


def rows(name: str) -> list[dict[str, str]]:
    """All rows of ``folder/file``."""
    path = data() / f"{name}.csv.gz"
    if not path.is_file():
        raise DataAbsent(f"{path} is absent")
    with gzip.open(path, "rt", newline="") as lines:
        return list(csv.DictReader(lines))


def pace() -> tuple[float, float]:
    """Seconds for a prompt token and for an output token: medians of one large model on one kind of machine."""
    chosen = [
        row
        for row in rows("splitwise_perf_model/perf_model")
        if row["model"] == "llama2-70b" and row["batch_size"] == "1"
    ]
    prompt_s = median(float(row["prompt_time"]) / float(row["prompt_size"]) for row in chosen) / 1000.0
    token_s = median(float(row["token_time"]) for row in chosen) / 1000.0
    return prompt_s, token_s


def lengths() -> dict[str, list[tuple[float, float, float]]]:
    """For each application (arrival, prompt tokens, output tokens) in order; arrival in seconds."""
    found = {}
    for name in ("azure_conv", "azure_code"):
        found[name] = [
            (float(row["t_s"]), float(row["prompt_tokens"]), float(row["output_tokens"]))
            for row in rows(f"azure_llm_2023/{name}")
        ]
    # No times are recorded here: they come evenly over the hour that the others last.
    papers = rows("vidur_arxiv_lengths/arxiv_summarization")[:6000]
    last_s = max(found["azure_conv"][-1][0], found["azure_code"][-1][0])
    found["arxiv"] = [
        (last_s * index / len(papers), float(row["prompt_tokens"]), float(row["output_tokens"]))
        for index, row in enumerate(papers)
    ]
    return found


class Medians:
    """The noisy predictor that lengths alone allow: the median answer of an application and a size of prompt."""

    def __init__(self, seen: Sequence[tuple[str, float, float]]) -> None:
        cells: dict[tuple[str, int], list[float]] = defaultdict(list)
        for application, prompt, output in seen:
            cells[self._cell(application, prompt)].append(output)
        self._medians = {cell: median(outputs) for cell, outputs in cells.items()}
        self._rest = median(output for _, _, output in seen)

    def __call__(self, application: str, prompt: float) -> float:
        return self._medians.get(self._cell(application, prompt), self._rest)

    @staticmethod
    def _cell(application: str, prompt: float) -> tuple[str, int]:
        return application, int(2.0 * math.log2(1.0 + prompt))


def workload(mix: str, n: int) -> tuple[list[Work], list[Work], float]:
    """Requests to choose parameters on, and ``n`` requests to serve. The first quarter of the trace teaches the
    predictor for the second, the first half for the third; and how well the predictions rank the third.
    """
    prompt_s, token_s = pace()
    traces = lengths()
    chosen = traces if mix == "all" else {mix: traces[mix]}
    merged = sorted((t, name, p, o) for name, trace in chosen.items() for t, p, o in trace)

    def part(begin: int) -> list[Work]:
        predict = Medians([(name, p, o) for _, name, p, o in merged[:begin]])
        later = merged[begin : begin + n]
        return [
            Work(
                f"{index:06}",
                t - later[0][0],
                prompt * prompt_s + max(output, 1.0) * token_s,
                expected_s=prompt * prompt_s + predict(name, prompt) * token_s,
                tenant=name,
                tokens=max(output, 1.0),
            )
            for index, (t, name, prompt, output) in enumerate(later)
        ]

    works = part(len(merged) // 2)
    sample = random.Random(0).sample(works, min(600, len(works)))
    ranking = concordance([w.service_s for w in sample], [w.expected_s or 0.0 for w in sample])
    return part(len(merged) // 4), works, ranking


def squeezed(works: Sequence[Work], load: float, slots: int) -> list[Work]:
    """The same arrivals faster or slower, so that ``slots`` servers are busy for ``load``."""
    span_s = works[-1].arrived_s
    factor = sum(work.service_s for work in works) / (load * slots * span_s)
    return [work._replace(arrived_s=work.arrived_s * factor) for work in works]


def by_rate(mix: str, n: int) -> dict[str, Any]:
    """The highest load whose mean normalised latency stays within each limit, by order and slots."""
    before, works, ranking = workload(mix, n)
    service_s = sum(work.service_s for work in works) / len(works)
    idle = sum(work.service_s / work.tokens for work in works) / len(works)
    found: dict[str, Any] = {"ranking": ranking, "idle_s": idle, "slots": {}}

    def run(name: str, at: Sequence[Work], slots: int, chosen: dict[str, Any]) -> list[Served]:
        if name == "srpt":
            return shortest_remaining(at, slots)
        if name == "spt":
            return serve([work._replace(expected_s=work.service_s) for work in at], policy("sjf"), slots)
        if name == "alise, interrupting":
            return interrupt(at, policy("alise", **chosen), slots, RESUME_S)
        return serve(at, policy(name, **(chosen if name == "alise" else {})), slots)

    def tuned(slots: int, name: str) -> dict[str, Any]:
        """ALISE's levels and ageing, chosen on earlier traffic."""
        at = squeezed(before, 0.8, slots)
        grid = [
            {"levels": 12, "quantum_s": quantum * service_s, "ageing_s": ageing * service_s / slots}
            for quantum in (0.02, 0.1, 0.4)
            for ageing in (5.0, 20.0, 80.0)
        ]
        return min(grid, key=lambda chosen: figures(run(name, at, slots, chosen))["normalised_s"])

    for slots in SLOTS:
        chosen = {name: tuned(slots, name) for name in ("alise", "alise, interrupting")}
        curves: dict[str, list[tuple[float, float, float]]] = {}
        for name in ("fcfs", "alise", "alise, interrupting", "spt", "srpt"):
            curve = []
            for load in LOADS:
                numbers = figures(run(name, squeezed(works, load, slots), slots, chosen.get(name, {})))
                curve.append((load, numbers["normalised_s"] / idle, numbers["max_wait_s"]))
                if curve[-1][1] > 1.5 * LIMITS[-1]:
                    break
            curves[name] = curve
        found["slots"][str(slots)] = {
            "chosen": chosen,
            "curves": curves,
            "sustained": {
                f"{limit:g}": {name: sustained(curve, limit) for name, curve in curves.items()}
                for limit in LIMITS
            },
        }
    return found


def sustained(curve: Sequence[tuple[float, float, float]], limit: float) -> float:
    """The load at which a curve crosses ``limit``, between two points by straight line."""
    before = (0.0, 1.0)
    for load, times, _ in curve:
        if times > limit:
            return before[0] + (load - before[0]) * max(0.0, limit - before[1]) / (times - before[1])
        before = (load, times)
    return before[0]
