"""What a run tells does not depend on where its clock begins, nor on what is not known of requests that got nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import made_runs
import numpy as np
import pytest
from made_scenarios import profile, scenario, trace

from apportion.simulate import fleet
from apportion.simulate.gateway import run
from apportion.simulate.metrics import digest
from apportion.simulate.paired import Run, differences
from apportion.simulate.result import OK, REFUSED
from apportion.simulate.scenario import Scenario
from apportion.simulate.trace import Trace, TraceError
from apportion.simulate.whatif import parse
from apportion.simulate.workload import open_trace
from apportion.simulate.workload.describing import described


def powered() -> Scenario:
    """Machines of which it is known what they draw."""
    made = scenario("route/least_load")
    draws = {"idle_w": 50.0, "prefill_w": 400.0, "decode_tokens": (1.0, 32.0), "decode_w": (200.0, 300.0)}
    endpoints = tuple(replace(each, profile=profile(each.name, **draws)) for each in made.endpoints)
    return replace(made, endpoints=endpoints)


@pytest.mark.parametrize("shift_s", [-100.0, 3600.0, 1.7e9])
def test_a_trace_may_begin_at_any_time(shift_s: float) -> None:
    made, work = powered(), trace(100)
    here = digest(run(made, work))
    there = digest(run(made, replace(work, arrival_s=work.arrival_s + shift_s)))
    for metric in ("ttft_mean_s", "e2e_p99_s", "joules", "usd", "utilisation"):
        assert there.total[metric] == pytest.approx(here.total[metric], rel=1e-4)


@pytest.mark.parametrize("shift_s", [-100.0, 3600.0])
def test_so_may_that_of_a_fleet(shift_s: float) -> None:
    work = trace(50)
    machine = profile("one", idle_w=50.0, prefill_w=400.0, decode_tokens=(1.0, 32.0), decode_w=(200.0, 300.0))
    found = [
        fleet.run(replace(work, arrival_s=work.arrival_s + by), [machine, machine]) for by in (0.0, shift_s)
    ]
    here, there = ((each["finish_s"] - each["arrival_s"]).mean() for each in found)
    assert there == pytest.approx(here)
    assert found[1].facts["idle_j"] == pytest.approx(found[0].facts["idle_j"])


def test_energy_is_known_where_a_first_try_found_nobody() -> None:
    changed, work = parse("lose=big").apply(powered(), trace(100))
    found = digest(run(changed, work))
    assert found.total["retries"] > 0
    assert found.total["joules"] > 0.0


def test_refused_requests_do_not_make_unknown_costs_known() -> None:
    made = made_runs.run(100)
    status = made.columns["status"]
    status[:] = np.where(np.arange(100) < 60, REFUSED, OK)
    made.columns["usd"][:] = np.where(status == REFUSED, 0.0, np.nan)
    assert np.isnan(digest(made).total["usd"])


def test_what_idle_machines_draw_is_in_what_is_tested() -> None:
    one, other = made_runs.run(), made_runs.run()
    other.facts["idle_j"] = one.facts["idle_j"] + 1e6
    runs = [[Run(0, 0, digest(each))] for each in (one, other)]
    (test,) = differences(*runs, ("joules",))
    assert test.difference == pytest.approx(1e6)
    assert test.p < 0.01


def test_a_broken_parquet_file_is_said(tmp_path: Path) -> None:
    file = tmp_path / "broken.parquet"
    file.write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(TraceError, match="no whole Parquet file"):
        open_trace(str(file))


def test_times_far_apart_are_described() -> None:
    work = Trace(np.array([0.0, 1.0, 1.7e12]), np.full(3, 10, np.int32), np.full(3, 5, np.int32))
    assert described(work)["busiest_minute_per_s"] == pytest.approx(2 / 60)


def test_a_count_that_is_no_number_is_told_without_warnings(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n1,10,5\n2,nan,5\n3,10,99999999999999999999999\n")
    with pytest.raises(TraceError, match=r"line 3.*line 4"):
        open_trace(str(file))


def test_what_failed_requests_cost_is_told_where_nobody_was_answered() -> None:
    made = made_runs.run(100)
    made.columns["status"][:] = REFUSED
    made.columns["usd"][:] = 0.01
    assert digest(made).total["usd"] == pytest.approx(1.0)
