"""Pictures of workloads, as PNG: what a trace is like, and how near a fitted one comes to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from apportion.simulate.result import Result
from apportion.simulate.trace import Trace
from apportion.simulate.workload import fitness, gaps
from apportion.simulate.workload.generate import generate
from apportion.simulate.workload.model import Model
from apportion.simulate.workload.rows import SimulateExtraAbsentError

_TRACE, _MADE, _THIRD = "#3b7dd8", "#e07b1f", "#2a9d6a"
_SIZE: Final = (10.0, 6.5)


def of_trace(trace: Trace, path: str | Path) -> None:
    """Rate over time, gaps, lengths."""
    figure, axes = _figure(2, 2)
    _rate(axes[0][0], [(trace.arrival_s - trace.arrival_s[0], "", _TRACE)], trace.duration_s)
    _gaps(axes[0][1], [(trace.arrival_s, "", _TRACE)])
    _tokens(axes[1][0], "prompt", [(trace.prompt_tokens, "", _TRACE)])
    _tokens(axes[1][1], "answer", [(trace.output_tokens, "", _TRACE)])
    _save(figure, trace.name, path)


def of_fit(model: Model, trace: Trace, path: str | Path, *, seed: int = 0) -> None:
    """A trace beside a workload generated from its fit: rate, gaps, lengths, dispersion of counts by width of the
    bins.
    """
    made = generate(model, seed + 1)
    times, _ = fitness.spread(trace.arrival_s, seed)
    times = times - times[0]
    figure, axes = _figure(2, 3)
    both = [(times, "trace", _TRACE), (made.arrival_s, "generated", _MADE)]
    _rate(axes[0][0], both, model.duration_s)
    _gaps(axes[0][1], both)
    _dispersion(axes[0][2], both, model.duration_s)
    for axis, side in ((axes[1][0], "prompt"), (axes[1][1], "output")):
        name = "answer" if side == "output" else side
        sides = [
            (getattr(t, f"{side}_tokens"), said, c)
            for t, said, c in ((trace, "trace", _TRACE), (made, "generated", _MADE))
        ]
        _tokens(axis, name, sides)
    axis = axes[1][2]
    rows = model.fitness.get("arrivals", [])
    starts = [row["start_s"] for row in rows]
    axis.plot(starts, [row["ks"] for row in rows], "o-", color=_TRACE, label="gaps")
    axis.plot(starts, [row["exponential"] for row in rows], ".--", color="#888888", label="if exponential")
    long = model.fitness.get("lengths", [])
    for side, colour in (("prompt", _MADE), ("output", _THIRD)):
        axis.plot(
            [row["start_s"] for row in long],
            [row[f"ks_{side}"] for row in long],
            "s-",
            color=colour,
            label=side,
        )
    axis.axhline(0.1, color="#d0414e", lw=0.8)
    axis.set(title="distance to the law, by window", xlabel="s", ylabel="Kolmogorov-Smirnov", ylim=(0, None))
    axis.legend()
    _save(figure, model.name, path)


def of_run(run: Result, path: str | Path) -> None:
    """How a workload that was sent was answered: times over the run, their distribution."""
    figure, axes = _figure(1, 2, (10.0, 3.6))
    at = run["arrival_s"]
    for name, values, colour in (("first token", run.ttft_s, _TRACE), ("end to end", run.e2e_s, _MADE)):
        there = np.isfinite(values) & (run["status"] == 0)
        axes[0][0].plot(at[there], values[there], ".", ms=2, color=colour, label=name)
        _steps(axes[0][1], values[there], name, colour)
    axes[0][0].set(
        title="times of answers", xlabel="due at, seconds after the first", ylabel="seconds", yscale="log"
    )
    axes[0][1].set(title="share of the answers that took at most", xlabel="seconds", xscale="log")
    for axis in (axes[0][0].yaxis, axes[0][1].xaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0][1].legend()
    _save(figure, run.name, path)


def _rate(axis: Any, series: list[tuple[NDArray[Any], str, str]], duration_s: float) -> None:
    edges = np.linspace(0.0, max(duration_s, 1e-9), 121)
    for times, label, colour in series:
        counts = np.histogram(times, edges)[0]
        axis.step(edges[:-1], counts / np.diff(edges), where="post", color=colour, label=label or None, lw=1)
    axis.set(title="requests a second", xlabel="s")
    _legend(axis, series)


def _gaps(axis: Any, series: list[tuple[NDArray[Any], str, str]]) -> None:
    for times, label, colour in series:
        found = np.diff(times)
        found = found[found > 0] / found.mean()
        _steps(axis, found, label, colour)
    if series:
        x = np.geomspace(1e-3, 10, 200)
        axis.plot(x, gaps.Gaps().cdf(x), "--", color="#888888", lw=0.8)
    axis.set(title="gaps over their mean (dashed: exponential)", xscale="log", xlim=(1e-4, 1e2))
    _legend(axis, series)


def _dispersion(axis: Any, series: list[tuple[NDArray[Any], str, str]], duration_s: float) -> None:
    widths = np.geomspace(0.1, max(duration_s / 60, 0.2), 20)
    for times, label, colour in series:
        values = [fitness.dispersion(times, width, end=duration_s) for width in widths]
        axis.plot(widths, values, "o-", ms=3, color=colour, label=label)
    axis.axhline(1.0, color="#888888", lw=0.8, ls="--")
    axis.set(title="index of dispersion of counts", xlabel="width of the bins, s", xscale="log", yscale="log")
    _legend(axis, series)


def _tokens(axis: Any, name: str, series: list[tuple[NDArray[Any], str, str]]) -> None:
    for tokens, label, colour in series:
        _steps(axis, tokens[tokens > 0], label, colour)
    axis.set(title=f"{name} tokens: share of at most", xlabel="tokens", xscale="log")
    _legend(axis, series)


def _steps(axis: Any, values: NDArray[Any], label: str, colour: str) -> None:
    if len(values):
        levels = np.linspace(0.0, 1.0, min(len(values), 2000))
        axis.plot(np.quantile(values, levels), levels, color=colour, label=label or None, lw=1.2)


def _legend(axis: Any, series: list[tuple[NDArray[Any], str, str]]) -> None:
    if any(label for _, label, _ in series):
        axis.legend()


def _figure(rows: int, columns: int, size: tuple[float, float] = _SIZE) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SimulateExtraAbsentError(
            "Pictures need matplotlib.", fix="Install it: pip install 'apportion[simulate]'."
        ) from None
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(9.5)
        axis.tick_params(labelsize=8)
    return figure, axes


def _save(figure: Any, title: str, path: str | Path) -> None:
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, format="png", dpi=130)
