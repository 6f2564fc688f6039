"""Comparisons end to end: paired runs, the best possible, the page, the data."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import made_scenarios as made
import msgspec
import numpy as np
import pytest

from apportion.simulate import bounds, report
from apportion.simulate.best import best_possible
from apportion.simulate.compare import Case, Comparison, Plan, compare, drawn, simulate
from apportion.simulate.metrics import Objective
from apportion.simulate.pictures import PictureError
from apportion.simulate.pool import RunError
from apportion.simulate.profile import Profile
from apportion.simulate.result import load
from apportion.simulate.scenario import Cache, Event
from apportion.simulate.trace import Blocks, Trace
from apportion.simulate.whatif import AS_IS, WhatIfError, parse

FAKE = "made_scenarios:fake"


def plan(**more: object) -> Plan:
    slower = made.scenario(policy="route/random")
    slower = replace(
        slower,
        endpoints=(replace(slower.endpoints[0], profile=made.profile("big", 2.6)), slower.endpoints[1]),
    )
    cases = (Case("base", made.scenario("route/random")), Case("slower", slower))
    given: dict[str, object] = {"cases": cases, "trace": made.trace(), "runner": FAKE, **more}
    return Plan(**given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def real() -> Comparison:
    """Three policies through the gateway's twin, under two what-ifs."""
    cases = tuple(
        Case(name.partition("/")[2], made.scenario(name)) for name in ("route/random", "route/priced")
    )
    work = made.trace(300, gap_s=0.1)
    objective = Objective.parse("ttft=1s,tpot=50ms")
    return compare(
        Plan(cases, work, (AS_IS, parse("lose=big@5s")), (0, 1), objective=objective), engine="serial"
    )


def test_processes_and_one_after_the_other_say_the_same() -> None:
    wanted = plan(seeds=(0, 1, 2))
    one, other = (compare(wanted, engine=engine, workers=2) for engine in ("serial", "processes"))
    assert report.as_data(one) == report.as_data(other)


def test_the_slower_one_is_found_slower() -> None:
    found = compare(plan(seeds=(0, 1, 2)), engine="serial")
    base, slower = found.outcomes["as is"]
    assert not base.tests
    tests = {test.metric: test for test in slower.tests}
    assert tests["e2e_mean_s"].significant
    assert tests["e2e_mean_s"].difference == pytest.approx(0.3 * base.value("e2e_mean_s"), rel=0.01)
    assert not tests["usd_per_1k"].significant


def test_a_run_too_large_to_keep_is_sketched(tmp_path: Path) -> None:
    kept, sketched = (
        compare(plan(kept=kept, out=tmp_path / str(kept)), engine="serial") for kept in (1000, 10)
    )
    for a, b in zip(kept.outcomes["as is"], sketched.outcomes["as is"], strict=True):
        assert a.digest.exact
        assert not b.digest.exact
        assert b.value("e2e_mean_s") == pytest.approx(a.value("e2e_mean_s"))
        assert b.value("e2e_p90_s") == pytest.approx(a.value("e2e_p90_s"), rel=0.03)
    one, other = (load(tmp_path / folder / "base-seed0.parquet") for folder in ("1000", "10"))
    assert np.array_equal(one["finish_s"], other["finish_s"])


def test_draws_of_the_fit_widen_the_interval() -> None:
    sure = made.scenario("route/random")
    profile = replace(
        made.profile("big", 2.0), draws=({"seconds": (0.015, 0.03, 0.12)}, {"seconds": (0.025, 0.04, 0.16)})
    )
    unsure = replace(sure, endpoints=(replace(sure.endpoints[0], profile=profile), sure.endpoints[1]))
    assert [drawn(unsure, i).endpoints[0].profile.seconds[0] for i in (0, 1, 2)] == [0.015, 0.025, 0.015]  # type: ignore[union-attr]
    found = [
        compare(plan(cases=(Case("one", each),), draws=2), engine="serial")
        .outcomes["as is"][0]
        .estimates["e2e_mean_s"]
        for each in (sure, unsure)
    ]
    assert found[0].value == pytest.approx(found[1].value)
    assert found[0].spread.fit == pytest.approx(0.0, abs=1e-12)
    assert found[1].spread.fit == pytest.approx(0.25 * found[1].value, rel=0.01)
    assert found[1].high - found[1].low > 2 * (found[0].high - found[0].low)


def random_or_not(*, fails: bool) -> Plan:
    """Two policies of which neither draws anything; with ``fails`` requests are tried again after a drawn pause."""
    cases = []
    for name in ("route/round_robin", "route/least_load"):
        scenario = made.scenario(name)
        if fails:
            at_s = float(made.trace(60).arrival_s[5])
            wrong = (Event(at_s=at_s, endpoint=scenario.endpoints[0].name, kind="error", value=500.0),)
            scenario = replace(scenario, events=wrong)
        cases.append(Case(name, scenario))
    return Plan(tuple(cases), made.trace(60), seeds=(0, 1, 2))


def test_where_nothing_is_random_one_run_says_all() -> None:
    heard: list[tuple[int, int]] = []
    wanted = random_or_not(fails=False)
    found = compare(wanted, engine="serial", told=lambda done, of, _: heard.append((done, of)))
    assert heard[-1] == (2, 2)
    assert found.interrupted == 0
    assert any("one run stands for all 3" in note for note in found.notes)
    assert [run.seed for run in found.outcomes["as is"][0].runs] == [0]
    other = compare(replace(wanted, seeds=(2,)), engine="serial")
    for one, same in zip(found.outcomes["as is"], other.outcomes["as is"], strict=True):
        assert one.value("e2e_mean_s") == same.value("e2e_mean_s")
        assert math.isnan(one.estimates["e2e_mean_s"].spread.seeds)
    once = compare(replace(wanted, seeds=(0,)), engine="serial")
    assert [outcome.estimates for outcome in once.outcomes["as is"]] == [
        outcome.estimates for outcome in found.outcomes["as is"]
    ]


def test_a_pause_before_another_try_is_random() -> None:
    found = compare(random_or_not(fails=True), engine="serial")
    (first, _) = found.outcomes["as is"]
    assert first.value("retries") > 0
    assert [run.seed for run in first.runs] == [0, 1, 2]
    assert not any("one run stands for all 3" in note for note in found.notes)


def test_an_interrupt_leaves_what_is_complete() -> None:
    def told(done: int, of: int, name: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    found = compare(plan(seeds=(0, 1, 2)), engine="serial", told=told)
    assert found.interrupted == 1
    assert [run.seed for run in found.outcomes["as is"][0].runs] == [0, 1]
    assert "Interrupted: 1 of 6 runs" in report.page(found, {})

    def at_once(done: int, of: int, name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(plan(), engine="serial", told=at_once)


def test_who_refuses_is_told_apart_from_who_answers_all() -> None:
    poor = made.scenario()
    poor = replace(poor, budgets=(replace(poor.budgets[0], amount=0.02),))
    found = compare(
        Plan((Case("rich", made.scenario()), Case("poor", poor)), made.trace(100)), engine="serial"
    )
    assert found.outcomes["as is"][1].value("refused") > 0
    [note] = [note for note in found.notes if "answered" in note]
    assert note.startswith("poor answered")


def test_a_run_that_breaks_littles_law_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = made.fake

    def wrong(*given: object) -> object:
        result = real(*given)  # type: ignore[arg-type]
        result.facts["in_system_s"] = 1.0
        return result

    monkeypatch.setattr(made, "fake", wrong)
    found = compare(plan(), engine="serial")
    assert len([note for note in found.notes if "Little's law is off" in note]) == 2


def test_a_run_that_fails_is_named() -> None:
    broken = Case("broken", made.scenario("route/nothing"))
    with pytest.raises(RunError, match=r"^broken, seed 0: There is no method 'route/nothing'"):
        compare(Plan((broken,), made.trace(10)), engine="serial")
    with pytest.raises(WhatIfError):
        compare(plan(what_ifs=(AS_IS, parse("lose=huge"))), engine="serial")


# the best possible


def test_no_policy_is_better_than_the_best_possible(real: Comparison) -> None:
    for what_if, outcomes in real.outcomes.items():
        best = real.best[what_if].values
        assert {
            "ttft_mean_s",
            "ttft_p99_s",
            "tpot_mean_s",
            "e2e_mean_s",
            "e2e_p50_s",
            "good_share",
            "usd",
        } <= set(best)
        for outcome in outcomes:
            for run in outcome.runs:
                total = run.digest.total
                for metric, bound in best.items():
                    if metric.endswith("_s"):
                        assert total[metric] >= bound * (1 - 1e-9), (outcome.case, metric)
                assert total["good_share"] <= best["good_share"] + 1e-12
                frontier = real.best[what_if].frontier
                assert frontier is not None
                if total["answered_share"] == 1.0:
                    assert total["usd"] >= frontier.usd_for(total["quality"] * 300) * (1 - 1e-9)


def test_the_best_cost_is_the_linear_program() -> None:
    trace = made.trace(50)
    found = best_possible(made.scenario(), trace, reached={"quality": 0.8, "usd": 1e9})
    prices = [made.price(1, 3), made.price(0.1, 0.2)]
    prompt, output = trace.prompt_tokens.astype(float), trace.output_tokens.astype(float)
    usd = np.stack([prompt * p.input + output * p.output for p in prices], axis=1) * 1e-12
    line = bounds.frontier(usd, np.tile([0.9, 0.7], (50, 1)))
    assert found.values["usd"] == pytest.approx(line.usd_for(40.0))
    assert found.values["quality"] == pytest.approx(0.9)
    assert best_possible(made.scenario(), trace).values["usd"] == pytest.approx(usd.min(axis=1).sum())


def test_recorded_quality_goes_before_configured() -> None:
    trace = replace(made.trace(50), quality=np.tile([0.2, 1.0], (50, 1)), actions=("big/70b", "small/8b"))
    found = best_possible(made.scenario(), trace, reached={"quality": 1.0})
    assert found.values["usd"] == pytest.approx(best_possible(made.scenario(), trace).values["usd"])


def test_what_is_not_known_has_no_bound() -> None:
    scenario = made.scenario()
    model = scenario.models[0]
    no_price = replace(scenario, models=(replace(model, routes=(replace(model.routes[0], price=None),)),))
    found = best_possible(no_price, made.trace(20))
    assert "usd" not in found.values
    assert found.notes
    no_quality = replace(
        scenario, models=(replace(model, routes=tuple(replace(r, quality=None) for r in model.routes)),)
    )
    found = best_possible(no_quality, made.trace(20), reached={"quality": 0.5})
    assert found.frontier is None
    assert "without regard" in found.notes[0]


def test_times_that_are_drawn_are_bounded_in_the_mean_only() -> None:
    scenario = made.scenario()
    far = Profile(name="far", kind="hosted", ttft_s=0.4, ttft_sigma=0.3, tokens_per_s=50.0)
    hosted = replace(scenario, endpoints=(replace(scenario.endpoints[0], profile=far), scenario.endpoints[1]))
    found = best_possible(hosted, made.trace(20), Objective(ttft_s=1.0)).values
    assert "ttft_mean_s" in found
    assert not {"ttft_p50_s", "e2e_p99_s", "good_share"} & set(found)


def repeating(n: int = 60) -> Trace:
    """Requests of two blocks of 32 tokens each, from few beginnings."""
    generator = np.random.default_rng(5)
    first = generator.zipf(1.5, n) % 12
    ids = np.stack([first, 100 + first * 3 + generator.integers(0, 3, n)], axis=1).ravel().astype(np.int64)
    work = made.trace(n)
    return replace(work, prompt_tokens=np.full(n, 80, np.int32), blocks=Blocks(np.arange(n + 1) * 2, ids, 32))


@pytest.mark.parametrize("tokens", [128, 320, 10**6])
def test_no_cache_of_beginnings_finds_more_than_is_possible(tokens: int) -> None:
    scenario = made.scenario("route/random")
    holding = replace(scenario, endpoints=tuple(replace(e, prefix_tokens=tokens) for e in scenario.endpoints))
    work = repeating()
    found = compare(Plan((Case("holding", holding),), work), engine="serial")
    reached, bound = (
        found.outcomes["as is"][0].digest.total["cached_share"],
        found.best["as is"].values["cached_share"],
    )
    assert 0.0 < reached <= bound < 0.8
    assert ("Belady" in found.best["as is"].how["cached_share"]) == (tokens < 10**6)
    without = best_possible(scenario, work).values
    assert "cached_share" not in without
    assert found.best["as is"].values["ttft_mean_s"] < without["ttft_mean_s"]


def test_no_cache_of_answers_finds_more_than_is_possible() -> None:
    keeping = replace(made.scenario("route/random"), cache=Cache())
    found = compare(Plan((Case("keeping", keeping),), repeating()), engine="serial")
    total, best = found.outcomes["as is"][0].digest.total, found.best["as is"].values
    assert 0.0 < total["hit_share"] <= best["hit_share"] < 1.0
    assert total["e2e_mean_s"] >= best["e2e_mean_s"]
    assert total["usd"] >= best["usd"]


# what is written


class Checked(HTMLParser):
    """Every element is closed in its turn, and nothing is fetched."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert tag not in ("script", "link", "iframe", "img")
        for name in ("src", "href", "xlink:href"):
            assert (values.get(name) or "#").startswith("#"), values
        if values.get("id"):
            self.ids.append(values["id"] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(real: Comparison) -> None:
    pytest.importorskip("matplotlib")
    drawings = report.draw(real)
    page = report.page(real, drawings, title="A & B <rehearsed>")
    checked = Checked()
    checked.feed(page)
    assert not checked.open
    assert len(checked.ids) == len(set(checked.ids))
    for name in re.findall(r'(?:href="|url\()#([^")]+)', page):
        assert name in checked.ids
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "A &amp; B &lt;rehearsed&gt;" in page
    names = {name for _, name in drawings}
    assert names == {"distributions", "latency", "load", "quality", "spending"}
    for _, picture in drawings.values():
        ElementTree.fromstring(picture)
        assert "currentColor" in picture
        assert "#010203" not in picture


def test_the_page_says_significant_only_where_a_test_does(real: Comparison) -> None:
    page = report.page(real, {})
    tested = [test for outcomes in real.outcomes.values() for outcome in outcomes for test in outcome.tests]
    there = set(report.rows(real.outcomes["as is"]))
    assert page.count(", significant<") == sum(test.significant and test.metric in there for test in tested)
    assert any(test.significant for test in tested)


def test_the_data_keep_their_names(real: Comparison) -> None:
    data = msgspec.json.decode(msgspec.json.encode(report.as_data(real)))
    assert set(data) == {
        "format", "trace", "objective", "seeds", "draws", "level", "interrupted", "notes", "what_ifs",
    }  # fmt: skip
    assert data["format"] == 1
    first = data["what_ifs"][0]
    assert set(first) == {"what_if", "cases", "best_possible", "best_possible_notes"}
    assert set(first["cases"][1]) == {
        "name", "runs", "exact_quantiles", "span_s", "metrics", "against_baseline", "by", "instances", "budgets",
        "budget_violations", "cache", "not_answered", "little",
    }  # fmt: skip
    metric = first["cases"][1]["metrics"]["e2e_p90_s"]
    assert set(metric) == {"value", "low", "high", "error_traffic", "error_seeds", "error_fit"}
    assert metric["low"] <= metric["value"] <= metric["high"]
    assert metric["error_fit"] is None
    assert first["cases"][0]["little"]["counted"] is True
    assert first["cases"][0]["little"]["error"] < 1e-9
    assert set(first["cases"][0]["by"]["tenant"]) == {"key:anyone"}
    assert set(first["cases"][0]["by"]["action"]) == {"big/70b", "small/8b"}


def test_the_same_runs_make_the_same_page() -> None:
    one, other = (compare(plan(), engine="serial") for _ in range(2))
    assert report.page(one, {}) == report.page(other, {})


def test_without_matplotlib_the_extra_is_named(real: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PictureError, match=r"apportion\[simulate\]"):
        report.draw(real)


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("ttft_mean_s", 0.00123, "1.23 ms"),
        ("ttft_mean_s", 0.456, "456 ms"),
        ("e2e_p99_s", 12.34, "12.3 s"),
        ("e2e_p99_s", 12345.6, "12,346 s"),
        ("usd", 1234.5, "$1,234"),
        ("usd_per_good", 0.00056, "$0.00056"),
        ("good_share", 0.125, "12.5 %"),
        ("joules", 12345.0, "12.3 kJ"),
        ("requests", 1500.0, "1,500"),
        ("quality", math.nan, "–"),
    ],
)
def test_numbers_are_shown_as_people_read_them(metric: str, value: float, expected: str) -> None:
    assert report.shown(metric, value) == expected


def test_simulating_one_job_by_hand_is_what_the_comparison_has() -> None:
    wanted = plan()
    by_hand = simulate(wanted, wanted.jobs()[1])
    found = compare(wanted, engine="serial").outcomes["as is"][1].digest
    assert by_hand.total == pytest.approx(found.total, nan_ok=True, rel=0.0)
