"""A gateway that runs: started, checked, and paused while another one is measured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.gateway.gateways import Gateway
from benchmarks.gateway.processes import Bench, BenchError, Child, busy_s, free_port, stolen_s
from benchmarks.gateway.upstreams import wait_for_answer, wait_for_models

_START_LIMIT_S = 120.0


@dataclass
class Running:
    """A started gateway and what starting it took."""

    gateway: Gateway
    child: Child
    port: int
    start_s: float
    idle_bytes: tuple[int, int]


@dataclass
class Usage:
    """What the gateway's core did during a measurement, in seconds."""

    wall_s: float = 0.0
    gateway_s: float = 0.0
    others_s: float = 0.0
    load_busy_share: float = 0.0


def start(bench: Bench, gateway: Gateway, upstream_port: int, *, streams: bool = False) -> Running:
    """Start a gateway, wait until it answers, note its memory, and pause it."""
    port = free_port()
    command = gateway.command(bench.directory, port, upstream_port)
    child = bench.start(gateway.name, command, gateway=True, env=gateway.env())
    wait = wait_for_models if streams else wait_for_answer
    start_s = wait(child, port, limit_s=_START_LIMIT_S)
    if not streams:
        gateway.verify(port)
    time.sleep(1.0)
    running = Running(gateway, child, port, start_s, child.resident_bytes())
    child.pause()
    return running


def start_all(
    bench: Bench, gateways: Sequence[Gateway], upstream_port: int, *, streams: bool = False
) -> Iterator[Running]:
    """Start one after the other; a rival that does not start is named and left out.

    Raises BenchError when a gateway that the measurement cannot do without does not start.
    """
    for gateway in gateways:
        try:
            running = start(bench, gateway, upstream_port, streams=streams)
        except BenchError as error:
            bench.keep_logs = True
            if gateway.required:
                raise
            print(f"  left out: {error}", flush=True)
        else:
            yield running


@contextmanager
def awake(running: Running | None) -> Iterator[None]:
    """Let the gateway run for a while; the others stay paused."""
    if running is None:
        yield
        return
    running.child.resume()
    try:
        yield
    finally:
        _settle(running.child)
        running.child.pause()
        running.child.check()


def _settle(child: Child, limit_s: float = 60.0) -> None:
    """Let it finish what its clients have left behind, or the next measurement would pay for that."""
    deadline_s = time.monotonic() + limit_s
    used_s = child.cpu_s()
    while time.monotonic() < deadline_s:
        time.sleep(0.05)
        before_s, used_s = used_s, child.cpu_s()
        if used_s - before_s <= 0.01:
            return


@contextmanager
def watched(bench: Bench, running: Running | None) -> Iterator[Usage]:
    """Measure what the cores do meanwhile; the result is complete at the end."""
    usage = Usage()
    gateway_cpu = bench.cpus.gateway
    cpu_s = running.child.cpu_s() if running else 0.0
    begin_s = time.monotonic()
    busy_before_s = busy_s(gateway_cpu) + stolen_s(gateway_cpu)
    load_before_s = sum(map(busy_s, bench.cpus.load))
    yield usage
    usage.wall_s = time.monotonic() - begin_s
    usage.gateway_s = (running.child.cpu_s() if running else 0.0) - cpu_s
    all_s = busy_s(gateway_cpu) + stolen_s(gateway_cpu) - busy_before_s
    usage.others_s = max(0.0, all_s - usage.gateway_s)
    load_s = sum(map(busy_s, bench.cpus.load)) - load_before_s
    usage.load_busy_share = load_s / usage.wall_s / len(bench.cpus.load)
