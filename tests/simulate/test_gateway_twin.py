"""The proxy's twin: what comes of a trace, under budgets, faults, queues and caches."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core.budget import Budget
from apportion.measure.decision_log import Entry
from apportion.measure.price import MachinePrice, TokenPrice
from apportion.simulate.gateway import run
from apportion.simulate.profile import Profile
from apportion.simulate.result import COLUMNS, CUT, FAILED, OK, REFUSED, TIMEOUT, Result
from apportion.simulate.scenario import (
    Breaker,
    Cache,
    Choice,
    Endpoint,
    Event,
    Key,
    Model,
    Queue,
    Retries,
    Route,
    Scenario,
    ScenarioError,
)
from apportion.simulate.trace import Blocks, Trace, labels

FAST = Profile(name="fast", tokens=(1.0, 512.0), seconds=(0.01, 0.03), decode_attention_s=1e-8, slots=16)
HOSTED = Profile(name="hosted", kind="hosted", ttft_s=0.4, ttft_sigma=0.5, tokens_per_s=60.0, rate_sigma=0.2)


def price(input: float, output: float) -> TokenPrice:
    return TokenPrice.of(input_usd_per_mtok=input, output_usd_per_mtok=output)


def scenario(**changes: Any) -> Scenario:
    """Two endpoints for one model."""
    given: dict[str, Any] = {
        "endpoints": (
            Endpoint(name="own", profile=FAST, slots=16, watts=300.0),
            Endpoint(name="far", profile=HOSTED, slots=100),
        ),
        "models": (
            Model(
                name="m",
                routes=(
                    Route(endpoint="own", price=price(0.5, 1.5), quality=0.6),
                    Route(endpoint="far", price=price(2.0, 8.0), quality=0.9),
                ),
                policy=Choice("route/priced"),
                worth_usd=0.01,
            ),
        ),
    }
    return Scenario(**{**given, **changes})


def model(scenario: Scenario, **changes: Any) -> Scenario:
    return dataclasses.replace(scenario, models=(dataclasses.replace(scenario.models[0], **changes),))


def alone(**changes: Any) -> Scenario:
    """One endpoint for one model."""
    endpoint = Endpoint(**{"name": "own", "profile": FAST, "slots": 16, **changes})
    route = Route(endpoint="own", price=price(0.5, 1.5))
    return Scenario(endpoints=(endpoint,), models=(Model(name="m", routes=(route,)),))


def trace(n: int = 120, rate: float = 8.0, seed: int = 1, **columns: Any) -> Trace:
    rng = np.random.default_rng(seed)
    return Trace(
        arrival_s=np.cumsum(rng.exponential(1.0 / rate, n)),
        prompt_tokens=rng.integers(64, 900, n).astype(np.int32),
        output_tokens=rng.integers(1, 120, n).astype(np.int32),
        **columns,
    )


def in_order(result: Result) -> dict[str, Any]:
    """The columns in the order of the trace."""
    order = np.argsort(result["request"])
    return {name: result[name][order] for name in COLUMNS}


def test_every_request_is_answered_once_with_all_that_is_known_of_it() -> None:
    asked = trace()
    result = run(model(scenario(), policy=Choice("route/random")), asked)
    found = in_order(result)
    assert found["request"].tolist() == list(range(len(asked)))
    assert (found["status"] == OK).all()
    np.testing.assert_array_equal(found["output_tokens"], asked.output_tokens)
    np.testing.assert_array_equal(found["arrival_s"], asked.arrival_s)
    assert (found["first_token_s"] > found["arrival_s"]).all()
    assert (found["finish_s"] >= found["first_token_s"]).all()
    assert set(np.unique(found["quality"])) == {0.6, 0.9}
    own = found["action"] == result.names["action"].index("own")
    usd = found["prompt_tokens"] * np.where(own, 0.5e-6, 2e-6) + found["output_tokens"] * np.where(
        own, 1.5e-6, 8e-6
    )
    np.testing.assert_allclose(found["usd"], usd)
    assert np.isfinite(found["joules"][own]).all()
    assert np.isnan(found["joules"][~own]).all()


def test_the_same_seed_gives_the_same_result_and_pieces_change_nothing() -> None:
    asked = trace(200)
    pieces = [asked.take(slice(0, 1)), asked.take(slice(1, 90)), asked.take(slice(90, 200))]
    whole, again, cut = run(scenario(), asked, 3), run(scenario(), asked, 3), run(scenario(), iter(pieces), 3)
    other = run(scenario(), asked, 4)
    for name in COLUMNS:
        np.testing.assert_array_equal(whole[name], again[name])
        np.testing.assert_array_equal(whole[name], cut[name])
    assert not np.array_equal(whole["finish_s"], other["finish_s"])


def test_a_request_has_the_same_luck_in_every_scenario() -> None:
    """Common random numbers: where both send a request to the hosted endpoint it takes as long."""
    asked = trace(150)
    one, other = (
        in_order(run(model(scenario(), policy=Choice(p)), asked)) for p in ("route/random", "route/priced")
    )
    both = (one["action"] == 1) & (other["action"] == 1)
    assert both.sum() > 20
    took = [found["finish_s"][both] - found["arrival_s"][both] for found in (one, other)]
    np.testing.assert_allclose(*took)


def test_a_sink_takes_the_columns_in_blocks() -> None:
    class Sink:
        def __init__(self) -> None:
            self.blocks: list[dict[str, Any]] = []

        def add(self, columns: dict[str, Any]) -> None:
            self.blocks.append(columns)

    sink = Sink()
    result = run(scenario(), trace(50), sink=sink)
    assert len(result) == 0
    assert sum(len(block["request"]) for block in sink.blocks) == 50


@settings(max_examples=25, deadline=None)
@given(
    amount=st.floats(0.0, 0.02),
    window=st.sampled_from([None, 3.0, 11.0]),
    policy=st.sampled_from(["route/priced", "route/random"]),
    cap=st.sampled_from([None, 40, 500]),
    failing=st.booleans(),
)
def test_a_hard_budget_is_never_overspent(
    amount: float, window: float | None, policy: str, cap: int | None, failing: bool
) -> None:
    budgets = (
        Budget("money", "usd", amount, window_s=window),
        Budget("words", "tokens", 20_000, window_s=window, scope="key:anyone"),
    )
    events = (Event(at_s=2.0, endpoint="own", kind="down"), Event(at_s=4.0, endpoint="own", kind="up"))
    given = model(
        scenario(budgets=budgets, events=events if failing else ()),
        policy=Choice(policy),
        max_output_tokens=cap,
    )
    result = run(given, trace(60))
    for told in result.facts["budgets"].values():
        assert told["overrun"] == 0.0
        assert told["reserved"] == 0.0
    spent = result.facts["budgets"]["money@all"]["spent"]
    assert spent == pytest.approx(float(np.nansum(result["usd"])), abs=1e-12)
    assert np.isin(result["status"], (OK, REFUSED, FAILED)).all()
    if window is None:
        assert spent <= amount + 1e-12


def test_prices_rise_while_a_budget_binds() -> None:
    logged: list[Entry] = []
    run(
        scenario(budgets=(Budget("money", "usd", 0.05, window_s=60.0, hard=False),)),
        trace(300),
        log=logged.append,
    )
    assert max(entry.prices["usd"] or 0.0 for entry in logged) > 1.5


def test_energy_and_the_time_of_a_machine_are_paid_for() -> None:
    given = alone(watts=200.0)
    route = dataclasses.replace(given.models[0].routes[0], price=MachinePrice.of(3.6))
    given = dataclasses.replace(model(given, routes=(route,)), gco2_per_kwh=360.0)
    result = run(given, trace(60, 2.0))
    np.testing.assert_allclose(result["usd"], result["server_s"] * 1e-3, rtol=1e-6)
    np.testing.assert_allclose(result["gco2"], result["server_s"] * 200 * 1e-4, rtol=1e-6)


@pytest.mark.parametrize("kind", ["down", "error"])
def test_when_an_endpoint_fails_the_other_answers(kind: Any) -> None:
    events = (Event(at_s=3.0, endpoint="own", kind=kind, value=500 if kind == "error" else 0.0),)
    given = model(scenario(events=events), policy=Choice("route/weighted"))
    result = run(given, trace(120))
    broken = result["status"] != OK  # in the middle of what their clients already had
    assert broken.sum() == result.facts["not_answered"].get("broken", 0) < 6
    late = result["arrival_s"] > 3.0
    assert (result["action"][late & (result["status"] == OK)] == result.names["action"].index("far")).all()
    assert (result["tries"] > 1).sum() > 3


def test_what_runs_on_a_machine_that_dies_is_lost_and_tried_again_or_not() -> None:
    events = (
        Event(at_s=5.0, endpoint="own", kind="down"),
        Event(at_s=6.0, endpoint="own", kind="up", value=2.0),
    )
    given = dataclasses.replace(
        alone(breaker=Breaker(failures=100)),
        events=events,
    )
    given = model(given, retries=Retries(attempts=1))
    result = run(given, trace(120))
    failed = result["status"] == FAILED
    assert 0 < failed.sum() < 60
    arrival, end = result["arrival_s"][failed], result["finish_s"][failed]
    assert (end >= 5.0).all()
    assert (arrival < 8.0).all()
    assert (result["status"][result["arrival_s"] > 8.0] == OK).all()


def test_a_slow_machine_takes_longer() -> None:
    asked = trace(80, 2.0)
    slow = dataclasses.replace(alone(), events=(Event(at_s=0.0, endpoint="own", kind="slow", value=3.0),))
    usual, slowed = run(alone(), asked), run(slow, asked)
    assert slowed.e2e_s.mean() > 2.5 * usual.e2e_s.mean()


def test_instances_share_the_work_and_one_more_may_come() -> None:
    given = dataclasses.replace(
        alone(instances=2), events=(Event(at_s=5.0, endpoint="own", kind="add", value=1.0),)
    )
    result = run(given, trace(200))
    assert result.names["instance"] == ("own#0", "own#1", "own#2")
    counts = np.bincount(result["instance"])
    assert counts[0] == pytest.approx(counts[1], abs=20)
    assert result["arrival_s"][result["instance"] == 2].min() >= 6.0


def test_a_line_holds_back_what_the_endpoint_cannot_work_on() -> None:
    given = alone(slots=2, queue=Queue(policy=Choice("schedule/fcfs"), max_waiting=5, max_wait_s=3.0))
    result = run(given, trace(200, 20.0))
    assert (result["status"] == REFUSED).sum() > 20
    waited = result["queued_s"][result["status"] == OK]
    assert waited.max() <= 3.0 + 1e-9
    assert (waited > 0.1).sum() > 20
    told = result.facts["not_answered"]
    assert told.keys() <= {"full", "too_late"}


def test_a_deadline_cuts_an_answer_or_ends_the_wait() -> None:
    asked = trace(60, 1.0, deadline_s=np.full(60, 0.4))
    result = run(alone(), asked)
    late = result.e2e_s > 0.4 + 1e-9
    assert not late.any()
    cut = result["status"] == CUT
    assert cut.sum() > 5
    assert (result["output_tokens"][cut] >= 1).all()
    waiting = run(alone(slots=1, queue=Queue()), trace(60, 20.0, deadline_s=np.full(60, 0.4)))
    assert (waiting["status"] == TIMEOUT).sum() > 5


def test_equal_questions_are_answered_from_the_cache() -> None:
    asked = np.arange(120) % 7
    blocks = Blocks(np.arange(121), asked.astype(np.int64), 64)
    repeated = dataclasses.replace(
        trace(120),
        prompt_tokens=(64 + asked).astype(np.int32),
        output_tokens=np.full(120, 20, np.int32),
        blocks=blocks,
    )
    result = run(dataclasses.replace(scenario(), cache=Cache(eviction=Choice("cache/lru"))), repeated)
    told = result.facts["cache"]
    assert told["misses"] == 7
    assert told["hits"] == 113
    hit = result["action"] == result.names["action"].index("cache")
    assert hit.sum() == 113
    assert (result["usd"][hit] == 0.0).all()
    none = run(dataclasses.replace(scenario(), cache=Cache()), trace(40))
    assert none.facts["cache"]["hits"] == 0


def test_beginnings_that_a_machine_holds_need_no_work() -> None:
    talks = np.repeat(np.arange(20), 6)
    blocks = Blocks(np.arange(0, 121 * 4, 4), np.stack([talks * 10 + i for i in range(4)], 1).ravel(), 100)
    asked = dataclasses.replace(trace(120, 1.0), prompt_tokens=np.full(120, 450, np.int32), blocks=blocks)
    cold, warm = run(alone(), asked), run(alone(prefix_tokens=100_000), asked)
    assert cold["cached_tokens"].sum() == 0
    assert (warm["cached_tokens"] == 400).sum() == 100
    assert warm.ttft_s.mean() < 0.8 * cold.ttft_s.mean()


def test_keys_see_only_what_they_may() -> None:
    keys = (
        Key(name="a", team="red"),
        Key(name="b", endpoints=frozenset({"own"})),
        Key(name="c", models=frozenset({"x"})),
    )
    who = labels([("a", "b", "c")[i % 3] for i in range(90)])
    result = run(scenario(keys=keys), trace(90, tenant=who))
    assert set(result.names["tenant"]) == {"team:red", "key:b", "key:c"}
    tenant = np.array(result.names["tenant"])[result["tenant"]]
    assert (result["status"][tenant == "key:c"] == REFUSED).all()
    assert (result["action"][tenant == "key:b"] == 0).all()


def test_quality_comes_from_the_trace_where_it_has_it() -> None:
    quality = np.tile([[0.25, math.nan]], (60, 1))
    result = run(scenario(), trace(60, quality=quality, actions=("own", "far")))
    assert set(np.unique(result["quality"])) <= {0.25, 0.9}


@pytest.mark.parametrize("strategy", ["reason/vote", "reason/cascade"])
def test_a_strategy_makes_many_calls_for_one_answer(strategy: str) -> None:
    result = run(model(scenario(), strategy=Choice(strategy), worth_usd=1.0), trace(40, 2.0))
    assert len(result) == 40
    assert (result["status"] == OK).all()
    assert result["tries"].max() > 1


def test_an_answer_that_never_comes_is_given_up() -> None:
    given = alone(profile=dataclasses.replace(FAST, seconds=(5.0, 5.0)), total_s=10.0)
    given = dataclasses.replace(model(given, retries=Retries(attempts=1)), stream=False)
    result = run(given, trace(5, 1.0))
    assert (result["status"] == FAILED).all()
    assert result.facts["not_answered"] == {"timeout": 5}


def test_what_cannot_be_simulated_is_said() -> None:
    with pytest.raises(ScenarioError, match="Run `apportion calibrate own`") as caught:
        alone(profile=None)
    assert caught.value.field == "endpoints.own.profile"
    with pytest.raises(ScenarioError, match="no endpoint 'gone'"):
        dataclasses.replace(alone(), events=(Event(at_s=0.0, endpoint="gone", kind="down"),))
    noted = run(model(scenario(), policy=Choice("route/linucb")), trace(20, model=labels(["gpt"] * 20)))
    assert any("LinUCB" in note for note in noted.facts["notes"])
    assert any("gpt" in note for note in noted.facts["notes"])
