"""How fast workloads are generated, written and read, each in a process of its own: CPU seconds and memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from apportion.simulate.trace import Trace
from apportion.simulate.workload import burstgpt, fit, generated_pieces, open_trace, pieces, plain, write
from benchmarks.workloads.fitting import TRACES, data


def measured(*, quick: bool) -> dict[str, Any]:
    """All of them."""
    requests = 300_000 if quick else 3_000_000
    found = {}
    for name in ("plain", "azure_conv", "mooncake_conversation", "burstgpt", "parquet"):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.workloads.speed", name, str(requests)],
            capture_output=True,
            text=True,
            check=True,
        )
        found[name] = json.loads(done.stdout)
        print(f"{name}: {found[name]['rows_per_cpu_s']:,.0f} rows a CPU second", file=sys.stderr)
    return found


def _one(name: str, requests: int) -> dict[str, Any]:
    if name == "parquet":
        return _parquet(requests)
    if name == "burstgpt":
        model, wanted = burstgpt.model(data() / "burstgpt_aggregates"), None
    elif name == "plain":
        model, wanted = plain(100.0, 3600.0, sigma=0.8, shape=0.7), requests
    else:
        model, wanted = fit(open_trace(data() / TRACES[name])), requests
    forever = None if wanted is None else float("inf")
    return _timed(lambda: generated_pieces(model, 1, requests=wanted, duration_s=forever))


def _parquet(requests: int) -> dict[str, Any]:
    model = plain(100.0, 3600.0, sigma=0.8)
    made = list(generated_pieces(model, 1, requests=requests, duration_s=float("inf")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        begun = time.process_time()
        write(path, made)
        written = time.process_time() - begun
        return {
            **_timed(lambda: pieces(path)),
            "written_per_cpu_s": requests / written,
            "bytes_per_row": path.stat().st_size / requests,
        }


def _timed(source: Callable[[], Iterator[Trace]]) -> dict[str, Any]:
    begun, real = time.process_time(), time.perf_counter()
    rows, days = 0, 0.0
    for piece in source():
        rows += len(piece)
        days = float(piece.arrival_s[-1]) / 86400
    seconds = time.process_time() - begun
    return {
        "rows": rows,
        "days": days,
        "cpu_s": seconds,
        "wall_s": time.perf_counter() - real,
        "rows_per_cpu_s": rows / seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    print(json.dumps(_one(sys.argv[1], int(sys.argv[2]))))
