"""Runs everything, writes the JSON and from it the page."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.incontext import measure, page
from benchmarks.incontext.small import Small
from benchmarks.routing.encode import directory
from benchmarks.semantic_cache.data import DATA

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "incontext.json"


def main() -> int:
    """Run; 1 without data."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.incontext")
    parser.add_argument(
        "--answers",
        type=Path,
        default=directory() / "incontext",
        help="where the small model's answers are kept",
    )
    parser.add_argument("--page", action="store_true", help="only write the page again from the JSON")
    options = parser.parse_args()
    if not options.page:
        found = asyncio.run(_measured(options.answers))
        if found is None:
            print(f"No data in {DATA}: set APPORTION_DATA.", file=sys.stderr)
            return 1
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
    page.write(json.loads(RESULT.read_text()), ROOT / "docs" / "results")
    return 0


async def _measured(answers: Path) -> dict[str, Any] | None:
    async with Small(answers) as small:
        return await measure.measured(small)


if __name__ == "__main__":
    sys.exit(main())
