"""A row of machines that share a limit on power: telemetry, a policy that locks frequencies, a brake behind it.

What a machine draws is its engine's watts by phase plus what is always on. A frequency of share f of the highest
makes prompts, which are bound by compute, 1 / f as long, and answers, which are bound by memory,
1 + a (1 / f - 1); what is drawn above idle falls to f ** g. A power cap that made prompts of bloom-176b 1.3 times as
long on H100 left its answers as they were (Splitwise's measurements), and locking an A100 at 1.1 of 1.41 GHz costs a
server 7% of its speed and 20% of its peak (Patel et al. 2024): a = 0.05 and g = 1 agree with both.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apportion.core.cost import Cost
from apportion.core.errors import ApportionError
from apportion.core.option import Option
from apportion.core.policy import Policy
from apportion.core.state import State
from apportion.simulate.engine import Batching, Engine, group
from apportion.simulate.engine import _kernel as k
from apportion.simulate.profile import Profile
from apportion.simulate.trace import Trace

LOW, HIGH = 0, 1
_FREE: Final = Cost()


class PowerError(ApportionError):
    """A row of machines that cannot be."""

    code = "power"


@dataclass(frozen=True, slots=True)
class Step:
    """Frequencies of the machines with work of low and of high priority, as shares of the highest."""

    name: str
    low: float = 1.0
    high: float = 1.0


STEPS: Final = (Step("uncapped"), Step("low", 1275 / 1410), Step("all", 1110 / 1410, 1305 / 1410))
"""Those of the paper: nobody; low priority at 1275 MHz; low at 1110 and high at 1305 of 1410 MHz."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """``servers`` machines under ``limit_w``. The first ``low`` of them work for requests of low priority."""

    servers: int
    low: int
    limit_w: float
    base_w: float = 2500.0
    """What a machine draws besides its accelerators, whatever it does (a DGX-A100 is rated 6.5 kW in all)."""
    telemetry_s: float = 2.0
    actuation_s: float = 40.0
    """From a decision until the frequencies are changed (out of band, through the management controllers)."""
    brake_s: float = 5.0
    """From the limit being passed until the hardware has slowed everything; what is drawn in between stops it not."""
    brake: float = 288 / 1410
    """The frequency of a braked machine."""
    release: float = 0.95
    """The brake is let go when without it the row would draw less than this share of the limit."""
    memory_bound: float = 0.05
    exponent: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.servers or self.servers < 1:
            raise PowerError(f"{self.low} of {self.servers} machines are of low priority.", field="low")
        for name in ("limit_w", "telemetry_s", "brake", "exponent"):
            if not getattr(self, name) > 0:
                raise PowerError(f"'{name}' is {getattr(self, name)!r}; it has to be above 0.", field=name)


@dataclass(slots=True)
class Draw:
    """What came of a run. ``latency_s`` by priority (end to end, `LOW` and `HIGH`), ``watts`` of the row at each
    look (every ``telemetry_s``), as it would have been recorded; ``brakes`` how often the brake acted, ``braked_s`` how
    long; ``step_s`` the seconds under each step.
    """

    latency_s: tuple[NDArray[np.float64], NDArray[np.float64]]
    watts: NDArray[np.float32]
    brakes: int
    braked_s: float
    step_s: dict[str, float] = field(default_factory=dict)
    lost: int = 0
    """Requests that fit into no machine's memory."""


def paces(profile: Profile, row: Row, frequency: float) -> dict[str, float]:
    """What a frequency makes of an engine's durations and watts; the arguments of `Engine.pace`."""
    idle_w = profile.idle_w or 0.0
    share = frequency**row.exponent

    def watts(full_w: float) -> float:
        return (idle_w + max(0.0, full_w - idle_w) * share) / full_w if full_w > 0 else 1.0

    return {
        "prefill": 1.0 / frequency,
        "decode": 1.0 + row.memory_bound * (1.0 / frequency - 1.0),
        "prefill_power": watts(profile.prefill_w or 0.0),
        "decode_power": watts(float(np.mean(profile.decode_w)) if profile.decode_w else 0.0),
    }


def run(
    pieces: Trace | Iterable[Trace],
    profile: Profile,
    row: Row,
    policy: Policy | None = None,
    steps: Sequence[Step] = STEPS,
    *,
    batching: Batching | None = None,
    seed: int = 0,
) -> Draw:
    """Let a workload arrive at the row; a request goes to the machine of its priority with the fewest requests.

    Requests of priority above 0 are of high priority; where the trace has no priorities, each is drawn by the machines'
    shares. Without a ``policy`` no frequency is locked. Raises `PowerError` where the profile does not know its power.
    """
    if profile.idle_w is None or profile.prefill_w is None or not profile.decode_w:
        raise PowerError(
            f"The profile {profile.name!r} does not say what it draws.",
            field="idle_w",
            fix="Take one with 'idle_w', 'prefill_w' and 'decode_w'.",
        )
    if policy is not None:
        policy.reset()
    work = _Row(profile, row, batching or Batching(kind="mixed"))
    control = _Control(row, policy, steps)
    rng = np.random.default_rng(seed)
    now_s, number = 0.0, 0
    watts: list[float] = []
    for piece in [pieces] if isinstance(pieces, Trace) else pieces:
        high = (
            rng.random(len(piece)) >= row.low / row.servers if piece.priority is None else piece.priority > 0
        )
        columns = zip(
            piece.arrival_s.tolist(),
            piece.prompt_tokens.tolist(),
            piece.output_tokens.tolist(),
            high.tolist(),
            strict=True,
        )
        for arrival_s, prompt, output, important in columns:
            while now_s + row.telemetry_s <= arrival_s:
                now_s += row.telemetry_s
                watts.append(control.look(work, now_s))
            work.send(arrival_s, number, prompt, max(1, output), HIGH if important else LOW)
            number += 1
    while work.busy:
        now_s += row.telemetry_s
        watts.append(control.look(work, now_s))
    return Draw(
        (np.array(work.latency_s[LOW]), np.array(work.latency_s[HIGH])),
        np.array(watts, np.float32),
        control.brakes,
        control.braked_s,
        control.step_s,
        work.lost,
    )


class _Row:
    """The machines and what is under way in them."""

    def __init__(self, profile: Profile, row: Row, batching: Batching) -> None:
        self.profile, self.row = profile, row
        self.engines: list[Engine] = group([profile] * row.servers, [batching] * row.servers)
        self.store = self.engines[0]._store
        self.under_way = [0] * row.servers
        self.pools = (range(row.low), range(row.low, row.servers))
        self.arrived: dict[int, tuple[float, int, int]] = {}
        self.latency_s: tuple[list[float], list[float]] = ([], [])
        self.lost = 0

    @property
    def busy(self) -> bool:
        return bool(self.arrived)

    def send(self, now_s: float, number: int, prompt: int, output: int, priority: int) -> None:
        pool = self.pools[priority] or self.pools[1 - priority]
        place = min(pool, key=self.under_way.__getitem__)
        engine = self.engines[place]
        if not engine.fits(prompt, output):
            self.lost += 1
            return
        if self.store.state.due[place] <= now_s:
            self._collect(place, now_s)
        engine.submit(now_s, number, prompt, output)
        self.under_way[place] += 1
        self.arrived[number] = (now_s, priority, place)

    def advance(self, now_s: float) -> None:
        """Everything that ends by now."""
        for place in np.flatnonzero(self.store.state.due <= now_s).tolist():
            self._collect(place, now_s)

    def _collect(self, place: int, now_s: float) -> None:
        engine = self.engines[place]
        while done := engine.advance(now_s):
            for one in done:
                arrival_s, priority, _ = self.arrived.pop(one.request)
                self.latency_s[priority].append(one.finish_s - arrival_s)
                self.under_way[place] -= 1

    def watts(self, now_s: float) -> float:
        """What the row draws at a moment that has been advanced to."""
        s = self.store.state
        busy = (s.i[:, k.KIND] > k.WAKE) & (s.f[:, k.T0] <= now_s)
        drawn = np.where(busy, s.f[:, k.WATTS], s.f[:, k.IDLE_W])
        return float(drawn.sum()) + self.row.base_w * len(self.engines)

    def lock(self, now_s: float, low: float, high: float) -> None:
        """Change the frequencies; iterations that have begun end as they were."""
        for pool, frequency in zip(self.pools, (low, high), strict=True):
            law = paces(self.profile, self.row, frequency)
            for place in pool:
                self.engines[place].pace(now_s, **law)


class _Control:
    """Telemetry, the policy's commands on their way, and the brake."""

    def __init__(self, row: Row, policy: Policy | None, steps: Sequence[Step]) -> None:
        self.row, self.policy = row, policy
        self.steps = {step.name: step for step in steps}
        share = row.low / row.servers
        self.options = [
            Option(s.name, 0.0, _FREE, facts={"speed": share * s.low + (1.0 - share) * s.high}) for s in steps
        ]
        self.wanted = self.present = next(iter(steps)).name
        self.commands: deque[tuple[float, str]] = deque()
        self.over_s = math.inf
        self.braking = False
        self.brakes = 0
        self.braked_s = 0.0
        self.step_s = dict.fromkeys(self.steps, 0.0)

    def look(self, work: _Row, now_s: float) -> float:
        """One look at the meter; what follows from it."""
        row = self.row
        while self.commands and self.commands[0][0] <= now_s:
            at_s, name = self.commands.popleft()
            work.advance(at_s)
            self.present = name
            if not self.braking:
                self._lock(work, at_s)
        if not self.braking and self.over_s + row.brake_s <= now_s:
            at_s = max(self.over_s + row.brake_s, now_s - row.telemetry_s)
            work.advance(at_s)
            self.braking, self.over_s = True, math.inf
            self.brakes += 1
            work.lock(at_s, row.brake, row.brake)
        work.advance(now_s)
        watts = work.watts(now_s)
        self.step_s[self.present] += row.telemetry_s
        if self.braking:
            self.braked_s += row.telemetry_s
            base_w = row.base_w * row.servers
            unbraked_w = base_w + (watts - base_w) / row.brake**row.exponent
            if unbraked_w < row.release * row.limit_w:
                self.braking = False
                self._lock(work, now_s)
        elif watts > row.limit_w:
            self.over_s = min(self.over_s, now_s)
        if self.policy is not None:
            state = State(now_s, self.options, request={"power": watts / row.limit_w})
            action = self.policy.decide(state).action
            if action is not None and action != self.wanted:
                self.wanted = action
                self.commands.append((now_s + row.actuation_s, action))
        return watts

    def _lock(self, work: _Row, now_s: float) -> None:
        step = self.steps[self.present]
        work.lock(now_s, step.low, step.high)


class Plan(NamedTuple):
    """A policy and the steps that it chooses from."""

    policy: Policy | None
    steps: Sequence[Step]


class Rehearsal(NamedTuple):
    """What a plan would have made of a history. The latencies are the 99th percentiles, as shares more than those of
    a row without a limit; ``peak`` is the largest draw as a share of the limit.
    """

    plan: Plan
    brakes: int
    peak: float
    low: float
    high: float


def tune(
    history: Callable[[], Iterable[Trace]],
    profile: Profile,
    row: Row,
    plans: Iterable[Plan],
    *,
    high_at_most: float = 0.05,
    peak_at_most: float = 0.99,
    batching: Batching | None = None,
) -> tuple[Plan, list[Rehearsal]]:
    """Rehearse plans, thresholds and frequencies, on a history, and choose the one that costs low priority least.

    ``history`` gives the pieces of the workload, anew each time. A plan is safe where the brake never acts and the
    draw never passes ``peak_at_most`` of the limit, and fair where the tail latency of high priority is at most
    ``high_at_most`` more. Of those that are both the one with the least tail latency of low priority is chosen; where
    none is, the one with the fewest brakes, then the lowest peak. Also returns what was seen of each plan.
    Raises `PowerError` without plans, or where a priority has no request in the history.
    """
    free = run(history(), profile, replace(row, limit_w=math.inf), None, STEPS[:1], batching=batching)
    seen = []
    for plan in plans:
        draw = run(history(), profile, row, plan.policy, plan.steps, batching=batching)
        peak = float(draw.watts.max()) / row.limit_w
        seen.append(Rehearsal(plan, draw.brakes, peak, _slower(draw, free, LOW), _slower(draw, free, HIGH)))
    if not seen:
        raise PowerError("There is no plan to choose from.", field="plans", fix="Give one or more.")
    good = [one for one in seen if one.brakes == 0 and one.peak <= peak_at_most and one.high <= high_at_most]
    best = (
        min(good, key=lambda one: (one.low, one.high))
        if good
        else min(seen, key=lambda one: (one.brakes, one.peak))
    )
    return best.plan, seen


def _slower(draw: Draw, free: Draw, priority: int) -> float:
    """How much longer the 99th percentile of the latency is."""
    if not len(draw.latency_s[priority]):
        raise PowerError(
            "A priority has no request in the history.",
            field="history",
            fix="Give a longer one, with requests of low and of high priority.",
        )
    own_s, free_s = (float(np.percentile(each.latency_s[priority], 99)) for each in (draw, free))
    return own_s / free_s - 1.0
