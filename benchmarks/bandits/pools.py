"""Four emulated pools of accelerators over a day of load, with capacity lost and prices changed on the way."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from random import Random
from typing import Any

from apportion.core import Cost, Option, Outcome, Policy, State, catalogue

TARGET_S = 3.0
WINDOW_S = 60.0
TRIES = 4
NOTICED_S = 5.0
"""After which the proxy's health checks no longer offer a lost pool."""


@dataclass
class Pool:
    """``slots`` requests at a time take ``service_s`` each, half as long again when it is full; more of them queue."""

    name: str
    slots: int
    service_s: float
    usd: float
    up: bool = True
    lost_at: float = math.inf
    running: dict[int, float] = field(default_factory=dict)
    """Request to the number of its start, for finding what a finishing event is about."""
    queue: list[int] = field(default_factory=list)

    def load(self) -> float:
        return (len(self.running) + len(self.queue)) / self.slots if self.slots else math.inf


def pools() -> list[Pool]:
    """Cheap and plenty to dear and quick."""
    return [
        Pool("neuron-small", 24, 1.3, 0.0010),
        Pool("neuron-large", 24, 1.1, 0.0016),
        Pool("gpu-mid", 24, 1.0, 0.0028),
        Pool("gpu-fast", 24, 0.8, 0.0048),
    ]


def events(horizon_s: float) -> list[tuple[float, str, str, float]]:
    """What happens to pools: (time, pool, what, to how much), as shares of the horizon."""
    plan = [
        (0.10, "neuron-small", "slots", 10), (0.20, "neuron-small", "slots", 24),
        (0.30, "neuron-large", "lost", 0), (0.36, "neuron-large", "back", 0),
        (0.45, "neuron-small", "usd", 0.0040), (0.55, "neuron-small", "usd", 0.0010),
        (0.62, "neuron-small", "lost", 0), (0.63, "neuron-small", "back", 0),
        (0.70, "neuron-large", "slots", 8), (0.72, "gpu-mid", "slots", 8),
        (0.80, "neuron-large", "slots", 24), (0.80, "gpu-mid", "slots", 24),
    ]  # fmt: skip
    return [(share * horizon_s, pool, what, float(amount)) for share, pool, what, amount in plan]


def rate(now: float, horizon_s: float) -> float:
    """Requests a second: two waves over the horizon and a burst."""
    share = now / horizon_s
    burst = 12.0 if 0.885 < share < 0.90 else 0.0
    return 24.0 + 12.0 * math.sin(4.0 * math.pi * share - 1.2) + burst


def arrivals(horizon_s: float, seed: int) -> list[float]:
    """Times of a Poisson process with that rate."""
    random, now, found, top = Random(seed), 0.0, [], 50.0
    while True:
        now += random.expovariate(top)
        if now >= horizon_s:
            return found
        if random.random() < rate(now, horizon_s) / top:
            found.append(now)


class Run:
    """One policy over the horizon."""

    def __init__(self, policy: Policy, horizon_s: float, seed: int) -> None:
        self.policy, self.horizon_s = policy, horizon_s
        self.random = Random(1000 + seed)
        self.pools = {pool.name: pool for pool in pools()}
        self.agenda: list[tuple[float, int, str, Any]] = []
        self.ticket = 0
        self.began = arrivals(horizon_s, seed)
        self.tries = [0] * len(self.began)
        self.states: dict[int, State] = {}
        self.latency_s = [math.nan] * len(self.began)
        self.avoid: dict[int, list[str]] = {}
        """Pools that already failed a request: the proxy tries it on others."""
        self.failed = 0
        self.spent_usd = 0.0
        self.changes: list[float] = []

    def plan(self, when: float, what: str, about: Any) -> None:
        self.ticket += 1
        heapq.heappush(self.agenda, (when, self.ticket, what, about))

    def send(self, now: float, request: int) -> None:
        """Ask the policy and put the request into a pool."""
        self.tries[request] += 1
        if self.tries[request] > TRIES:
            self.failed += 1
            return
        offer = [
            Option(p.name, 0.0, Cost(usd=p.usd), load=p.load(), facts={"capacity": p.slots})
            for p in self.pools.values()
            if p.name not in self.avoid.get(request, ()) and now < p.lost_at + NOTICED_S
        ]
        state = State(now, offer, id=f"{request}", prices={"usd": 1.0})
        before = getattr(self.policy, "mode", None)
        decision = self.policy.decide(state)
        if getattr(self.policy, "mode", None) != before:
            self.changes.append(now)
        assert decision.action is not None
        self.states[request] = state
        pool = self.pools[decision.action]
        if not pool.up:
            # a lost pool refuses at once; the proxy tries again elsewhere
            self.tell(request, pool, "failed", 0.05)
            self.plan(now + 0.05, "send", request)
        elif len(pool.running) < pool.slots:
            self.start(now, request, pool)
        else:
            pool.queue.append(request)

    def start(self, now: float, request: int, pool: Pool) -> None:
        takes = (
            pool.service_s
            * (1.0 + 0.5 * len(pool.running) / pool.slots)
            * self.random.lognormvariate(0.0, 0.2)
        )
        self.ticket += 1
        pool.running[request] = self.ticket
        self.plan(now + takes, "done", (request, pool, self.ticket))

    def tell(self, request: int, pool: Pool, status: Any, latency_s: float) -> None:
        if status == "failed":
            self.avoid.setdefault(request, []).append(pool.name)
        self.policy.learn(
            Outcome(
                f"{request}",
                status,
                pool.name,
                Cost(usd=pool.usd),
                None,
                latency_s,
                state=self.states[request],
            )
        )

    def done(self, now: float, request: int, pool: Pool, ticket: int) -> None:
        if pool.running.get(request) != ticket:
            return
        del pool.running[request]
        self.spent_usd += pool.usd
        self.latency_s[request] = now - self.began[request]
        self.tell(request, pool, "ok", self.latency_s[request])
        while pool.queue and len(pool.running) < pool.slots:
            self.start(now, pool.queue.pop(0), pool)

    def happen(self, now: float, pool: Pool, what: str, amount: float) -> None:
        if what == "usd":
            pool.usd = amount
        elif what == "slots":
            pool.slots = int(amount)
            while pool.queue and len(pool.running) < pool.slots:
                self.start(now, pool.queue.pop(0), pool)
        else:
            pool.up = what == "back"
            pool.lost_at = math.inf if pool.up else now
            stranded = [*pool.running, *pool.queue] if what == "lost" else []
            pool.running.clear()
            pool.queue.clear()
            for request in stranded:
                self.tell(request, pool, "failed", now - self.began[request])
                self.plan(now + 0.05, "send", request)

    def play(self) -> None:
        for request, when in enumerate(self.began):
            self.plan(when, "send", request)
        for when, name, what, amount in events(self.horizon_s):
            self.plan(when, "happen", (self.pools[name], what, amount))
        while self.agenda:
            now, _, what, about = heapq.heappop(self.agenda)
            if what == "send":
                self.send(now, about)
            elif what == "done":
                self.done(now, *about)
            else:
                self.happen(now, *about)

    def result(self) -> dict[str, float]:
        """What the bars are about."""
        windows: dict[int, list[float]] = {}
        for when, latency in zip(self.began, self.latency_s, strict=True):
            windows.setdefault(int(when / WINDOW_S), []).append(latency)
        kept = sum(_p95(each) <= TARGET_S for each in windows.values())
        gaps = [b - a for a, b in zip(self.changes, self.changes[1:], strict=False)]
        return {
            "windows_in_target": kept / len(windows), "p95_s": _p95(self.latency_s), "failed": float(self.failed),
            "usd_per_1000": 1000.0 * self.spent_usd / len(self.began), "mode_changes": float(len(self.changes)),
            "shortest_mode_s": min(gaps, default=math.inf),
        }  # fmt: skip


def _p95(each: list[float]) -> float:
    """The 95th percentile; one that never ended counts as endless."""
    ordered = sorted(math.inf if value != value else value for value in each)
    return ordered[min(len(ordered) - 1, math.ceil(0.95 * len(ordered)) - 1)]


def least_cost(horizon_s: float) -> float:
    """Dollars per 1000 requests when the fluid load fills the cheapest pools to their last slot."""
    plan, state = events(horizon_s), {pool.name: pool for pool in pools()}
    usd = served = 0.0
    step = horizon_s / 5000.0
    for k in range(5000):
        now = (k + 0.5) * step
        while plan and plan[0][0] <= now:
            _, name, what, amount = plan.pop(0)
            if what in ("usd", "slots"):
                setattr(state[name], what, amount)
            else:
                state[name].up = what == "back"
        left = rate(now, horizon_s)
        for pool in sorted((p for p in state.values() if p.up), key=lambda p: p.usd):
            taken = min(left, pool.slots / pool.service_s)
            usd, served, left = usd + taken * pool.usd, served + taken, left - taken
    return 1000.0 * usd / served


def measure(horizon_s: float, seeds: int) -> dict[str, Any]:
    """Always the least loaded pool, always the cheapest, and the two modes."""
    methods = {
        "always capacity (route/least_load)": ("route/least_load", {}),
        "always the cheapest (route/priced)": ("route/priced", {}),
        "route/power_of_two": ("route/power_of_two", {}),
        "route/cost_capacity": ("route/cost_capacity", {"target_s": TARGET_S}),
    }
    rows = {}
    for title, (name, parameters) in methods.items():
        found = []
        for seed in range(seeds):
            policy = catalogue.build(name, **parameters)
            assert isinstance(policy, Policy)
            run = Run(policy, horizon_s, seed)
            run.play()
            found.append(run.result())
        rows[title] = {key: sum(each[key] for each in found) / seeds for key in found[0]}
        rows[title]["shortest_mode_s"] = min(each["shortest_mode_s"] for each in found)
        print(f"  {title}: {rows[title]}", flush=True)
    for row in rows.values():
        for key, value in row.items():
            row[key] = value if math.isfinite(value) else None  # type: ignore[assignment]
    return {"horizon_s": horizon_s, "seeds": seeds, "least_usd_per_1000": least_cost(horizon_s), "rows": rows}
