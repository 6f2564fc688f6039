"""The breaker against a model that keeps all that happened, and a herd of them against one dead store."""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from apportion.serve.ledger.breaker import Breaker

FAILURES, OPEN_S, MAX_OPEN_S, PROBE_S = 2, 1.0, 8.0, 5.0


def breaker(seed: int = 0) -> Breaker:
    return Breaker(Random(seed), failures=FAILURES, open_s=OPEN_S, max_open_s=MAX_OPEN_S, probe_s=PROBE_S)


def opened(seed: int = 0, now_s: float = 0.0) -> Breaker:
    it = breaker(seed)
    for _ in range(FAILURES):
        assert it.allow(now_s)
        it.failed(now_s)
    return it


def test_one_failure_is_not_the_end() -> None:
    it = breaker()
    it.failed(0.0)
    assert it.allow(0.0)
    it.ok(0.0)
    it.failed(0.0)
    assert it.state == "closed"


def test_one_probe_at_a_time() -> None:
    it = opened()
    assert it.state == "open"
    assert not it.allow(0.49)
    assert it.allow(1.0)
    assert not any(it.allow(1.0 + 0.1 * k) for k in range(40))
    assert it.wait_s(1.5) == PROBE_S - 0.5


def test_a_probe_that_never_reports_gives_its_place_up() -> None:
    it = opened()
    assert it.allow(1.0)
    assert not it.allow(1.0 + PROBE_S - 0.01)
    assert it.allow(1.0 + PROBE_S)


def test_each_failed_probe_doubles_the_wait_up_to_the_longest() -> None:
    it = opened()
    now_s, waits = 0.0, [it.wait_s(0.0)]
    for _ in range(8):
        now_s += it.wait_s(now_s)
        assert it.allow(now_s)
        it.failed(now_s)
        waits.append(it.wait_s(now_s))
    for k, wait_s in enumerate(waits):
        longest = min(MAX_OPEN_S, OPEN_S * 2.0**k)
        assert longest / 2.0 <= wait_s <= longest
    now_s += it.wait_s(now_s)
    assert it.allow(now_s)
    it.ok(now_s)
    for _ in range(FAILURES):
        it.failed(now_s)
    assert it.wait_s(now_s) <= OPEN_S


def test_answers_to_what_was_asked_before_it_opened_change_nothing() -> None:
    it = opened()
    wait_s = it.wait_s(0.0)
    it.failed(0.0)
    it.ok(0.0)
    assert it.state == "open"
    assert it.wait_s(0.0) == wait_s


def test_a_herd_comes_back_spread_out() -> None:
    herd = [opened(seed) for seed in range(200)]
    for step in range(4):
        asked = []
        for it in herd:
            now_s = 100.0 * step
            if step:
                it.failed(now_s)
            asked.append(it.wait_s(now_s))
            assert it.allow(now_s + asked[-1])
        longest = OPEN_S * 2.0**step
        tenths = [
            sum(longest * (0.5 + k / 20) <= wait < longest * (0.55 + k / 20) for wait in asked)
            for k in range(10)
        ]
        assert max(tenths) < 45, "most ask in the same moment"


class BreakerMachine(RuleBasedStateMachine):
    """What must hold of any course of events, read off a list of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.it = breaker(7)
        self.now_s = 0.0
        self.in_a_row = 0
        self.probe_since_s: float | None = None
        self.shut_since_s: float | None = None
        self.whiles = 0

    @rule(dt_s=st.floats(0.0, 4.0))
    def wait(self, dt_s: float) -> None:
        self.now_s += dt_s

    @rule()
    def ask(self) -> None:
        allowed = self.it.allow(self.now_s)
        if self.shut_since_s is None:
            assert allowed
            return
        since_s = self.now_s - self.shut_since_s
        longest = min(MAX_OPEN_S, OPEN_S * 2.0 ** (self.whiles - 1))
        free = self.probe_since_s is None or self.now_s >= self.probe_since_s + PROBE_S
        if since_s < longest / 2.0 or not free:
            assert not allowed
        elif since_s >= longest:
            assert allowed
        if allowed:
            self.probe_since_s = self.now_s

    @precondition(lambda self: self.shut_since_s is None or self.probe_since_s is not None)
    @rule(good=st.booleans())
    def report(self, good: bool) -> None:
        if good:
            self.it.ok(self.now_s)
            self.in_a_row = self.whiles = 0
            self.shut_since_s = self.probe_since_s = None
            return
        self.it.failed(self.now_s)
        self.in_a_row += 1
        if self.shut_since_s is not None or self.in_a_row == FAILURES:
            self.shut_since_s, self.probe_since_s, self.in_a_row = self.now_s, None, 0
            self.whiles += 1

    @invariant()
    def states_agree(self) -> None:
        expected = (
            "closed" if self.shut_since_s is None else "open" if self.probe_since_s is None else "half_open"
        )
        assert self.it.state == expected
        assert 0.0 <= self.it.wait_s(self.now_s) <= max(MAX_OPEN_S, PROBE_S)


BreakerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBreakerMachine = BreakerMachine.TestCase
