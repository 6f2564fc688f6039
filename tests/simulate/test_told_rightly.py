"""Rehearsals say how uncertain they are, what is not known, and refuse what cannot be meant."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import made_scenarios as made
import numpy as np
import pytest

from apportion.cli._rehearsing import _cell
from apportion.simulate import paired, report
from apportion.simulate.compare import Case, Plan, compare
from apportion.simulate.metrics import digest
from apportion.simulate.paired import Estimate, Run
from apportion.simulate.scenario import Cache, Scenario, no_profile
from apportion.simulate.trace import TraceError
from apportion.simulate.whatif import WhatIfError, parse
from apportion.simulate.workload import open_trace, shape


def with_power(*names: str) -> Scenario:
    """The machines of these endpoints have a known draw."""
    scenario = made.scenario("route/least_load")
    draws = {"idle_w": 50.0, "prefill_w": 400.0, "decode_tokens": (1.0, 32.0), "decode_w": (200.0, 300.0)}
    endpoints = tuple(
        replace(each, profile=made.profile(each.name, **draws)) if each.name in names else each
        for each in scenario.endpoints
    )
    return replace(scenario, endpoints=endpoints)


@pytest.mark.parametrize(
    "text", ["instances:big=1e9", "instances:big=1025", "rate=1e9", "price=1e7", "slow:big=1e300"]
)
def test_what_nobody_means_is_refused_with_a_limit(text: str) -> None:
    with pytest.raises(WhatIfError, match="too much") as refused:
        parse(text)
    assert refused.value.field == "--what-if"
    assert "up to" in str(refused.value.fix)


def test_a_trace_is_not_multiplied_beyond_memory() -> None:
    with pytest.raises(TraceError, match="memory"):
        shape.scaled(made.trace(200), 1e7)


def test_energy_is_unknown_where_a_machine_that_only_waits_has_no_known_draw() -> None:
    plans = [
        Plan((Case("one", with_power(*names)),), made.trace(60)) for names in (("big", "small"), ("big",))
    ]
    known, unknown = (compare(plan, engine="serial").outcomes["as is"][0] for plan in plans)
    assert known.value("joules") > 0.0
    assert math.isnan(unknown.value("joules"))
    assert math.isnan(unknown.value("joules_per_token"))
    assert unknown.value("e2e_mean_s") > 0.0


def test_a_bad_fit_is_noted() -> None:
    scenario = made.scenario()
    wild = tuple(
        replace(each, profile=made.profile(each.name, error={"ttft_s": 0.47, "token_s": 0.02}))
        for each in scenario.endpoints[:1]
    )
    plan = Plan((Case("one", replace(scenario, endpoints=(*wild, *scenario.endpoints[1:]))),), made.trace(20))
    (note,) = [note for note in compare(plan, engine="serial").notes if "held out" in note]
    assert "47%" in note
    assert "ttft_s" in note


def test_intervals_stay_where_numbers_can_be() -> None:
    low, high = paired._interval(4.57, 71.7, share=False)
    assert 0.0 < low < 4.57 < high
    assert low * high == pytest.approx(4.57**2)
    assert report.within(4.57, low, high) == "unknown"
    assert report.within(1.0, 0.4, 2.5) == "within a factor of 2.5"
    assert report.within(1.0, 0.9, 1.1).startswith("±")
    assert report.within(1.0, 1.0, 1.0) == ""
    low, high = paired._interval(0.993, 0.01, share=True)
    assert 0.9 < low < 0.993 < high < 1.0
    low, high = paired._interval(0.5, 0.001, share=True)
    assert (low, high) == pytest.approx((0.499, 0.501), abs=1e-6)


def test_what_was_made_is_counted_not_what_was_planned() -> None:
    lucky = replace(made.scenario(), cache=Cache())  # so that the seed matters, and both runs are made
    plan = Plan((Case("one", lucky),), made.trace(20), seeds=(0, 1))
    found = compare(plan, engine="serial")
    assert report.made(found) == (2, 0)
    first = found.outcomes["as is"][0]
    first.runs = first.runs[:1]
    found.interrupted = 1
    assert report.made(found) == (1, 0)
    assert report.interrupted(found) == "Interrupted: 1 of 2 runs were not made."


def test_an_unknown_idle_draw_makes_the_whole_unknown_but_nothing_else() -> None:
    import made_runs

    run = made_runs.run(100)
    run.facts["idle_j"] = math.nan
    found = digest(run)
    assert math.isnan(found.total["joules"])
    assert np.isfinite(found.total["usd"])
    values = paired.estimates([Run(0, 0, found)], ("usd", "e2e_mean_s"))
    assert all(np.isfinite(each.low) for each in values.values())


SLOW = """
import signal, time
if __name__ == "__main__":
    from apportion.simulate import pool
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background
    try:
        for _ in pool.run(max, 1, [2, 3, 4, 5], workers=2): pass
        print("done", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
else:  # a worker, which reads this file while it starts
    print("starting", flush=True)
    time.sleep(60.0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no process groups")
def test_an_interrupt_while_workers_start_shows_no_tracebacks(tmp_path: Path) -> None:
    file = tmp_path / "slow.py"
    file.write_text(SLOW)
    with subprocess.Popen(
        [sys.executable, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("starting")  # they may speak at once
        os.killpg(process.pid, signal.SIGINT)
        told, errors = process.communicate(timeout=600)
    assert told.endswith("interrupted\n"), (told, errors)
    assert "Traceback" not in errors


def test_times_that_are_no_seconds_are_malformed(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n1,10,5\n1700000000000,10,5\n")
    with pytest.raises(TraceError, match=r"1 malformed row: line 3.*milliseconds"):
        open_trace(file)


def test_a_table_of_lengths_is_told_from_one_of_rates(tmp_path: Path) -> None:
    for which in ("rates", "lengths"):
        (tmp_path / f"chat_{which}.csv").write_text("window,client\n")
    with pytest.raises(TraceError, match="not when they ask") as refused:
        open_trace(tmp_path / "chat_lengths.csv")
    assert "chat_rates.csv" in str(refused.value.fix)


def test_an_endpoint_without_a_profile_is_told_near_ones() -> None:
    error = no_profile("large", ["large-8b", "tiny", *(f"x{i}" for i in range(60))])
    assert str(error).startswith("The endpoint 'large' has no profile. Run ")
    assert "large-8b" in str(error)
    assert len(str(error)) < 250


def test_it_is_said_where_no_test_can_succeed() -> None:
    cases = tuple(Case(name, made.scenario()) for name in ("one", "two"))
    for level, silent in ((0.5, True), (0.999, False)):
        notes = compare(Plan(cases, made.trace(40)), engine="serial", level=level).notes
        assert any("can be significant" in note for note in notes) is not silent


def test_a_share_does_not_reach_beyond_all() -> None:
    outcome = compare(Plan((Case("one", made.scenario()),), made.trace(40)), engine="serial").outcomes[
        "as is"
    ][0]
    spread = outcome.estimates["usd_per_1k"].spread
    low, high = paired._interval(0.992, 0.008, share=True)
    for run in outcome.runs:
        run.digest.total["answered_share"] = 0.992
    outcome.estimates["answered_share"] = Estimate(value=0.992, low=low, high=high, spread=spread)
    assert _cell(outcome, "answered_share") == "99.2 % (97.8 % to 99.7 %)"
