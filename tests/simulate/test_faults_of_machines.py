"""Machines that die, are taken away with notice, and start cold, in the proxy's twin."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from apportion.simulate.gateway import run
from apportion.simulate.profile import Profile
from apportion.simulate.result import FAILED, OK, Result
from apportion.simulate.scenario import Breaker, Endpoint, Event, Model, Retries, Route, Scenario
from apportion.simulate.trace import Trace

MACHINE = Profile(name="machine", tokens=(1.0, 512.0), seconds=(0.01, 0.03), slots=16, load_s=12.0)


def happened(
    *events: Event, instances: int = 2, attempts: int = 1, n: int = 160, rate: float = 8.0
) -> Result:
    endpoint = Endpoint(
        name="own", profile=MACHINE, slots=64, instances=instances, breaker=Breaker(failures=999)
    )
    model = Model(name="m", routes=(Route(endpoint="own"),), retries=Retries(attempts=attempts))
    scenario = Scenario(endpoints=(endpoint,), models=(model,))
    rng = np.random.default_rng(3)
    trace = Trace(
        np.cumsum(rng.exponential(1.0 / rate, n)),
        rng.integers(64, 900, n).astype(np.int32),
        rng.integers(20, 120, n).astype(np.int32),
    )
    return run(dataclasses.replace(scenario, events=events), trace)


def event(at_s: float, kind: Any, value: float = 0.0, instance: int | None = 0) -> Event:
    return Event(at_s=at_s, endpoint="own", kind=kind, value=value, instance=instance)


def test_an_instance_that_dies_takes_what_it_works_on_with_it_and_no_more() -> None:
    lost = happened(event(5.0, "down"))
    usual = happened()
    failed = lost["status"] == FAILED
    assert 0 < failed.sum() < 10
    assert np.allclose(lost["finish_s"][failed], 5.0)
    began = np.isin(usual["request"], lost["request"][failed])
    assert (usual["arrival_s"][began] < 5.0).all()
    assert (usual["finish_s"][began] > 5.0).all()
    assert (lost["instance"][(lost["arrival_s"] > 5.0) & ~failed] == 1).all()


def test_a_machine_with_notice_finishes_what_it_can_and_gets_no_more() -> None:
    """Two seconds are enough for all answers under way; a hundredth is not."""
    warned, hardly = happened(event(5.0, "notice", 2.0)), happened(event(5.0, "notice", 0.01))
    assert (warned["status"] == OK).all()
    there = warned["instance"] == 0
    assert warned["arrival_s"][there].max() < 5.0 < warned["finish_s"][there].max() < 7.0
    assert (hardly["status"] == FAILED).sum() > 0
    # what would have gone there goes elsewhere, and waits for it
    assert warned.e2e_s.mean() > happened().e2e_s.mean()


def test_what_notice_was_too_short_for_is_lost_when_the_machine_goes() -> None:
    result = happened(event(5.0, "notice", 0.1))
    failed = result["status"] == FAILED
    assert failed.any()
    assert np.allclose(result["finish_s"][failed], 5.1)


def test_a_machine_that_comes_back_takes_requests_again() -> None:
    result = happened(event(3.0, "notice", 1.0), event(8.0, "up", 2.0))
    at_s = result["arrival_s"][result["instance"] == 0]
    assert not ((at_s > 3.0) & (at_s < 10.0)).any()
    assert (at_s > 10.0).sum() > 5


def test_a_cold_start_takes_as_long_as_the_profile_says() -> None:
    for value, ready_s in ((math.nan, 2.0 + MACHINE.load_s), (4.0, 6.0)):
        result = happened(event(2.0, "add", value, None), instances=1)
        at_s = result["arrival_s"][result["instance"] == 1]
        assert ready_s <= at_s.min() < ready_s + 1.0
        assert (result["status"] == OK).all()


def test_with_no_machine_left_the_request_is_refused_until_one_is_back() -> None:
    result = happened(event(5.0, "notice", 1.0, None), event(7.0, "up", MACHINE.load_s, None), n=300)
    gone = (result["arrival_s"] > 5.0) & (result["arrival_s"] < 7.0 + MACHINE.load_s)
    assert (result["status"][gone] == FAILED).all()
    assert (result["status"][result["arrival_s"] > 7.0 + MACHINE.load_s] == OK).all()
