"""Simulated requests a second of one core, what an event costs, and what it would cost at least."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apportion.core import Policy, catalogue
from apportion.measure.price import TokenPrice
from apportion.simulate import fleet, gateway
from apportion.simulate.engine import Batching, Engine
from apportion.simulate.engine._compiled import njit
from apportion.simulate.events import Clock
from apportion.simulate.profile import Profile
from apportion.simulate.scenario import Choice, Endpoint, Model, Route, Scenario
from apportion.simulate.trace import Trace
from benchmarks.simulate.data import azure, burst, machine

INSTANCES = 8
ENDPOINTS = 4
POLICIES = ("route/round_robin", "route/least_load", "route/power_of_two")
ROUNDS = 3


def fewest(now_s: float, loads: fleet.Loads) -> int:
    """A plain Python function at every arrival."""
    return int(loads.requests.argmin())


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, the least of some rounds, and the last result."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        found = work()
        best = min(best, time.process_time() - began)
    return best, found


def routers(trace: Trace) -> list[tuple[str, fleet.Router | str, str]]:
    """Name of the router, the router, kind of batching."""
    policy = catalogue.build("route/power_of_two", seed=1)
    assert isinstance(policy, Policy)
    return [
        *((name, name, "prefill_first") for name in fleet.ROUTERS if name != "table"),
        ("least_requests", "least_requests", "chunked"),
        ("a Python function", fewest, "prefill_first"),
        ("a Python function", fewest, "chunked"),
        ("policy route/power_of_two of the catalogue", fleet.by_policy(policy, [str(n) for n in range(INSTANCES)]),
         "prefill_first"),
    ]  # fmt: skip


def rates(times: int) -> dict[str, Any]:
    """The Azure conversation trace through a fleet at about 70% of what it can do, and at 95%."""
    profile = machine()
    found: dict[str, Any] = {"instances": INSTANCES, "profile": profile.name, "rows": []}
    for load in (0.7, 0.95):
        trace = azure(times, load * capacity(profile) * INSTANCES)
        small = azure(1, load * capacity(profile) * INSTANCES)
        for name, router, kind in routers(trace):
            batching = Batching(kind)  # type: ignore[arg-type]
            fleet.run(small, [profile] * INSTANCES, batching=batching, router=router)
            python = callable(router)
            seconds, result = cpu(
                lambda t=small if python else trace, b=batching, r=router: fleet.run(
                    t, [profile] * INSTANCES, batching=b, router=r
                )
            )
            found["rows"].append(
                {
                    "router": name,
                    "batching": kind,
                    "load": load,
                    "python": python,
                    "requests_per_s": len(result) / seconds,
                    "iterations_per_s": result.facts["iterations"] / seconds,
                    "iterations_per_request": result.facts["iterations"] / len(result),
                    "in_flight": float((result.e2e_s.sum()) / result.facts["horizon_s"]),
                    "ttft_p99_s": float(np.quantile(result.ttft_s, 0.99)),
                }
            )
    return found


def capacity(profile: Profile) -> float:
    """Requests a second of the Azure conversation trace that one instance can do, if all come at once."""
    trace = azure(1, 1e6)
    result = fleet.run(trace, [profile], batching=Batching("prefill_first"))
    return len(result) / float(result.facts["horizon_s"])


@njit
def floor_loop(end: NDArray[Any], gap: NDArray[Any], last: NDArray[Any], events: int) -> float:
    """The passes over the decoding requests that an event cannot do without: find the next end, note gaps and times."""
    total = 0.0
    n = len(end)
    for event in range(events):
        first = end[0]
        for b in range(1, n):
            first = min(first, end[b])
        for b in range(n):
            gap[b] = max(gap[b], event - last[b])
        for b in range(n):
            last[b] = event
        total += first
    return total


def limit(times: int) -> dict[str, Any]:
    """Nanoseconds of an event beside those of the passes over memory that it cannot do without."""
    profile = machine()
    trace = azure(times, 0.95 * capacity(profile) * INSTANCES)
    work = lambda: fleet.run(trace, [profile] * INSTANCES, router="round_robin")  # noqa: E731
    work()
    seconds, result = cpu(work)
    # An arrival, an iteration with its prompt, an end: what changes the composition of a batch, per request.
    events = 2.0 * len(result)
    batch = max(1, round(float(result.e2e_s.sum()) / result.facts["horizon_s"] / INSTANCES))
    arrays = np.full(batch, 10**9), np.zeros(batch), np.zeros(batch)
    floor_loop(*arrays, 10)
    least, _ = cpu(lambda: floor_loop(*arrays, 1_000_000))
    return {
        "decoding": batch,
        "ns_per_request": seconds / len(result) * 1e9,
        "ns_per_event": seconds / events * 1e9,
        "floor_ns_per_event": least / 1e6 * 1e9,
        "bytes_per_event": batch * 8 * 5,
        "iterations_per_event": result.facts["iterations"] / events,
    }


def one_engine(n: int) -> dict[str, Any]:
    """Requests a second through one `Engine` object, driven from Python; and the event core beside simpy."""
    trace = azure(1, 0.7 * capacity(machine()))
    count = min(n, len(trace))
    columns = (
        trace.arrival_s[:count].tolist(),
        trace.prompt_tokens[:count].tolist(),
        trace.output_tokens[:count].tolist(),
    )

    def work() -> int:
        engine, done = Engine(machine()), 0
        for request, (at, prompt, output) in enumerate(zip(*columns, strict=True)):
            while engine.next_s < at:
                done += len(engine.advance(at))
            engine.submit(at, request, prompt, output)
        while engine.next_s < float("inf"):
            done += len(engine.advance(float("inf")))
        return done

    seconds, done = cpu(work)
    events = 100_000

    def ticks() -> None:
        clock = Clock()

        def tick(left: int) -> None:
            if left:
                clock.after(1.0, tick, left - 1)

        for _ in range(10):
            tick(events // 10)
        clock.run()

    ours, _ = cpu(ticks)
    found: dict[str, Any] = {
        "engine_requests_per_s": done / seconds,
        "events_per_s": events / ours,
        "simpy": None,
    }
    try:
        import simpy
    except ImportError:
        return found

    def simpy_ticks() -> None:
        environment = simpy.Environment()

        def process() -> Iterator[Any]:
            for _ in range(events // 10):
                yield environment.timeout(1.0)

        for _ in range(10):
            environment.process(process())
        environment.run()

    found["simpy"] = events / cpu(simpy_ticks)[0]
    return found


def whole(share: float) -> dict[str, Any]:
    """The Azure conversation trace through the whole proxy in virtual time, with policies of the catalogue."""
    profile = machine()
    found: dict[str, Any] = {"endpoints": ENDPOINTS, "profile": profile.name, "rows": []}
    for load in (0.2, 0.7):
        trace = azure(1, load * capacity(profile) * ENDPOINTS)
        trace = trace.take(slice(0, int(share * len(trace))))
        for policy in POLICIES:
            scenario = proxy(profile, policy)
            gateway.run(scenario, trace.take(slice(0, 200)))
            seconds, result = cpu(lambda s=scenario, t=trace: gateway.run(s, t))
            found["rows"].append(
                {
                    "policy": policy,
                    "load": load,
                    "requests_per_s": len(result) / seconds,
                    "iterations_per_s": result.facts["iterations"] / seconds,
                    "in_flight": result.facts["in_system_s"] / result.facts["horizon_s"],
                    "ttft_p99_s": float(np.quantile(result.ttft_s, 0.99)),
                }
            )
    return found


def proxy(profile: Profile, policy: str) -> Scenario:
    """One model on some equal endpoints, priced by the token."""
    price = TokenPrice.of(input_usd_per_mtok=0.5, output_usd_per_mtok=1.5)
    names = [f"e{n}" for n in range(ENDPOINTS)]
    routes = tuple(Route(endpoint=name, price=price, quality=0.7) for name in names)
    return Scenario(
        endpoints=tuple(Endpoint(name=name, profile=profile, slots=256) for name in names),
        models=(Model(name="m", routes=routes, policy=Choice(policy), worth_usd=0.01),),
    )


def many(requests: int) -> dict[str, Any]:
    """A BurstGPT-sized workload in two processes, half each, generated on the way; and memory as it grows."""
    began = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        halves = pool.map(_half, [(requests // 2, 1), (requests - requests // 2, 2)])
    return {
        "requests": requests,
        "wall_s": time.perf_counter() - began,
        "halves": halves,
        "cpus": os.cpu_count(),
    }


def _half(asked: tuple[int, int]) -> dict[str, Any]:
    requests, seed = asked
    rows = 0
    marks: list[tuple[int, float]] = []
    generating = 0.0

    def sink(columns: fleet.Columns) -> None:
        nonlocal rows
        rows += len(columns["request"])
        marks.append((rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0))

    def pieces() -> Iterator[Trace]:
        nonlocal generating
        source = burst(requests, 8.0, seed)
        while True:
            began = time.process_time()
            piece = next(source, None)
            generating += time.process_time() - began
            if piece is None:
                return
            yield piece

    began = time.process_time()
    result = fleet.run(pieces(), [machine()] * INSTANCES, router="least_requests", sink=sink)
    tenth = next(mib for at, mib in marks if at >= rows // 10)
    return {
        "rows": rows,
        "cpu_s": time.process_time() - began,
        "generating_s": generating,
        "mib_after_a_tenth": tenth,
        "mib_at_the_end": marks[-1][1],
        "most_in_flight": result.facts["most_in_flight"],
        "iterations": result.facts["iterations"],
        "busy": float(np.mean(result.facts["busy_s"]) / result.facts["horizon_s"]),
    }
