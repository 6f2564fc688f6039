"""Runs everything, writes the JSON and from it the page."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.semantic_cache import data, measure, page

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "semantic_cache.json"


def main() -> int:
    """Run; 1 without data."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.semantic_cache")
    parser.add_argument("--quick", action="store_true", help="short trace and small index")
    parser.add_argument("--page", action="store_true", help="only write the page again from the JSON")
    options = parser.parse_args()
    if not options.page:
        found = measure.measured(quick=options.quick)
        if found is None:
            print(f"No data in {data.DATA}: set APPORTION_DATA.", file=sys.stderr)
            return 1
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
    page.write(json.loads(RESULT.read_text()), ROOT / "docs" / "results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
