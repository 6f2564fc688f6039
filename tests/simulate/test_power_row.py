"""A row of machines under a limit on power."""

from __future__ import annotations

import numpy as np
import pytest

from apportion.core.catalogue import build
from apportion.simulate import power
from apportion.simulate.power import HIGH, LOW, Plan, PowerError, Row, Step
from apportion.simulate.profile import Profile
from apportion.simulate.trace import Trace

MACHINE = Profile(
    name="box",
    tokens=(1.0, 100.0, 1100.0),
    seconds=(0.05, 0.05, 0.55),
    kv_tokens=100_000,
    slots=8,
    idle_w=100.0,
    prefill_w=1000.0,
    decode_tokens=(1.0, 8.0),
    decode_w=(600.0, 600.0),
)


def workload(n: int, rps: float, seed: int = 0, *, priority: int | None = None) -> Trace:
    rng = np.random.default_rng(seed)
    return Trace(
        np.cumsum(rng.exponential(1.0 / rps, n)),
        rng.integers(100, 1000, n).astype(np.int32),
        rng.integers(10, 60, n).astype(np.int32),
        priority=None if priority is None else np.full(n, priority, np.int8),
    )


def test_what_one_machine_draws() -> None:
    """Idle, prompt and answer, each at its time; a frequency slows the one more than the other."""
    row = Row(servers=1, low=0, limit_w=1e9, base_w=50.0, telemetry_s=0.2)
    trace = Trace(np.array([1.0]), np.array([1100], np.int32), np.array([21], np.int32))
    draw = power.run(trace, MACHINE, row, None, (Step("uncapped"),))
    # looks at 0.2, 0.4, ...: idle until 1.0, the prompt takes 0.55 s, then twenty iterations of 0.05 s
    seen = draw.watts.round().astype(int).tolist()
    assert seen[:4] == [150] * 4
    assert seen[5:7] == [1050] * 2
    assert set(seen[7:12]) == {650}
    assert draw.latency_s[HIGH] == pytest.approx([1.55])
    assert len(draw.latency_s[LOW]) == 0

    law = power.paces(MACHINE, row, 0.5)
    assert law["prefill"] == 2.0
    assert law["decode"] == pytest.approx(1.0 + row.memory_bound)
    assert law["prefill_power"] * 1000 == pytest.approx(100 + 900 * 0.5)
    assert law["decode_power"] * 600 == pytest.approx(100 + 500 * 0.5)


def test_priorities_have_machines_of_their_own() -> None:
    row = Row(servers=4, low=3, limit_w=1e9)
    draw = power.run(workload(200, 2.0, priority=1), MACHINE, row)
    assert len(draw.latency_s[HIGH]) == 200
    drawn = power.run(workload(400, 2.0), MACHINE, row)
    assert len(drawn.latency_s[LOW]) + len(drawn.latency_s[HIGH]) == 400
    assert 240 < len(drawn.latency_s[LOW]) < 360


def test_the_brake_stands_behind_the_policy() -> None:
    """A limit that busy machines pass: without a policy the brake acts; the policy keeps it from acting."""
    trace = workload(6000, 22.0)
    free = power.run(trace, MACHINE, Row(servers=10, low=5, limit_w=1e9, base_w=100.0))
    limit_w = 0.97 * float(free.watts.max())
    row = Row(servers=10, low=5, limit_w=limit_w, base_w=100.0, actuation_s=4.0)
    braked = power.run(trace, MACHINE, row)
    assert braked.brakes > 0
    assert braked.braked_s > 0
    assert np.mean(braked.latency_s[HIGH]) > np.mean(free.latency_s[HIGH])
    steps = (Step("uncapped"), Step("low", 0.7), Step("all", 0.5, 0.7))
    capped = power.run(trace, MACHINE, row, build("power/polca", t1=0.6, t2=0.75), steps)
    assert capped.brakes == 0
    assert capped.watts.max() < limit_w
    assert sum(capped.step_s.values()) == pytest.approx(len(capped.watts) * row.telemetry_s)
    assert capped.step_s["low"] + capped.step_s["all"] > 0
    slower = [np.mean(capped.latency_s[i]) / np.mean(free.latency_s[i]) for i in (LOW, HIGH)]
    assert slower[0] > slower[1]
    again = power.run(trace, MACHINE, row, build("power/polca", t1=0.6, t2=0.75), steps)
    assert (again.watts == capped.watts).all()
    assert (again.latency_s[LOW] == capped.latency_s[LOW]).all()


def plan(t1: float, t2: float, low: float, high: float) -> Plan:
    return Plan(
        build("power/polca", t1=t1, t2=t2),  # type: ignore[arg-type]
        (Step("uncapped"), Step("low", low), Step("all", low, high)),
    )


def test_the_tuner_chooses_the_gentlest_plan_that_holds() -> None:
    """What is chosen is safe and fair, and no other plan that is both is gentler to low priority."""
    trace = workload(4000, 22.0)
    free = power.run(trace, MACHINE, Row(servers=10, low=5, limit_w=1e9, base_w=100.0))
    row = Row(
        servers=10, low=5, limit_w=0.97 * float(free.watts.max()), base_w=100.0, actuation_s=4.0, brake_s=1.0
    )
    plans = [plan(0.98, 0.99, 0.99, 1.0), plan(0.6, 0.75, 0.5, 0.7), plan(0.6, 0.75, 0.7, 0.9)]
    best, seen = power.tune(lambda: iter([trace]), MACHINE, row, plans, high_at_most=1.0)
    assert [one.plan for one in seen] == plans
    assert seen[0].brakes > 0  # too gentle: the brake acts
    good = [one for one in seen if one.brakes == 0 and one.peak <= 0.99 and one.high <= 1.0]
    assert len(good) == 2
    assert best is min(good, key=lambda one: one.low).plan is plans[2]
    for one in seen:
        draw = power.run(trace, MACHINE, row, one.plan.policy, one.plan.steps)
        assert one.brakes == draw.brakes
        assert one.peak == float(draw.watts.max()) / row.limit_w
        low, base = (np.percentile(each.latency_s[LOW], 99) for each in (draw, free))
        assert one.low == pytest.approx(low / base - 1.0)

    # where high priority may lose nothing no plan is fair: the one with the fewest brakes and the lowest peak
    strictest, _ = power.tune(lambda: iter([trace]), MACHINE, row, plans, high_at_most=-1.0)
    assert strictest is min(seen, key=lambda one: (one.brakes, one.peak)).plan


def test_a_tuner_without_anything_to_choose_or_to_learn_from() -> None:
    row = Row(servers=2, low=1, limit_w=1e9)
    with pytest.raises(PowerError, match="no plan"):
        power.tune(lambda: iter([workload(20, 1.0)]), MACHINE, row, [])
    with pytest.raises(PowerError, match="no request"):
        power.tune(lambda: iter([workload(20, 1.0, priority=1)]), MACHINE, row, [plan(0.8, 0.9, 0.9, 0.9)])


def test_refusals() -> None:
    with pytest.raises(PowerError, match="low priority"):
        Row(servers=2, low=3, limit_w=1.0)
    with pytest.raises(PowerError, match="limit_w"):
        Row(servers=2, low=1, limit_w=0.0)
    silent = Profile(name="silent", tokens=(1.0,), seconds=(0.1,))
    with pytest.raises(PowerError, match="does not say"):
        power.run(workload(3, 1.0), silent, Row(servers=1, low=0, limit_w=1.0))
