"""`python -m benchmarks.reality`: the same traffic through a real engine and through the simulator.

The embedded llama.cpp with one and with four slots, behind the proxy, is calibrated as a user would (`apportion
calibrate`) and then gets three traces at three loads at their recorded times. The simulator gets the calibrated
profile and the tokens that were really sent and made, and has to say how long everything took. Nothing is fitted to
the replayed traffic. The engine has one thread, so that client and proxy have a core of their own; with `--realtime`
(root, Linux) the scheduler lets other programs of the machine wait.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

from apportion.cli._load import OpenAI
from apportion.cli._scenario import scenario_of
from apportion.serve.config.reader import loads
from apportion.simulate import gateway
from apportion.simulate.profile import Profile, read
from apportion.simulate.result import OK, Result
from apportion.simulate.result import load as load_result
from apportion.simulate.trace import Trace
from apportion.simulate.workload import open_trace, replay
from apportion.simulate.workload.prompts import Prompts
from apportion.simulate.workload.shape import from_zero
from benchmarks.gateway.__main__ import RESULTS, origin
from benchmarks.reality.page import write_page

DATA = Path(os.environ.get("APPORTION_DATA", "../shared/data"))
KEY = "sk-reality"
LOADS = (0.3, 0.6, 0.9)
SIZES = {
    # share of the recorded tokens that a small model on one core gets, and the bounds: prompt, then answer
    "azure_conv": ("azure_llm_2023/azure_conv.csv.gz", 0.08, (32, 256), 0.15, (2, 64)),
    "azure_code": ("azure_llm_2023/azure_code.csv.gz", 0.08, (32, 256), 0.40, (2, 64)),
    "mooncake_conversation": ("mooncake_fast25/mooncake_conversation.csv.gz", 0.01, (32, 256), 0.08, (2, 64)),
}


def workload(name: str, requests: int) -> Trace:
    """The beginning of a recorded trace, with shorter prompts and answers; every prompt is its own."""
    file, prompt_share, prompt_bounds, answer_share, answer_bounds = SIZES[name]
    trace = open_trace(DATA / file).take(slice(0, requests))
    prompts = np.clip(np.round(trace.prompt_tokens * prompt_share), *prompt_bounds).astype(np.int32)
    answers = np.clip(np.round(trace.output_tokens * answer_share), *answer_bounds).astype(np.int32)
    plain = Trace(trace.arrival_s, prompts, answers, name=name)
    return from_zero(plain)


def at_load(trace: Trace, capacity_rps: float, load: float) -> Trace:
    """The same requests, so much faster or slower that they are ``load`` of what the engine can do."""
    rate_rps = (len(trace) - 1) / trace.duration_s
    return replace(trace, arrival_s=trace.arrival_s * (rate_rps / (capacity_rps * load)))


def capacity_rps(trace: Trace, config: Any, profile: Profile) -> float:
    """Requests a second when all are there at once, by the profile."""
    together = replace(trace, arrival_s=np.zeros(len(trace)))
    found = simulated(together, config, profile)
    return len(trace) / float(found["finish_s"].max())


def simulated(trace: Trace, config: Any, profile: Profile) -> Result:
    """What the simulator says."""
    return gateway.run(scenario_of(config, profiles_of={"small": profile}), trace)


def configuration(slots: int, port: int) -> str:
    """One small model on one thread, behind the proxy."""
    small = {
        "kind": "local",
        "weights": "smollm2-135m-instruct",
        "slots": slots,
        "threads": 1,
        "context_tokens": 1024,
        "timeouts": {"first_token_s": 3600, "total_s": 3600, "gap_s": 3600},
    }
    return yaml.safe_dump(
        {
            "listen": {"port": port},
            "ledger": {"url": "memory"},
            "keys": [{"name": "me", "secret": KEY, "admin": True}],
            "endpoints": {"small": small},
            "models": {"small": {"endpoints": ["small"]}},
        }
    )


@contextmanager
def serving(file: Path, port: int, directory: Path) -> Iterator[str]:
    """The proxy with the model; its address."""
    env = {**os.environ, "XDG_STATE_HOME": str(directory / "state")}
    command = [sys.executable, "-m", "apportion.cli", "serve", "--config", str(file)]
    with (directory / "serve.log").open("ab") as log:
        child = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(600):
                if child.poll() is not None:
                    raise RuntimeError((directory / "serve.log").read_text()[-2000:])
                try:
                    if httpx.get(f"{url}/health/ready", timeout=2).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
            yield f"{url}/v1"
        finally:
            child.terminate()
            child.wait(30)


async def live(trace: Trace, url: str) -> Result:
    """The real thing."""
    transport = OpenAI(url, key=KEY, model="small", timeout_s=3600.0)
    try:
        seed = secrets.randbits(31)
        per_word, extra_tokens = await replay.measured(transport, trace, seed=seed)
        prompts = Prompts(trace, seed=seed, per_word=per_word, extra_tokens=extra_tokens)
        return await replay.send(trace, transport, prompts, clock=time.perf_counter, grace_s=3600.0)
    finally:
        transport.close()


def as_sent(name: str, real: Result) -> Trace:
    """The tokens that were really sent and made: what a log of yesterday would say."""
    order = np.argsort(real["request"], kind="stable")
    return Trace(
        real["arrival_s"][order],
        real["prompt_tokens"][order].astype(np.int32),
        real["output_tokens"][order].astype(np.int32),
        name=name,
    )


def figures(found: Result) -> dict[str, float]:
    """Mean and p90 of what the client feels, in seconds."""
    ok = found["status"] == OK
    values = {"ttft": found.ttft_s[ok], "tpot": found.tpot_s[ok], "e2e": found.e2e_s[ok]}
    return {
        f"{name}_{which}": float(law(column))
        for name, column in values.items()
        for which, law in (("mean", np.nanmean), ("p90", lambda x: np.nanpercentile(x, 90)))
    }


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def calibrate(file: Path, out: Path, seconds: float, clock: str) -> Profile:
    """As a user would."""
    command = [sys.executable, "-m", "apportion.cli", "calibrate", "small", "--config", str(file)]
    command += [
        "--out",
        str(out),
        "--max-seconds",
        str(seconds),
        "--max-prompt-tokens",
        "320",
        "--clock",
        clock,
    ]
    subprocess.run(command, check=True)
    return read(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--traces", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--loads", type=float, nargs="+", default=list(LOADS))
    parser.add_argument("--seconds", type=float, default=90.0, help="of each run, about")
    parser.add_argument("--calibrate-seconds", type=float, default=120.0)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument(
        "--profiles", type=Path, help="take the profiles from here (slots-1.json, ...), or put them here"
    )
    parser.add_argument("--realtime", action="store_true")
    given = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"skipped: the shared data is not at {DATA} (APPORTION_DATA).")
    if given.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))
    runs: list[dict[str, Any]] = []
    profiles: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        for slots in given.slots:
            port = free_port()
            file = directory / f"slots-{slots}.yaml"
            file.write_text(configuration(slots, port))
            config = loads(file.read_text(), str(file))
            kept = (given.profiles or directory) / f"slots-{slots}.json"
            kept.parent.mkdir(parents=True, exist_ok=True)
            profile = (
                read(kept) if kept.exists() else calibrate(file, kept, given.calibrate_seconds, given.clock)
            )
            profiles[str(slots)] = {"error": dict(profile.error), "name": profile.name}
            with serving(file, port, directory) as url:
                for name in given.traces:
                    capacity = capacity_rps(workload(name, 400), config, profile)
                    for load in given.loads:
                        requests = max(20, round(given.seconds * capacity * load))
                        trace = at_load(workload(name, requests), capacity, load)
                        rows = kept.parent / f"slots-{slots}-{name}-{load:g}.parquet"
                        if rows.exists():
                            real = load_result(rows)
                        else:
                            real = asyncio.run(live(trace, url))
                            real.save(rows)
                        model = simulated(as_sent(name, real), config, profile)
                        run = {
                            "slots": slots,
                            "trace": name,
                            "load": load,
                            "requests": len(real),
                            "failed": int((real["status"] != OK).sum()),
                            "real": figures(real),
                            "simulated": figures(model),
                        }
                        runs.append(run)
                        print(json.dumps(run), flush=True)
    results = {"origin": origin(), "profiles": profiles, "runs": runs, "realtime": given.realtime}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "reality.json").write_text(json.dumps(results, indent=1) + "\n")
    write_page(results)


if __name__ == "__main__":
    main()
