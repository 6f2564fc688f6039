"""`python -m benchmarks.profiles`: fit the tables, write the package's profiles, the JSON and the page."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from apportion.simulate.profiles import SHIPPED
from benchmarks.gateway.__main__ import RESULTS, origin
from benchmarks.profiles import sheets
from benchmarks.profiles.build import all_profiles
from benchmarks.profiles.report import write_page


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiles", description=__doc__)
    parser.add_argument("--report", action="store_true", help="fit nothing: write the page from the JSON")
    arguments = parser.parse_args()
    path = RESULTS / "profiles.json"
    if arguments.report:
        write_page(json.loads(path.read_text()))
        return 0
    kept: list[dict[str, Any]] = []
    for old in SHIPPED.glob("*.json"):
        old.unlink()
    for profile, why_not in all_profiles():
        kept.append(
            {
                "name": profile.name,
                "kept": why_not is None,
                "why_not": why_not,
                "error": dict(profile.error),
                "rows": profile.facts.get("rows"),
                "source": profile.source,
                "one_ms": float(profile.seconds_of(1)) * 1e3,
                "thousand_ms": float(profile.seconds_of(1024)) * 1e3,
            }
        )
        if why_not is None:
            profile.save(SHIPPED / f"{profile.name}.json")
    results = {
        **origin(),
        "profiles": kept,
        "sheets": sheets.evaluate(),
        "mlenergy": sheets.against_mlenergy(),
    }
    path.write_text(json.dumps(results, indent=1) + "\n")
    write_page(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
