"""Queueing theory: stations, and the engine where it is one, against closed forms within their confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from apportion.simulate import fleet
from apportion.simulate.engine import Batching
from apportion.simulate.events import Clock
from apportion.simulate.profile import Profile
from apportion.simulate.station import (
    Station,
    StationError,
    departures,
    erlang_b,
    erlang_c,
    little,
    mg1_ps_sojourn_s,
    mg1_srpt_sojourn_s,
    mg1_wait_s,
    mmc_wait_s,
)
from apportion.simulate.trace import Trace

Floats = NDArray[np.float64]
RUNS, JOBS, WARM = 24, 60_000, 6_000
# Two-sided 99.9% quantile of Student's t with RUNS - 1 degrees of freedom.
T_QUANTILE = 3.7676


def exponential(rng: np.random.Generator, n: int) -> Floats:
    return rng.exponential(1.0, n)


def hyper(rng: np.random.Generator, n: int) -> Floats:
    """Mean 1, squared coefficient of variation 4: one job in ten is long."""
    return np.where(rng.random(n) < 0.1, rng.exponential(5.5, n), rng.exponential(0.5, n))


def uniform(rng: np.random.Generator, n: int) -> Floats:
    return rng.uniform(0.0, 2.0, n)


SERVICES: dict[str, tuple[Callable[..., Floats], float, Callable[[Floats], Floats], float]] = {
    "exponential": (exponential, 2.0, lambda x: np.exp(-x), 40.0),
    "hyper": (hyper, 6.5, lambda x: 0.1 * np.exp(-x / 5.5) + 0.9 * np.exp(-x / 0.5), 200.0),
    "uniform": (uniform, 4.0 / 3.0, lambda x: np.clip(1.0 - x / 2.0, 0.0, 1.0), 2.0),
}  # fmt: skip
"""A law of mean 1: how to draw it, its second moment, its tail, and where that ends."""


def means(
    order: Any, servers: int, rate: float, draw: Callable[..., Floats], seed: int
) -> tuple[Floats, Floats]:
    """Mean wait beyond the service and mean time in the system, of each of RUNS independent runs."""
    waits, sojourns = [], []
    for run in range(RUNS):
        rng = np.random.default_rng([seed, run])
        arrival_s, work_s = np.cumsum(rng.exponential(1.0 / rate, JOBS)), draw(rng, JOBS)
        sojourn_s = (departures(arrival_s, work_s, servers=servers, order=order) - arrival_s)[WARM:]
        sojourns.append(sojourn_s.mean())
        waits.append((sojourn_s - work_s[WARM:]).mean())
    return np.array(waits), np.array(sojourns)


def within(found: Floats, expected: float) -> None:
    """The closed form is in the 99.9% interval of the runs' mean, and the interval is not so wide as to say nothing."""
    half = T_QUANTILE * found.std(ddof=1) / np.sqrt(len(found))
    assert half < 0.12 * expected
    assert abs(found.mean() - expected) <= half, (found.mean(), expected, half)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.85])
@pytest.mark.parametrize("service", SERVICES)
def test_mg1(load: float, service: str) -> None:
    """M/M/1 and M/G/1: first come first served, processor sharing, shortest remaining first; one set of arrivals."""
    draw, second, tail, longest = SERVICES[service]
    seed = sum(service.encode()) + round(100 * load)
    within(means("fcfs", 1, load, draw, seed)[0], mg1_wait_s(load, 1.0, second))
    within(means("ps", 1, load, draw, seed)[1], mg1_ps_sojourn_s(load, 1.0))
    within(means("srpt", 1, load, draw, seed)[1], mg1_srpt_sojourn_s(load, tail, longest))


@pytest.mark.parametrize(("servers", "load"), [(1, 0.7), (2, 0.8), (5, 0.6), (16, 0.9)])
def test_mmc(servers: int, load: float) -> None:
    within(
        means("fcfs", servers, load * servers, exponential, servers)[0],
        mmc_wait_s(load * servers, 1.0, servers),
    )


def test_a_wrong_form_is_found_out() -> None:
    """The check can fail: ten per cent away, or the law of another service, is outside the interval."""
    found = means("fcfs", 1, 0.6, hyper, 5)[0]
    with pytest.raises(AssertionError):
        within(found, 1.1 * mg1_wait_s(0.6, 1.0, SERVICES["hyper"][1]))
    with pytest.raises(AssertionError):
        within(found, mg1_wait_s(0.6, 1.0, 2.0))


def test_forms_agree_with_each_other() -> None:
    assert mmc_wait_s(0.5, 1.0) == pytest.approx(mg1_wait_s(0.5, 1.0, 2.0)) == pytest.approx(1.0)
    assert erlang_c(1, 0.3) == pytest.approx(0.3)
    # Tables of Erlang: 10 servers and 5 Erlang lose 0.018385 and let 0.036105 wait.
    assert erlang_b(10, 5.0) == pytest.approx(0.018385, abs=1e-6)
    assert erlang_c(10, 5.0) == pytest.approx(0.036105, abs=1e-6)
    # Nothing else is better than shortest remaining first, and little load is little wait.
    tail, longest = SERVICES["exponential"][2:]
    assert mg1_srpt_sojourn_s(0.8, tail, longest) < mg1_ps_sojourn_s(0.8, 1.0)
    assert mg1_srpt_sojourn_s(1e-6, tail, longest) == pytest.approx(1.0, rel=1e-4)
    for wrong in (
        lambda: erlang_c(2, 2.0),
        lambda: mg1_wait_s(1.0, 1.0, 2.0),
        lambda: mg1_ps_sojourn_s(2.0, 1.0),
    ):
        with pytest.raises(StationError, match="without end"):
            wrong()


@pytest.mark.parametrize("order", ["fcfs", "srpt", "ps"])
@given(
    jobs=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 40)), min_size=1, max_size=40),
    servers=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_station_on_the_event_core_equals_the_loop(
    order: Any, jobs: list[tuple[int, int]], servers: int
) -> None:
    arrival_s = np.cumsum([gap / 4.0 for gap, _ in jobs])
    # Unequal works, so that no tie decides who is interrupted.
    work_s = np.array([work / 8.0 + j / 1024.0 for j, (_, work) in enumerate(jobs)])
    clock, left = Clock(), np.full(len(jobs), np.nan)

    def done(job: int) -> None:
        left[job] = clock.now

    station = Station(clock, done, servers=servers, order=order)
    for job in range(len(jobs)):
        clock.at(arrival_s[job], station.submit, job, work_s[job])
    clock.run()
    assert len(station) == 0
    found = departures(arrival_s, work_s, servers=servers, order=order)
    np.testing.assert_allclose(np.sort(found), np.sort(left), rtol=1e-9)
    if order != "srpt":
        np.testing.assert_allclose(found, left, rtol=1e-9)
    assert (found - arrival_s).sum() >= work_s.sum() - 1e-9


def engine_runs(
    profile: Profile, batching: Batching, n: int, rate: float, mean_tokens: float, seed: int
) -> Any:
    """Poisson arrivals of one-token prompts with geometric answers."""
    for run in range(RUNS):
        rng = np.random.default_rng([seed, run])
        arrival_s = np.cumsum(rng.exponential(1.0 / rate, n))
        output = rng.geometric(1.0 / mean_tokens, n)
        trace = Trace(arrival_s, np.ones(n, np.int32), output.astype(np.int32))
        yield output, fleet.run(trace, [profile], batching=batching)


@pytest.mark.parametrize("kind", ["prefill_first", "chunked", "static", "slots"])
def test_an_engine_of_one_place_is_mg1(kind: Any) -> None:
    """A place, 10 ms a token, geometric answers: Pollaczek and Khinchine say how long one waits."""
    profile = Profile(name="one", seconds=(0.01,), slots=1, batch_tokens=64)
    mean, rate = 20.0, 0.75 / (20.0 * 0.01)
    waits = []
    for _, result in engine_runs(profile, Batching(kind), 20_000, rate, mean, 11):
        waits.append(result["queued_s"][2_000:].mean())
        little(result)
    second = (2.0 * mean**2 - mean) * 1e-4
    within(np.array(waits), mg1_wait_s(rate, mean * 0.01, second))


def test_an_engine_whose_iterations_cost_by_the_request_shares_its_processor() -> None:
    """An iteration of n requests takes n times 1 ms and gives each a token: processor sharing, finely cut."""
    profile = Profile(
        name="shared", tokens=(1.0, 4096.0), seconds=(0.001, 4.096), slots=4096, batch_tokens=4096
    )
    mean, rate = 200.0, 0.6 / 0.2
    sojourns = []
    for _, result in engine_runs(profile, Batching("chunked"), 12_000, rate, mean, 12):
        sojourns.append(result.e2e_s[1_000:].mean())
        little(result)
    expected = mg1_ps_sojourn_s(rate, mean * 0.001)
    assert np.mean(sojourns) == pytest.approx(expected, rel=0.03)


def test_little_on_a_station_and_on_a_broken_run() -> None:
    profile = Profile(name="one", seconds=(0.01,), slots=4)
    _, result = next(engine_runs(profile, Batching(), 5_000, 10.0, 30.0, 3))
    law = little(result)
    assert law.requests == pytest.approx(law.rate * law.sojourn_s)
    assert law.rate == pytest.approx(10.0, rel=0.1)
    result.columns["finish_s"][17] = np.nan
    with pytest.raises(StationError, match="before it arrived, or never"):
        little(result)
    result.columns["finish_s"][17] = result.columns["arrival_s"][17] - 1.0
    with pytest.raises(StationError, match="before it arrived"):
        little(result)


def test_bad_stations() -> None:
    with pytest.raises(StationError, match="0 servers"):
        departures(np.zeros(1), np.ones(1), servers=0)
    with pytest.raises(StationError, match="no order"):
        Station(Clock(), print, order="lifo")  # type: ignore[arg-type]
