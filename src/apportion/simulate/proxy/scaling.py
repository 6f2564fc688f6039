"""How many machines stand behind an endpoint: a policy is asked now and then; new ones load, others finish and go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from apportion.core.cost import Cost
from apportion.core.option import Option
from apportion.core.policy import Policy
from apportion.core.state import State
from apportion.simulate.engine import Batching, Engine
from apportion.simulate.proxy.machines import ABSENT, COLD, DRAINING, Machine
from apportion.simulate.scenario import Scaling, build

if TYPE_CHECKING:
    from apportion.simulate.proxy.sites import Site

_FREE: Final = Cost()


class Scaler:
    """The scaling of one endpoint."""

    def __init__(self, site: Site, config: Scaling) -> None:
        profile = site.config.profile
        assert profile is not None  # noqa: S101 - a scenario without it is refused
        batching = site.config.batching or Batching(kind=profile.batching)
        self._site = site
        self._config = config
        self._policy = build(config.policy, Policy, f"endpoints.{site.name}.scaling.policy")
        self._load_s = profile.load_s
        self.each = (
            site.config.slots / site.config.instances
            if site.config.slots
            else float(batching.places(profile))
        )
        """Requests that one instance works on at once, as far as the proxy knows."""
        now_s = site.clock.now_s
        self.changes: list[tuple[float, int, int]] = []
        """When the number changed, and then how many were ready, and how many there."""
        self._work = 0.0
        """Requests in flight and waiting, summed over time since the policy was asked last."""
        self._noted_s = self._asked_s = now_s
        self.changed()
        site.clock.at(now_s + config.every_s, self._ask)

    def note(self) -> None:
        """Requests or machines are about to come or go."""
        site, now_s = self._site, self._site.clock.now_s
        if now_s > self._noted_s:
            waiting = 0 if site.line is None else site.line.waiting
            self._work += (site.in_flight + waiting) * (now_s - self._noted_s)
            self._noted_s = now_s

    def changed(self) -> None:
        """Machines have come or gone: write down how many there are now."""
        machines, now_s = self._site.machines, self._site.clock.now_s
        counted = (len(self._site.ready), sum(machine.there for machine in machines))
        if self.changes and self.changes[-1][0] == now_s:
            self.changes.pop()
        if not self.changes or self.changes[-1][1:] != counted:
            self.changes.append((now_s, *counted))

    def _ask(self, _: Any) -> None:
        """Ask the policy, and do as it says."""
        config, site = self._config, self._site
        clock = site.clock
        clock.at(clock.now_s + config.every_s, self._ask)
        self.note()
        seconds = clock.now_s - self._asked_s
        work, self._work, self._asked_s = self._work / seconds, 0.0, clock.now_s
        ready = site.ready
        cold = [machine for machine in site.machines if machine.state == COLD]
        there = sum(machine.there for machine in site.machines)
        instances = len(ready) + len(cold)
        # Those that drain, or were told that they will be gone, still take a place.
        highest = max(instances, config.most - (there - instances))
        highest = max(1, min(highest, config.most))
        options = [
            Option(str(n), 0.0, _FREE, facts={"change": n - instances, "instances": n})
            for n in range(min(config.least, highest), highest + 1)
        ]
        request: dict[str, Any] = {
            "endpoint": site.name,
            "instances": instances,
            "ready": len(ready),
            "waiting": 0 if site.line is None else site.line.waiting,
        }
        if ready:
            request["load"] = work / (len(ready) * self.each)
            freeness = [m.engine.freeness(clock.now_s) for m in ready if isinstance(m.engine, Engine)]
            request["freeness"] = sum(freeness) / len(freeness)
        decision = self._policy.decide(State(clock.now_s, options, request=request))
        if decision.choice is not None:
            self._change(int(options[decision.choice].action) - instances, ready, cold)

    def _change(self, more: int, ready: list[Machine], cold: list[Machine]) -> None:
        site = self._site
        for _ in range(more):
            # In the place of one that has gone, where there is one.
            gone = next((machine for machine in site.machines if machine.state == ABSENT), None)
            site.start(gone, self._load_s)
        # Who is not ready yet is missed least, then who has least to finish; the newest first.
        leaving = [*reversed(cold), *sorted(ready, key=lambda m: (len(m.jobs), -m.number))]
        for machine in leaving[: max(0, -more)]:
            if machine.jobs:
                machine.state = DRAINING
            else:
                machine.goes(site.clock.now_s, ABSENT)
                site.fleet.touched(machine)
        if more:
            site.resized()
