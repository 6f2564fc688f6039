"""The proxy's throughput with its books in each store, against the same proxy with books in memory, or an older one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gateway.gateways import ApportionFull, Gateway
from benchmarks.gateway.processes import REPOSITORY, Bench, BenchError
from benchmarks.gateway.throughput import measure_throughput
from benchmarks.ledger.stores import Store

NEVER_GIVEN_UP_S = 3600.0
"""A proxy that is paused while another is measured must not be taken for dead."""


class WithLedger(Gateway):
    """The headline configuration of `benchmarks.gateway`, everything on, its books kept at ``url``."""

    required = True

    def __init__(self, name: str, title: str, url: str, redis_url: str | None = None) -> None:
        self.name = name  # type: ignore[misc]
        self.title = title  # type: ignore[misc]
        self._url = url
        self._redis_url = redis_url
        self._full = ApportionFull()

    def missing(self) -> str | None:
        return self._full.missing()

    def version(self) -> str:
        return self._full.version()

    def command(self, directory: Path, port: int, upstream_port: int) -> Sequence[str]:
        ledger: dict[str, object] = {"url": self._url, "lease_s": NEVER_GIVEN_UP_S}
        ledger["journal"] = str(directory / f"{self.name}-journal")
        if self._redis_url:
            ledger["redis"] = self._redis_url
        config = {**self._full.config(port, upstream_port), "ledger": ledger}
        return _serve(directory / f"{self.name}.yaml", config)

    def verify(self, port: int) -> None:
        self._full.verify(port)


class Before(Gateway):
    """The proxy of another commit, in the same configuration: what there was before there was a ledger."""

    name = "before"
    required = True

    def __init__(self, commit: str, source: Path) -> None:
        self.title = f"commit {commit}, books in the worker's memory only"  # type: ignore[misc]
        self._commit = commit
        self._source = source
        self._full = ApportionFull()

    def missing(self) -> str | None:
        return None

    def version(self) -> str:
        return f"({self._commit})"

    def env(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(self._source / "src")}

    def command(self, directory: Path, port: int, upstream_port: int) -> Sequence[str]:
        return _serve(directory / f"{self.name}.yaml", self._full.config(port, upstream_port))

    def verify(self, port: int) -> None:
        self._full.verify(port)


def _serve(path: Path, config: Mapping[str, object]) -> Sequence[str]:
    path.write_text(json.dumps(config, indent=2))  # JSON is YAML
    return [sys.executable, "-m", "apportion.cli", "serve", "--config", str(path)]


@contextmanager
def checked_out(commit: str, directory: Path) -> Iterator[Path]:
    """A commit of this repository in a directory of its own."""
    target = directory / "before"
    git = ["git", "-C", str(REPOSITORY), "worktree"]
    done = subprocess.run(
        [*git, "add", "--detach", str(target), commit], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchError(f"git knows no commit {commit!r} to compare with: {done.stderr.strip()}")
    try:
        yield target
    finally:
        subprocess.run([*git, "remove", "--force", str(target)], capture_output=True, check=False)


def measure_proxy(
    bench: Bench, stores: Sequence[Store], *, before: str | None, rounds: int, seconds: float
) -> dict[str, Any]:
    """Requests a second with everything on; in turn, as `benchmarks.gateway` measures. Shares are of the first row:
    the commit ``before``, or without one the books in memory (``ledger.url: memory``).
    """
    with ExitStack() as stack:
        gateways: list[Gateway] = [WithLedger("memory", "ledger in memory", "memory")]
        if before:
            gateways.insert(0, Before(before, stack.enter_context(checked_out(before, bench.directory))))
        for store in stores:
            store.start(stack, bench.directory)
            bank, bare, url, redis_url = store.fresh()
            bank.dispose()
            bare.close()  # type: ignore[attr-defined]
            gateways.append(WithLedger(store.name, f"ledger in {store.title}", url, redis_url))
        found = measure_throughput(bench, gateways, rounds=rounds, seconds=seconds)
    rows: dict[str, Any] = found["rows"]  # type: ignore[assignment]
    first = next(iter(rows.values()))
    for row in rows.values():
        ratios = [mine / its for mine, its in zip(row["rps_rounds"], first["rps_rounds"], strict=True)]
        row["of_first_rounds"] = ratios
        row["of_first"] = median(ratios)
        row["of_first_by_cpu"] = first["cpu_us_per_request"] / row["cpu_us_per_request"]
    return found
