"""Pictures of a comparison: distributions, time, cost against quality. Readable on light and on dark ground."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from apportion.core.errors import ApportionError
from apportion.simulate.best import Best
from apportion.simulate.compare import Outcome

COLOURS: Final = ("#3b7dd8", "#e07b1f", "#2a9d6a", "#b455a8", "#d0414e", "#7a6ff0", "#9a8411", "#1597a8")
_INK: Final = "#010203"
"""Stands for the colour of the page's text, which is not known here."""
_GREY: Final = "#888888"
_TITLES: Final = {"ttft_s": "time to first token", "tpot_s": "time per output token", "e2e_s": "end to end"}
_STYLE: Final = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor", "axes.titlecolor"),
        _INK,
    ),
}


class PictureError(ApportionError):
    """Pictures cannot be drawn."""

    code = "picture"


def pictures(outcomes: Sequence[Outcome], best: Best) -> Iterator[tuple[str, str, Any]]:
    """The name, the caption and the matplotlib figure of everything that can be drawn of one what-if. Each figure is
    closed when the next is asked for. Raises `PictureError` where matplotlib is missing.
    """
    plt = _pyplot()
    drawn: tuple[tuple[str, str, Callable[..., Any]], ...] = (
        (
            "distributions",
            "Share of the answers that took at most so long; dashed: alone on the fastest engine.",
            _distributions,
        ),
        ("latency", "Latency by the time of arrival: median (line) and 90th percentile (thin).", _latency),
        ("load", "Requests in the system and waiting, on average over each bin of time.", _load),
        ("instances", "Machines behind the endpoints that are scaled: ready, and there (thin).", _instances),
        ("quality", "What quality costs; the line is what it costs at least (linear program).", _quality),
        ("spending", "What was spent so far, and how the budgets in dollars burn down.", _spending),
    )
    for name, caption, draw in drawn:
        with plt.rc_context(_STYLE | {"svg.hashsalt": name}):
            figure = draw(plt, outcomes, best)
            if figure is None:
                continue
            yield name, caption, figure
            plt.close(figure)


def svg(figure: Any) -> str:
    """A figure for a page: text is text, in the page's colour."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    found = text.getvalue().replace(_INK, "currentColor")
    return found[found.index("<svg") :]


def png(figure: Any, path: Path) -> None:
    """A figure as a file, on white."""
    figure.savefig(path, dpi=150, facecolor="white")


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise PictureError(
            "Pictures need matplotlib.", field="--html", fix="pip install 'apportion[simulate]'"
        ) from error
    matplotlib.use("agg", force=False)
    from matplotlib import pyplot

    return pyplot


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _distributions(plt: Any, outcomes: Sequence[Outcome], best: Best) -> Any:
    shown = [
        name for name in _TITLES if any(len(outcome.digest.share_below(name)[0]) for outcome in outcomes)
    ]
    if not shown:
        return None
    figure, axes = plt.subplots(1, len(shown), figsize=(3.3 * len(shown), 2.9), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], shown, strict=True):
        for index, outcome in enumerate(outcomes):
            at, share = outcome.digest.share_below(name)
            kept = at > 0.0
            if kept.any():
                at, share = np.append(at[kept][0], at[kept]), np.append(0.0, share[kept])
                axis.step(at, share, where="post", color=_colour(index), label=outcome.case)
        if name in best.alone:
            at = np.sort(best.alone[name])
            axis.plot(
                at, np.arange(1, len(at) + 1) / len(at), color=_GREY, ls="--", lw=1.2, label="best possible"
            )
        objective = getattr(outcomes[0].digest.objective, name)
        if objective is not None:
            axis.axvline(objective, color=_GREY, lw=1.0, ls=":")
        axis.set_xscale("log")
        axis.set_title(_TITLES[name])
        axis.set_xlabel("seconds")
        axis.set_ylim(0.0, 1.02)
        _log(axis.xaxis)
    axes[0, 0].set_ylabel("share of answers")
    _legend(figure, axes[0, 0])
    return figure


def _latency(plt: Any, outcomes: Sequence[Outcome], best: Best) -> Any:
    names = [
        name for name in ("ttft", "e2e") if any(_finite(o.digest.series[f"{name}_p50_s"]) for o in outcomes)
    ]
    if not names:
        return None
    figure, axes = plt.subplots(1, len(names), figsize=(5.0 * len(names), 2.9), squeeze=False)
    scale, unit = _time(outcomes)
    for axis, name in zip(axes[0], names, strict=True):
        for index, outcome in enumerate(outcomes):
            series = outcome.digest.series
            t = (series["t_s"] - series["t_s"][0]) / scale
            axis.plot(t, series[f"{name}_p50_s"], color=_colour(index), label=outcome.case)
            axis.plot(t, series[f"{name}_p90_s"], color=_colour(index), lw=0.8, alpha=0.8)
        axis.set_yscale("log")
        _log(axis.yaxis)
        axis.set_title(_TITLES[f"{name}_s"])
        axis.set_xlabel(unit)
    axes[0, 0].set_ylabel("seconds\n(thick: median, thin: p90)")
    _legend(figure, axes[0, 0])
    return figure


def _load(plt: Any, outcomes: Sequence[Outcome], best: Best) -> Any:
    if not any(outcome.digest.series["in_system"].any() for outcome in outcomes):
        return None
    figure, axes = plt.subplots(1, 3, figsize=(10.0, 2.7))
    scale, unit = _time(outcomes)
    for index, outcome in enumerate(outcomes):
        series = outcome.digest.series
        t = (series["t_s"] - series["t_s"][0]) / scale
        if index == 0:
            whole = _within_trace(series["arrivals_per_s"])
            axes[0].plot(t[:whole], series["arrivals_per_s"][:whole], color=_GREY)
        for axis, name in zip(axes[1:], ("in_system", "waiting"), strict=True):
            axis.plot(t, series[name], color=_colour(index), label=outcome.case)
    for axis, title in zip(
        axes, ("arrivals a second", "requests in the system", "of these waiting"), strict=True
    ):
        axis.set_title(title)
        axis.set_xlabel(unit)
        axis.set_ylim(bottom=0.0)
    _legend(figure, axes[1])
    return figure


def _instances(plt: Any, outcomes: Sequence[Outcome], best: Best) -> Any:
    of = [outcome.digest.facts.get("instances") or {} for outcome in outcomes]
    names = list(dict.fromkeys(name for each in of for name in each))
    if not names:
        return None
    figure, axes = plt.subplots(1, len(names), figsize=(max(5.0, 3.6 * len(names)), 2.7), squeeze=False)
    scale, unit = _time(outcomes)
    for axis, name in zip(axes[0], names, strict=True):
        for index, (outcome, each) in enumerate(zip(outcomes, of, strict=True)):
            if name in each:
                series = outcome.digest.series["t_s"]
                changes = np.array([*each[name], (max(series[-1], each[name][-1][0]), *each[name][-1][1:])])
                t = (changes[:, 0] - series[0]) / scale
                axis.step(t, changes[:, 1], where="post", color=_colour(index), label=outcome.case)
                there = f"{outcome.case}, with those that load or finish"
                axis.step(
                    t, changes[:, 2], where="post", color=_colour(index), lw=0.8, alpha=0.8, label=there
                )
        axis.set_title(f"instances of {name}")
        axis.set_xlabel(unit)
        axis.set_ylim(bottom=0.0)
        axis.yaxis.get_major_locator().set_params(integer=True)
    _legend(figure, axes[0, 0])
    return figure


def _within_trace(arrivals: Any) -> int:
    """Bins up to that of the last arrival, which the trace fills in part only."""
    last = np.flatnonzero(arrivals)
    return max(int(last[-1]), 1) if len(last) else len(arrivals)


def _quality(plt: Any, outcomes: Sequence[Outcome], best: Best) -> Any:
    points = [(outcome, outcome.value("usd_per_1k"), outcome.value("quality")) for outcome in outcomes]
    known = [point for point in points if math.isfinite(point[1]) and math.isfinite(point[2])]
    if not known:
        return None
    figure, axis = plt.subplots(figsize=(5.4, 3.4))
    if best.frontier is not None and best.frontier.requests:
        n = best.frontier.requests
        every = max(1, len(best.frontier.usd) // 400)
        usd = np.append(best.frontier.usd[::every], best.frontier.usd[-1])
        quality = np.append(best.frontier.quality[::every], best.frontier.quality[-1])
        point = len(usd) < 3 and np.ptp(usd) == 0.0  # all that can be bought has one price
        style = {"marker": "D", "ls": ""} if point else {"ls": "--"}
        axis.plot(1000.0 * usd / n, quality / n, color=_GREY, label="least cost (bound)", **style)
    for index, (outcome, usd_each, quality_each) in enumerate(points):
        if (outcome, usd_each, quality_each) in known:
            axis.plot(usd_each, quality_each, "o", ms=8, color=_colour(index), label=outcome.case)
    axis.set_xlabel("dollars for 1,000 requests")
    axis.set_ylabel("expected quality")
    axis.margins(0.12)
    axis.legend(loc="best")
    figure.tight_layout()
    return figure


def _spending(plt: Any, outcomes: Sequence[Outcome], best: Best) -> Any:
    if not any(outcome.digest.series["usd"].any() for outcome in outcomes):
        return None
    budgets = [name for name in outcomes[0].digest.budgets if _left(outcomes[0], name) is not None][:3]
    figure, axes = plt.subplots(1, 1 + len(budgets), figsize=(3.6 + 3.2 * len(budgets), 2.9), squeeze=False)
    scale, unit = _time(outcomes)
    for index, outcome in enumerate(outcomes):
        series = outcome.digest.series
        t = (series["t_s"] - series["t_s"][0]) / scale
        axes[0, 0].plot(t, series["usd"], color=_colour(index), label=outcome.case)
        for axis, name in zip(axes[0, 1:], budgets, strict=True):
            left = _left(outcome, name)
            if left is not None:
                axis.plot(t, left, color=_colour(index))
    axes[0, 0].set_title("dollars spent")
    for axis, name in zip(axes[0, 1:], budgets, strict=True):
        axis.set_title(f"left of {name.rpartition('@')[2]}'s budget")
    for axis in axes[0]:
        axis.set_xlabel(unit)
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    _legend(figure, axes[0, 0])
    return figure


def _left(outcome: Outcome, name: str) -> Any:
    """What is left of a budget in dollars at each time, where it is for all or for a tenant; else None."""
    series, budget = outcome.digest.series, outcome.digest.budgets.get(name, {})
    scope = name.rpartition("@")[2]
    spent = series["usd"] if scope == "all" else series.get(f"usd of {scope}")
    if budget.get("unit") != "usd" or "window_s" not in budget or spent is None:
        return None
    if budget["window_s"]:
        window = series["t_s"] // budget["window_s"]
        first = np.searchsorted(window, window)
        spent = spent - np.where(first > 0, spent[np.maximum(first - 1, 0)], 0.0)
    return budget["limit"] - spent


def _legend(figure: Any, axis: Any) -> None:
    """One legend for all panels, below them."""
    handles, labels = axis.get_legend_handles_labels()
    columns = min(len(labels), 4)
    rows = math.ceil(len(labels) / max(columns, 1))
    figure.tight_layout(rect=(0.0, 0.02 + 0.075 * rows, 1.0, 1.0))
    figure.legend(handles, labels, loc="lower center", ncols=max(columns, 1))


def _log(axis: Any) -> None:
    """A logarithmic axis with few ticks, in plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    decades = math.log10(max(high, 1e-300) / max(low, 1e-300))
    subs = (1.0, 2.0, 5.0) if decades < 1.5 else (1.0, 3.0) if decades < 2.5 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _time(outcomes: Sequence[Outcome]) -> tuple[float, str]:
    """Seconds in the unit of the axis of time, and its name."""
    series = outcomes[0].digest.series["t_s"]
    span = float(series[-1] - series[0])
    for seconds, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if span >= 3.0 * seconds:
            return seconds, unit
    return 1.0, "seconds"


def _finite(values: Any) -> bool:
    return bool(np.isfinite(values).any())
