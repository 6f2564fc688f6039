"""The results as a page of the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gateway.report import table
from benchmarks.simulate.splitfuse import BASELINE, SLA_TOKENS_PER_S

PAGE = Path(__file__).parents[2] / "docs" / "results" / "simulate.md"


def write_page(results: Mapping[str, Any]) -> None:
    """Write the page from what was measured."""
    parts = [_HEAD]
    if "speed" in results:
        parts += [
            "## Requests a second",
            _SPEED.format(**results["speed"]),
            _speed(results["speed"]),
            _origin(results["speed"]),
        ]
    if "limit" in results:
        parts += [
            "## What it would cost at least",
            _LIMIT.format(**_shares(results["limit"])),
            _origin(results["limit"]),
        ]
    if "engine" in results:
        parts += [
            "## One engine from Python, and the event core",
            _engine(results["engine"]),
            _origin(results["engine"]),
        ]
    if "whole" in results:
        parts += [
            "## The whole proxy in virtual time",
            _WHOLE.format(**results["whole"]),
            _whole(results["whole"]),
            _origin(results["whole"]),
        ]
    if "many" in results:
        parts += ["## Ten million requests", _many(results["many"]), _origin(results["many"])]
    for name in ("splitfuse", "splitfuse_kernels"):
        if name in results:
            parts += _splitfuse(results[name])
    if "splitfuse" in results:
        parts.append(_WHY.format(**_reached(results["splitfuse"])))
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n\n".join(part.strip() for part in parts if part) + "\n")


def _speed(found: Mapping[str, Any]) -> str:
    rows = [
        [
            r["router"], r["batching"], f"{r['load']:.0%}", f"{r['requests_per_s']:,.0f}",
            f"{r['iterations_per_s']:,.0f}", f"{r['iterations_per_request']:.1f}",
            f"{r['in_flight']:,.0f}", f"{r['ttft_p99_s']:.2f}",
        ]
        for r in found["rows"]
    ]  # fmt: skip
    head = [
        "router",
        "batching",
        "load",
        "requests/s",
        "iterations/s",
        "iterations/request",
        "in flight",
        "p99 TTFT s",
    ]
    return table(head, rows)


def _shares(found: Mapping[str, Any]) -> dict[str, Any]:
    return {**found, "share": found["floor_ns_per_event"] / found["ns_per_event"]}


def _engine(found: Mapping[str, Any]) -> str:
    rows = [
        ["one `Engine` object, driven from Python: requests/s", f"{found['engine_requests_per_s']:,.0f}"],
        ["event core, a chain of timers: events/s", f"{found['events_per_s']:,.0f}"],
    ]
    if found["simpy"]:
        rows.append(["simpy, the same: events/s", f"{found['simpy']:,.0f}"])
    return table(["what", "rate"], rows)


def _whole(found: Mapping[str, Any]) -> str:
    rows = [
        [
            r["policy"], f"{r['load']:.0%}", f"{r['requests_per_s']:,.0f}", f"{r['iterations_per_s']:,.0f}",
            f"{r['in_flight']:,.0f}", f"{r['ttft_p99_s']:.2f}",
        ]
        for r in found["rows"]
    ]  # fmt: skip
    return table(["policy", "load", "requests/s", "iterations/s", "in flight", "p99 TTFT s"], rows)


def _many(found: Mapping[str, Any]) -> str:
    rows = [
        [
            str(n + 1), f"{h['rows']:,}", f"{h['cpu_s']:.0f}", f"{h['generating_s']:.0f}", f"{h['iterations']:,}",
            f"{h['busy']:.0%}", f"{h['most_in_flight']:,}", f"{h['mib_after_a_tenth']:.0f}",
            f"{h['mib_at_the_end']:.0f}",
        ]
        for n, h in enumerate(found["halves"])
    ]  # fmt: skip
    text = _MANY.format(**found).strip()
    head = ["process", "requests", "CPU s", "of them generating", "iterations", "busy", "most in flight",
            "MiB after a tenth", "MiB at the end"]  # fmt: skip
    return text + "\n\n" + table(head, rows)


def _splitfuse(found: Mapping[str, Any]) -> list[str]:
    parts = [f"## SplitFuse against prompts first: `{found['profile']}`"]
    for load, title in (("clients", _CLIENTS), ("burst", _BURST)):
        systems = found[load]
        if not systems:
            continue
        rows = []
        for name, runs in systems.items():
            row = [name]
            for sla in SLA_TOKENS_PER_S:
                best = _best(runs, sla)
                base = _best(systems[BASELINE], sla)
                row.append(f"{best:.2f} ({best / base:.1f}x)" if base else f"{best:.2f}")
            last = runs[list(runs)[-1]]
            base_gap = systems[BASELINE][list(runs)[-1]]["gap_p95_s"]
            row.append(f"{1000 * last['gap_p95_s']:.0f} ({base_gap / last['gap_p95_s']:.1f}x less)")
            row.append(f"{last['latency_s']:.1f}")
            row.append(f"{max(run['requests_per_s'] for run in runs.values()):.2f}")
            if load == "clients":
                sizes = [run["pass_tokens"] for run in runs.values() if run["pass_tokens"]]
                row.append(f"{min(s[0] for s in sizes):,} to {max(s[1] for s in sizes):,}")
            rows.append(row)
        head = ["batching", *(f"effective/s at {x:g} tokens/s" for x in SLA_TOKENS_PER_S), "p95 gap ms, most load",
                "mean latency s there", "most requests/s"]  # fmt: skip
        if load == "clients":
            head.append("tokens of a pass, prompts waiting")
        parts += [title, table(head, rows)]
    return [*parts, _origin(found)]


def _reached(found: Mapping[str, Any]) -> dict[str, str]:
    """What the paper's headline figures are here, at its load: best ratio over the budgets of SplitFuse."""
    base = found["clients"][BASELINE]
    fused = [runs for name, runs in found["clients"].items() if name != BASELINE]
    shared = list(base)[1:]
    gaps = [base[c]["gap_p95_s"] / runs[c]["gap_p95_s"] for runs in fused for c in shared]
    latency = [base[c]["latency_s"] / runs[c]["latency_s"] for runs in fused for c in shared]
    return {
        "effective": ", ".join(
            f"{max(_best(runs, x) for runs in fused) / _best(base, x):.1f}x at {x:g} tokens/s"
            for x in SLA_TOKENS_PER_S
        ),
        "gap": f"up to {max(gaps):.1f}x",
        "latency": f"up to {max(latency):.2f}x",
        "rate": f"{max(max(r['requests_per_s'] for r in runs.values()) for runs in fused):.2f} against "
        f"{max(r['requests_per_s'] for r in base.values()):.2f} requests/s",
    }


def _best(runs: Mapping[str, Any], sla: float) -> float:
    return max(float(run["effective_per_s"][f"{sla:g}"]) for run in runs.values())


def _origin(section: Mapping[str, Any]) -> str:
    machine = section["machine"]
    return (
        f"{section['measured_at']}, commit {section['commit']}, {machine['cpu']}, {machine['cpus']} CPUs, "
        f"Linux {machine['kernel']}, Python {machine['python']}."
    )


_HEAD = """
# The simulator: results

How fast the [engine](../guides/engine.md) is simulated, and what SplitFuse gains in it. Everything on this page is
written by `python -m benchmarks.simulate` (`--quick` for a small run, `--only splitfuse` for one section); the data
sets are read from `$APPORTION_DATA`.
"""
_SPEED = """
The Azure conversation trace (14,524 requests of 1,187 prompt and 202 output tokens on average), repeated, through
{instances} engines of the profile `{profile}` at a share of what they can do. CPU time of one process, all on one
core, the best of three runs; making the columns of the result is in it. An iteration is one forward pass of an engine
over its batch; those of the table are all counted one by one, whether they were advanced singly or as a run of
decoding in closed form. The last rows ask Python at every arrival: a function that sees the loads as arrays, and a
policy of the catalogue with its `State` and `Option` objects.
"""
_LIMIT = """
A request changes the composition of a batch about twice (its prompt goes in, its answer ends). At each of the two, the
decoding requests, {decoding} on average here, have to be gone through three times: who ends next, the longest gap of
each, the time of its last token; {bytes_per_event:,} bytes, all in the cache. A compiled loop that does only this
takes {floor_ns_per_event:.0f} ns; the simulator takes {ns_per_event:.0f} ns, so {share:.0%} of its time is that floor.
The rest is scalar code with branches over the state of an instance and the rows of its requests: queue, memory, router,
prices, the row of the result, and counting references to arrays. Iterations do not add to it: between two changes lie
{iterations_per_event:.1f} on average at this load (95%), more at a lower one.
"""
_WHOLE = """
The same trace, once, through the proxy's twin (options and predictions, the policy's decision, time-outs, settlement;
no budget; every iteration of the engines) with {endpoints} endpoints of one instance each of the profile
`{profile}`. The policies are Python objects of the catalogue, asked for every request. CPU time of one
process, the best of three runs, on a machine that worked on other things too.
"""

_MANY = """
{requests:,} requests of a BurstGPT-like workload, generated on the way, in two processes of one core each, every one
with eight engines and the router `least_requests`: {wall_s:.0f} s on the clock (the machine has {cpus} cores and was
shared). The results go to a sink that counts them. Memory does not grow with the trace: it is that of the
interpreter, the compiled code, a piece of the trace and the requests in flight.
"""
_CLIENTS = """
The paper's load: prompts around 2,600 tokens, answers around 128 (normal, 30%), 1 to 32 clients who send their next
request when the last is answered. *Effective* are requests whose first token came within prompt/512 seconds and whose
moving average of tokens a second (exponential, span of 16 tokens) never fell below the objective; per second, at the
number of clients that is best for each batching.
"""
_BURST = """
A BurstGPT-like load (open loop, arrivals and lengths of the generator, its rate scaled from 0.5 to 6 requests a
second): effective requests a second at the best rate for each. Most of its prompts are short, and a first token
within prompt/512 seconds is out of reach for those of a hundred tokens, whoever makes the batches.
"""
_WHY = """
## What the paper says, and why it differs

| | paper (70B, four A100 80 GB) | here |
| --- | --- | --- |
| effective throughput | up to 2.3x vLLM | {effective} |
| p95 time between tokens | up to 3.7x less | {gap} less |
| mean latency at equal load | up to 2x less | {latency} less |
| most requests/s, no objective | 1.36 against 0.67 (at 9 s of latency) | {rate} |

The paper compares two programs; here one engine with one profile changes nothing but who shares an iteration. So what
FastGen gains by its kernels and its leaner scheduler is not in these numbers (mean latency and raw throughput gain
little), and what vLLM of November 2023 lost between iterations is not counted against it. What remains is the effect
of the method: pieces of a constant size bound the time between tokens, at the price of passes that use the machine a
little worse than whole prompts (512 tokens take a third of the time of 2,048, not a quarter). The choice of the
budget is the choice between the objectives: 512 tokens hold 6 tokens a second, 1,024 do not, 2,048 not even 4. The
moving average is ours in its span; the paper does not state it.
"""
