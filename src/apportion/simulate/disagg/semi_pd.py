"""semi-PD: both phases at once on one device, each on its share of the processors, over one memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from apportion.core import catalogue
from apportion.core.cost import Cost
from apportion.core.option import Option
from apportion.core.policy import Policy
from apportion.core.state import State
from apportion.simulate.disagg.cluster import Cluster, Machine, Run
from apportion.simulate.disagg.goodput import Objectives
from apportion.simulate.disagg.link import PhasesError
from apportion.simulate.profile import Profile
from apportion.simulate.result import Result
from apportion.simulate.trace import Trace

SHARES: Final = tuple(round(0.05 * i, 2) for i in range(2, 19))
"""What a device can be split into: prompts have from 10% to 90% of the processors."""


@dataclass(slots=True)
class _Spread:
    """How much slower than the mean iteration the requests are that must still be in time.

    Requests that end now were decoded on the splits of the last seconds, iterations are of the present one: the
    ratio of the two, both smoothed over many intervals, carries over to the present split.
    """

    iteration_s: float = 0.0
    request_s: float = 0.0

    def quantile(self, iteration_s: float, request_s: float) -> float:
        """The time per token to hold to the objective."""
        if iteration_s > 0 and request_s > 0:
            self.iteration_s += 0.2 * (iteration_s - self.iteration_s)
            self.request_s += 0.2 * (request_s - self.request_s)
        ratio = self.request_s / self.iteration_s if self.iteration_s > 0 else 1.0
        return iteration_s * min(max(ratio, 1.0), 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SemiPD:
    """``count`` devices, each split between prompts (``share``) and answers (the rest).

    Keys and values never move: what a prompt leaves in memory is where the answer is made. With
    ``controller`` (a policy of the family ``scale``, or its name) every device is split anew each
    ``interval_s``, by what was measured since: the quantile ``objectives.share`` of the times to the first
    token (of those that still wait, what they have waited), and the mean time of decoding iterations, times
    how much slower that quantile of the requests was in the last intervals. A new split works from
    ``adjust_s`` later on: workers for it are started beside those at work, which go on meanwhile.
    """

    profile: Profile
    count: int = 1
    share: float = 0.5
    saturates: float = 0.5
    objectives: Objectives
    controller: str | Policy | None = None
    interval_s: float = 2.0
    adjust_s: float = 0.3
    shares: Sequence[float] = SHARES

    def __post_init__(self) -> None:
        if self.count < 1:
            raise PhasesError(f"'count' is {self.count!r}.", field="count", fix="One or more.")
        for name in ("interval_s", "adjust_s"):
            if not getattr(self, name) >= 0:
                raise PhasesError(f"'{name}' is {getattr(self, name)!r}.", field=name, fix="Zero or more.")
        if self.controller is not None and not self.interval_s > self.adjust_s:
            raise PhasesError("An adjustment takes longer than the interval.", field="interval_s")

    @property
    def cluster(self) -> Cluster:
        """The devices."""
        machine = Machine(profile=self.profile, share=self.share, saturates=self.saturates)
        return Cluster(machines=[machine] * self.count, choose="halves", name="semi-PD")

    def run(self, trace: Trace) -> Result:
        """Serve a trace; ``facts["splits"]`` are (seconds, device, share) of every change."""
        run = self.cluster.start(trace)
        splits: list[tuple[float, int, float]] = []
        if self.controller is not None:
            self._steer(run, trace, splits)
        run.until(math.inf)
        result = run.result()
        result.facts["splits"] = splits
        return result

    def _steer(self, run: Run, trace: Trace, splits: list[tuple[float, int, float]]) -> None:
        controllers = [self._policy() for _ in range(self.count)]
        share = [self.share] * self.count
        ln = run.world.ln
        before = np.zeros((self.count, 2))
        spread = [_Spread() for _ in range(self.count)]
        now, end_s = 0.0, trace.arrival_s[-1] if len(trace) else 0.0
        while now < end_s:
            run.until(now + self.interval_s)
            now += self.interval_s
            wanted: list[tuple[int, float]] = []
            for device, controller in enumerate(controllers):
                lane = 2 * device + 1
                busy_s, steps = float(ln.busy_s[lane]), float(ln.steps[lane])
                taken, made = busy_s - before[device, 0], steps - before[device, 1]
                before[device] = busy_s, steps
                seen = {
                    "share": share[device],
                    "ttft": self._ttft(run, device, now) / self.objectives.ttft_s,
                    "tpot": spread[device].quantile(
                        taken / made if made else 0.0, self._tpot(run, device, now)
                    )
                    / self.objectives.tpot_s,
                }
                new = self._asked(controller, now, device, seen)
                if new is not None and new != share[device]:
                    wanted.append((device, new))
            if wanted:
                run.until(now + self.adjust_s)
                for device, new in wanted:
                    share[device] = new
                    run.split(device, new)
                    splits.append((now + self.adjust_s, device, new))

    def _policy(self) -> Policy:
        policy = catalogue.build(self.controller) if isinstance(self.controller, str) else self.controller
        if not isinstance(policy, Policy):
            raise PhasesError(
                f"{self.controller!r} decides nothing.", field="controller", fix="Try scale/phase_split."
            )
        return policy.clone()

    def _asked(self, controller: Policy, now: float, device: int, seen: dict[str, float]) -> float | None:
        options = [Option(f"{share:g}", 0.0, Cost(), facts={"share": share}) for share in self.shares]
        request: dict[str, Any] = dict(seen)
        choice = controller.decide(State(now, options, str(device), request)).choice
        return None if choice is None else self.shares[choice]

    def _ttft(self, run: Run, device: int, now: float) -> float:
        """The quantile of times to the first token of this device in the interval that ends now, 0 of none."""
        r = run.world.r
        mine = r.prompt_lane == 2 * device
        came = mine & (r.first_s > now - self.interval_s) & (r.first_s <= now)
        waits = mine & np.isnan(r.first_s) & np.isnan(r.finish_s)
        times = np.concatenate((r.first_s[came] - r.arrival_s[came], now - r.arrival_s[waits]))
        return float(np.quantile(times, self.objectives.share)) if len(times) else 0.0

    def _tpot(self, run: Run, device: int, now: float) -> float:
        """The quantile of times per token of the answers of this device that ended in the interval, 0 of none."""
        r = run.world.r
        ended = (r.token_lane == 2 * device + 1) & (r.finish_s > now - self.interval_s) & (r.finish_s <= now)
        ended &= r.output > 1
        times = (r.finish_s[ended] - r.first_s[ended]) / (r.output[ended] - 1)
        return float(np.quantile(times, self.objectives.share)) if len(times) else 0.0
