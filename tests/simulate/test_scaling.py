"""Instances that come and go by a policy, in the proxy's twin."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.cli._scenario import scenario_of
from apportion.core import Decision, Policy, State
from apportion.core.errors import ApportionError
from apportion.measure.price import MachinePrice
from apportion.serve.config.reader import loads
from apportion.simulate.engine import Batching
from apportion.simulate.gateway import run
from apportion.simulate.metrics import digest
from apportion.simulate.profile import Profile
from apportion.simulate.result import OK, Result
from apportion.simulate.scenario import (
    Choice,
    Endpoint,
    Event,
    Model,
    Queue,
    Route,
    Scaling,
    Scenario,
    ScenarioError,
)
from apportion.simulate.trace import Trace

WATTS = 250.0
STEADY = Profile(
    name="steady",
    tokens=(1.0, 512.0),
    seconds=(0.01, 0.01),
    slots=64,
    batch_tokens=512,
    load_s=40.0,
    prefill_w=WATTS,
    decode_w=(WATTS,),
    decode_tokens=(1.0,),
    idle_w=WATTS,
)
"""An iteration takes as long for many as for one (with "mixed" batching): an answer of n tokens is made in n / 100 s,
whatever the load; and a machine draws as much idle as at work.
"""


class Wild(Policy):
    """Any of what is offered, drawn; keeps what it was told."""

    constraints: Mapping[str, Any] = {}

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.start()

    def reset(self) -> None:
        """Begin the draws anew."""
        self._rng = random.Random(self.seed)

    def decide(self, state: State) -> Decision:
        """Draw."""
        choice = self._rng.randrange(len(state.options))
        none = (None,) * len(state.options)
        return Decision(state.id, choice, state.options[choice].action, 1.0, {}, state.options, none, "")


TOLD: list[tuple[float, dict[str, Any], list[str]]] = []


class Told(Policy):
    """Always as many as there are, or the number of ``plan`` at its time; what it was told is in `TOLD`."""

    constraints: Mapping[str, Any] = {}

    def __init__(self, plan: Mapping[float, int]) -> None:
        self.plan = plan

    def reset(self) -> None:
        """Nothing to forget."""

    def decide(self, state: State) -> Decision:
        """By the plan."""
        names = [option.action for option in state.options]
        TOLD.append((state.now, dict(state.request), names))
        wanted = str(self.plan.get(state.now, state.request["instances"]))
        choice = names.index(wanted)
        return Decision(state.id, choice, wanted, 1.0, {}, state.options, (None,) * len(names), "")


def scenario(policy: Choice | Policy, profile: Profile = STEADY, **changes: Any) -> Scenario:
    given: dict[str, Any] = {"least": 1, "most": 20, "every_s": 15.0, "slots": 10, "events": ()} | changes
    scaling = Scaling(policy=policy, **{name: given.pop(name) for name in ("least", "most", "every_s")})
    events, price = given.pop("events"), given.pop("price", None)
    endpoint = Endpoint(name="own", profile=profile, scaling=scaling, batching=Batching("mixed"), **given)
    model = Model(name="m", routes=(Route(endpoint="own", price=price),))
    return Scenario(endpoints=(endpoint,), models=(model,), events=events)


def trace(*steps: tuple[float, float], tokens: int = 100) -> Trace:
    """Requests at an even pace: for so many seconds so many a second, one step after the other."""
    arrival, begin = [], 0.0
    for seconds, rate in steps:
        arrival.append(begin + np.arange(round(seconds * rate)) / rate)
        begin += seconds
    times = np.concatenate(arrival)
    n = len(times)
    return Trace(times, np.full(n, 16, np.int32), np.full(n, tokens, np.int32))


def ready_at(result: Result, at_s: float) -> int:
    changes = result.facts["instances"]["own"]
    return int([ready for when, ready, _ in changes if when <= at_s][-1])


def there_s(result: Result) -> float:
    """Seconds of all instances, from the changes of their number."""
    changes = result.facts["instances"]["own"]
    ends = [when for when, *_ in changes[1:]] + [result.facts["horizon_s"]]
    return sum(there * (end - when) for (when, _, there), end in zip(changes, ends, strict=True))


def test_a_step_of_the_load_gives_the_number_that_keeps_the_target() -> None:
    """In flight is rate times 1.01 s (Little's law); each instance takes ten at once, and 0.6 of that is wanted."""
    policy = Choice("scale/target_tracking", {"target": 0.6, "window_s": 60.0})
    asked = trace((200.0, 20.0), (200.0, 60.0), (300.0, 10.0))
    result = run(scenario(policy), asked)
    assert (result["status"] == OK).all()
    np.testing.assert_allclose(result.e2e_s, 1.0, atol=0.02)
    # 20 * 1.01 / 10 / 0.6 = 3.4; 10.1; 1.7
    assert [ready_at(result, at) for at in (14.0, 190.0, 390.0, 690.0)] == [1, 4, 11, 2]


def test_a_new_instance_is_cold_for_as_long_as_it_loads() -> None:
    policy = Choice("scale/target_tracking", {"target": 0.6})
    result = run(scenario(policy), trace((200.0, 20.0)))
    changes = result.facts["instances"]["own"]
    assert [(at, ready, there) for at, ready, there in changes] == [
        (0.0, 1, 1),
        (15.0, 1, 4),  # it was asked
        (55.0, 4, 4),  # and they are loaded
    ]
    first = result["arrival_s"][result["instance"] > 0].min()
    assert 55.0 <= first < 55.2
    # what is loading counts: no more are started meanwhile, though the load is as high
    assert run(scenario(policy, most=50), trace((200.0, 20.0))).facts["instances"]["own"] == changes


def test_who_waits_while_they_load_waits_longer_the_longer_that_takes() -> None:
    policy = Choice("scale/target_tracking", {"target": 0.8})
    waits = []
    for load_s in (0.0, 20.0, 60.0):
        given = scenario(policy, dataclasses.replace(STEADY, load_s=load_s), queue=Queue(max_wait_s=None))
        result = run(given, trace((150.0, 20.0)))
        assert (result["status"] == OK).all()
        waits.append(float(result.e2e_s.mean()))
    assert waits[0] < waits[1] < waits[2]


def test_the_policy_is_told_of_the_load_on_average_and_asked_at_even_times() -> None:
    TOLD.clear()
    run(scenario(Told({}), instances=4, slots=40, most=8), trace((100.0, 20.0)))
    assert [at for at, *_ in TOLD] == [15.0, 30.0, 45.0, 60.0, 75.0, 90.0]
    for at, told, offered in TOLD:
        assert offered == [str(n) for n in range(1, 9)]
        assert (told["instances"], told["ready"], told["waiting"]) == (4, 4, 0)
        # 20 a second, each there for 1.0 s: 20 of 40; but the first second fills up
        assert told["load"] == pytest.approx(0.5, abs=0.03 if at > 15.0 else 0.06)


def test_slots_and_the_line_follow_the_instances_that_are_ready() -> None:
    plan = {15.0: 3, 75.0: 1}
    given = scenario(Told(plan), slots=4, queue=Queue(max_wait_s=None, max_waiting=100_000))
    result = run(given, trace((100.0, 20.0)))
    assert (result["status"] == OK).all()
    begun = result["queued_s"] + result["arrival_s"]
    for at, running in ((14.0, 4), (50.0, 4), (60.0, 12), (74.0, 12), (80.0, 4), (99.0, 4)):
        found = (begun <= at) & (result["finish_s"] > at)
        assert running - 1 <= found.sum() <= running, at  # one may be between the line and its machine


def test_an_instance_that_is_taken_out_finishes_what_it_works_on_and_gets_no_more() -> None:
    plan = {15.0: 1}
    result = run(scenario(Told(plan), instances=3, slots=60), trace((30.0, 4.0), tokens=900))
    assert (result["status"] == OK).all()
    gone = result["instance"] > 0
    assert result["arrival_s"][gone].max() <= 15.0 < 20.0 < result["finish_s"][gone].max()
    changes = result.facts["instances"]["own"]
    assert changes[:2] == [(0.0, 3, 3), (15.0, 1, 3)]
    ends = sorted(result["finish_s"][result["instance"] == n].max() for n in (1, 2))
    assert changes[2:] == [(pytest.approx(ends[0]), 1, 2), (pytest.approx(ends[1]), 1, 1)]


@given(
    seed=st.integers(0, 1000),
    bounds=st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(0, 5)),
    load_s=st.sampled_from([0.0, 3.0, 11.0]),
    tokens=st.sampled_from([5, 100, 700]),
    queue=st.sampled_from([None, Queue(max_wait_s=None)]),
)
@settings(max_examples=40, deadline=None)
def test_whatever_a_policy_does(
    seed: int, bounds: tuple[int, int, int], load_s: float, tokens: int, queue: Queue | None
) -> None:
    """Nothing is lost, the number keeps its bounds, every instance second and joule is accounted for."""
    least, more, room = bounds
    most = least + more + room
    given = scenario(
        Wild(seed),
        dataclasses.replace(STEADY, load_s=load_s),
        least=least,
        instances=least + more,
        most=most,
        every_s=4.0,
        queue=queue,
        price=MachinePrice.of(usd_per_hour=3.6 * (least + more)),
    )
    result = run(given, trace((20.0, 3.0), (20.0, 9.0), (20.0, 1.0), tokens=tokens))
    assert (result["status"] == OK).all()
    changes = result.facts["instances"]["own"]
    assert all(0 <= ready <= there and least <= there <= most for _, ready, there in changes)
    assert result.names["instance"][most:] == ()
    seconds = there_s(result)
    assert sum(result.facts["there_s"]) == pytest.approx(seconds)
    assert result.facts["rented_usd"] == pytest.approx(seconds * 1e-3)
    assert result["joules"].sum() + result.facts["idle_j"] == pytest.approx(WATTS * seconds)
    # nobody was given to a machine that was not ready
    for at, ready, _ in changes:
        same = result["arrival_s"] == at
        assert same.sum() == 0 or ready > 0
    again = run(given, trace((20.0, 3.0), (20.0, 9.0), (20.0, 1.0), tokens=tokens))
    assert again.facts["instances"] == result.facts["instances"]
    np.testing.assert_array_equal(again["finish_s"], result["finish_s"])


def test_an_instance_that_dies_is_replaced() -> None:
    events = (Event(at_s=20.0, endpoint="own", kind="down", instance=0),)
    given = scenario(Choice("scale/target_tracking"), instances=2, slots=20, least=2, most=3, events=events)
    result = run(given, trace((120.0, 1.0)))
    changes = result.facts["instances"]["own"]
    assert changes == [(0.0, 2, 2), (20.0, 1, 1), (30.0, 1, 2), (70.0, 2, 2)]
    assert (result["instance"][result["arrival_s"] > 70.1] != 0).all()


def test_one_that_comes_back_while_its_stand_in_is_there_makes_one_too_many_for_a_while() -> None:
    events = (
        Event(at_s=20.0, endpoint="own", kind="down", instance=0),
        Event(at_s=31.0, endpoint="own", kind="up", instance=0),
    )
    given = scenario(Choice("scale/target_tracking"), instances=2, slots=20, least=2, most=2, events=events)
    changes = run(given, trace((120.0, 1.0))).facts["instances"]["own"]
    # the one that still loads is missed least
    assert changes == [(0.0, 2, 2), (20.0, 1, 1), (30.0, 1, 2), (31.0, 2, 3), (45.0, 2, 2)]


def test_by_freeness_there_are_more_where_memory_is_short_and_fewer_where_it_is_not() -> None:
    short = dataclasses.replace(STEADY, kv_tokens=4000, load_s=5.0)
    policy = Choice("scale/freeness", {"low": 40.0, "high": 400.0, "sustain_s": 4.0})
    given = scenario(policy, short, every_s=2.0, instances=2, slots=60, most=6)
    result = run(given, trace((60.0, 25.0), (60.0, 0.5), tokens=200))
    assert max(ready for _, ready, _ in result.facts["instances"]["own"]) > 2
    assert ready_at(result, 119.0) == 1
    assert (result["status"] == OK).all()


def test_what_a_digest_says_of_it() -> None:
    policy = Choice("scale/target_tracking", {"target": 0.6})
    result = run(scenario(policy, price=MachinePrice.of(usd_per_hour=3.6)), trace((200.0, 20.0)))
    found = digest(result)
    span_s = float(result["finish_s"].max() - result["arrival_s"].min())
    assert found.total["instances"] == pytest.approx(there_s(result) / span_s)
    assert found.total["rented_usd"] == pytest.approx(there_s(result) * 1e-3)
    busy = sum(result.facts["busy_s"])
    assert found.total["utilisation"] == pytest.approx(busy / there_s(result))
    assert [each["there_s"] for each in found.instances] == result.facts["there_s"]
    assert json.loads(json.dumps(found.facts["instances"]))["own"][0] == [0.0, 1, 1]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"least": 2}, "endpoints.own.scaling"),
        ({"instances": 30}, "endpoints.own.scaling"),
        ({"least": 0}, "endpoints.own.scaling"),
        ({"every_s": 0.0}, "endpoints.own.scaling.every_s"),
        (
            {"profile": Profile(name="far", kind="hosted", ttft_s=0.4, tokens_per_s=60.0)},
            "endpoints.own.scaling",
        ),
        ({"events": (Event(at_s=1.0, endpoint="own", kind="add"),)}, "events"),
    ],
)
def test_what_cannot_be_scaled_is_said(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        scenario(Choice("scale/target_tracking"), **changes)
    assert refused.value.field == field
    assert refused.value.fix


CONFIG = """\
endpoints:
  own:
    kind: openai
    base_url: http://own.test/v1
    profile: h100-llama3.1-8b-bf16-tp1-trtllm
    instances: 2
    scaling: {policy: POLICY, least: 1, most: MOST, every_s: 30s}
models:
  m:
    endpoints: [{endpoint: own}]
"""


def test_a_configuration_says_how_its_endpoints_are_scaled() -> None:
    text = CONFIG.replace("POLICY", "{name: scale/target_tracking, target: 0.5}").replace("MOST", "4")
    made = scenario_of(loads(text, "apportion.yaml"))
    policy = Choice("scale/target_tracking", {"target": 0.5})
    assert made.endpoints[0].scaling == Scaling(policy=policy, least=1, most=4, every_s=30.0)


@pytest.mark.parametrize(
    ("policy", "most", "said"),
    [
        ("scale/target_tracking", "1", "2 `instances` are not between 1 and 1"),
        ("route/priced", "4", "endpoints.own.scaling.policy"),
        ("scale/target_trackin", "4", "scale/target_tracking"),
        ("scale/target_tracking", "0", "endpoints.own.scaling.most"),
    ],
)
def test_a_configuration_that_cannot_be_scaled_so_is_refused(policy: str, most: str, said: str) -> None:
    with pytest.raises(ApportionError) as refused:
        loads(CONFIG.replace("POLICY", policy).replace("MOST", most), "apportion.yaml")
    assert said in str(refused.value)
