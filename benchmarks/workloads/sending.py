"""How late requests are sent: a rescaled trace against a live proxy, and against the endpoint behind it without one."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.workloads.fitting import TRACES

_CONFIG = """
auth: {{required: false}}
ledger: {{url: memory}}
endpoints:
  local: {{kind: openai, base_url: "http://127.0.0.1:{upstream}/v1", model: m}}
models:
  m:
    policy: route/round_robin
    endpoints: [local]
"""


def measured(folder: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Lateness at several rates, in milliseconds; the load of the machine at the time."""
    rates = (10.0,) if quick else (6.0, 20.0, 60.0)
    seconds, rounds = (5, 1) if quick else (10, 3)
    found = []
    with _servers() as ports:
        for where, port in [*ports.items()] * rounds:
            for rate in rates:
                speed = rate / 5.0  # the trace begins with about 5 requests a second
                command = [
                    *(sys.executable, "-m", "apportion.cli", "trace", "send"),
                    str(folder / TRACES["azure_conv"]),
                    f"http://127.0.0.1:{port}/v1",
                    *("--model", "m", "--no-measure", "--json", "--until", f"{int(seconds * speed) + 5}s"),
                    *("--speed", str(speed)),
                ]
                before = _cpu_s()
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                said = json.loads(done.stdout)
                late = {name: value * 1e3 for name, value in said["lateness_s"].items()}
                found.append(
                    {
                        "where": where,
                        "rate_per_s": said["sent"] / max(seconds, 1e-9),
                        "requests": said["sent"],
                        "ok": said["status"]["ok"],
                        "late_ms": late,
                        "output_tokens_of_wanted": said["output_tokens_of_wanted"],
                        "load": os.getloadavg()[0],
                        "cpu_s": _cpu_s() - before,
                    }
                )
                print(f"{where} at {rate:g}/s: p95 {late['p95']:.2f} ms late", file=sys.stderr)
    return found


@contextlib.contextmanager
def _servers() -> Iterator[dict[str, int]]:
    upstream, proxy = _free(), _free()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "apportion.yaml"
        config.write_text(_CONFIG.format(upstream=upstream))
        commands = (
            [sys.executable, "-m", "benchmarks.workloads.upstream", str(upstream)],
            [sys.executable, "-m", "apportion.cli", "serve", "--config", str(config), "--port", str(proxy)],
        )
        environment = os.environ | {"XDG_STATE_HOME": folder}
        with contextlib.ExitStack() as stack:
            for command in commands:
                child = subprocess.Popen(
                    command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                stack.callback(child.wait)
                stack.callback(child.terminate)
            for port in (upstream, proxy):
                _wait(port)
            yield {"a live proxy": proxy, "the endpoint itself": upstream}


def _cpu_s() -> float:
    """CPU seconds of the senders so far; the servers have not ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(port: int) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
