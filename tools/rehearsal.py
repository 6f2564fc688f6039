"""Make the pictures of docs/guides/rehearse.md: ``python -m tools.rehearsal`` rehearses examples/rehearse."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "rehearse"
PAGES = ROOT / "docs" / "guides"
PICTURES = ("distributions", "latency", "load", "quality", "spending")


def main() -> None:
    """Compare the example's configurations, and keep the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["compare", str(EXAMPLE / "least_load.yaml"), str(EXAMPLE / "priced.yaml")]
        command += [
            "--trace",
            str(EXAMPLE / "trace.csv"),
            "--objective",
            "ttft=1s,tpot=50ms",
            "--out",
            folder,
        ]
        subprocess.run([sys.executable, "-m", "apportion.cli", *command], check=True)
        for name in PICTURES:
            shutil.copy(Path(folder) / f"{name}.png", PAGES / f"rehearse-{name}.png")


if __name__ == "__main__":
    main()
