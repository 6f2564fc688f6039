"""One request on its way through the proxy's twin."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Final

from apportion.core.decision import Decision
from apportion.core.features import Features
from apportion.core.guard import Verdict
from apportion.core.outcome import Status
from apportion.core.sheet import Sheet
from apportion.core.state import State
from apportion.measure.usage import Usage
from apportion.simulate.proxy.accounts import NO_LINES, Lines
from apportion.simulate.scenario import Key

if TYPE_CHECKING:
    from apportion.simulate.proxy.group import Group, Route

_BYTES_PER_TOKEN: Final = 4
"""Length of a token in a request's body: what the proxy predicts with, turned round."""

Task = Generator[None, Any, None]
"""What a request does: it yields where it waits, and is sent what it waited for."""


class Attempt:
    """One try at one endpoint and what came of it. Times are virtual; ``units`` are pico-dollars, None when unknown;
    ``usage`` is None where nothing was produced."""

    status: Status = "ok"
    usage: Usage | None = None
    units: int | None = 0
    server_s = 0.0
    share = 0.0
    """Where the endpoint's clock stood when it began."""
    first_s: float | None = None
    """When the first token came."""
    streamed = False
    """Whether the proxy has asked for a stream, although its client may not: the answer may have to be ended."""
    worked_s: float | None = None
    """When the engine began with it."""
    gap_s = 0.0
    preempted = 0
    cached_tokens = 0
    joules: float | None = None
    """What its machine drew for it, as the profile says; the proxy does not know."""
    finish: str | None = None
    failure: str | None = None
    http_status = 200
    censored = False
    settled = False
    state: State | None = None
    waited_s = 0.0
    machine = -1
    lines: Lines = NO_LINES
    held: Sequence[int] = ()

    def __init__(self, number: int, decision: Decision, route: Route, started_s: float) -> None:
        self.number = number
        self.decision = decision
        self.route = route
        self.started_s = self.ended_s = started_s


class Job:
    """A request of the trace (or a call that a strategy makes for it). What few requests have costs the others
    nothing: it stands here, in the class."""

    id = ""
    api = "chat"
    task: Task | None = None
    messages = 1
    cap_tokens: int | None = None
    priority = 0
    session = ""
    until_s = 0.0
    """When its deadline passes; 0 for none."""
    tries = 0
    decision: Decision | None = None
    state: State | None = None
    admission: Decision | None = None
    features: Features | None = None
    verdict: Verdict | None = None
    factor = 1.0
    turn: tuple[str, int] | None = None
    only: Route | None = None
    """The one route that may be asked: what a strategy has chosen."""
    parent: Job | None = None
    siblings: Sequence[Attempt] = ()
    shares = 1
    answer: Any = None
    waits = False
    """For the calls of its strategy."""
    answered_by: Attempt | None = None
    cached = ""
    """What the cache had to say."""
    counted = False
    tight = False
    lines: Lines = NO_LINES
    held: Sequence[int] | None = None
    """What the attempt under way holds, by place."""
    status = -1
    expected_quality = math.nan
    draws: Sequence[float] = ()
    """Drawn for this request alone, the same in every scenario: two standard normal, two uniform numbers."""
    piece: Any = None
    row = 0
    started_s = 0.0
    now = 0.0
    prompt_tokens = 0
    output_tokens = 0
    body_bytes = 0

    def __init__(self, index: int, key: Key, group: Group, sheet: Sheet) -> None:
        self.index = index
        """Its row in the trace."""
        self.key = key
        self.group = group
        self.sheet = sheet
        self.attempts: list[Attempt] = []

    def takes(self, prompt_tokens: int, output_tokens: int) -> None:
        """Its size."""
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.body_bytes = prompt_tokens * _BYTES_PER_TOKEN

    @property
    def usd(self) -> float | None:
        """What all attempts have cost together; None where that is unknown of one."""
        total = 0
        for attempt in self.attempts:
            if attempt.units is None:
                return None
            total += attempt.units
        return total * 1e-12

    def resume(self, value: Any = None) -> None:
        """Go on: what it waited for is there."""
        task = self.task
        if task is not None:
            try:
                task.send(value)
            except StopIteration:
                self.task = None
