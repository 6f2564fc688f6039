"""Digests of runs against what is computed by hand, in one piece and in chunks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_runs import run

from apportion.simulate import sketch
from apportion.simulate.metrics import BLOCKS, METRICS, Digester, Objective, ObjectiveError, digest, seconds
from apportion.simulate.result import OK


@given(
    arrays(np.float64, st.integers(1, 60), elements=st.floats(2e-6, 9e6)),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]),
)
def test_a_sketched_quantile_is_within_its_error(values: np.ndarray, share: float) -> None:
    found = float(sketch.quantile(sketch.count(values), share))
    exact = float(np.quantile(values, share, method="lower"))
    assert found == pytest.approx(exact, rel=sketch.ERROR * 1.0001)


def test_sketches_add_and_know_nothing_and_zero() -> None:
    values = np.random.default_rng(0).lognormal(size=1000)
    whole = sketch.count(values)
    assert np.array_equal(whole, sketch.count(values[:300]) + sketch.count(values[300:]))
    assert math.isnan(sketch.quantile(np.zeros(sketch.BUCKETS), 0.5))
    assert sketch.quantile(sketch.count([0.0, 0.0, math.nan, 5.0]), 0.5) == 0.0


def test_numbers_are_those_of_the_columns() -> None:
    made = run(500, lost=True)
    objective = Objective(ttft_s=1.0, tpot_s=0.03, e2e_s=1.5)
    found = digest(made, objective=objective)
    ok = made["status"] == OK
    total = found.total
    assert list(total) == list(METRICS)
    assert total["requests"] == 500
    assert total["refused"] == 50
    assert total["failed"] == 25
    assert total["answered_share"] == pytest.approx(ok.mean())
    for name, values in (("ttft", made.ttft_s), ("e2e", made.e2e_s), ("tpot", made.tpot_s)):
        known = values[ok & ~np.isnan(values)]
        assert total[f"{name}_mean_s"] == pytest.approx(known.mean())
        assert total[f"{name}_p90_s"] == pytest.approx(np.quantile(known, 0.9))
    good = ok & (made.ttft_s <= 1.0) & (made.e2e_s <= 1.5) & ~(made.tpot_s > 0.03)
    assert total["good_share"] == pytest.approx(good.mean())
    assert 0 < good.sum() < ok.sum()
    assert total["usd"] == pytest.approx(made["usd"].sum())
    assert total["usd_per_1k"] == pytest.approx(1000 * made["usd"].mean())
    assert total["usd_per_good"] == pytest.approx(made["usd"].sum() / good.sum())
    assert total["joules"] == pytest.approx(made["joules"].sum() + 10.0)
    assert total["quality"] == pytest.approx(0.8)
    assert math.isnan(total["gco2"])
    span = made["finish_s"].max() - made["arrival_s"].min()
    assert total["goodput_per_s"] == pytest.approx(good.sum() / span)
    assert total["utilisation"] == pytest.approx(np.nansum(made["server_s"]) / span)
    assert found.violations() == ["all"]


def test_facts_by_machine_may_be_lists() -> None:
    made = run(100)
    busy = made.facts["busy_s"]["one#0"]
    made.facts |= {"busy_s": [busy], "idle_j": [4.0, 6.0]}
    assert digest(made).total == pytest.approx(digest(run(100)).total, nan_ok=True)
    del made.names["instance"]
    assert digest(made).instances[0]["busy_s"] == busy


def test_groups_are_told_apart_by_name() -> None:
    made = run(300, lost=True)
    found = digest(made)
    assert set(found.by["tenant"]) == {"red", "green", "blue", "none"}
    assert sum(each["requests"] for each in found.by["tenant"].values()) == 300
    red = made["tenant"] == 0
    known = made.e2e_s[red & (made["status"] == OK)]
    assert found.by["tenant"]["red"]["e2e_p99_s"] == pytest.approx(np.quantile(known, 0.99))
    assert set(found.by["priority"]) == {"0", "1"}
    assert found.instances[0]["instance"] == "one#0"
    assert found.instances[0]["requests"] == (made["status"] == OK).sum()


def test_chunk_by_chunk_is_the_same_but_for_the_sketch() -> None:
    made = run(600)
    whole = digest(made)
    ends = float(np.nanmax(made["finish_s"]))
    parts = Digester(600, float(made["arrival_s"].min()), ends)
    for part in range(0, 600, 77):
        parts.add({name: values[part : part + 77] for name, values in made.columns.items()})
    found = parts.finish(names=made.names, facts=made.facts)
    assert whole.exact
    assert not found.exact
    lower = np.quantile(made.e2e_s, [0.5, 0.9, 0.99], method="lower").tolist()
    assert [found.total[f"e2e_{part}_s"] for part in ("p50", "p90", "p99")] == pytest.approx(
        lower, rel=sketch.ERROR
    )
    for name, value in whole.total.items():
        if not name.endswith(("_p50_s", "_p90_s", "_p99_s")):
            assert found.total[name] == pytest.approx(value, nan_ok=True), name
    assert np.array_equal(whole.blocks.counts, found.blocks.counts)
    assert np.allclose(whole.series["in_system"], found.series["in_system"])


def test_memory_does_not_grow_with_the_groups() -> None:
    made = run(2000)
    made.columns["tenant"] = np.arange(2000, dtype=np.int32)
    found = digest(made)
    assert len(found.by["tenant"]) == 65
    assert found.by["tenant"]["others"]["requests"] == 2000 - 64


def test_the_load_over_time_is_what_was_there() -> None:
    made = run(300)
    found = digest(made)
    width = found.series["t_s"][1] - found.series["t_s"][0]
    assert found.series["in_system"].sum() * width == pytest.approx(made.e2e_s.sum(), rel=1e-6)
    waited = np.nansum(made["queued_s"])
    assert found.series["waiting"].sum() * width == pytest.approx(waited, rel=1e-6)
    low, high = found.series["t_s"][5] - width / 2, found.series["t_s"][5] + width / 2
    overlap = np.clip(np.minimum(made["finish_s"], high) - np.maximum(made["arrival_s"], low), 0.0, None)
    assert found.series["in_system"][5] == pytest.approx(overlap.sum() / width)
    assert found.series["usd"][-1] == pytest.approx(made["usd"].sum(), rel=0.02)


def test_littles_law_tells_when_the_columns_are_wrong() -> None:
    made = run(300)
    right = float(made.e2e_s.sum())
    made.facts["in_system_s"] = right
    assert digest(made).little.counted
    assert digest(made).little.error < 1e-12
    made.facts["in_system_s"] = 1.1 * right
    assert digest(made).little.error == pytest.approx(1 - 1 / 1.1)


def test_blocks_hold_every_request_once() -> None:
    found = digest(run(1234))
    assert found.blocks.sums[:, 0].sum() == 1234
    assert found.blocks.sums[:, 0].max() - found.blocks.sums[:, 0].min() <= 1
    assert len(found.blocks.sums) == BLOCKS


def test_objectives_are_read_and_refused() -> None:
    found = Objective.parse("ttft=1s, tpot=50ms,e2e=2m")
    assert found == Objective(1.0, 0.05, 120.0)
    assert str(found) == "TTFT ≤ 1 s, TPOT ≤ 0.05 s, end to end ≤ 120 s"
    assert seconds("1.5", "x") == 1.5
    for wrong in ("ttft", "first=1s", "ttft=fast", "ttft=-1s", "ttft=1d"):
        with pytest.raises(ObjectiveError):
            Objective.parse(wrong)


def test_nothing_at_all_has_a_digest() -> None:
    from apportion.simulate.result import Result, empty

    found = digest(Result(empty(0)))
    assert found.total["requests"] == 0
    assert math.isnan(found.total["e2e_p50_s"])
