"""Every joule that the machines of the twin draw is somebody's, or drawn for nobody: with lost tries too."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.simulate.gateway import run
from apportion.simulate.profile import Profile
from apportion.simulate.result import FAILED, OK, TIMEOUT, Result
from apportion.simulate.scenario import (
    Breaker,
    Choice,
    Endpoint,
    Event,
    Model,
    Queue,
    Retries,
    Route,
    Scenario,
)
from apportion.simulate.trace import Trace

WATTS = 250.0
METERED = Profile(
    name="metered",
    tokens=(1.0, 256.0, 1024.0),
    seconds=(0.02, 0.05, 0.16),
    decode_attention_s=1e-7,
    slots=6,
    batch_tokens=512,
    kv_tokens=6000,
    after_s=0.03,
    prefill_w=WATTS,
    decode_w=(WATTS,),
    decode_tokens=(1.0,),
    idle_w=WATTS,
)
"""It draws as much at work as idle, so that what a machine draws is known without an account of who drew it."""
HUNGRY = dataclasses.replace(METERED, name="hungry", prefill_w=700.0, decode_w=(300.0,), idle_w=80.0)


def scenario(profile: Profile = METERED, **changes: Any) -> Scenario:
    endpoint = {"instances": 2, "slots": 12, "delay_s": 0.02, "breaker": Breaker(failures=10_000)}
    given: dict[str, Any] = {"attempts": 3, "strategy": None, "events": ()} | changes
    attempts, strategy, events = (given.pop(name) for name in ("attempts", "strategy", "events"))
    return Scenario(
        endpoints=(Endpoint(name="own", profile=profile, **(endpoint | given)),),
        models=(
            Model(
                name="m",
                routes=(Route(endpoint="own", quality=0.6),),
                retries=Retries(attempts=attempts),
                strategy=strategy,
            ),
        ),
        events=events,
    )


def trace(n: int, rate: float, seed: int, deadline_s: float = math.inf) -> Trace:
    rng = np.random.default_rng(seed)
    return Trace(
        np.cumsum(rng.exponential(1.0 / rate, n)),
        rng.integers(64, 900, n).astype(np.int32),
        rng.integers(1, 60, n).astype(np.int32),
        deadline_s=np.where(rng.random(n) < 0.5, deadline_s, np.nan) if deadline_s < math.inf else None,
    )


def drawn_j(result: Result) -> float:
    """What the requests and nobody drew."""
    return float(result["joules"].sum() + result.facts["idle_j"])


def down(at_s: float, instance: int | None, back_s: float, load_s: float = 0.3) -> tuple[Event, Event]:
    """It goes, and comes back, to load for a while: then it draws what an idle one does."""
    gone = Event(at_s=at_s, endpoint="own", kind="down", instance=instance)
    return gone, Event(at_s=at_s + back_s, endpoint="own", kind="up", value=load_s, instance=instance)


@given(
    seed=st.integers(0, 5),
    rate=st.sampled_from([2.0, 6.0, 15.0]),
    downs=st.lists(
        st.tuples(st.floats(0.5, 8.0), st.sampled_from([0, 1, None]), st.floats(0.2, 2.0)), max_size=2
    ),
    total_s=st.sampled_from([0.4, 1.5, 600.0]),
    deadline_s=st.sampled_from([0.1, 0.8, math.inf]),
    strategy=st.sampled_from([None, Choice("reason/best_of_k", {"max_samples": 4})]),
    queue=st.sampled_from([None, Queue(max_waiting=20)]),
)
@settings(max_examples=60, deadline=None)
def test_what_is_drawn_is_what_the_machines_draw(
    seed: int,
    rate: float,
    downs: list[tuple[float, int | None, float]],
    total_s: float,
    deadline_s: float,
    strategy: Choice | None,
    queue: Queue | None,
) -> None:
    events: list[Event] = []
    gone: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
    for at_s, instance, back_s in downs:
        events += down(at_s, instance, back_s)
        for machine in (0, 1) if instance is None else (instance,):
            gone[machine].append((at_s, at_s + back_s))
    given = scenario(total_s=total_s, events=tuple(events), strategy=strategy, queue=queue)
    asked = trace(40, rate, seed, deadline_s)
    result = run(given, asked, seed=seed)
    assert len(result) == len(asked)
    begins_s = min([float(asked.arrival_s[0]), *(event.at_s for event in events)])
    ends_s = result.facts["horizon_s"]
    there_s = sum(_there_s(begins_s, ends_s, times) for times in gone.values())
    assert np.isfinite(result["joules"]).all()
    assert (result["joules"] >= -1e-6).all()
    assert drawn_j(result) == pytest.approx(WATTS * there_s, rel=1e-9)


def _there_s(begins_s: float, ends_s: float, gone: list[tuple[float, float]]) -> float:
    """Seconds from ``begins_s`` to ``ends_s`` in which a machine was there: it comes back when the first that brings
    it back does, and goes again with the next that takes it.
    """
    changes = sorted([(at, 0) for at, _ in gone] + [(until, 1) for _, until in gone])
    since, total, up = begins_s, 0.0, True
    for at, kind in changes:
        at = min(at, ends_s)
        if kind == 0 and up:
            total, up = total + at - since, False
        elif kind == 1 and not up:
            since, up = at, True
    return total + (ends_s - since if up else 0.0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_lost_try_has_drawn_what_it_had_by_then(stream: bool) -> None:
    """One request alone: the machine works for it from beginning to end, and for nobody else."""
    events = down(1.0, 0, 0.5)
    asked = Trace(np.array([0.0]), np.array([256], np.int32), np.array([200], np.int32))
    given = dataclasses.replace(
        scenario(HUNGRY, instances=1, attempts=1, delay_s=0.0, events=events), stream=stream
    )
    lost = run(given, asked)
    prompt_s = METERED.seconds[1]
    assert lost["status"].tolist() == [FAILED]
    assert lost["joules"][0] == pytest.approx(700.0 * prompt_s + 300.0 * (1.0 - prompt_s))
    assert lost["server_s"][0] == pytest.approx(1.0)
    # tried again elsewhere, which only an answer of which nothing has been passed on can be: both tries are paid
    other = dataclasses.replace(given.endpoints[0], name="other")
    routes = (Route(endpoint="own"), Route(endpoint="other"))
    model = dataclasses.replace(
        given.models[0], routes=routes, policy=Choice("route/round_robin"), retries=Retries(attempts=2)
    )
    two = dataclasses.replace(given, endpoints=(given.endpoints[0], other), models=(model,), stream=False)
    both, whole = run(two, asked), run(dataclasses.replace(two, events=()), asked)
    assert (both["status"].tolist(), whole["status"].tolist()) == ([OK], [OK])
    assert (both["tries"].tolist(), whole["tries"].tolist()) == ([2], [1])
    assert both["joules"][0] == pytest.approx(lost["joules"][0] + whole["joules"][0])


def test_one_who_waited_and_was_lost_has_drawn_nothing() -> None:
    """The machine has one slot; the second request never gets it."""
    profile = dataclasses.replace(HUNGRY, slots=1)
    asked = Trace(np.array([0.0, 0.1]), np.array([256, 256], np.int32), np.array([200, 200], np.int32))
    result = run(scenario(profile, instances=1, attempts=1, delay_s=0.0, events=down(1.0, 0, 9.0)), asked)
    joules = dict(zip(result["request"].tolist(), result["joules"].tolist(), strict=True))
    assert joules[0] > 0.0
    assert joules[1] == 0.0


@pytest.mark.parametrize(
    ("changes", "deadline_s", "status"), [({"total_s": 0.6}, None, FAILED), ({}, 0.6, TIMEOUT)]
)
def test_time_may_be_over_while_the_answer_is_on_its_way(
    changes: dict[str, Any], deadline_s: float | None, status: int
) -> None:
    profile = dataclasses.replace(HUNGRY, after_s=0.5)
    asked = Trace(
        np.array([0.0]),
        np.array([256], np.int32),
        np.array([2], np.int32),
        deadline_s=None if deadline_s is None else np.array([deadline_s]),
    )
    given = scenario(profile, instances=1, attempts=1, delay_s=0.3, **changes)
    usual = run(scenario(profile, instances=1, attempts=1, delay_s=0.3), asked if deadline_s is None else
                dataclasses.replace(asked, deadline_s=None))  # fmt: skip
    result = run(given, asked)
    assert result["status"].tolist() == [status]
    assert result["finish_s"].tolist() == [0.6]
    assert result["joules"].tolist() == usual["joules"].tolist()
