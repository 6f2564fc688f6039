"""What an engine offers besides its queue: moving, holding, cancelling, dying, pace and power, shared memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from apportion.simulate.engine import Batching, Done, Engine, EngineError, Moved, group
from apportion.simulate.engine import _kernel as kernel
from apportion.simulate.profile import Profile

INF = float("inf")
PROFILE = Profile(
    name="exact",
    tokens=(1.0, 9.0, 73.0),
    seconds=(0.25, 0.5, 2.5),
    slots=4,
    batch_tokens=64,
    kv_tokens=128,
    block_tokens=4,
    idle_w=50.0,
    prefill_w=300.0,
    decode_tokens=(1.0, 3.0),
    decode_w=(100.0, 200.0),
)


def finish(engine: Engine, until_s: float = INF) -> list[Done]:
    done: list[Done] = []
    while engine.next_s <= until_s and engine.next_s < INF:
        done += engine.advance(until_s)
    return done


def test_the_first_token_and_all_others_come_when_the_profile_says() -> None:
    engine = Engine(
        replace(PROFILE, before_s=1.0, before_s_per_token=0.125, after_s=0.5, decode_attention_s=2.0**-6)
    )
    engine.submit(2.0, 7, 9, 4, delay_s=3.0)
    assert (engine.waiting, engine.running, engine.queued_tokens) == (1, 0, 9)
    assert engine.next_s == 7.125
    assert engine.progress(6.0, 7).phase == "pending"
    assert engine.advance(7.125) == []
    assert engine.progress(7.2, 7).phase == "prefill"
    assert engine.next_s == 7.625
    engine.advance(7.625)
    # Three iterations of 1/4 s, and 9, 10 and 11 tokens of context.
    assert engine.next_s == 7.625 + 0.75 + 30.0 / 64.0
    assert engine.progress(7.625 + 0.25 + 9.0 / 64.0, 7).tokens == 2
    assert engine.progress(8.0, 7) == ("decode", 1, 9, 3)
    (done,) = engine.advance(INF)
    assert done.started_s == 7.125
    assert done.first_token_s == 7.625 + 0.5
    assert done.finish_s == 7.625 + 0.75 + 30.0 / 64.0 + 0.5
    assert done.longest_gap_s == 0.25 + 11.0 / 64.0
    assert (engine.requests, engine.load, engine.next_s) == (0, 0.0, INF)


@pytest.mark.parametrize("at", [0.0, 1.0, 1.6, 2.0, 3.5])
@pytest.mark.parametrize("kind", ["prefill_first", "chunked"])
def test_a_request_that_moves_ends_as_if_it_had_waited_for_the_move(kind: Any, at: float) -> None:
    """All its tokens are made once, on one machine or the other, and the gap it sees includes the journey."""
    here, there = Engine(PROFILE, Batching(kind)), Engine(PROFILE, Batching(kind))
    here.submit(0.0, 1, 9, 16)
    here.submit(0.0, 2, 9, 5)
    done = finish(here, at)
    moved = here.export(at, 1)
    assert moved is not None
    assert at <= moved.ready_s <= at + 1.2
    with pytest.raises(EngineError, match="not in the engine"):
        here.progress(at, 1)
    assert [d.request for d in done + finish(here)] == [2]
    arrives_s = moved.ready_s + 2.0
    there.import_(arrives_s, moved)
    (ended,) = finish(there)
    assert ended.tokens == 16
    if moved.context_tokens:
        assert moved.context_tokens == 9 + moved.tokens - 1
        assert ended.finish_s == arrives_s + 0.25 * (16 - moved.tokens)
        assert ended.longest_gap_s == pytest.approx(arrives_s + 0.25 - moved.last_token_s)
        assert ended.server_s == pytest.approx(moved.server_s + 0.25 * (16 - moved.tokens))
        assert ended.joules == pytest.approx(moved.joules + 25.0 * (16 - moved.tokens))
        assert ended.first_token_s == moved.first_token_s
    else:
        assert ended.finish_s > arrives_s + 0.25 * 15
    assert here.kv_tokens(99.0) == there.kv_tokens(99.0) == 0


def test_what_ends_in_the_iteration_in_progress_is_not_moved() -> None:
    engine = Engine(PROFILE)
    engine.submit(0.0, 1, 9, 3)
    finish(engine, 0.8)
    assert engine.export(0.8, 1) is None
    assert [d.finish_s for d in finish(engine)] == [1.0]


def test_a_waiting_request_moves_without_its_memory() -> None:
    here, there = Engine(replace(PROFILE, slots=1)), Engine(PROFILE)
    here.submit(0.0, 1, 9, 9)
    here.submit(0.0, 2, 9, 9)
    finish(here, 1.0)
    moved = here.export(1.0, 2)
    assert moved is not None
    assert (moved.ready_s, moved.context_tokens, moved.tokens) == (1.0, 0, 0)
    there.import_(1.0, moved)
    assert finish(there)[0].finish_s == 1.0 + 0.5 + 8 * 0.25
    assert finish(here)[0].finish_s == 0.5 + 8 * 0.25


def test_cancelling_gives_what_the_client_had() -> None:
    engine = Engine(PROFILE)
    engine.submit(0.0, 1, 9, 100)
    engine.submit(0.0, 2, 9, 4)
    engine.submit(0.0, 3, 9, 4, delay_s=50.0)
    finish(engine, 1.5)
    assert engine.running == 2
    done = engine.cancel(1.5, 1)
    # Both prompts took 0.78125 s; an iteration of two takes 0.28125 s.
    assert (done.tokens, done.finish_s, done.first_token_s, done.server_s) == (3, 1.5, 0.78125, 0.75)
    assert [d.request for d in finish(engine, 49.0)] == [2]
    assert engine.requests == 1
    assert engine.cancel(49.5, 3).tokens == 0
    assert (engine.requests, engine.next_s, engine.kv_tokens(60.0)) == (0, INF, 0)


def test_cancelling_what_has_already_ended_and_is_not_fetched() -> None:
    engine = Engine(PROFILE)
    engine.submit(0.0, 1, 9, 1)
    engine.submit(0.0, 2, 9, 1)
    done = engine.cancel(9.0, 1)
    assert (done.request, done.tokens, done.finish_s) == (1, 1, 0.78125)
    assert [d.request for d in engine.advance(9.0)] == [2]
    assert engine.requests == 0


def test_held_memory_stays_until_released() -> None:
    engine = Engine(replace(PROFILE, kv_tokens=24))
    engine.submit(0.0, 1, 16, 1, hold=True)
    engine.submit(0.0, 2, 16, 1)
    assert [d.request for d in finish(engine)] == [1]
    assert (engine.next_s, engine.waiting, engine.kv_tokens(5.0), engine.free_tokens(5.0)) == (INF, 1, 16, 8)
    assert engine.progress(5.0, 1).phase == "held"
    with pytest.raises(EngineError, match="has not ended"):
        engine.release(5.0, 2)
    engine.release(6.0, 1)
    (done,) = finish(engine)
    assert (done.request, done.started_s) == (2, 6.0)


def test_reserved_memory_keeps_others_out() -> None:
    engine = Engine(replace(PROFILE, kv_tokens=24))
    assert engine.reserve(0.0, 20)
    assert not engine.reserve(0.0, 5)
    engine.submit(0.0, 1, 8, 1)
    assert finish(engine) == []
    engine.unreserve(4.0, 20)
    assert [d.started_s for d in finish(engine)] == [4.0]


def test_an_engine_that_dies_loses_what_is_in_it_and_can_go_on() -> None:
    engine = Engine(PROFILE)
    for request in range(6):
        engine.submit(0.0, request, 9, 20)
    finish(engine, 3.0)
    lost = engine.stop(3.0)
    assert [done.request for done in lost] == [0, 1, 2, 3, 4, 5]
    assert sum(done.server_s for done in lost) == pytest.approx(3.0)
    assert sum(done.joules for done in lost) == pytest.approx(engine.busy_j)
    assert (engine.requests, engine.next_s, engine.kv_tokens(3.0), engine.queued_tokens) == (0, INF, 0, 0)
    assert engine.busy_s == pytest.approx(3.0)
    assert engine.idle_j(10.0) == 0.0
    engine.start(10.0)
    engine.submit(10.0, 1, 9, 2)
    assert [d.finish_s for d in finish(engine)] == [10.75]


def test_pace_and_power() -> None:
    engine = Engine(PROFILE)
    assert engine.watts(0.0) == 50.0
    engine.submit(0.0, 1, 9, 9)
    engine.advance(0.0)
    assert engine.watts(0.25) == 300.0
    engine.advance(0.5)
    assert engine.watts(0.6) == 100.0
    # The iteration in progress ends at 1.0 as it began; the six others take twice as long at half the power.
    engine.pace(0.8, decode=2.0, decode_power=0.5)
    (done,) = finish(engine)
    assert done.finish_s == 0.5 + 0.5 + 6 * 0.5
    assert done.joules == pytest.approx(300.0 * 0.5 + 100.0 * 0.5 + 50.0 * 3.0)
    assert engine.busy_j == pytest.approx(done.joules)
    assert engine.idle_j(14.0) == pytest.approx(50.0 * 10.0)
    with pytest.raises(EngineError, match="pace"):
        engine.slow(20.0, 0.0)


def test_two_phases_on_one_memory() -> None:
    """A device split in two: one engine computes prompts on its share, the other decodes on the rest, at once."""
    prefill, decode = group([PROFILE, PROFILE], [Batching(), Batching()], shared_memory=True)
    prefill.pace(0.0, prefill=2.0)
    decode.pace(0.0, decode=2.0)
    for request in range(3):
        prefill.submit(0.0, request, 9, 1)
    done, held = [], 0
    while min(prefill.next_s, decode.next_s) < INF:
        now = min(prefill.next_s, decode.next_s)
        for first in prefill.advance(now):
            decode.import_(
                now, Moved(first.request, now, 9, 5, 1, 9, first_token_s=now, last_token_s=now, started_s=0.0)
            )
        held = max(held, decode.kv_tokens(now))
        assert prefill.kv_tokens(now) <= prefill.kv_capacity
        done += decode.advance(now)
    assert [d.request for d in done] == [0, 1, 2]
    first_s = 2.0 * (0.5 + 18 * 0.03125)
    assert done[0].finish_s == first_s + 4 * 2.0 * 0.3125
    assert held >= 27
    assert prefill.kv_tokens(99.0) == 0


def test_the_pool_grows_and_the_urgent_go_first() -> None:
    engine = Engine(PROFILE, Batching("chunked"))
    for request in range(1000):
        engine.submit(0.0, request, 3, 2, priority=request % 3)
    done = finish(engine)
    assert len(done) == 1000
    first = [d.request % 3 for d in sorted(done, key=lambda d: (d.first_token_s, -(d.request % 3)))]
    assert first == sorted(first, reverse=True)


def test_bad_requests() -> None:
    engine = Engine(PROFILE)
    assert engine.fits(100, 29)
    assert not engine.fits(100, 30)
    with pytest.raises(EngineError, match="needs memory for 129 tokens") as found:
        engine.submit(0.0, 1, 100, 30)
    assert found.value.field == "prompt_tokens"
    with pytest.raises(EngineError, match="0 prompt tokens"):
        engine.submit(0.0, 1, 0, 30)
    engine.submit(0.0, 1, 1, 1)
    with pytest.raises(EngineError, match="already"):
        engine.submit(0.0, 1, 1, 1)
    with pytest.raises(EngineError, match="blocks of different sizes"):
        group([PROFILE, replace(PROFILE, block_tokens=8)], [Batching(), Batching()], shared_memory=True)
    with pytest.raises(EngineError, match="watermark"):
        Batching(watermark=1.0)
    with pytest.raises(EngineError, match="slots"):
        Batching(slots=0)


def test_prompts_fill_an_iteration_by_the_number_of_their_slot() -> None:
    """llama.cpp gives slots that were never used from the last to the first: the second to come is served first."""
    profile = replace(PROFILE, slots=2, batch_tokens=16, kv_tokens=128)
    engine = Engine(profile, Batching("slots"))
    engine.submit(0.0, 1, 24, 2)
    engine.submit(0.0, 2, 10, 2)
    engine.advance(0.0)
    plan = engine.planned()
    assert plan is not None
    assert plan.prompts == {2: 10, 1: 6}
    assert plan.completing == (2,)


def _pass_s(tokens: int) -> float:
    return 0.25 + (tokens - 1) / 32


@pytest.mark.parametrize(
    ("cached", "passes"),
    [
        # In slots 3, 2, 1, 0 by arrival. The one in slot 2 ends first; the next takes that slot. Decoding are 0, 1, 3:
        # {0, 1} and, with a token of the prompt, no neighbour before 2: {0, 1, 2}, {3}, and the rest of the prompt.
        (0, [3, 1, 7]),
        # The same slot, since it is the only idle one; its beginning is kept.
        (4, [3, 1, 3]),
    ],
)
def test_slots_that_are_no_neighbours_take_passes_of_their_own(cached: int, passes: list[int]) -> None:
    engine = Engine(replace(PROFILE, kv_tokens=512), Batching("slots"))
    for request, output in enumerate((40, 3, 40, 40)):
        engine.submit(0.0, request, 4, output)
    [first] = engine.advance(INF)
    assert first.request == 1
    engine.advance(first.finish_s)
    engine.submit(first.finish_s, 9, 8, 2, cached)
    plan = engine.planned()
    assert plan is not None
    step_s = _pass_s(2) + _pass_s(1)
    if not plan.prompts:  # it joins at the end of the iteration in progress
        assert plan.ends_s[0] - plan.begins_s == pytest.approx(step_s)
        engine.advance(plan.ends_s[0])
        plan = engine.planned()
    assert plan is not None
    assert plan.prompts == {9: 8 - cached}
    assert plan.ends_s[0] - plan.begins_s == pytest.approx(sum(map(_pass_s, passes)))


def test_a_kept_beginning_draws_a_request_to_the_first_used_slot() -> None:
    """Alone it takes the last slot; with a tenth of it kept, that slot again; without, one that was never used."""
    for cached, second in ((0, 2), (2, 3)):
        engine = Engine(replace(PROFILE, kv_tokens=512), Batching("slots"))
        engine.submit(0.0, 0, 8, 1)
        finish(engine)
        engine.submit(10.0, 1, 8, 30, cached)
        engine.submit(10.0, 2, 8, 30)
        engine.advance(12.0)
        engine.submit(12.0, 3, 1, 30)
        engine.advance(14.0)
        plan = engine.planned()
        assert plan is not None
        assert len(plan.decoding) == 3
        rows = [engine._row(request) for request in (1, 2, 3)]
        slots = [int(engine._store.state.p[row, kernel.SLOT]) for row in rows]
        assert slots[0] == second
        assert slots == ([2, 1, 0] if second == 2 else [3, 2, 1])
        assert plan.ends_s[0] - plan.begins_s == pytest.approx(_pass_s(3))
