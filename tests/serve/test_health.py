"""The breaker against a plain model of it, and the clock of a shared machine."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from apportion.serve.config.schema import Breaker
from apportion.serve.health import Circuit, ServerClock

CONFIG = Breaker(failures=3, window_s=10.0, open_s=4.0, max_open_s=20.0)


class CircuitMachine(RuleBasedStateMachine):
    """The model keeps everything that ever happened and reads the rules off it."""

    @initialize()
    def start(self) -> None:
        self.circuit = Circuit(CONFIG)
        self.now = 100.0
        self.failures: list[float] = []
        self.open_until: float | None = None
        self.open_for = 0.0
        self.trial_since: float | None = None
        self.openings = 0
        self.running: list[tuple[float, int]] = []
        """When each request began, and how often the circuit had opened by then."""

    @property
    def may_pass(self) -> bool:
        if self.open_until is None:
            return True
        if self.now < self.open_until:
            return False
        return self.trial_since is None or self.now - self.trial_since > self.open_for

    @rule(seconds=st.floats(0.0, 12.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.may_pass)
    @rule()
    def begin(self) -> None:
        self.circuit.begin(self.now)
        self.running.append((self.now, self.openings))
        if self.open_until is not None:
            self.trial_since = self.now

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 100))
    def succeed(self, which: int) -> None:
        started, opening = self.running.pop(which % len(self.running))
        self.circuit.succeeded(started_s=started)
        if self.open_until is not None and opening == self.openings:
            self.failures, self.open_until, self.trial_since, self.open_for = [], None, None, 0.0

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 100), wait_s=st.none() | st.floats(0.0, 100.0))
    def fail(self, which: int, wait_s: float | None) -> None:
        started, opening = self.running.pop(which % len(self.running))
        half_open = self.circuit.state == "half_open"
        self.circuit.failed(self.now, wait_s=wait_s, started_s=started)
        if opening < self.openings:
            return
        self.failures.append(self.now)
        recent = [t for t in self.failures[-CONFIG.failures :] if self.now - t <= CONFIG.window_s]
        if half_open or (self.open_until is None and len(recent) == CONFIG.failures):
            self.open_for = min(CONFIG.max_open_s, self.open_for * 2 or CONFIG.open_s)
            self.open_until = self.now + min(CONFIG.max_open_s, max(self.open_for, wait_s or 0.0))
            self.trial_since = None
            self.failures = []
            self.openings += 1

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 100))
    def cancel(self, which: int) -> None:
        started, opening = self.running.pop(which % len(self.running))
        self.circuit.cancelled(started_s=started)
        if opening == self.openings and started == self.trial_since:
            self.trial_since = None

    @invariant()
    def agrees(self) -> None:
        assert self.circuit.allows(self.now) == self.may_pass
        assert (self.circuit.state == "closed") == (self.open_until is None)
        left = 0.0 if self.open_until is None else max(0.0, self.open_until - self.now)
        assert self.circuit.retry_in_s(self.now) == left
        # Whatever happens, an endpoint is never left out for longer than the configuration allows.
        assert left <= CONFIG.max_open_s * (1 + 1e-9)

    @invariant()
    def nobody_is_locked_out_for_ever(self) -> None:
        assert self.circuit.allows(self.now + 2 * CONFIG.max_open_s + 1)


TestCircuit = CircuitMachine.TestCase
TestCircuit.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_open_time_doubles_up_to_its_limit() -> None:
    circuit, now, waits = Circuit(CONFIG), 0.0, []
    for _ in range(3):
        circuit.failed(now)
    for _ in range(5):
        waits.append(circuit.retry_in_s(now))
        now += waits[-1]
        assert circuit.allows(now)
        circuit.begin(now)
        assert not circuit.allows(now), "one try at a time"
        circuit.failed(now)
    assert waits == [4.0, 8.0, 16.0, 20.0, 20.0]
    now += circuit.retry_in_s(now)
    circuit.begin(now)
    circuit.succeeded()
    for _ in range(3):
        assert circuit.state == "closed"
        circuit.failed(now)
    assert circuit.retry_in_s(now) == 4.0, "after a success it begins anew"


def test_failures_spread_over_time_do_not_open_it() -> None:
    circuit = Circuit(CONFIG)
    for i in range(50):
        circuit.failed(i * 5.1)
        assert circuit.state == "closed"


def test_what_the_endpoint_asks_for_is_given_within_reason() -> None:
    for asked, given_s in ((None, 4.0), (1.0, 4.0), (15.0, 15.0), (3600.0, 20.0)):
        circuit = Circuit(CONFIG)
        for _ in range(3):
            circuit.failed(0.0, wait_s=asked)
        assert circuit.retry_in_s(0.0) == given_s


def test_a_trial_that_never_reports_back_does_not_lock_it() -> None:
    circuit = Circuit(CONFIG)
    for _ in range(3):
        circuit.failed(0.0)
    circuit.begin(4.0)
    assert not circuit.allows(7.9)
    assert circuit.allows(8.1)
    circuit.cancelled()
    assert circuit.allows(4.5), "one that was cancelled frees the place at once"


def opened(now: float) -> Circuit:
    """One that opened at ``now``."""
    circuit = Circuit(CONFIG)
    for _ in range(3):
        circuit.failed(now, started_s=now)
    assert circuit.state == "open"
    return circuit


def test_what_began_before_it_opened_changes_nothing() -> None:
    circuit = opened(10.0)
    circuit.succeeded(started_s=9.0)
    assert circuit.state == "open"
    circuit.begin(14.0)
    circuit.cancelled(started_s=9.0)
    assert not circuit.allows(14.1), "the trial's place is taken still"
    circuit.failed(14.1, started_s=9.0)
    circuit.succeeded(started_s=9.5)
    assert circuit.state == "half_open"
    circuit.succeeded(started_s=14.0)
    assert circuit.state == "closed"
    for _ in range(5):
        circuit.failed(14.2, started_s=9.9)
    assert circuit.state == "closed", "old failures do not open it again"


def test_a_trial_slower_than_the_open_time_still_closes_it() -> None:
    """The next trial has begun by then; were only its result heard, a slow endpoint would stay out for ever."""
    circuit = opened(10.0)
    circuit.begin(14.0)
    circuit.begin(18.5)
    circuit.cancelled(started_s=14.0)
    assert not circuit.allows(18.6)
    circuit.succeeded(started_s=14.0)
    assert circuit.state == "closed"


def test_a_trial_of_an_earlier_opening_is_not_heard() -> None:
    circuit = opened(10.0)
    circuit.begin(14.0)
    circuit.begin(18.5)
    circuit.failed(19.0, started_s=18.5)
    assert circuit.retry_in_s(19.0) == 8.0
    circuit.succeeded(started_s=14.0)
    assert circuit.state == "open"


# --- server-seconds ---------------------------------------------------------------------------------

intervals = st.lists(
    st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 50.0)).map(lambda t: (t[0], t[0] + t[1])),
    min_size=1,
    max_size=20,
)


def busy_s(intervals: list[tuple[float, float]]) -> float:
    """Length of the union."""
    total, end = 0.0, -1.0
    for begin, finish in sorted(intervals):
        total += max(0.0, finish - max(begin, end))
        end = max(end, finish)
    return total


@given(intervals)
def test_shares_add_up_to_the_time_the_machine_was_busy(intervals: list[tuple[float, float]]) -> None:
    """Every second of the machine is split among those that run; nobody pays for more than their own time."""
    clock = ServerClock()
    events = sorted(
        [(begin, 1, i) for i, (begin, _) in enumerate(intervals)]
        + [(finish, 2, i) for i, (_, finish) in enumerate(intervals)]
    )
    started, shares = {}, {}
    for now, what, i in events:
        if what == 1:
            started[i] = clock.start(now)
        else:
            so_far = clock.used(started[i], now)
            shares[i] = clock.stop(started[i], now)
            assert so_far == shares[i]
    assert clock.running == 0
    assert sum(shares.values()) == pytest.approx(busy_s(intervals), abs=1e-6)
    for i, (begin, finish) in enumerate(intervals):
        assert -1e-9 <= shares[i] <= finish - begin + 1e-9
    edges = sorted({t for pair in intervals for t in pair})
    for i, (begin, finish) in enumerate(intervals):
        expected = 0.0
        for a, b in pairwise(edges):
            if begin <= a and b <= finish:
                expected += (b - a) / sum(1 for x, y in intervals if x <= a and b <= y)
        assert shares[i] == pytest.approx(expected, abs=1e-6)


def test_time_that_stands_still_or_runs_backwards_charges_nothing() -> None:
    clock = ServerClock()
    share = clock.start(10.0)
    assert clock.used(share, 10.0) == 0.0
    assert clock.stop(share, 9.0) == 0.0
