"""Llumnix (S164): sixteen instances of LLaMA-7B whose memory is tight, lengths with a long tail."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apportion.core.catalogue import build
from apportion.core.policy import Policy
from apportion.simulate import llumnix
from apportion.simulate.engine import Batching
from apportion.simulate.llumnix import Instances, downtimes_s
from apportion.simulate.profile import Profile
from apportion.simulate.profiles import load
from apportion.simulate.result import Result
from apportion.simulate.trace import Trace

COUNT = 16
KV_TOKENS = 13_616
"""What LLaMA-7B leaves on an A10, in the paper."""
SHORTEST, LONGEST = 4, 6144
WORKLOADS = {  # mean of prompts and of answers, requests a second, coefficient of variation of the gaps
    "short": (128, 128, 28.0, 1.0),
    "medium": (256, 256, 13.0, 1.0),
    "long": (512, 512, 5.0, 1.0),
    "long to short": (512, 128, 17.0, 1.0),
    "medium, bursts": (256, 256, 12.0, 4.0),
}
SEEDS = {"tails": (1, 2, 3), "fewer": (1, 2, 3), "priorities": (1, 2), "scaling": (1, 2, 3)}
"""Of what is reported; the headroom is the paper's, and what was tried on the way had others."""
FULL_SLOWER = 2.6
"""What if a full instance took so many times as long as an empty one? The roofline's takes 1.4 times as long."""
GOAL_S = 5.0
"""The P99 prefill at which instance hours are compared."""
METHODS = {  # who dispatches, and who moves
    "round robin": ("route/round_robin", None),
    "INFaaS-like": ("route/least_load", None),
    "Llumnix, nothing moves": ("place/llumnix", None),
    "Llumnix": ("place/llumnix", "place/llumnix"),
}


def profile() -> Profile:
    """LLaMA-7B on an A10: a roofline of the data sheets with the paper's memory."""
    return replace(load("roofline:a10/llama2-7b/tp1"), kv_tokens=KV_TOKENS)


def power_law(rng: np.random.Generator, n: int, mean: float) -> NDArray[np.int32]:
    """Lengths between `SHORTEST` and `LONGEST` whose density falls with a power, the one that gives the mean."""
    low, high = 0.01, 5.0
    for _ in range(60):
        power = 0.5 * (low + high)
        low, high = (power, high) if _mean(power) > mean else (low, power)
    rest = 1.0 - (SHORTEST / LONGEST) ** power
    return np.asarray(np.rint(SHORTEST * (1.0 - rng.random(n) * rest) ** (-1.0 / power)), np.int32)


def _mean(power: float) -> float:
    """Of the Pareto law of that power, cut off at `LONGEST`."""
    rest = 1.0 - (SHORTEST / LONGEST) ** power
    if abs(power - 1.0) < 1e-9:
        return SHORTEST * float(np.log(LONGEST / SHORTEST)) / rest
    return (
        power
        * SHORTEST**power
        * (SHORTEST ** (1.0 - power) - LONGEST ** (1.0 - power))
        / ((power - 1.0) * rest)
    )


def workload(
    name: str, n: int, seed: int = 0, *, high: float = 0.0, rate: float | None = None, cv: float | None = None
) -> Trace:
    """Requests with gamma-distributed gaps; a share of them is of high priority."""
    prompt, output, own_rate, own_cv = WORKLOADS[name]
    shape = (cv or own_cv) ** -2.0
    rng = np.random.default_rng(seed)
    prompts, outputs = power_law(rng, n, prompt), power_law(rng, n, output)
    gaps = rng.gamma(shape, 1.0 / ((rate or own_rate) * shape), n)
    return Trace(np.cumsum(gaps), prompts, outputs, priority=(rng.random(n) < high).astype(np.int8))


def served(trace: Trace, method: str, *, scale: Policy | None = None, **of: Any) -> Result:
    """A run of one method."""
    dispatch, move = METHODS[method]
    given = {"profile": profile(), "count": COUNT} | of
    instances = Instances(batching=Batching("prefill_first"), **given)
    one: Any = build(dispatch)
    return llumnix.run(trace, instances, one, one if move else None, scale)


def figures(results: Sequence[Result]) -> dict[str, Any]:
    """What is told of runs, one for each seed, together. Prefill latency is the time to the first token."""
    ttft, e2e = (np.concatenate([getattr(one, name) for one in results]) for name in ("ttft_s", "e2e_s"))
    down = np.concatenate([downtimes_s(one) for one in results])
    facts = [one.facts for one in results]
    return {
        "prefill_mean_s": float(ttft.mean()),
        "prefill_p99_s": float(np.percentile(ttft, 99)),
        "prefill_p99s_s": [float(np.percentile(one.ttft_s, 99)) for one in results],
        "e2e_mean_s": float(e2e.mean()),
        "e2e_p99_s": float(np.percentile(e2e, 99)),
        "preemptions": sum(int(one["preemptions"]) for one in facts),
        "moves": dict(Counter(move.how for one in facts for move in one["moves"])),
        "downtime_max_s": float(down.max()) if len(down) else None,
        "instances": sum(one["instance_s"] for one in facts) / sum(one["horizon_s"] for one in facts),
        "each_instances": [one["instance_s"] / one["horizon_s"] for one in facts],
    }


def tails(n: int) -> dict[str, Any]:
    """Every workload by every method, and each request alone on an idle instance."""
    found = {}
    law = profile()
    for name in WORKLOADS:
        many = (
            2 * n if name == "short" else n
        )  # they are over sooner, before the tail of their lengths is felt
        traces = [workload(name, many, seed) for seed in SEEDS["tails"]]
        prompts = np.concatenate([trace.prompt_tokens for trace in traces])
        alone = [float(law.seconds_of(p, prefill_pairs=p * p / 2, requests=1)) for p in prompts]
        found[name] = {
            "rate_per_s": WORKLOADS[name][2],
            "alone_p99_s": float(np.percentile(alone, 99)),
            "methods": {method: figures([served(trace, method) for trace in traces]) for method in METHODS},
        }
    return found


def saturating_rps(law: Profile, name: str) -> float:
    """Requests a second whose keys and values take all memory of `COUNT` instances as slow as full ones are."""
    prompt, output, *_ = WORKLOADS[name]
    rng = np.random.default_rng(0)
    outputs = power_law(rng, 1_000_000, output).astype(np.float64)
    full_s = float(law.seconds_of(1, requests=1)) + law.kv_tokens * law.decode_attention_s
    held = float(np.mean(outputs * (prompt + outputs / 2)))
    return COUNT * law.kv_tokens / (full_s * held)


def priorities(n: int) -> dict[str, Any]:
    """A tenth of the requests is of high priority; the same without priorities, and those alone on all instances."""
    law = profile()
    slow_s = (FULL_SLOWER - 1.0) * float(law.seconds_of(1, requests=1)) / law.kv_tokens
    slower = replace(law, decode_attention_s=slow_s)
    found = {}
    for label, of, share, cv in (
        ("roofline", law, 0.85, 2.0),
        ("roofline", law, 0.85, 8.0),
        ("roofline", law, 1.0, 2.0),
        ("roofline", law, 1.0, 4.0),
        ("roofline", law, 1.0, 8.0),
        ("slower when full", slower, 0.85, 2.0),
        ("slower when full", slower, 0.85, 8.0),
    ):
        rate = share * saturating_rps(of, "short")
        each: dict[str, list[tuple[Result, NDArray[np.bool_]]]] = {"without": [], "with": [], "alone": []}
        for seed in SEEDS["priorities"]:
            trace = workload("short", 2 * n, seed, high=0.1, rate=rate, cv=cv)
            high = np.asarray(trace.priority) > 0
            for how, given, of_high in (
                ("without", replace(trace, priority=None), high),
                ("with", trace, high),
                ("alone", trace.take(np.flatnonzero(high)), np.ones(int(high.sum()), bool)),
            ):
                result = served(given, "Llumnix", profile=of)
                each[how].append((result, of_high[result["request"]]))
        found[f"{label}, {share:.0%} ({rate:.0f}/s), gaps vary by {cv:g}"] = {
            how: {"high": _of(runs, True)} | ({} if how == "alone" else {"low": _of(runs, False)})
            for how, runs in each.items()
        }
    return found


def _of(runs: Sequence[tuple[Result, NDArray[np.bool_]]], high: bool) -> dict[str, Any]:
    """Figures of the requests of one priority, of all seeds together."""
    ttft, e2e, tpot = (
        np.concatenate([getattr(result, name)[rows == high] for result, rows in runs])
        for name in ("ttft_s", "e2e_s", "tpot_s")
    )
    return {
        "prefill_mean_s": float(ttft.mean()),
        "prefill_p99_s": float(np.percentile(ttft, 99)),
        "e2e_mean_s": float(e2e.mean()),
        "e2e_means_s": [float(result.e2e_s[rows == high].mean()) for result, rows in runs],
        "decode_mean_s": float(np.nanmean(tpot)),
    }


def fewer(n: int) -> dict[str, Any]:
    """The P99 prefill latency of fewer instances, beside that of sixteen INFaaS-like ones."""
    found = {}
    for name in ("medium", "long"):
        traces = [workload(name, n, seed) for seed in SEEDS["fewer"]]

        def p99_s(method: str, count: int, traces: Sequence[Trace] = traces) -> float:
            runs = [served(trace, method, count=count) for trace in traces]
            return float(figures(runs)["prefill_p99_s"])

        goal_s = p99_s("INFaaS-like", COUNT)
        seen = {count: p99_s("Llumnix", count) for count in range(COUNT - 3, COUNT + 1)}
        least = min((count for count, seconds in seen.items() if seconds <= goal_s), default=COUNT)
        found[name] = {"goal_s": goal_s, "instances": least, "seen": seen}
    return found


def scaling(n: int) -> dict[str, Any]:
    """Instances come and go by the same rule, with and without moves, where requests come in bursts."""
    found = {}
    traces = [workload("medium", n, seed, rate=6.0, cv=4.0) for seed in SEEDS["scaling"]]
    for method in ("INFaaS-like", "Llumnix"):
        rows = []
        for low in (20.0, 60.0, 180.0, 400.0, 800.0):
            scale: Any = build("scale/freeness", low=low, high=3.0 * low, sustain_s=5.0)
            runs = [served(trace, method, scale=scale, count=8, most=COUNT, least=1) for trace in traces]
            rows.append({"low": low, **figures(runs)})
        found[method] = rows
    return found


def recomputing() -> list[dict[str, float]]:
    """A request that moves against one that is computed anew elsewhere, by what it holds."""
    rows = []
    law = profile()
    for tokens in (512, 1024, 2048, 4096, 8000):
        trace = Trace(np.zeros(2), np.array([tokens, 8], np.int32), np.array([600, 900], np.int32))
        instances = Instances(profile=law, count=2, batching=Batching("prefill_first"))
        always: Any = build("place/llumnix", leave_below=1e9, join_above=-1e9)
        first: Any = build("route/round_robin")
        result = llumnix.run(trace, instances, first, always)
        moved = next(m for m in result.facts["moves"] if m.how == "moved" and m.request == 0)
        anew_s = float(law.seconds_of(tokens, prefill_pairs=tokens * tokens / 2, requests=1))
        rows.append(
            {
                "tokens": tokens,
                "stages": len(moved.stages),
                "copy_s": moved.stopped_s - moved.begin_s,
                "downtime_s": moved.downtime_s,
                "recompute_s": anew_s,
                "copy_stopped_s": 0.005 + sum(moved.stages) * law.kv_bytes_per_token / 8e9,
            }
        )
    return rows


SECTIONS: dict[str, Callable[[int], Any]] = {
    "tails": tails,
    "fewer": fewer,
    "priorities": priorities,
    "recomputing": lambda _: recomputing(),
    "scaling": scaling,
}


def measure(n: int) -> Iterator[dict[str, Any]]:
    """Everything about moving; what there is so far, after each section."""
    found: dict[str, Any] = {"requests": n, "seeds": {name: list(seeds) for name, seeds in SEEDS.items()}}
    started_s = time.process_time()
    for name, section in SECTIONS.items():
        found[name] = section(n)
        yield {**found, "cpu_s": time.process_time() - started_s}
