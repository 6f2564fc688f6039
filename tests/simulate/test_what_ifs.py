"""What if: changes of scenarios and traces, and what is said of those that cannot be made."""

from __future__ import annotations

import made_scenarios as made
import numpy as np
import pytest

from apportion.measure.price import FREE, MachinePrice, TokenPrice
from apportion.simulate.compare import Case, Plan, compare
from apportion.simulate.metrics import ObjectiveError
from apportion.simulate.whatif import AS_IS, KINDS, WhatIfError, dearer, parse


def test_nothing_changes_as_it_is() -> None:
    scenario, trace = made.scenario(), made.trace()
    assert AS_IS.apply(scenario, trace) == (scenario, trace)


def test_twice_the_rate_is_twice_the_requests_in_the_same_time() -> None:
    trace = made.trace()
    _, more = parse("rate=2").apply(made.scenario(), trace)
    assert len(more) == 400
    assert more.duration_s == pytest.approx(trace.duration_s, rel=0.05)


def test_an_endpoint_is_lost_when_it_is_said() -> None:
    trace = made.trace()
    scenario, _ = parse("lose=big@1m").apply(made.scenario(), trace)
    [event] = scenario.events
    assert (event.endpoint, event.kind, event.at_s) == ("big", "down", trace.arrival_s[0] + 60.0)


def test_changes_are_made_together() -> None:
    what_if = parse("price:big=2, budget:all=0.5,instances:small=3,slow:big=1.5")
    scenario, _ = what_if.apply(made.scenario(), made.trace())
    big, small = (route.price for route in scenario.models[0].routes)
    before = made.scenario().models[0].routes
    assert isinstance(big, TokenPrice)
    assert isinstance(before[0].price, TokenPrice)
    assert (big.input, big.output) == (2 * before[0].price.input, 2 * before[0].price.output)
    assert small == before[1].price
    assert float(scenario.budgets[0].amount) == 2.5
    assert [(e.instances, e.slots) for e in scenario.endpoints] == [(1, 32), (3, 96)]
    assert [(event.kind, event.value) for event in scenario.events] == [("slow", 1.5)]


def test_every_part_of_a_price_becomes_dearer() -> None:
    price = TokenPrice(
        input=10, output=20, cached_input=1, cache_write=12, cache_write_1h=20, request=5,
        tiers=((1000, FREE), (100, TokenPrice(input=30, output=40, cached_input=3, cache_write=30, cache_write_1h=30))),
    )  # fmt: skip
    found = dearer(price, 1.5)
    assert isinstance(found, TokenPrice)
    assert (found.input, found.output, found.cached_input, found.request, found.reasoning) == (
        15,
        30,
        2,
        8,
        None,
    )
    assert found.tiers[1][1].output == 60
    assert dearer(MachinePrice.of(2), 2) == MachinePrice.of(4)
    assert dearer(None, 2) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rate",
        "rate=",
        "rate=fast",
        "rate=0",
        "rate=-1",
        "rate=inf",
        "speed=2",
        "slow=2",
        "instances:big=1.5",
    ],
)
def test_what_is_not_understood_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(WhatIfError) as caught:
        parse(text)
    assert caught.value.field == "--what-if"
    assert "rate=2" in (caught.value.fix or "")


def test_times_are_durations() -> None:
    with pytest.raises(ObjectiveError):
        parse("lose=big@soon")


@pytest.mark.parametrize(("text", "known"), [("lose=huge", "big, small"), ("budget:team=0.5", "all")])
def test_unknown_names_are_told_with_those_that_are_known(text: str, known: str) -> None:
    with pytest.raises(WhatIfError, match=f"The configuration has: {known}"):
        parse(text).apply(made.scenario(), made.trace())


def test_every_kind_runs_to_its_end_where_there_are_two_endpoints() -> None:
    texts = (
        "rate=2",
        "lose=big@5s",
        "slow:big=2",
        "slow:small=2@5s",
        "price:big=2",
        "budget:all=0.5",
        "instances:small=2",
    )
    assert {parse(text).changes[0].kind for text in texts} == set(KINDS)
    plan = Plan(
        (Case("priced", made.scenario()),), made.trace(60), (AS_IS, *(parse(text) for text in texts)), (0,)
    )
    found = compare(plan, engine="serial")
    assert list(found.outcomes) == ["as is", *texts]
    for text, [outcome] in found.outcomes.items():
        assert outcome.value("requests") == (120 if text == "rate=2" else 60)
        best = found.best[text].values
        for metric in ("ttft_mean_s", "e2e_mean_s", "usd"):
            assert 0.0 < best[metric] < np.inf, (text, metric)
        for metric in ("ttft_mean_s", "e2e_mean_s"):
            assert best[metric] <= outcome.value(metric), (text, metric)
