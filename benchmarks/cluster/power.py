"""POLCA (S056): a row that was provisioned for 40 machines and has 52."""

from __future__ import annotations

import csv
import gzip
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from apportion.core.catalogue import find
from apportion.simulate import power
from apportion.simulate.engine import Batching, Engine
from apportion.simulate.power import HIGH, LOW, Draw, Plan, Row, Step
from apportion.simulate.profile import Profile
from apportion.simulate.profiles import load as profile_of
from apportion.simulate.trace import Trace
from apportion.simulate.workload import open_trace

PROFILE = "a100-bloom-176b-tp8"
PROVISIONED, INSTALLED = 40, 52
HISTORY, REPORTED = 0, 1
PEAK = 0.79
"""Of the provisioned power, at the busiest moment of a row of 40: what the paper saw in production."""
HIGH_AT_MOST = 0.05
"""More of the 99th percentile of high priority: the bar, also in the tuner."""
BUSY = 0.6
"""Of what the machines can answer, in the busiest hour."""
TUNED_ON = 3 / 24
"""Days of the history on which plans are rehearsed: those around the busiest hour."""
PLANS = (
    (0.80, 0.89, 1275, 1110, 1305),
    (0.80, 0.89, 1275, 1200, 1335),
    (0.85, 0.93, 1275, 1200, 1335),
    (0.85, 0.93, 1275, 1245, 1350),
    (0.85, 0.93, 1320, 1275, 1365),
)
"""Thresholds; MHz of low priority in the first step, of low and of high priority in the second. The paper's first."""
NOBODY = (Step("uncapped"),)
ONE_LOW = (Step("uncapped"), Step("low", 1110 / 1410))
ONE_ALL = (Step("uncapped"), Step("all", 1110 / 1410, 1110 / 1410))


def hours(data: Path, days: float) -> list[float]:
    """The load of each hour, as a share of the busiest one: BurstGPT's hours of the day, times its first seven days.

    Less than a week is the part of it around the busiest hour.
    """
    with gzip.open(data / "burstgpt_aggregates" / "hourly_profile.csv.gz", "rt") as file:
        of_day = np.array([float(row["mean_requests_per_hour"]) for row in csv.DictReader(file)])
    with gzip.open(data / "burstgpt_aggregates" / "daily.csv.gz", "rt") as file:
        of_week = np.array([float(row["requests"]) for row in csv.DictReader(file)])[:7]
    # Single days of so small a service differ tenfold; a service that fills rows differs less: the root of it.
    week = np.concatenate([of_day * np.sqrt(day) for day in of_week])
    count = min(len(week), max(1, round(days * 24)))
    first = min(max(0, int(week.argmax()) - count // 2), len(week) - count)
    return (week / week.max())[first : first + count].tolist()


def recorded(data: Path, half: int) -> Trace:
    """Every other request of the recorded hour: the even ones are the history, the odd ones what is reported."""
    trace = open_trace(data / "azure_llm_2023" / "azure_conv.csv.gz")
    return trace.take(slice(half, None, 2))


def traffic(data: Path, shares: list[float], peak_rps: float, half: int) -> Iterator[Trace]:
    """Hours of Azure's conversations, each a stretch of the recorded hour, at the rate of its own."""
    trace = recorded(data, half)
    rng = np.random.default_rng(1 + half)
    gaps = np.diff(trace.arrival_s, prepend=0.0)
    own_rps = len(trace) / trace.duration_s
    for hour, share in enumerate(shares):
        factor = own_rps / (peak_rps * share)
        start = int(rng.integers(len(trace)))
        take = np.arange(start, start + round(3 * 3600 * peak_rps * share) + 8) % len(trace)
        at = np.cumsum(gaps[take]) * factor
        take, at = take[at < 3600.0], at[at < 3600.0]
        yield Trace(
            at + hour * 3600.0,
            trace.prompt_tokens[take],
            np.maximum(trace.output_tokens[take], 1),
            priority=(rng.random(len(take)) < 0.5).astype(np.int8),
        )


def capacity_rps(data: Path, profile: Profile) -> float:
    """Requests a second that one machine can answer."""
    trace = recorded(data, HISTORY).take(slice(0, 3000))
    engine = Engine(profile, Batching(kind="mixed"))
    number = 0
    for prompt, output in zip(trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True):
        if engine.fits(prompt, max(1, output)):
            engine.submit(0.0, number, prompt, max(1, output))
            number += 1
    while engine.next_s < float("inf"):
        engine.advance(engine.next_s)
    return number / engine.busy_s


def figures(draw: Draw, base: Draw, limit_w: float) -> dict[str, Any]:
    """A run beside the one that nothing slowed."""
    found: dict[str, Any] = {
        "brakes": draw.brakes,
        "braked_s": draw.braked_s,
        "peak": float(draw.watts.max()) / limit_w,
        "mean": float(draw.watts.mean()) / limit_w,
        "step_s": draw.step_s,
        "lost": draw.lost,
    }
    for name, priority in (("low", LOW), ("high", HIGH)):
        for q in (50, 99):
            own, other = (np.percentile(each.latency_s[priority], q) for each in (draw, base))
            found[f"{name}_p{q}"] = float(own / other - 1.0)
    return found


def plans() -> list[Plan]:
    """What the tuner chooses from."""
    polca = find("power/polca")
    return [
        Plan(
            polca(t1=t1, t2=t2),
            (Step("uncapped"), Step("low", first / 1410), Step("all", low / 1410, high / 1410)),
        )
        for t1, t2, first, low, high in PLANS
    ]


def told(plan: Plan) -> dict[str, Any]:
    """A plan's thresholds and frequencies, in MHz."""
    policy: Any = plan.policy
    _, first, second = plan.steps
    mhz = [round(1410 * share) for share in (first.low, second.low, second.high)]
    return {"t1": policy.t1, "t2": policy.t2, "mhz": mhz}


def measure(data: Path, days: float) -> Iterator[dict[str, Any]]:
    """Everything about the row; what there is so far, after the runs that the bars need and after the others."""
    profile = profile_of(PROFILE)
    peak_rps = BUSY * PROVISIONED * capacity_rps(data, profile)
    more_rps = peak_rps * INSTALLED / PROVISIONED
    busiest = hours(data, TUNED_ON)
    small = Row(servers=PROVISIONED, low=PROVISIONED // 2, limit_w=1e12)
    history = power.run(traffic(data, busiest, peak_rps, HISTORY), profile, small, None, NOBODY)
    limit_w = float(history.watts.max()) / PEAK
    full = Row(servers=INSTALLED, low=INSTALLED // 2, limit_w=limit_w)
    best, rehearsed = power.tune(
        lambda: traffic(data, busiest, more_rps, HISTORY), profile, full, plans(), high_at_most=HIGH_AT_MOST
    )
    unlimited = power.run(
        traffic(data, busiest, more_rps, HISTORY), profile, replace(full, limit_w=1e12), None, NOBODY
    )
    shares = hours(data, days)

    def on(policy: Any, steps: Any, row: Row = full) -> Draw:
        return power.run(traffic(data, shares, more_rps, REPORTED), profile, row, policy, steps)

    started_s = time.process_time()
    base = on(None, NOBODY, replace(full, limit_w=1e12))
    found = {
        "days": days,
        "requests": sum(len(each) for each in base.latency_s),
        "peak_rps": more_rps,
        "history_peak": float(unlimited.watts.max()) / limit_w,
        "tuned": told(best),
        "rehearsed": [
            {
                **told(one.plan),
                "brakes": one.brakes,
                "peak": one.peak,
                "low_p99": one.low,
                "high_p99": one.high,
            }
            for one in rehearsed
        ],
        "process_s": time.process_time() - started_s,
    }
    polca = find("power/polca")
    single = polca(t1=0.89, t2=0.89)
    runs = {"no limit (best possible)": figures(base, base, limit_w)}
    for name, plan in {
        "POLCA, tuned": best,
        "POLCA, the paper's thresholds and frequencies": Plan(polca(), power.STEPS),
        "no cap (baseline)": Plan(None, NOBODY),
        "one threshold, low priority": Plan(single, ONE_LOW),
        "one threshold, all": Plan(single, ONE_ALL),
    }.items():
        runs[name] = figures(on(*plan), base, limit_w)
        yield {**found, "runs": dict(runs)}
