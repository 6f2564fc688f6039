"""S072: goodput of split devices, against colocated, chunked and disaggregated ones in equal number."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from apportion.simulate.disagg.cluster import Cluster, Machine
from apportion.simulate.disagg.goodput import Objectives, highest, poisson
from apportion.simulate.disagg.semi_pd import SemiPD
from apportion.simulate.result import Result
from apportion.simulate.trace import Trace
from benchmarks.phases.data import batches, lengths

ROWS = (
    ("h100-llama2-70b-tp4-kernels", "azure_conv", 1.0, 0.05, 0.5, 2),
    ("h100-llama2-70b-tp4-kernels", "azure_conv", 1.0, 0.05, 0.35, 2),
    ("h100-llama2-70b-tp4-kernels", "azure_conv", 1.0, 0.05, 0.65, 2),
    ("h100-llama2-70b-tp4-kernels", "azure_conv", 1.0, 0.03, 0.5, 2),
    ("h100-llama2-70b-tp4-kernels", "azure_code", 2.0, 0.05, 0.5, 2),
    ("h100-llama2-70b-tp4-kernels", "azure_code", 2.0, 0.03, 0.5, 2),
    ("a100-llama3.1-8b-tp1-kernels", "azure_conv", 1.0, 0.03, 0.5, 2),
    ("h100-llama2-70b-tp4-kernels", "azure_conv", 1.0, 0.05, 0.5, 4),
    ("h100-llama2-70b-tp4-kernels", "azure_code", 2.0, 0.05, 0.5, 4),
)
"""Profile, trace, seconds to the first token and per token, the part of the processors that saturates the memory,
and the number of instances."""
SHARES = (0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75)


def measure(quick: bool) -> dict[str, Any]:
    """Every row: the highest rate per device of each way to share devices between the phases."""
    began = time.process_time()
    rows = [one(*row, quick=quick) for row in (ROWS[:1] if quick else ROWS)]
    return {"rows": rows, "cpu_s": time.process_time() - began}


def one(
    name: str, file: str, ttft_s: float, tpot_s: float, saturates: float, count: int, *, quick: bool
) -> dict[str, Any]:
    """One row."""
    profile = batches(name)
    pairs = lengths(f"azure_llm_2023/{file}")
    objectives = Objectives(ttft_s=ttft_s, tpot_s=tpot_s, warm_s=20.0)

    def at(rate: float) -> Trace:
        return poisson(*pairs, rate, 50.0 if quick else 70.0, seed=1)

    def most(run: Callable[[Trace], Result]) -> float:
        return (
            highest(lambda rate: objectives.met(run(at(rate)), at(rate)), 0.5, 60.0, 0.1 if quick else 0.03)
            / count
        )

    def machines(*each: tuple[int, Machine]) -> list[Machine]:
        return [machine for count, machine in each for _ in range(count)]

    plain = Machine(profile=profile)
    pieces = Machine(profile=replace(profile, batch_tokens=512), batching="chunked")
    split = SemiPD(profile=profile, count=count, objectives=objectives, saturates=saturates)
    systems: dict[str, Callable[[Trace], Result]] = {
        "colocated": Cluster(machines=machines((count, replace(plain, batching="prefill_first")))).run,
        "chunked": Cluster(machines=machines((count, pieces))).run,
        **{
            f"disaggregated {n}P {count - n}D": Cluster(
                machines=machines(
                    (n, replace(plain, phase="prompt")), (count - n, replace(plain, phase="token"))
                ),
                choose="paired",
            ).run
            for n in range(1, count)
        },
        **{f"semi-PD {share:g}": replace(split, share=share).run for share in SHARES},
        "semi-PD, controlled": replace(split, share=0.5, controller="scale/phase_split").run,
    }
    rates = {each: most(run) for each, run in systems.items()}
    curves = {}
    for each in ("colocated", "chunked", _best(rates, "disaggregated"), "semi-PD, controlled"):
        top = 1.5 * count * max(rates.values())
        curves[each] = [
            [rate / count, objectives.attainment(systems[each](at(rate)), at(rate))]
            for rate in (top * step / (6 if quick else 10) for step in range(1, 7 if quick else 11))
        ]
    return {
        "profile": name,
        "trace": file,
        "ttft_s": ttft_s,
        "tpot_s": tpot_s,
        "saturates": saturates,
        "count": count,
        "rates": rates,
        "curves": curves,
    }


def _best(rates: dict[str, float], prefix: str) -> str:
    return max((rate, name) for name, rate in rates.items() if name.startswith(prefix))[1]
