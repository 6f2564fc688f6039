"""Run everything: ``python -m benchmarks.moving``; ``--page`` only writes the page anew."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.moving import report
from benchmarks.moving.house import Heard, House, How, house

RESULTS = Path(__file__).parents[1] / "results" / "moving.json"
PROMPTS = (
    "Tell me a story about a café in Zürich.",
    "Write five emoji and name them. Use many 🙂 emoji.",
    "写一句关于猫的话。",
)
CUTS = (5, 12)
TOKENS = 22
SENTENCE = "The harbour was quiet and the ships lay at anchor while the fog came in from the sea. "
LONG = 6
"""Sentences of the long question: about 130 tokens."""
HOWS: tuple[How, ...] = ("broken", "drained")


async def equality(here: House) -> list[dict[str, Any]]:
    """Whether moved streams are the unmoved ones, byte by byte, over questions, places and ways to move."""
    rows = []
    for prompt in PROMPTS:
        whole = await here.stream(prompt, TOKENS)
        for cut in CUTS:
            for how in HOWS:
                moved = await here.stream(prompt, TOKENS, how, cut)
                rows.append(
                    {
                        "how": how,
                        "cut": cut,
                        "behind_space": "".join(whole.pieces[:cut])[-1:].isspace(),
                        "moved": any(" ok" not in one for one in moved.by),
                        "equal": moved.text == whole.text,
                        "usage_equal": all(
                            moved.usage.get(name) == whole.usage.get(name)
                            for name in ("prompt_tokens", "completion_tokens")
                        ),
                        "one_end": moved.ended and moved.finish is not None,
                    }
                )
    return rows


async def stops(here: House, rounds: int) -> dict[str, Any]:
    """How long the client waits at the seam after a long question, and between two pieces otherwise, in ms."""
    found: dict[str, list[float]] = {"broken": [], "drained": [], "gap": []}
    for number in range(rounds):
        for how in HOWS:
            question = f"{how} {number}: {SENTENCE * LONG} Tell a long story that goes on from here."
            heard = await here.stream(question, 300, how, 6)
            seam = _seam(here, heard)
            gaps = [gap * 1e3 for gap in heard.gaps_s]
            if seam is not None and seam < len(heard.pieces):
                found[how].append(gaps[seam - 1])
                found["gap"] += gaps[: seam - 1] + gaps[seam:]
    return {name: [round(one, 1) for one in values] for name, values in found.items()}


def _seam(here: House, heard: Heard) -> int | None:
    """How many pieces the first endpoint has said; None where the stream was not moved."""
    record = here.worker.gateway.records.find(heard.id)
    left = [one for one in record.attempts if one.failure is not None] if record is not None else []
    return left[0].usage.output_tokens if left and left[0].usage is not None else None


async def measure(rounds: int) -> dict[str, Any]:
    """Both parts."""
    with tempfile.TemporaryDirectory() as directory:
        async with house(Path(directory)) as here:
            return {"equality": await equality(here), "stops_ms": await stops(here, rounds)}


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="moves of each kind after a long question")
    parser.add_argument("--page", action="store_true", help="only the page, from the stored results")
    asked = parser.parse_args()
    if not asked.page:
        results = {
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "machine": f"{os.cpu_count()} CPUs shared with other work, a thread for each server, "
            f"Python {platform.python_version()}",
            "load": round(os.getloadavg()[0], 1),
            "tokens": TOKENS,
            **asyncio.run(measure(asked.rounds)),
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    stored = json.loads(RESULTS.read_text())
    print(report.write(stored), {name: statistics.median(v) for name, v in stored["stops_ms"].items() if v})


if __name__ == "__main__":
    main()
