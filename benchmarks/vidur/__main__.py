"""`python -m benchmarks.vidur --python PATH`: both simulators on the same input; PATH is an interpreter that has Vidur.

python -m venv /tmp/vidur && /tmp/vidur/bin/pip install vidur
python -m benchmarks.vidur --python /tmp/vidur/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apportion.simulate import fleet
from apportion.simulate.engine import Batching
from apportion.simulate.profiles import load
from apportion.simulate.profiles.shapes import shape
from apportion.simulate.trace import Trace
from benchmarks.gateway.__main__ import RESULTS, origin
from benchmarks.gateway.report import table
from benchmarks.profiles.data import table as rows_of

PAGE = Path(__file__).parents[2] / "docs" / "results" / "vidur.md"
PROFILE = "a100-llama3.1-8b-tp1-kernels"
CHUNK, BATCH = 512, 128
COARSE, FINE = 256, 16
"""Granularity of contexts in Vidur's tables, in tokens: its default, and what leaves little to rounding."""
MOST_TOKENS = 7000
RATES = (0.5, 1.0, 2.0)
"""Times the trace's own rate."""
Floats = NDArray[np.float64]

_HEAD = """
# Beside Vidur

[Vidur](https://arxiv.org/abs/2405.05465) (MLSys 2024) simulates an LLM serving cluster iteration by
iteration, as our engine does. Both get the same machine, the same requests and the same scheduler (SplitFuse
/ Sarathi with pieces of {chunk} tokens, at most {batch} requests): profile `{profile}`, the first {n}
requests of Azure's conversation trace, at several multiples of its rate. Written by `python -m
benchmarks.vidur`.

The `vidur` on PyPI ({version}) holds no profiles: it downloads them, or predictions made of them, from a
model hub, which an offline machine cannot do; and the attention profiles of its repository are not among our
data. So the one method that loads its predictions is replaced: it is handed the times of our profile,
operator by operator, at Vidur's own granularity (batches to 8 tokens, pieces of prompts to 32, contexts to
256, all rounded up, and attention of a batch by its mean context). What is compared is therefore everything
else: scheduling, memory, the clock. (One class of the published package is abstract by mistake, which had to
be undone to run it.) Rounding up makes Vidur's iterations longer, and at a rate beyond what the machine can
do the longer queue shows it many times over; "fine" rounds contexts to 16 tokens.
"""

_FOOT = """
Speed is processor time for the simulation alone, without reading the trace, of one process each; ours is
compiled. What Vidur says of itself against real machines (the abstract of its paper: latency with less than
9% error) holds for its own profiles, kernel by kernel. How right ours are on measurements that they were not
fitted to is in [Profiles](profiles.md).
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vidur")
    parser.add_argument("--python", help="interpreter that has vidur")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--report", action="store_true", help="run nothing: write the page from the JSON")
    arguments = parser.parse_args()
    path = RESULTS / "vidur.json"
    if not arguments.report:
        if not arguments.python:
            parser.error("--python is needed: an interpreter that has vidur")
        results = {**origin(), **measure(arguments.python, arguments.requests)}
        path.write_text(json.dumps(results, indent=1) + "\n")
    write_page(json.loads(path.read_text()))
    return 0


def measure(python: str, n: int) -> dict[str, Any]:
    """Both simulators at every rate."""
    rows = rows_of("azure_llm_2023/azure_conv")[:n]
    prompt = np.array([min(int(r["prompt_tokens"]), MOST_TOKENS) for r in rows], np.int32)
    output = np.array([max(2, int(r["output_tokens"])) for r in rows], np.int32)
    arrival = np.array([float(r["t_s"]) for r in rows])
    version = subprocess.run(
        [python, "-c", "import importlib.metadata as m; print(m.version('vidur'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    ours(Trace(arrival[:50], prompt[:50], output[:50]))  # compile
    settings = []
    for rate in RATES:
        trace = Trace(arrival / rate, prompt, output)
        settings.append(
            {
                "rate": rate,
                "ours": _summary(ours(trace), n),
                "vidur": _summary(vidur(python, trace, COARSE), n),
                "fine": _summary(vidur(python, trace, FINE), n),
            }
        )
        print(json.dumps(settings[-1]))
    return {"profile": PROFILE, "requests": n, "version": version, "settings": settings}


def ours(trace: Trace) -> dict[str, Any]:
    """Our engine: times by request, and processor seconds."""
    begun = time.process_time()
    result = fleet.run(trace, [load(PROFILE)], batching=Batching("chunked", batch_tokens=CHUNK, slots=BATCH))
    spent = time.process_time() - begun
    return {"seconds": spent, "ttft_s": result.ttft_s, "e2e_s": result.e2e_s}


def vidur(python: str, trace: Trace, granularity: int) -> dict[str, Any]:
    """Vidur, in its own process."""
    profile = load(PROFILE)
    job = {
        "tokens": profile.tokens,
        "seconds": profile.seconds,
        "prefill_attention_s": profile.prefill_attention_s,
        "decode_attention_s": profile.decode_attention_s,
        "layers": shape(profile.facts["model"]).layers,
        "kv_tokens": profile.kv_tokens,
        "chunk_tokens": CHUNK,
        "granularity": granularity,
        "arrival_s": trace.arrival_s.tolist(),
        "prompt_tokens": trace.prompt_tokens.tolist(),
        "output_tokens": trace.output_tokens.tolist(),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job))
        done = subprocess.run(
            [python, str(Path(__file__).with_name("peer.py")), str(path)],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "WANDB_MODE": "disabled"},
            check=False,
        )
    if done.returncode:
        sys.exit(f"Vidur failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _summary(run: dict[str, Any], n: int) -> dict[str, float]:
    found = {"requests_per_s": n / run["seconds"]}
    for name in ("ttft_s", "e2e_s"):
        values = np.asarray(run[name], np.float64)
        found[f"{name}_mean"] = float(values.mean())
        for p in (50, 90, 99):
            found[f"{name}_p{p}"] = float(np.percentile(values, p))
    return found


def write_page(results: dict[str, Any]) -> None:
    """The page of the documentation."""
    names = {"ttft_s": "TTFT", "e2e_s": "end to end"}
    rows, speeds = [], []
    for each in results["settings"]:
        mine, theirs = each["ours"], each["vidur"]
        for key, title in names.items():
            for part in ("mean", "p50", "p90", "p99"):
                a, b, fine = (run[f"{key}_{part}"] for run in (mine, theirs, each["fine"]))
                rows.append(
                    (
                        f"x{each['rate']:g}",
                        f"{title} {part}",
                        _s(a),
                        _s(b),
                        f"{a / b - 1:+.1%}",
                        _s(fine),
                        f"{a / fine - 1:+.1%}",
                    )
                )
        speeds.append(
            (
                f"x{each['rate']:g}",
                f"{mine['requests_per_s']:,.0f}",
                f"{theirs['requests_per_s']:,.0f}",
                f"{mine['requests_per_s'] / theirs['requests_per_s']:,.0f} times",
            )
        )
    head = _HEAD.strip().format(
        chunk=CHUNK,
        batch=BATCH,
        profile=results["profile"],
        n=f"{results['requests']:,}",
        version=results["version"],
    )
    parts = [
        head,
        table(("rate", "what", "ours", "Vidur", "difference", "Vidur, fine", "difference"), rows),
        "## Speed",
        table(("rate", "ours, requests a second", "Vidur", "ratio"), speeds),
        _FOOT.strip(),
        f"Measured {results['measured_at']} on {results['machine']['cpu']} ({results['machine']['cpus']} cores).",
    ]
    PAGE.write_text("\n\n".join(parts) + "\n")


def _s(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


if __name__ == "__main__":
    sys.exit(main())
