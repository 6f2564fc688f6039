"""Many calls, one answer: a generator that yields calls and is sent replies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

from apportion.core.cost import Cost
from apportion.core.method import Method
from apportion.core.outcome import Status


@dataclass(slots=True)
class Call:
    """One call to be made: ``action`` says to what (a model, a tool), ``request`` with what. Treat as
    immutable.
    """

    action: str
    request: Mapping[str, object]
    max_cost: Cost | None = None


@dataclass(slots=True)
class Reply:
    """What came back from one `Call`: ``content`` None unless ``status`` is "ok" (or a part, when
    censored).
    """

    status: Status
    content: object
    cost: Cost
    latency_s: float | None = None
    censored: bool = False


@dataclass(slots=True)
class Answer:
    """What a strategy ends with. ``confidence`` is a probability of being right, None when it cannot say."""

    content: object
    confidence: float | None = None
    why: str = ""
    details: Mapping[str, object] = field(default_factory=dict)


Plan = Generator[Sequence[Call], Sequence[Reply], Answer]
"""Yields the calls to make at the same time, is sent their replies in the same order, returns the answer."""


class Strategy(Method):
    """Answers one request with many calls, without I/O: whoever drives it makes the calls.

    The proxy drives it with sockets, the simulator with virtual time, a test with a list. How many,
    which, and when to stop is decided by a `Policy` inside it.
    """

    @abstractmethod
    def run(self, request: Mapping[str, object], now: float) -> Plan:
        """The plan for one request; closing it early means that the calls in flight are not wanted any
        more.
        """

    def learn(self, details: Mapping[str, object], quality: float) -> None:
        """Take in how good, in [0, 1], the answer with these ``details`` was: late, twice or never. Here: nothing."""


def drive(plan: Plan, call: Callable[[Call], Reply]) -> Answer:
    """Run ``plan`` to its answer, making each call with ``call``, one after the other."""
    try:
        calls = next(plan)
        while True:
            calls = plan.send([call(one) for one in calls])
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer
