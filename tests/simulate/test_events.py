"""The event core: order, ties, cancelling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.simulate.events import Clock, Event


@given(
    asked=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.booleans()), max_size=200),
)
def test_order_is_time_then_priority_then_order_of_asking(asked: list[tuple[int, int, bool]]) -> None:
    clock, seen = Clock(), []
    events: list[Event] = []
    for number, (time_s, priority, _) in enumerate(asked):
        events.append(clock.at(time_s, seen.append, (time_s, priority, number), priority=priority))
    for event, (_, _, cancelled) in zip(events, asked, strict=True):
        if cancelled:
            clock.cancel(event)
            clock.cancel(event)
    kept = [(t, p, n) for n, (t, p, cancelled) in enumerate(asked) if not cancelled]
    assert len(clock) == len(kept)
    clock.run()
    assert seen == sorted(kept)
    assert len(clock) == 0
    for event in events:
        clock.cancel(event)
    assert len(clock) == 0


def test_memory_of_cancelled_events_is_bounded() -> None:
    clock = Clock()
    for n in range(10_000):
        clock.cancel(clock.at(1e6 + n, print))
    assert len(clock._heap) < 200


def test_run_until_and_events_that_ask_for_events() -> None:
    clock, seen = Clock(10.0), []

    def tick(left: int) -> None:
        seen.append(clock.now)
        if left:
            clock.after(1.5, tick, left - 1)

    clock.at(11.0, tick, 3)
    clock.run(13.0)
    assert (seen, clock.now, clock.next_s) == ([11.0, 12.5], 13.0, 14.0)
    clock.run()
    assert seen == [11.0, 12.5, 14.0, 15.5]
    assert clock.next_s == float("inf")
    with pytest.raises(ValueError, match="past"):
        clock.at(1.0, tick, 0)
