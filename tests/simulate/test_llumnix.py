"""Instances between which requests move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.core import Cost, Decision, Option, Policy, State
from apportion.core.catalogue import build
from apportion.simulate import llumnix
from apportion.simulate.engine import Batching
from apportion.simulate.llumnix import Instances, MigrationError, downtimes_s
from apportion.simulate.profile import Profile
from apportion.simulate.result import FAILED, OK, Result
from apportion.simulate.trace import Trace

BOX = Profile(
    name="box",
    tokens=(1.0, 100.0, 1100.0),
    seconds=(0.02, 0.02, 0.2),
    decode_attention_s=1e-6,
    kv_tokens=2048,
    slots=32,
    kv_bytes_per_token=1e6,
    load_s=5.0,
)
SLOW = {"bytes_per_s": 1e9, "latency_s": 0.01}
"""A millisecond for a token."""


class Always(Policy):
    """Every request goes to one instance, and moves as long as there is another."""

    constraints: Mapping[str, Any] = {}

    def __init__(self, to: str = "box-0", moves: str = "box-0") -> None:
        self.to, self.moves = to, moves

    def reset(self) -> None:
        """Nothing to forget."""

    def decide(self, state: State) -> Decision:
        """The first for dispatch, the named one leaves, the first of the others joins."""
        names = [option.action for option in state.options]
        task = state.request["task"]
        wanted = {"dispatch": self.to, "leave": self.moves}.get(str(task), names[0] if names else "")
        if wanted not in names:
            return self.nothing(state)
        return Decision(
            state.id, names.index(wanted), wanted, 1.0, {}, state.options, (None,) * len(names), ""
        )


def tight(n: int = 300, rps: float = 6.0, seed: int = 0, *, priority: bool = False) -> Trace:
    """Lengths with a long tail, more of them than the memory of four boxes likes."""
    rng = np.random.default_rng(seed)
    prompts = np.minimum(rng.pareto(1.0, n) * 30 + 10, 900).astype(np.int32)
    outputs = np.minimum(rng.pareto(1.0, n) * 40 + 10, 900).astype(np.int32)
    high = (rng.random(n) < 0.1).astype(np.int8) if priority else None
    return Trace(np.cumsum(rng.exponential(1.0 / rps, n)), prompts, outputs, priority=high)


def served(trace: Trace, *, moving: bool = True, **of: Any) -> Result:
    instances = Instances(profile=BOX, **{"count": 4, **of})
    policy = build("place/llumnix")
    return llumnix.run(trace, instances, policy, policy if moving else None)  # type: ignore[arg-type]


def test_moving_loses_and_doubles_no_token() -> None:
    trace = tight()
    result = served(trace)
    moved = [move for move in result.facts["moves"] if move.how == "moved"]
    assert len(moved) > 20
    assert sorted(result["request"].tolist()) == list(range(len(trace)))
    assert (result["status"] == OK).all()
    assert (result["output_tokens"] == trace.output_tokens[result["request"]]).all()
    assert (result["finish_s"] >= result["first_token_s"]).all()
    assert (result["first_token_s"] >= result["arrival_s"]).all()


def test_the_stages_of_a_move_add_up() -> None:
    """What each stage copies is what was made during the one before; their times are bytes over bandwidth."""
    trace = Trace(np.array([0.0]), np.array([500], np.int32), np.array([400], np.int32))
    result = llumnix.run(trace, Instances(profile=BOX, count=2, **SLOW), Always(), Always())
    (move,) = result.facts["moves"]
    assert (move.source, move.target, move.how) == (0, 1, "moved")
    *copied, rest = move.stages
    # 500 ms for the prompt, in which some 24 tokens are made; these take 35 ms, in which one or two are
    assert 500 <= copied[0] <= 510
    assert copied[1] == pytest.approx(0.51 / 0.0205, abs=2)
    assert rest <= BOX.block_tokens + 1
    live_s = sum(0.01 + tokens / 1000 for tokens in copied)
    assert move.downtime_s == pytest.approx(0.01 + rest / 1000)
    # between the last look and the stop is the iteration in progress, which is done
    assert 0.0 <= move.stopped_s - (move.begin_s + live_s) <= 0.0215
    # the client waits for that, and for nothing else
    (gap,) = result["longest_gap_s"]
    assert move.downtime_s <= gap <= move.downtime_s + 2 * 0.0215


def test_a_move_costs_its_request_only_the_time_it_stands_still() -> None:
    trace = Trace(np.array([0.0]), np.array([500], np.int32), np.array([400], np.int32))
    instances = Instances(profile=BOX, count=2, **SLOW)
    stays = llumnix.run(trace, instances, Always())
    moves = llumnix.run(trace, instances, Always(), Always())
    (downtime_s,) = downtimes_s(moves)
    assert moves["finish_s"][0] - stays["finish_s"][0] == pytest.approx(downtime_s, abs=1e-6)
    assert moves["instance"].tolist() == [1]
    assert stays["instance"].tolist() == [0]


def test_a_move_is_given_up_where_there_is_no_memory() -> None:
    """The other box is full of a request of its own; nothing stays put aside there."""
    both = Trace(np.array([0.0, 0.0]), np.array([1600, 500], np.int32), np.array([300, 200], np.int32))
    instances = Instances(profile=BOX, count=2, **SLOW)

    class Split(Always):
        def decide(self, state: State) -> Decision:
            self.to = "box-1" if state.request.get("request") == 0 else "box-0"
            return super().decide(state)

    stays = llumnix.run(both, instances, Split())
    tried = llumnix.run(both, instances, Split(), Split())
    assert {move.how for move in tried.facts["moves"]} == {"no memory"}
    assert tried["finish_s"].tolist() == pytest.approx(stays["finish_s"].tolist())


def test_a_move_is_given_up_where_the_request_ends() -> None:
    """Copying 500 tokens takes longer than making 20; another one keeps the instances busy meanwhile."""
    trace = Trace(np.array([0.0, 0.0]), np.array([500, 900], np.int32), np.array([20, 60], np.int32))
    result = llumnix.run(trace, Instances(profile=BOX, count=2, **SLOW), Always(), Always())
    first = result.facts["moves"][0]
    assert (first.request, first.how) == (0, "ended")
    assert result["output_tokens"].tolist() == [20, 60]


def test_without_need_nothing_moves_and_times_are_the_same() -> None:
    trace = tight(200, 0.5)
    with_moves, without = (served(trace, moving=moving, count=8) for moving in (True, False))
    assert with_moves.facts["moves"] == []
    assert with_moves["finish_s"].tolist() == without["finish_s"].tolist()


def test_moving_shortens_the_wait_where_memory_is_tight() -> None:
    trace = tight(600, 7.0)
    round_robin = llumnix.run(trace, Instances(profile=BOX, count=4), build("route/round_robin"))  # type: ignore[arg-type]
    fewer = served(trace)
    assert np.percentile(fewer.ttft_s, 99) < np.percentile(round_robin.ttft_s, 99)
    assert fewer.facts["preemptions"] < round_robin.facts["preemptions"]


def test_the_same_again() -> None:
    trace = tight(priority=True)
    once, again = served(trace), served(trace)
    assert once.facts["moves"] == again.facts["moves"]
    assert all(np.array_equal(once[name], again[name], equal_nan=True) for name in once.columns)


def test_high_priority_waits_less() -> None:
    trace = tight(600, 7.0, priority=True)
    result = served(trace)
    high = result["priority"] > 0
    assert result.ttft_s[high].mean() < result.ttft_s[~high].mean()
    assert result.e2e_s[high].mean() < served(replace(trace, priority=None)).e2e_s[high].mean()


def instance(name: str, used: int, running: int, high: int, head: int = 0) -> Option:
    facts = {"kv_tokens": 1000, "used_tokens": used, "head_tokens": head, "running": running, "high": high}
    return Option(name, 0.0, Cost(), facts=facts)


INSTANCES = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 20), st.integers(0, 3), st.integers(0, 400)),
    min_size=1,
    max_size=6,
).map(lambda rows: [instance(f"i{n}", *row) for n, row in enumerate(rows)])


@given(INSTANCES, st.sampled_from(["dispatch", "leave", "join"]))
def test_headroom_is_kept_where_somebody_can_do_without_and_else_not_at_all(
    options: list[Option], task: str
) -> None:
    def chosen(headroom: float, **asked: Any) -> str | None:
        policy: Any = build("place/llumnix", headroom=headroom)
        return policy.decide(State(0.0, options, request={"task": task, **asked})).action  # type: ignore[no-any-return]

    def spare(option: Option) -> float:
        facts: Any = option.facts
        return float(1000 - facts["used_tokens"] - facts["head_tokens"] - (900 if facts["high"] else 0))

    def steps(option: Option) -> float:
        facts: Any = option.facts
        return spare(option) / max(1, facts["running"]) if spare(option) > 0 else spare(option)

    kept = max(map(steps, options)) > (0.0 if task == "dispatch" else 60.0)
    if not kept:
        assert chosen(0.9) == chosen(0.0)
    elif task != "leave":
        # who has room beside the headroom gets it, and there is such a one
        (taken,) = (o for o in options if o.action == chosen(0.9))
        assert spare(taken) > 0
    if task == "dispatch":
        assert chosen(0.9, high=True) == chosen(0.0)


def test_low_priority_keeps_away_from_high_and_high_gathers() -> None:
    """The instance with high priority is emptier: for others it is full, for the next of its kind it is free."""
    policy: Any = build("place/llumnix")
    options = [instance("important", 200, 1, 1), instance("other", 400, 8, 0)]
    asked: list[dict[str, object]] = [{"task": "dispatch"}, {"task": "dispatch", "high": True}]
    asked += [{"task": "leave"}, {"task": "join"}]
    chosen = [policy.decide(State(0.0, options, request=one)).action for one in asked]
    assert chosen == ["other", "important", "important", "other"]


def test_headroom_that_nobody_can_afford_makes_nobody_wait() -> None:
    """High priority on every instance at once: those of low priority wait hardly longer than without priorities."""
    trace = tight(600, 6.0)
    half = (np.random.default_rng(3).random(len(trace)) < 0.5).astype(np.int8)
    with_, without = (served(replace(trace, priority=priority)) for priority in (half, None))
    low = half[with_["request"]] == 0
    assert with_.e2e_s[low].mean() < 1.5 * without.e2e_s[half[without["request"]] == 0].mean()
    assert with_.ttft_s[~low].mean() < with_.ttft_s[low].mean()


def test_instances_come_when_it_is_tight_and_go_when_they_are_empty() -> None:
    """A rush, then hardly anything: the instances that go give their requests away, and nothing is lost."""
    rush, calm = tight(300, 8.0), tight(60, 0.3, 1)
    trace = Trace(
        np.concatenate([rush.arrival_s, rush.duration_s + 10.0 + calm.arrival_s]),
        np.concatenate([rush.prompt_tokens, calm.prompt_tokens]),
        np.concatenate([rush.output_tokens, calm.output_tokens]),
    )
    policy, scale = build("place/llumnix"), build("scale/freeness", low=20.0, high=80.0, sustain_s=3.0)
    instances = Instances(profile=BOX, count=2, most=6)
    result = llumnix.run(trace, instances, policy, policy, scale)  # type: ignore[arg-type]
    counts = [count for _, count in result.facts["counts"]]
    assert max(counts) >= 4
    assert min(counts[counts.index(max(counts)) :]) == 1
    assert (result["status"] == OK).all()
    assert (result["output_tokens"] == trace.output_tokens[result["request"]]).all()
    assert result.facts["instance_s"] < 6 * result.facts["horizon_s"]
    # a cold start: nobody is served by a third instance before it is loaded
    third_s = result.facts["counts"][1][0]
    late = result["arrival_s"][result["instance"] >= 2]
    assert late.min() + result["queued_s"][result["instance"] >= 2].min() >= third_s
    assert result["finish_s"][result["instance"] == 2].min() >= third_s + BOX.load_s


def test_a_draining_instance_empties_sooner_with_moves() -> None:
    """One long answer on an instance that is to go: it is gone when the answer has moved, not when it is complete."""
    trace = Trace(np.array([0.0, 0.0]), np.array([100, 100], np.int32), np.array([900, 1500], np.int32))
    scale = build("scale/freeness", low=0.0, high=1.0, sustain_s=2.0)
    gone = []
    for move in (build("place/llumnix"), None):
        policy = build("route/round_robin")
        result = llumnix.run(trace, Instances(profile=BOX, count=2), policy, move, scale)  # type: ignore[arg-type]
        assert (result["output_tokens"] == trace.output_tokens[result["request"]]).all()
        gone.append(result.facts["counts"][1][0])
    assert gone[0] < 5.0 < 15.0 < gone[1]


def test_what_fits_nowhere_has_failed() -> None:
    trace = Trace(np.array([0.0, 1.0]), np.array([3000, 10], np.int32), np.array([10, 10], np.int32))
    result = served(trace, batching=Batching())
    assert result["status"].tolist() == [FAILED, OK]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"count": 0}, "count"),
        ({"count": 4, "most": 3}, "count"),
        ({"bytes_per_s": 0.0}, "bytes_per_s"),
        ({"interval_s": -1.0}, "interval_s"),
        ({"latency_s": float("inf")}, "latency_s"),
        ({"profile": replace(BOX, kv_bytes_per_token=0.0)}, "kv_bytes_per_token"),
    ],
)
def test_what_cannot_be_is_said(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(MigrationError) as caught:
        Instances(**{"profile": BOX, **wrong})
    assert caught.value.field == field
