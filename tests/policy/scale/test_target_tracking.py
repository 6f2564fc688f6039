"""Target tracking against the autoscaler's rule, written down plainly and with all of its history."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from apportion.core import Cost, Option, State
from apportion.policy.scale.target_tracking import TargetTracking, wanted_instances


def state(
    now_s: float, instances: int, ready: int, load: float | None, least: int = 1, most: int = 20
) -> State:
    options = [
        Option(str(n), 0.0, Cost(), facts={"change": n - instances, "instances": n})
        for n in range(least, most + 1)
    ]
    request = {"instances": instances, "ready": ready} | ({} if load is None else {"load": load})
    return State(now_s, options, request=request)


class Reference:
    """The rule of the Kubernetes autoscaler: the largest recommendation of the window holds back fewer instances."""

    def __init__(self, target: float, tolerance: float, window_s: float) -> None:
        self.target, self.tolerance, self.window_s = target, tolerance, window_s
        self.recommended: list[tuple[float, int]] = []

    def next(self, now_s: float, instances: int, ready: int, load: float, least: int, most: int) -> int:
        if not self.recommended and self.window_s:
            self.recommended.append((now_s, instances))
        ratio = ready * load / (instances * self.target)
        desired = instances
        if not abs(ratio - 1.0) <= self.tolerance:
            desired = math.ceil(round(ready * load / self.target, 9))
        desired = max(least, min(most, desired))
        self.recommended.append((now_s, desired))
        if desired < instances:
            recent = [n for at, n in self.recommended if at > now_s - self.window_s or at == now_s]
            desired = min(instances, max(recent))
        return desired


@given(
    target=st.sampled_from([0.5, 0.7, 1.3]),
    tolerance=st.sampled_from([0.0, 0.1, 0.3]),
    window_s=st.sampled_from([0.0, 30.0, 120.0]),
    seen=st.lists(
        st.tuples(st.floats(1.0, 60.0), st.floats(0.0, 4.0), st.integers(0, 3)), min_size=1, max_size=60
    ),
)
def test_it_is_the_autoscalers_rule(
    target: float, tolerance: float, window_s: float, seen: list[tuple[float, float, int]]
) -> None:
    policy = TargetTracking(target=target, tolerance=tolerance, window_s=window_s)
    reference = Reference(target, tolerance, window_s)
    now_s, instances = 0.0, 3
    for after_s, load, cold in seen:
        now_s += after_s
        ready = max(1, instances - cold)
        chosen = policy.decide(state(now_s, instances, ready, load)).action
        instances = reference.next(now_s, instances, ready, load, 1, 20)
        assert chosen == str(instances)
        assert len(policy._asked) <= 20


@given(st.floats(0.01, 100.0), st.floats(0.1, 2.0), st.integers(1, 50))
def test_the_wanted_number_is_the_least_that_keeps_the_target(
    total: float, target: float, instances: int
) -> None:
    wanted = wanted_instances(instances, total, target, 0.0)
    assert total / max(wanted, 1) <= target * (1.0 + 1e-8)
    assert wanted <= 1 or total / (wanted - 1) > target * (1.0 - 1e-8)


def test_nothing_known_changes_nothing_but_repairs_what_is_too_few() -> None:
    policy = TargetTracking()
    assert policy.decide(state(0.0, 4, 0, None)).action == "4"
    assert policy.decide(state(0.0, 1, 0, None, least=3)).action == "3"


def test_a_lull_shorter_than_the_window_sends_nobody_away() -> None:
    policy = TargetTracking(target=0.5, window_s=300.0)
    loads = [(0.0, 0.5), *((15.0 * n, 0.1) for n in range(1, 20)), (300.0, 0.1), (315.0, 0.1)]
    chosen = [policy.decide(state(at, 10, 10, load)).action for at, load in loads]
    assert chosen == ["10"] * 20 + ["2", "2"]
