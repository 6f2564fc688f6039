"""From the results to the page and its pictures."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.eviction.running import CLASSICAL, ERRORS, LEARNED

DOCS = Path(__file__).parents[2] / "docs" / "results"
OURS = (*CLASSICAL, *LEARNED)


def write(results: dict[str, Any]) -> Path:
    """``docs/results/eviction.md`` and its figures."""
    DOCS.mkdir(parents=True, exist_ok=True)
    curves(results["compare"])
    smoothness(results["paging"])
    page = DOCS / "eviction.md"
    page.write_text("\n".join(lines(results)) + "\n")
    return page


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table, the first column to the left."""
    marks = ["---"] + ["---:"] * (len(head) - 1)
    return ["| " + " | ".join(row) + " |" for row in [head, marks, *rows]] + [""]


def closed(row: dict[str, Any], ratio: float) -> float:
    """The share of the way from LRU to the best possible."""
    way = row["ours"]["lru"] - row["best"]
    return (row["ours"]["lru"] - ratio) / way if way > 1e-9 else 0.0


def lines(results: dict[str, Any]) -> list[str]:
    """The page."""
    rows = results["compare"]
    found = [
        "# Eviction: miss ratios on real traces",
        "",
        f"Written by `{results['command']}` on {results['date']}; {results['machine']}.",
        "",
        f"Every method sees the first {results['requests']:,} requests of each trace once, from an empty cache,",
        "with its default parameters. Cache sizes are shares",
        "of the sizes of all distinct keys of a trace. *Best possible* is Belady's rule, which knows the future; for",
        "traces with sizes it is a bound that no cache can reach (PFOO-L). *Strongest peer* is the one with the fewest",
        "misses of: " + ", ".join(results["peers"] or ["none was installed"]) + ".",
        "",
        "## Misses of all requests",
        "",
    ]
    body = []
    for row in rows:
        peer = min(row["peers"], key=row["peers"].__getitem__) if row["peers"] else None
        classical = min(CLASSICAL, key=row["ours"].__getitem__)
        learned = min(LEARNED, key=row["ours"].__getitem__)
        body.append(
            [
                f"{row['trace']} {row['share']:.0%}",
                f"{row['ours']['lru']:.4f}",
                f"{row['peers'][peer]:.4f} ({peer.removeprefix('libcachesim ')})" if peer else "",
                f"{row['ours']['s3_fifo']:.4f}",
                f"{row['ours'][classical]:.4f} ({classical})",
                f"{row['ours'][learned]:.4f} ({learned})",
                f"{row['best']:.4f}",
            ]
        )
    head = [
        "trace, cache",
        "baseline LRU",
        "strongest peer",
        "s3_fifo",
        "best of ours, classical",
        "ours, learned",
    ]
    found += table([*head, "best possible"], body)
    found += [
        "## Each method",
        "",
        "The share of the way from LRU to the best possible, mean over all of the above;",
        "",
    ]
    found += ["worst case; and processor time per request (look-up, hit or insert), in Python.", ""]
    body = []
    for name in OURS:
        shares = [closed(row, row["ours"][name]) for row in rows]
        times = [row["us"][name] for row in rows]
        body.append(
            [
                f"cache/{name}",
                f"{np.mean(shares):.1%}",
                f"{min(shares):.1%}",
                f"{np.mean(times):.2f}",
                f"{max(times):.2f}",
            ]
        )
    peers = defaultdict(list)
    for row in rows:
        for name, ratio in row["peers"].items():
            peers[name].append((closed(row, ratio), row["peers_us"][name]))
    for name, pairs in peers.items():
        shares, times = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        note = "" if len(pairs) == len(rows) else f" ({len(pairs)} of {len(rows)} cases)"
        body.append(
            [
                name + note,
                f"{np.mean(shares):.1%}",
                f"{min(shares):.1%}",
                f"{np.mean(times):.2f}",
                f"{max(times):.2f}",
            ]
        )
    found += table(["method", "of the way, mean", "worst", "us per request, mean", "worst trace"], body)
    found += ["![miss ratios](eviction-misses.svg)", ""]
    found += paging(results["paging"])
    found += cold(results["cold_rl"])
    return found + reading(results)


def paging(rows: list[dict[str, Any]]) -> list[str]:
    """S289."""
    found = [
        "## Paging with one predicted bit (`cache/mark0`, `cache/mark_and_predict`)",
        "",
        "Misses relative to Belady's. *Right bits* come from the future; *wrong* are all inverted; *learned* is what",
        "the classifier makes of the past, with nothing given. *Bound* is 2 H_k, what Marker guarantees.",
        "",
    ]
    body = []
    for row in rows:
        best = row["belady"]
        cells = ["lru", "marker", "mark0 0", "mark0 1", "mark0 learned"]
        cells += ["mark_and_predict 0", "mark_and_predict 1", "mark_and_predict learned"]
        body.append(
            [
                f"{row['trace']}, k = {row['k']}",
                *(f"{row[cell] / best:.3f}" for cell in cells),
                f"{2 * row['harmonic']:.1f}",
            ]
        )
    head = ["trace", "LRU", "Marker", "mark0, right", "wrong", "learned"]
    found += table([*head, "mark_and_predict, right", "wrong", "learned", "bound"], body)
    less = sum(row["mark0 learned"] < min(row["lru"], row["marker"]) for row in rows)
    both = sum(row["mark_and_predict learned"] < min(row["lru"], row["marker"]) for row in rows)
    found += [
        f"Learned bits miss less than both LRU and Marker in {less} of {len(rows)} cases (`mark0`) and in {both}",
        "(`mark_and_predict`).",
        "",
        "![misses by the share of wrong bits](eviction-bits.svg)",
        "",
    ]
    return found


def cold(rows: list[dict[str, Any]]) -> list[str]:
    """S090."""
    found = [
        "## Cold-RL (`cache/cold_rl`)",
        "",
        "Hit ratios. The generated logs are trained on one draw and tested on another, the real ones on the first and",
        "the second half. *Best possible* is a bound (PFOO-L). Time per eviction is processor time; the",
        "budget is 500 us.",
        "",
    ]
    names = ("lru", "lfu", "s3_fifo", "w_tinylfu", "gdsf", "cold_rl", "best")
    body = [
        [
            f"{row['trace']} {row['share']:.0%}",
            *(f"{row[name]:.4f}" for name in names),
            f"{row['cold_rl'] / row['lru'] - 1.0:+.1%}" if row["lru"] else "",
            f"{row['p50_us']:.0f} / {row['p95_us']:.0f} / {row['p99_us']:.0f}",
        ]
        for row in rows
    ]
    head = ["log, cache", "LRU", "LFU", "S3-FIFO", "W-TinyLFU", "GDSF", "cold_rl", "best possible"]
    return found + table([*head, "over LRU", "us p50 / p95 / p99"], body)


def reading(results: dict[str, Any]) -> list[str]:
    """What the numbers say, computed where it can be."""
    rows = results["compare"]
    with_peers = [row for row in rows if row["peers"]]
    wins = sum(min(row["ours"].values()) <= min(row["peers"].values()) + 1e-9 for row in with_peers)
    means = {name: float(np.mean([closed(row, row["ours"][name]) for row in rows])) for name in OURS}
    lows = {name: min(closed(row, row["ours"][name]) for row in rows) for name in OURS}
    leading = max(means, key=means.__getitem__)
    slow = [name for name in CLASSICAL if np.mean([row["us"][name] for row in rows]) > 5.0]
    return [
        "## What this says",
        "",
        f"- The best of ours misses no more than the strongest library in {wins} of {len(with_peers)} cases.",
        "- The classical methods need at most 5 us per request in the mean"
        + (f", except {', '.join(slow)}." if slow else "."),
        "- No method is best everywhere. In the mean over these cases the largest share of the way is made by",
        f"  `{leading}` ({means[leading]:.1%}, worst case {lows[leading]:.1%}). `gdsf` is, for entries of one size",
        "  and cost, LFU with dynamic ageing, and where sizes or costs differ the natural choice: a byte of cache has",
        "  a price, and it keeps what is worth more than that.",
        "- `cold_rl` gains most over LRU where sizes differ, but the formula of `gdsf` gains more there. The paper's",
        "  bars (15% over LRU in small and middle caches, no loss in large ones) are against LRU.",
        "",
    ]


def curves(rows: list[dict[str, Any]]) -> None:
    """Miss ratio by cache size, a panel per trace."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    traces = list(dict.fromkeys(row["trace"] for row in rows))
    columns = 4
    figure, axes = plt.subplots(
        -(-len(traces) // columns), columns, figsize=(13, 3 * -(-len(traces) // columns))
    )
    shown = {"lru": "C7", "s3_fifo": "C0", "sieve": "C2", "w_tinylfu": "C1", "gdsf": "C4", "mark0": "C3"}
    for axis, trace in zip(axes.flat, traces, strict=False):
        of = [row for row in rows if row["trace"] == trace]
        shares = [100 * row["share"] for row in of]
        for name, colour in shown.items():
            axis.plot(shares, [row["ours"][name] for row in of], color=colour, marker="o", ms=3, label=name)
        axis.plot(shares, [row["best"] for row in of], "k--", label="best possible")
        if all(row["peers"] for row in of):
            axis.plot(shares, [min(row["peers"].values()) for row in of], "kx", label="strongest peer")
        axis.set_xscale("log")
        axis.set_xticks(shares, [f"{share:g}%" for share in shares])
        axis.minorticks_off()
        axis.set_title(trace, fontsize=9)
        axis.set_ylim(0, 1)
    for axis in list(axes.flat)[len(traces) :]:
        axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=8, frameon=False)
    figure.supylabel("misses of all requests")
    figure.tight_layout(rect=(0.01, 0.05, 1, 1))
    figure.savefig(DOCS / "eviction-misses.svg", metadata={"Date": None})
    plt.close(figure)


def smoothness(rows: list[dict[str, Any]]) -> None:
    """Misses over Belady's by the share of wrong bits."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    errors = tuple(f"{error:g}" for error in ERRORS)
    for axis, name in zip(axes, ("mark0", "mark_and_predict"), strict=True):
        for row in rows:
            if row is not [other for other in rows if other["trace"] == row["trace"]][1]:
                continue
            ratios = [row[f"{name} {error}"] / row["belady"] for error in errors]
            axis.plot([float(error) for error in errors], ratios, marker="o", ms=3, label=row["trace"])
        axis.set_title(f"cache/{name}, 5% of the keys fit", fontsize=10)
        axis.set_xlabel("share of wrong bits")
    axes[0].set_ylabel("misses over Belady's")
    axes[1].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(DOCS / "eviction-bits.svg", metadata={"Date": None})
    plt.close(figure)
