"""The results as tables: on the terminal and, between two markers, in the README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gateway.plot import line_plot

BEGIN = "<!-- results: written by `python -m benchmarks.gateway`, never by hand -->"
END = "<!-- end of results -->"

Results = dict[str, Any]


def markdown(results: Results) -> str:
    """All sections that were measured, as Markdown."""
    parts = []
    for name, section in (
        ("requests", _requests),
        ("latency", _latency),
        ("streams", _streams),
        ("memory", _memory),
    ):
        if name in results:
            parts += [section(results[name]), origin_line(results[name])]
    return "\n\n".join(parts) + "\n"


def write_readme(readme: Path, results: Results) -> None:
    """Replace what stands between the markers.

    Raises ValueError when the markers are missing.
    """
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} has no lines {BEGIN!r} and {END!r}")
    readme.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n{END}{after}")


def write_curve(directory: Path, stem: str, memory: Results) -> None:
    """The memory curves as STEM.csv and STEM.svg."""
    lines = {name: row["curve"] for name, row in memory["rows"].items()}
    rows = [f"{name},{done},{size}" for name, line in lines.items() for done, size in line]
    (directory / f"{stem}.csv").write_text("\n".join(["gateway,requests,resident_bytes", *rows, ""]))
    scaled = {name: [(done / 1e6, size / 2**20) for done, size in line] for name, line in lines.items()}
    svg = line_plot("Resident memory of the worker", "million requests", "MiB", scaled)
    (directory / f"{stem}.svg").write_text(svg)


def _requests(section: Results) -> str:
    rows = []
    for row in section["rows"].values():
        spread = row["of_nginx_rounds"]
        of_nginx = f"{row['of_nginx']:.3f} ({min(spread):.3f}-{max(spread):.3f})" if spread else "-"
        rows.append(
            [
                f"{row['title']} {row['version']}",
                f"{row['rps']:,.0f}",
                of_nginx,
                f"{row['cpu_us_per_request']:,.0f}",
                "-" if row["of_nginx_by_cpu"] is None else f"{row['of_nginx_by_cpu']:.3f}",
                f"{row['core_share']:.0%}",
                f"{row['load_busy_share']:.0%}",
                f"{row['errors']:.0f}",
                f"{row['start_s']:.2f}",
                f"{row['idle_bytes'] / 2**20:.0f} / {row['resident_bytes'] / 2**20:.0f}",
            ]
        )
    head = [
        "gateway", "requests/s", "of nginx (lowest-highest)", "CPU us/request", "of nginx by CPU",
        "own core busy", "load core busy", "errors", "start s", "MiB idle / loaded",
    ]  # fmt: skip
    return (
        f"### Requests: {section['connections']} connections, median of {section['rounds']} rounds of "
        f"{section['seconds']:g} s\n\n{table(head, rows)}\n\n"
        f"The upstream alone: {section['direct']['rps']:,.0f} requests/s."
    )


def _latency(section: Results) -> str:
    head = [
        "gateway", "rate /s", "of its capacity", "added p50 ms", "added p99 ms", "added p99.9 ms",
        "upstream alone p50 / p99 ms", "errors",
    ]  # fmt: skip
    rows = [
        [
            row["title"],
            f"{row['rate_rps']:,.0f}",
            f"{row['of_capacity']:.0%}",
            f"{row['added_p50_ms']:.3f}",
            f"{row['added_p99_ms']:.3f}",
            f"{row['added_p999_ms']:.3f}",
            f"{row['direct_p50_ms']:.3f} / {row['direct_p99_ms']:.3f}",
            f"{row['errors']:.0f}",
        ]
        for row in section["rows"].values()
    ]
    return (
        f"### Added latency at half load: {section['arrivals']} arrivals, open loop, median of "
        f"{section['rounds']} rounds of {section['seconds']:g} s\n\n{table(head, rows)}"
    )


def _streams(section: Results) -> str:
    rows = []
    for row in section["rows"].values():
        held = [step for step in row["steps"] if step["streams"] == row["largest"] and step["holds"]]
        best = held[0] if held else None
        more = " or more" if best and row["ended_by"] != "the gateway" else ""
        rows.append(
            [
                row["title"],
                f"{row['largest']}{more}",
                f"{best['added_p50_ms']:.2f} / {best['added_p99_ms']:.2f}" if best else "-",
                f"{best['direct_p99_ms']:.2f}" if best else "-",
                f"{best['core_share']:.0%}" if best else "-",
                row["ended_by"],
                f"{row['resident_bytes'] / 2**20:.0f}",
            ]
        )
    head = [
        "gateway", "streams", "added p50 / p99 ms there", "upstream alone p99 ms", "own core busy",
        "limit reached first by", "MiB",
    ]  # fmt: skip
    return (
        f"### Streams of {section['tokens_per_s']} tokens/s before the p99 of the added lag passes "
        f"{section['limit_ms']:g} ms\n\n{table(head, rows)}"
    )


def _memory(section: Results) -> str:
    rows = []
    for row in section["rows"].values():
        growth = row["growth_bytes_per_million"]
        rows.append(
            [
                row["title"],
                f"{row['start_s']:.2f}",
                f"{row['idle_bytes'] / 2**20:.1f}",
                f"{row['requests']:,}",
                f"{row['end_bytes'] / 2**20:.1f}",
                f"{row['peak_bytes'] / 2**20:.1f}",
                "-" if growth is None else f"{growth / 2**20:+.2f}",
                f"{row['errors']:.0f}",
            ]
        )
    head = [
        "gateway", "start s", "idle MiB", "requests", "MiB at the end", "peak MiB",
        "growth MiB/million (second half)", "errors",
    ]  # fmt: skip
    return f"### Memory of the worker\n\n{table(head, rows)}\n\n![memory](results/memory.svg)"


def origin_line(section: Results) -> str:
    """When, on what and of which commit a section was measured."""
    machine = section["machine"]
    others = [row["others_share"] for row in section["rows"].values() if "others_share" in row]
    disturbed = f" Other work on the gateway's core: up to {max(others):.0%}." if others else ""
    return (
        f"{section['measured_at']}, commit {section['commit']}, {machine['cpu']}, {machine['cpus']} CPUs, "
        f"Linux {machine['kernel']}, Python {machine['python']}.{disturbed}"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([line(head), "| " + " | ".join(rule) + " |", *map(line, rows)])
