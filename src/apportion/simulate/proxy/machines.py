"""Machines behind the endpoints of the twin, and who of them is next."""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Final

from apportion.simulate.engine import Done, Engine
from apportion.simulate.proxy.hosted import Hosted, come
from apportion.simulate.proxy.job import Job
from apportion.simulate.proxy.prefixes import Prefixes

if TYPE_CHECKING:
    from apportion.simulate.proxy.sites import Site

READY: Final = 0
COLD: Final = 1
"""It loads its model; nothing is given to it."""
LEAVING: Final = 2
"""It has been told that it will be gone, and gets no more requests."""
DRAINING: Final = 3
"""It is not needed any more, and is gone when it has finished what it works on."""
DOWN: Final = 4
"""It has failed, or was taken away."""
ABSENT: Final = 5
"""It is not needed."""


class Machine:
    """One instance behind an endpoint."""

    __slots__ = (
        "_bounds",
        "_since_s",
        "_there_s",
        "_token_s",
        "engine",
        "jobs",
        "name",
        "number",
        "on_wire",
        "prefixes",
        "site",
        "starts",
        "state",
        "version",
    )

    def __init__(
        self, site: Site, name: str, number: int, engine: Engine | Hosted, prefixes: Prefixes | None
    ) -> None:
        self.site = site
        self.name = name
        self.number = number
        """Its place in the whole fleet."""
        self.engine = engine
        self.prefixes = prefixes
        self.state = READY
        self.starts = 1
        """How often it has come."""
        self._since_s = site.clock.now_s
        self._there_s = 0.0
        self.jobs: dict[int, Job] = {}
        """What it works on, by the number of the attempt."""
        self.on_wire: dict[int, Done] = {}
        """What it has finished and nobody has received."""
        self.version = 0
        profile = site.config.profile
        self._token_s = 0.0 if profile is None else min(profile.seconds)
        """No token takes less."""
        self._bounds: list[tuple[float, int]] = []
        """When each request can be done at the earliest."""

    def comes(self, now_s: float, state: int) -> None:
        """It is there (again), empty: ``READY``, or ``COLD``."""
        self.engine.start(now_s)
        self.state = state
        self.starts += 1
        self._since_s = now_s

    def goes(self, now_s: float, state: int) -> list[Done]:
        """It is there no more: ``DOWN``, or ``ABSENT``. What it worked on is lost: as far as that had come."""
        self._there_s = self.there_s(now_s)
        self.state = state
        if self.prefixes is not None:
            self.prefixes = Prefixes(self.site.config)
        return self.engine.stop(now_s)

    @property
    def there(self) -> bool:
        """Whether it costs and draws power."""
        return self.state not in (DOWN, ABSENT)

    def there_s(self, now_s: float) -> float:
        """For how long it has been there."""
        return self._there_s + (now_s - self._since_s if self.there else 0.0)

    def takes(self, job: Job, number: int, now_s: float, output_tokens: int) -> None:
        """It works on a request from now on."""
        self.jobs[number] = job
        heapq.heappush(self._bounds, (now_s + output_tokens * self._token_s, number))

    def made(self, now_s: float, number: int) -> int:
        """How many tokens of an answer there are."""
        done = self.on_wire.get(number)
        if done is not None:
            return come(done, now_s - self.site.delay_s)
        return self.engine.progress(now_s, number).tokens

    def give_up(self, now_s: float, number: int) -> Done | None:
        """An answer is not wanted any more: what there is of it, and what it has taken."""
        self.jobs.pop(number, None)
        done = self.on_wire.pop(number, None)
        if done is not None:
            return done._replace(finish_s=now_s, tokens=come(done, now_s - self.site.delay_s))
        return self.engine.cancel(now_s, number)

    def slow(self, now_s: float, factor: float) -> None:
        """It takes ``factor`` times as long from now on."""
        if factor < 1.0:
            self._token_s, self._bounds = 0.0, []
        self.engine.slow(now_s, factor)

    @property
    def next_s(self) -> float:
        """Nothing is done before. What happens on it meanwhile (a prompt is read) nobody needs to know at once."""
        next_s = self.engine.next_s
        bounds, jobs = self._bounds, self.jobs
        while bounds:
            bound_s, number = bounds[0]
            if number in jobs:
                return bound_s if next_s < bound_s else next_s
            heapq.heappop(bounds)
        return next_s


class Fleet:
    """All machines. Whoever may finish first is advanced first. Where a finished request may set off work elsewhere
    (``entangled``: lines, strategies, shared answers), it is advanced no further than where another could finish, so
    that what is set off comes in time.
    """

    def __init__(self, *, entangled: bool) -> None:
        self.machines: list[Machine] = []
        self._entangled = entangled
        self.next_s = math.inf
        """Nothing happens on any machine before."""
        self._next: list[tuple[float, int, int]] = []

    def add(self, machine: Machine) -> None:
        """One more."""
        self.machines.append(machine)

    def touched(self, machine: Machine) -> None:
        """Something was given to a machine, or taken from it."""
        machine.version = version = machine.version + 1
        next_s = machine.next_s
        if next_s < math.inf:
            heapq.heappush(self._next, (next_s, machine.number, version))
        self._look()

    def _look(self) -> None:
        """Find out who is next."""
        waiting, machines = self._next, self.machines
        while waiting:
            next_s, number, version = waiting[0]
            if machines[number].version == version:
                self.next_s = next_s
                return
            heapq.heappop(waiting)
        self.next_s = math.inf

    def step(self, until_s: float) -> None:
        """Let the next machine work, at most until ``until_s``; `next_s` must be no later."""
        machine = self.machines[heapq.heappop(self._next)[1]]
        machine.version += 1
        if self._entangled:
            self._look()
            until_s = min(until_s, self.next_s)
        for done in machine.engine.advance(until_s):
            machine.site.ended(machine, done)
        self.touched(machine)
