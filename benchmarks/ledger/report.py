"""The results as tables: on the terminal and, between two markers, in the README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gateway.report import origin_line, table

BEGIN = "<!-- ledger: written by `python -m benchmarks.ledger`, never by hand -->"
END = "<!-- end of ledger -->"

Results = dict[str, Any]


def markdown(results: Results) -> str:
    """All sections that were measured, as Markdown."""
    parts = []
    for name, section in (("hot", _hot), ("durable", _durable), ("proxy", _proxy)):
        if name in results:
            parts += [section(results[name]), origin_line(results[name])]
    return "\n\n".join(parts) + "\n"


def write_readme(readme: Path, results: Results) -> None:
    """Replace what stands between the markers. Raises ValueError when they are missing."""
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} has no lines {BEGIN!r} and {END!r}")
    readme.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n{END}{after}")


def _share(row: Results, name: str) -> str:
    spread = row[f"{name}_rounds"]
    return f"{row[name]:.2f} ({min(spread):.2f}-{max(spread):.2f})"


def _hot(section: Results) -> str:
    head = ["reserve + settle, in memory and journal", "pairs/s", "p50 us", "p99 us"]
    rows = [
        [row["title"], f"{row['pairs_per_s']:,.0f}", f"{row['p50_us']:,.1f}", f"{row['p99_us']:,.1f}"]
        for row in section["rows"].values()
    ]
    return (
        f"### The hot path: four budgets, median of {section['rounds']} rounds of {section['seconds']:g} s; beside a "
        f"store at {section['paced_per_s']:,.0f} pairs/s\n\n{table(head, rows)}"
    )


def _durable(section: Results) -> str:
    head = [
        "store", "pairs/s on disk", "p50 / p99 ms to disk", "pairs a transaction", "CPU us/pair", "bare updates/s",
        "of bare (lowest-highest)", "in such groups/s", "of grouped (lowest-highest)",
    ]  # fmt: skip
    rows = [
        [
            row["title"],
            f"{row['pairs_per_s']:,.0f}",
            f"{row['p50_ms']:.0f} / {row['p99_ms']:.0f}",
            f"{row['pairs_per_transaction']:,.0f}",
            f"{row['cpu_us_per_pair']:,.0f}",
            f"{row['bare_per_s']:,.0f}",
            _share(row, "of_bare"),
            f"{row['grouped_per_s']:,.0f}",
            _share(row, "of_grouped"),
        ]
        for row in section["rows"].values()
    ]
    return (
        f"### Durable pairs: one process, {section['concurrent']} requests at once, four budgets, median of "
        f"{section['rounds']} rounds of {section['seconds']:g} s\n\n{table(head, rows)}"
    )


def _proxy(section: Results) -> str:
    head = [
        "proxy, everything on",
        "requests/s",
        "of the first (lowest-highest)",
        "CPU us/request",
        "by CPU",
        "errors",
    ]
    rows = [
        [
            row["title"],
            f"{row['rps']:,.0f}",
            _share(row, "of_first"),
            f"{row['cpu_us_per_request']:,.0f}",
            f"{row['of_first_by_cpu']:.2f}",
            f"{row['errors']:.0f}",
        ]
        for row in section["rows"].values()
    ]
    return (
        f"### The proxy with its books: {section['connections']} connections, median of {section['rounds']} rounds of "
        f"{section['seconds']:g} s\n\n{table(head, rows)}"
    )
