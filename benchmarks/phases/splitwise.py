"""S277: what Splitwise's pools carry, against mixed batching, at the paper's objectives."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from apportion.plan.provision import Provision, provision
from apportion.simulate.disagg.cluster import Cluster
from apportion.simulate.disagg.goodput import highest, poisson, slowdowns, worst
from apportion.simulate.disagg.splitwise import Kind, Splitwise, mixed_batching
from apportion.simulate.result import Result
from apportion.simulate.trace import Trace
from benchmarks.phases.data import batches, lengths

MODEL = "llama2-70b-tp8"
USD = {"A": 17.6, "H": 38.0, "Hcap": 38.0}
"""A machine of eight, an hour (the paper's table I)."""
WATTS = {"A": 24.8, "H": 44.0, "Hcap": 30.8}
"""Provisioned, in units of the paper (40 H100 machines draw as much as 70 A100 machines)."""
PROFILES = {"A": "a100", "H": "h100", "Hcap": "h100-capped"}
DESIGNS = {"AA": ("A", "A"), "HH": ("H", "H"), "HA": ("H", "A"), "HHcap": ("H", "Hcap")}
TRACES = {"conversation": "azure_llm_2023/azure_conv", "code": "azure_llm_2023/azure_code"}
BYTES_PER_S = {"A": 2.039e12, "H": 3.35e12, "Hcap": 3.35e12}
"""Of a device's memory (data sheets)."""
COUNTS = {"A": 70, "H": 40}
"""The baselines: equal power."""


def kinds() -> dict[str, Kind]:
    """The machines that can be bought."""
    return {
        name: Kind(
            name=name, profile=batches(f"{PROFILES[name]}-{MODEL}"), usd_per_hour=USD[name], watts=WATTS[name]
        )
        for name in PROFILES
    }


def measure(quick: bool) -> dict[str, Any]:
    """Both traces: baselines, every design at the power of the baselines, and at four fifths of the cost of
    the H100s."""
    bought = kinds()
    reference = bought["A"].profile
    duration_s, tolerance = (20.0, 0.1) if quick else (45.0, 0.04)
    out: dict[str, Any] = {"model": MODEL, "duration_s": duration_s, "traces": {}}
    began = time.process_time()
    for name, file in TRACES.items():
        prompt, output = lengths(file)

        def at(rate: float, pairs: tuple[Any, Any] = (prompt, output)) -> Trace:
            return poisson(*pairs, rate, duration_s, seed=1)

        def meets(run: Callable[[Trace], Result], rate: float, at: Callable[[float], Trace] = at) -> bool:
            return worst(run(at(rate)), reference)[0] <= 1.0

        rows: dict[str, Any] = {}
        for kind, count in COUNTS.items():
            cluster = mixed_batching(bought[kind], count)
            rate = highest(lambda r, c=cluster: meets(c.run, r), 10.0, 400.0, tolerance)  # type: ignore[misc]
            rows[f"Baseline-{kind}"] = {
                "machines": f"{count}P/T",
                "rate_per_s": rate,
                "usd_per_hour": count * USD[kind],
                "watts": count * WATTS[kind],
                "limit": worst(cluster.run(at(rate * 1.1)), reference)[1],
            }
        power = COUNTS["H"] * WATTS["H"]
        budgets = {design: {"watts": power + 1e-6} for design in DESIGNS}
        cheap = {"usd_per_hour": 0.8 * COUNTS["H"] * USD["H"]}
        for label, design, budget in (
            *((design, design, budgets[design]) for design in DESIGNS),
            *((f"{design}, 0.8 of the cost", design, cheap) for design in ("AA", "HA")),
        ):
            p, t = (bought[kind] for kind in DESIGNS[design])

            def carries(prompts: int, tokens: int, rate: float, p: Kind = p, t: Kind = t) -> bool:
                return meets(Splitwise(prompt=p, token=t, prompts=prompts, tokens=tokens).run, rate)

            best, tried = provision(p, t, carries, **budget, rates=(10.0, 400.0), tolerance=tolerance)
            rows[f"Splitwise-{label}"] = row(best, tried, p, t, at, reference)
        out["traces"][name] = rows
        out.setdefault("curves", {})[name] = curves(rows, bought, at, reference, quick)
    out["cpu_s"] = time.process_time() - began
    return out


def context(quick: bool) -> dict[str, Any]:
    """The conversation trace where a token of context costs what reading it from memory takes, by the data sheets."""
    began = time.process_time()
    bought = {
        name: replace(
            kind,
            profile=replace(
                kind.profile,
                decode_attention_s=kind.profile.kv_bytes_per_token
                / (kind.profile.devices * BYTES_PER_S[name]),
            ),
        )
        for name, kind in kinds().items()
    }
    pairs = lengths(TRACES["conversation"])
    reference = bought["A"].profile
    duration_s, tolerance = (20.0, 0.1) if quick else (45.0, 0.04)

    def meets(run: Callable[[Trace], Result], rate: float) -> bool:
        return worst(run(poisson(*pairs, rate, duration_s, seed=1)), reference)[0] <= 1.0

    rows = {
        f"Baseline-{kind}": highest(
            partial(meets, mixed_batching(bought[kind], count).run), 10.0, 400.0, tolerance
        )
        for kind, count in COUNTS.items()
    }
    for design in ("AA", "HH"):
        p, t = (bought[kind] for kind in DESIGNS[design])

        def carries(prompts: int, tokens: int, rate: float, p: Kind = p, t: Kind = t) -> bool:
            return meets(Splitwise(prompt=p, token=t, prompts=prompts, tokens=tokens).run, rate)

        best, _ = provision(
            p, t, carries, watts=COUNTS["H"] * WATTS["H"] + 1e-6, rates=(10.0, 400.0), tolerance=tolerance
        )
        rows[f"Splitwise-{design}"] = best.rate_per_s
    return {"rows": rows, "cpu_s": time.process_time() - began}


def row(
    best: Provision, tried: list[Provision], p: Kind, t: Kind, at: Callable[[float], Trace], ref: Any
) -> Any:
    """What provisioning found, and what stops it from more."""
    system = Splitwise(prompt=p, token=t, prompts=best.prompts, tokens=best.tokens)
    result = system.run(at(best.rate_per_s))
    return {
        "machines": f"{best.prompts}P, {best.tokens}T",
        "pools": [best.prompts, best.tokens],
        "rate_per_s": best.rate_per_s,
        "usd_per_hour": best.usd_per_hour,
        "watts": best.watts,
        "moves": result.facts["moves"],
        "limit": worst(system.run(at(best.rate_per_s * 1.1)), ref)[1],
        "slowdowns": slowdowns(result, ref),
        "tried": [[each.prompts, each.tokens, each.rate_per_s] for each in tried],
    }


def curves(
    rows: Any, bought: Any, at: Callable[[float], Trace], reference: Any, quick: bool
) -> dict[str, Any]:
    """The worst objective, as a share of its limit, by rate."""
    found: dict[str, Any] = {}
    for name, each in rows.items():
        if "," in name:
            continue
        if name.startswith("Baseline"):
            kind = name.rpartition("-")[2]
            cluster: Cluster | Splitwise = mixed_batching(bought[kind], COUNTS[kind])
        else:
            p, t = (bought[kind] for kind in DESIGNS[name.rpartition("-")[2]])
            cluster = Splitwise(prompt=p, token=t, prompts=each["pools"][0], tokens=each["pools"][1])
        rates = [20.0 * step for step in range(1, 12, 3 if quick else 1)]
        found[name] = [[rate, worst(cluster.run(at(rate)), reference)[0]] for rate in rates]
    return found
