"""Queueing stations: c servers and an order, as a part on the event core and as a fast loop; and what theory says."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import inf
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apportion.core.errors import ApportionError
from apportion.simulate.engine._compiled import njit
from apportion.simulate.events import Clock, Event
from apportion.simulate.result import OK, Result

Floats = NDArray[np.float64]
Order = Literal["fcfs", "srpt", "ps"]
ORDERS: Final = ("fcfs", "srpt", "ps")


class StationError(ApportionError):
    """A station, or a check of one, was given what cannot be."""

    code = "station"


class Station:
    """``servers`` equal servers on ``clock``: first come first served; shortest remaining work first, interrupting; or
    processor sharing (with n jobs each gets min(1, servers / n) of a server). ``done(job)`` is called when a job ends.
    """

    def __init__(
        self, clock: Clock, done: Callable[[Any], object], *, servers: int = 1, order: Order = "fcfs"
    ) -> None:
        _check(servers, order)
        self.clock, self.done, self.servers, self.order = clock, done, servers, order
        self._jobs: list[tuple[float, int, Any]] = []
        """Heap of (key, number, job): arrival number, remaining work, or the shared work at which it ends."""
        self._serving: list[list[Any]] = []
        """[event, number, job, work left at the last change, since] of each busy server; not for ``ps``."""
        self._number = 0
        self._shared_s = 0.0
        self._since_s = clock.now
        self._next: Event | None = None

    def __len__(self) -> int:
        return len(self._jobs) + len(self._serving)

    def submit(self, job: Any, work_s: float) -> None:
        """A job that needs ``work_s`` seconds of one server arrives now."""
        self._number += 1
        if self.order == "ps":
            self._share()
            heapq.heappush(self._jobs, (self._shared_s + work_s, self._number, job))
            self._plan()
        elif len(self._serving) < self.servers:
            self._serve(self._number, job, work_s)
        elif self.order == "fcfs":
            heapq.heappush(self._jobs, (float(self._number), self._number, (job, work_s)))
        else:
            self._interrupt(self._number, job, work_s)

    def _serve(self, number: int, job: Any, work_s: float) -> None:
        served = [None, number, job, work_s, self.clock.now]
        served[0] = self.clock.after(work_s, self._end, served)
        self._serving.append(served)

    def _end(self, served: list[Any]) -> None:
        self._serving.remove(served)
        if self._jobs:
            key, number, job = heapq.heappop(self._jobs)
            if self.order == "fcfs":
                self._serve(number, *job)
            else:
                self._serve(number, job, key)
        self.done(served[2])

    def _interrupt(self, number: int, job: Any, work_s: float) -> None:
        now = self.clock.now
        longest = max(self._serving, key=lambda served: (served[3] - (now - served[4]), served[1]))
        left_s = longest[3] - (now - longest[4])
        if work_s >= left_s:
            heapq.heappush(self._jobs, (work_s, number, job))
            return
        self.clock.cancel(longest[0])
        self._serving.remove(longest)
        heapq.heappush(self._jobs, (left_s, longest[1], longest[2]))
        self._serve(number, job, work_s)

    def _share(self) -> None:
        n = len(self._jobs)
        if n:
            self._shared_s += (self.clock.now - self._since_s) * min(1.0, self.servers / n)
        self._since_s = self.clock.now

    def _plan(self) -> None:
        if self._next is not None:
            self.clock.cancel(self._next)
            self._next = None
        if self._jobs:
            rate = min(1.0, self.servers / len(self._jobs))
            left_s = max(0.0, self._jobs[0][0] - self._shared_s)
            self._next = self.clock.after(left_s / rate, self._end_shared)

    def _end_shared(self) -> None:
        self._share()
        self._shared_s = max(self._shared_s, self._jobs[0][0])
        job = heapq.heappop(self._jobs)[2]
        self._plan()
        self.done(job)


def departures(arrival_s: Floats, work_s: Floats, *, servers: int = 1, order: Order = "fcfs") -> Floats:
    """When each job leaves such a station: the same, compiled. Arrivals in order, shape n."""
    _check(servers, order)
    arrival_s, work_s = np.ascontiguousarray(arrival_s, np.float64), np.ascontiguousarray(work_s, np.float64)
    if order == "fcfs":
        return np.asarray(_fcfs(arrival_s, work_s, servers))
    if order == "srpt":
        return np.asarray(_srpt(arrival_s, work_s, servers))
    return np.asarray(_ps(arrival_s, work_s, servers))


def _check(servers: int, order: str) -> None:
    if servers < 1:
        raise StationError(f"A station has {servers} servers.", field="servers", fix="Give one or more.")
    if order not in ORDERS:
        raise StationError(f"'{order}' is no order.", field="order", fix=f"One of: {', '.join(ORDERS)}.")


@njit
def _fcfs(arrival_s: Floats, work_s: Floats, servers: int) -> Floats:
    free = np.zeros(servers)
    out = np.empty(len(arrival_s))
    for j in range(len(arrival_s)):
        first = 0
        for c in range(1, servers):
            if free[c] < free[first]:
                first = c
        out[j] = max(arrival_s[j], free[first]) + work_s[j]
        free[first] = out[j]
    return out


@njit
def _srpt(arrival_s: Floats, work_s: Floats, servers: int) -> Floats:
    n = len(arrival_s)
    out = np.empty(n)
    busy_end, busy_job = np.full(servers, np.inf), np.full(servers, -1, np.int64)
    waiting = [(0.0, np.int64(0))]
    waiting.pop()
    j = 0
    while True:
        first = 0
        for c in range(1, servers):
            if busy_end[c] < busy_end[first]:
                first = c
        if j < n and arrival_s[j] < busy_end[first]:
            now, left, job = arrival_s[j], work_s[j], np.int64(j)
            j += 1
            worst = 0
            for c in range(1, servers):
                if busy_end[c] > busy_end[worst]:
                    worst = c
            if busy_job[worst] < 0:
                busy_end[worst], busy_job[worst] = now + left, job
            elif now + left < busy_end[worst]:
                heapq.heappush(waiting, (busy_end[worst] - now, busy_job[worst]))
                busy_end[worst], busy_job[worst] = now + left, job
            else:
                heapq.heappush(waiting, (left, job))
        elif busy_job[first] >= 0:
            out[busy_job[first]] = busy_end[first]
            if len(waiting) > 0:
                left, job = heapq.heappop(waiting)
                busy_end[first], busy_job[first] = busy_end[first] + left, job
            else:
                busy_end[first], busy_job[first] = np.inf, -1
        else:
            return out


@njit
def _ps(arrival_s: Floats, work_s: Floats, servers: int) -> Floats:
    n = len(arrival_s)
    out = np.empty(n)
    jobs = [(0.0, np.int64(0))]
    jobs.pop()
    now, shared, j = 0.0, 0.0, 0
    while j < n or len(jobs) > 0:
        rate = min(1.0, servers / len(jobs)) if len(jobs) > 0 else 1.0
        end = now + (jobs[0][0] - shared) / rate if len(jobs) > 0 else np.inf
        if j < n and arrival_s[j] < end:
            if len(jobs) > 0:
                shared += (arrival_s[j] - now) * rate
            now = arrival_s[j]
            heapq.heappush(jobs, (shared + work_s[j], np.int64(j)))
            j += 1
        else:
            now, shared = end, jobs[0][0]
            out[heapq.heappop(jobs)[1]] = now
    return out


def erlang_b(servers: int, load: float) -> float:
    """The share of arrivals that find all ``servers`` taken and are lost; ``load`` is rate times service (Erlang)."""
    blocked = 1.0
    for c in range(1, servers + 1):
        blocked = load * blocked / (c + load * blocked)
    return blocked


def erlang_c(servers: int, load: float) -> float:
    """The share of arrivals that must wait at M/M/c; ``load`` is rate times service, below ``servers``."""
    _stable(load / servers)
    blocked = erlang_b(servers, load)
    return servers * blocked / (servers - load * (1.0 - blocked))


def mmc_wait_s(rate: float, service_s: float, servers: int = 1) -> float:
    """Mean wait at M/M/c, first come first served."""
    return erlang_c(servers, rate * service_s) * service_s / (servers - rate * service_s)


def mg1_wait_s(rate: float, service_s: float, service_s2: float) -> float:
    """Mean wait at M/G/1, first come first served (Pollaczek-Khinchine); ``service_s2`` is the second moment, s^2."""
    _stable(rate * service_s)
    return rate * service_s2 / (2.0 * (1.0 - rate * service_s))


def mg1_ps_sojourn_s(rate: float, service_s: float) -> float:
    """Mean time in the system at M/G/1 with processor sharing: the form of the service times does not matter."""
    _stable(rate * service_s)
    return service_s / (1.0 - rate * service_s)


def mg1_srpt_sojourn_s(
    rate: float, tail: Callable[[Floats], Floats], longest_s: float, points: int = 200_001
) -> float:
    """Mean time in the system at M/G/1, shortest remaining work first (Schrage and Miller 1966).

    ``tail(x)`` is the chance of a service longer than x, a continuous function that is (almost) 0 at ``longest_s``;
    the integrals are sums over ``points``.

        T(x) = rate * int_0^x t tail(t) dt / (1 - rho(x))^2 + int_0^x dt / (1 - rho(t)),
        rho(x) = rate * int_0^x t dF(t)
    """
    x = np.linspace(0.0, longest_s, points)
    dx = x[1]
    survive = np.asarray(tail(x))

    def upto(y: Floats) -> Floats:
        return np.concatenate(([0.0], np.cumsum(0.5 * (y[1:] + y[:-1])) * dx))

    rho = rate * (upto(survive) - x * survive)
    _stable(float(rho[-1]))
    response = rate * upto(x * survive) / (1.0 - rho) ** 2 + upto(1.0 / (1.0 - rho))
    return float(-(0.5 * (response[1:] + response[:-1]) * np.diff(survive)).sum())


def _stable(load: float) -> None:
    if not 0.0 <= load < 1.0:
        raise StationError(
            f"The load is {load:.3g} of the capacity: the queue grows without end.",
            field="rate",
            fix="Give a load below 1.",
        )


class Little(NamedTuple):
    """Means of a run: requests in the system, arrivals a second, seconds in the system."""

    requests: float
    rate: float
    sojourn_s: float


def little(result: Result) -> Little:
    """Check a run against Little's law, requests = rate * sojourn, with the requests counted moment by moment.

    Raises `StationError` where the counts do not agree, or a request's times are out of order.
    """
    ok = result["status"] == OK
    arrival_s, finish_s = result["arrival_s"][ok], result["finish_s"][ok]
    first_s = result["first_token_s"][ok]
    known = ~np.isnan(first_s)
    if not (np.isfinite(arrival_s).all() and np.isfinite(finish_s).all() and (arrival_s <= finish_s).all()):
        raise StationError(
            "A request ended before it arrived, or never.", field="finish_s", fix="Report a bug."
        )
    if (first_s < arrival_s)[known].any() or (first_s > finish_s)[known].any():
        raise StationError(
            "A first token is not between arrival and end.", field="first_token_s", fix="Report a bug."
        )
    if not len(arrival_s):
        return Little(0.0, 0.0, 0.0)
    times = np.concatenate((arrival_s, finish_s))
    order = np.argsort(times, kind="stable")
    inside = np.cumsum(np.repeat([1, -1], len(arrival_s))[order])
    span_s = times[order[-1]] - times[order[0]]
    if span_s <= 0.0:
        return Little(0.0, inf, 0.0)
    requests = float((inside[:-1] * np.diff(times[order])).sum() / span_s)
    rate, sojourn_s = len(arrival_s) / span_s, float((finish_s - arrival_s).mean())
    if inside.min() < 0 or inside[-1] != 0 or abs(requests - rate * sojourn_s) > 1e-6 * max(requests, 1e-9):
        raise StationError(
            f"{requests} requests on average, but {rate} a second for {sojourn_s} s.",
            field="finish_s",
            fix="Report a bug.",
        )
    return Little(requests, rate, sojourn_s)
