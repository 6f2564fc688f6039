"""S094: goodput per device of DistServe's placement, against colocated continuous batching."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from apportion.plan.placement import Placement, Search
from apportion.simulate.disagg.distserve import Parallel, colocated
from apportion.simulate.disagg.goodput import Objectives, poisson
from apportion.simulate.trace import Trace
from benchmarks.phases.data import Pairs, batches, law, stages

MODELS = {
    "codellama-34b": ((2, 1), (4, 1), (2, 2), (4, 2)),
    "llama3.1-8b": ((1, 1), (2, 1), (1, 2)),
}
"""Tensor parallelism and stages that are tried."""
ROWS = (
    ("codellama-34b", "ShareGPT", 2.5, 0.15),
    ("codellama-34b", "ShareGPT", 1.25, 0.05),
    ("codellama-34b", "ShareGPT", 1.0, 0.035),
    ("codellama-34b", "HumanEval", 0.125, 0.2),
    ("codellama-34b", "HumanEval", 0.125, 0.035),
    ("codellama-34b", "HumanEval", 0.125, 0.025),
    ("codellama-34b", "LongBench", 15.0, 0.15),
    ("codellama-34b", "LongBench", 15.0, 0.05),
    ("codellama-34b", "LongBench", 4.0, 0.035),
    ("llama3.1-8b", "ShareGPT", 0.25, 0.1),
    ("llama3.1-8b", "ShareGPT", 0.25, 0.02),
)
"""Model, application, seconds to the first token and per token. The first of each application are the paper's
for OPT-66B (here the model of 34 billion) and OPT-13B (here of 8 billion); the others are tighter."""


def instances(model: str) -> list[Parallel]:
    """What an instance can be."""
    return [
        Parallel(
            profile=stages(batches(f"a100-{model}-tp{tensor}-kernels"), count),
            tensor=tensor,
            stages=count,
            layers=48 if model == "codellama-34b" else 32,
        )
        for tensor, count in MODELS[model]
    ]


def requests(pairs: Pairs, duration_s: float, rate_per_s: float) -> Trace:
    """The workload of a search."""
    return poisson(*pairs, rate_per_s, duration_s, seed=1)


def measure(quick: bool) -> dict[str, Any]:
    """Every row: the best colocated instance, and the placements of both algorithms."""
    rows = []
    began = time.process_time()
    for model, application, ttft_s, tpot_s in ROWS[::4] if quick else ROWS:
        pairs = law(application)
        search = Search(
            instances=instances(model),
            workload=partial(requests, pairs, 20.0 if quick else 40.0),
            objectives=Objectives(ttft_s=ttft_s, tpot_s=tpot_s),
            devices=32,
            rates=(0.1, 1500.0),
            tolerance=0.1 if quick else 0.04,
        )
        base = {
            kind: max(
                (search.rate(colocated(i, 1, kind)) / i.devices, f"tp{i.tensor} pp{i.stages}")
                for i in search.instances
            )
            for kind in ("prefill_first", "chunked")
        }
        rows.append(
            {
                "model": model,
                "application": application,
                "ttft_s": ttft_s,
                "tpot_s": tpot_s,
                "colocated": base,
                "high": found(search.high_affinity()),
                "low": found(search.low_affinity()),
            }
        )
    return {"rows": rows, "cpu_s": time.process_time() - began}


def found(placement: Placement) -> dict[str, Any]:
    """A placement as JSON."""
    return {"system": placement.system.cluster.name, "per_device": placement.per_device}
