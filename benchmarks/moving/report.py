"""The page of the benchmark, from its stored results."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "results" / "moving.md"
_WORDS = {"broken": "broken, goes on at once", "drained": "drained, read ahead in stages"}


def write(results: dict[str, Any]) -> Path:
    """Write the page; returns its place."""
    PAGE.write_text(page(results))
    return PAGE


def page(results: dict[str, Any]) -> str:
    """The page."""
    rows = results["equality"]
    stops = results["stops_ms"]
    lines = [
        "# Moving streams",
        "",
        "A stream taken from one llama.cpp server to another while its client reads on, as "
        "[Llumnix](https://arxiv.org/abs/2406.03243) (OSDI 2024) moves running requests between instances: "
        "[how it is done](../guides/failover.md#going-on-elsewhere). Two servers of SmolLM2-135M-Instruct, a proxy in "
        f"front, temperature 0; `python -m benchmarks.moving`, {results['date']}, {results['machine']}.",
        "",
        "## Is anything lost?",
        "",
        f"Questions in English, emoji and Chinese, {results['tokens']} tokens each, moved after 5 and 12 "
        "pieces. *Equal*: the client's text is that of the unmoved stream, byte by byte; *usage*: so are the counted "
        "tokens; *one end*: one id, one finish reason, one end mark.",
        "",
        "| moved because | streams | went elsewhere | equal | usage | one end |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for how, words in _WORDS.items():
        of = [row for row in rows if row["how"] == how]
        counts = [sum(row[name] for row in of) for name in ("moved", "equal", "usage_equal", "one_end")]
        lines.append(f"| {words} | {len(of)} | " + " | ".join(map(str, counts)) + " |")
    unequal = [row for row in rows if not row["equal"]]
    behind = sum(row["behind_space"] for row in unequal)
    lines += [
        "",
        f"{len(unequal)} of {len(rows)} differ, {behind} of these behind white space. There a difference is to be "
        "expected: the text is read again as the tokenizer cuts it, not as it was made. Two line feeds that were two "
        "tokens are one, and after it the model may prefer another word; nothing is lost or said twice even then, but "
        "the answer is another one from there on. A drained stream waits for a better place; a broken one cannot. A "
        "stream that ends while the other endpoint still reads is not moved.",
        "",
        "## How long does the client wait?",
        "",
        "After a question of about 130 tokens, the time between the last piece of one endpoint and the first of the "
        "other. Best possible: the ordinary time between two pieces.",
        "",
        "| | moves | median | longest |",
        "| --- | --- | --- | --- |",
    ]
    for name, words in (*_WORDS.items(), ("gap", "between two pieces otherwise")):
        values = stops[name]
        if values:
            lines.append(
                f"| {words} | {len(values)} | {statistics.median(values):.0f} ms | {max(values):.0f} ms |"
            )
    lines += [
        "",
        f"The machine was busy with other work (load {results['load']} on its processors when it began), which "
        "lengthens all of these, reading most; both servers share it. What counts is how they compare.",
        "",
    ]
    return "\n".join(lines)
