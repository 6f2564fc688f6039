"""One queue and its slots on a simulated clock, with the proxy's own policy objects; and the bounds beside them."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any, NamedTuple

from apportion.core import Cost, Option, Outcome, Policy, State
from apportion.serve.queue import ticket


class Work(NamedTuple):
    """A request to come: when, what it truly takes, what was predicted, and whose it is."""

    id: str
    arrived_s: float
    service_s: float
    expected_s: float | None = None
    p_long: float | None = None
    kind: str = ""
    tenant: str = ""
    tokens: float = 1.0
    value_usd: float = 0.01
    deadline_s: float | None = None


class Served(NamedTuple):
    """What became of it."""

    work: Work
    started_s: float
    ended_s: float

    @property
    def wait_s(self) -> float:
        """From arrival to start."""
        return self.started_s - self.work.arrived_s

    @property
    def latency_s(self) -> float:
        """From arrival to end."""
        return self.ended_s - self.work.arrived_s


def serve(
    works: Sequence[Work], policy: Policy, slots: int = 1, prices: Mapping[str, float] | None = None
) -> list[Served]:
    """Run ``works`` (sorted by arrival) through ``policy``; nothing that started is interrupted. Whose deadline has
    passed is not started any more, as in the proxy's queue, and is missing in what is returned.
    """
    waiting: list[Option] = []
    by_id: dict[str, Work] = {}
    running: list[tuple[float, int, Work, Option, float]] = []
    served: list[Served] = []
    place, n, now = 0, len(works), 0.0
    while place < n or running:
        next_end = running[0][0] if running else float("inf")
        if place < n and works[place].arrived_s < next_end:
            work = works[place]
            place += 1
            now = work.arrived_s
            by_id[work.id] = work
            waiting.append(
                ticket(
                    work.id,
                    arrived_s=now,
                    value=work.value_usd,
                    deadline_s=work.deadline_s,
                    expected_s=work.expected_s,
                    p_long=work.p_long,
                    tenant=work.tenant,
                )
            )
        else:
            now, _, work, option, began = heapq.heappop(running)
            served.append(Served(work, began, now))
            if policy.learns:
                spent = Cost(server_seconds=work.service_s)
                policy.learn(Outcome(work.id, "ok", work.id, spent, state=State(began, (option,), work.id)))
        while waiting and len(running) < slots:
            request = {"running": len(running), "slots": slots}
            choice = policy.decide(State(now, waiting, "", request, prices or {})).choice
            assert choice is not None
            option = waiting.pop(choice)
            work = by_id.pop(option.action)
            if work.deadline_s is not None and work.deadline_s <= now:
                continue
            heapq.heappush(running, (now + work.service_s, len(served) + place, work, option, now))
    return served


def interrupt(works: Sequence[Work], policy: Any, slots: int = 1, resume_s: float = 0.0) -> list[Served]:
    """Run ``works`` in an engine that can interrupt: whenever one comes or ends, ``policy`` orders all that wait or
    run by what is left of their predictions, and the first ``slots`` run. Whoever was interrupted needs ``resume_s``
    more.
    """
    needs: dict[str, float] = {}
    had: dict[str, float] = {}
    began: dict[str, float] = {}
    there: dict[str, Work] = {}
    running: list[str] = []
    served: list[Served] = []
    place, n, now = 0, len(works), 0.0
    while place < n or there:
        step = min((needs[id] for id in running), default=float("inf"))
        if place < n:
            step = min(step, works[place].arrived_s - now)
        now += step
        for id in list(running):
            needs[id] -= step
            had[id] += step
            if needs[id] <= 1e-9:
                running.remove(id)
                served.append(Served(there.pop(id), began[id], now))
        while place < n and works[place].arrived_s <= now + 1e-12:
            work = works[place]
            place += 1
            there[work.id], needs[work.id], had[work.id] = work, work.service_s, 0.0
        if len(there) <= slots:
            chosen = list(there)
        else:
            jobs = [
                ticket(id, arrived_s=work.arrived_s, expected_s=work.expected_s, attained_s=had[id])
                for id, work in there.items()
            ]
            order = policy.order(State(now, jobs, "", {"running": len(running), "slots": slots}))
            chosen = [jobs[i].action for i in order[:slots]]
        for id in running:
            if id not in chosen:
                needs[id] += resume_s
        running = chosen
        for id in running:
            began.setdefault(id, now)
    return served


def shortest_remaining(works: Sequence[Work], slots: int = 1) -> list[Served]:
    """Shortest remaining processing time with true lengths and free interruption: with one slot the least
    possible mean latency of any order whatever (Schrage 1968).
    """
    left: list[tuple[float, int]] = []
    began: dict[int, float] = {}
    served: list[Served] = []
    place, n, now = 0, len(works), 0.0
    while place < n or left:
        if not left:
            now = max(now, works[place].arrived_s)
        while place < n and works[place].arrived_s <= now:
            heapq.heappush(left, (works[place].service_s, place))
            place += 1
        active = [heapq.heappop(left) for _ in range(min(slots, len(left)))]
        step = active[0][0]
        if place < n:
            step = min(step, works[place].arrived_s - now)
        for need_s, index in active:
            began.setdefault(index, now)
            if need_s - step <= 1e-12:
                served.append(Served(works[index], began[index], now + step))
            else:
                heapq.heappush(left, (need_s - step, index))
        now += step
    return served


def figures(served: Sequence[Served]) -> dict[str, float]:
    """The numbers that are compared."""
    waits = sorted(one.wait_s for one in served)
    found = {
        "mean_s": mean(one.latency_s for one in served),
        "median_s": median(one.latency_s for one in served),
        "max_wait_s": waits[-1],
        "p95_wait_s": waits[int(0.95 * (len(waits) - 1))],
        "normalised_s": mean(one.latency_s / one.work.tokens for one in served),
    }
    for kind in sorted({one.work.kind for one in served} - {""}):
        mine = [one for one in served if one.work.kind == kind]
        found[f"{kind}_median_s"] = median(one.latency_s for one in mine)
        found[f"{kind}_mean_s"] = mean(one.latency_s for one in mine)
        found[f"{kind}_max_wait_s"] = max(one.wait_s for one in mine)
    return found


def jain(amounts: Sequence[float]) -> float:
    """Jain's index: 1 when all have the same, 1/n when one has everything."""
    total = sum(amounts)
    squares = sum(amount * amount for amount in amounts)
    return total * total / (len(amounts) * squares) if squares else 1.0


def slowdown(served: Sequence[Served], tenant: str) -> float:
    """How many times longer than its service the tenant's work took, all together."""
    mine = [one for one in served if one.work.tenant == tenant]
    return sum(one.latency_s for one in mine) / sum(one.work.service_s for one in mine)


def concordance(truths: Sequence[float], scores: Sequence[float]) -> float:
    """Of all pairs with different true lengths, the share that the scores order rightly; equal scores count half."""
    right = total = 0.0
    for i, (truth, score) in enumerate(zip(truths, scores, strict=True)):
        for other, guess in zip(truths[i + 1 :], scores[i + 1 :], strict=True):
            if truth != other:
                total += 1.0
                right += 0.5 if score == guess else float((truth < other) == (score < guess))
    return right / total if total else 0.5
