"""The proxy in virtual time: what a scenario would have made of a trace."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apportion.core.features import Features
from apportion.measure.decision_log import Entry
from apportion.simulate.proxy.clock import Clock
from apportion.simulate.proxy.hosted import Hosted
from apportion.simulate.proxy.job import Job
from apportion.simulate.proxy.proxy import Proxy
from apportion.simulate.proxy.rows import Sink
from apportion.simulate.result import Result
from apportion.simulate.scenario import Event, Scenario
from apportion.simulate.trace import Labels, Trace


def run(
    scenario: Scenario,
    trace: Trace | Iterable[Trace],
    seed: int = 0,
    sink: Sink | None = None,
    *,
    log: Callable[[Entry], object] | None = None,
    prefix: str = "0000000000",
) -> Result:
    """Simulate ``scenario`` on ``trace`` (whole, or in pieces that follow each other).

    Every draw that belongs to a request depends on ``seed`` and its place in the trace alone, so that two scenarios
    with the same seed meet the same luck. ``sink`` is given blocks of columns in place of keeping them; ``log`` every
    decision, as the decision log has it, with ids that begin with ``dec_`` and ``prefix``. Memory grows with
    the requests under way, not with the trace.
    """
    pieces = iter((trace,) if isinstance(trace, Trace) else trace)
    first = next((piece for piece in pieces if len(piece)), None)
    begun = () if first is None else (first,)
    # Nothing is there, and draws power, before the first thing happens: a trace's times may be from any moment.
    starts = [*(float(piece.arrival_s[0]) for piece in begun), *(event.at_s for event in scenario.events)]
    clock = Clock(min(starts, default=0.0))
    proxy = Proxy(scenario, clock, seed, sink, log, prefix)
    for event in scenario.events:
        clock.at(event.at_s, _happens, (proxy, event))
    notes: list[str] = list(scenario.notes)
    arrivals = _arrivals(proxy, chain(begun, pieces), seed, notes)
    with _few_collections():
        _work(proxy, arrivals)
    proxy.settlements.flush()
    return _result(proxy, seed, notes)


def _work(proxy: Proxy, arrivals: Iterator[Job]) -> None:
    """Let everything happen in the order of time: machines first, then what is due, then who comes."""
    clock, fleet = proxy.clock, proxy.fleet
    job = next(arrivals, None)
    coming_s = math.inf if job is None else job.started_s
    due = clock.due
    while job is not None or proxy.running:
        # `clock.next_s`, without the call where the first timer still stands
        due_s = due[0][0] if due and due[0][2] is not None else clock.next_s
        next_s = due_s if due_s <= coming_s else coming_s
        if fleet.next_s <= next_s:
            fleet.step(next_s)
        elif due_s <= coming_s:
            clock.run()
        else:
            assert job is not None  # noqa: S101 - it comes next
            clock.now_s = coming_s
            proxy.enter(job)
            job = next(arrivals, None)
            coming_s = math.inf if job is None else job.started_s


@contextmanager
def _few_collections() -> Iterator[None]:
    """Nearly all that a request makes is freed by its last reference: looking for cycles is rarely worth it."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _happens(what: tuple[Proxy, Event]) -> None:
    """Something that happens to an endpoint."""
    proxy, event = what
    site, clock = proxy.sites[event.endpoint], proxy.clock
    if event.kind == "down":
        site.down(event.instance)
    elif event.kind == "notice":
        site.notice(event.instance)
        clock.at(clock.now_s + event.value, site.down, event.instance)
    elif event.kind == "up":
        site.up(event.instance, event.value)
    elif event.kind == "slow":
        site.slow(event.value, event.instance)
    elif event.kind == "error":
        site.error = int(event.value)
    else:
        wait_s = event.value
        if wait_s != wait_s:
            profile = site.config.profile
            wait_s = 0.0 if profile is None else profile.load_s
        site.start(None, wait_s)


def _arrivals(proxy: Proxy, pieces: Iterable[Trace], seed: int, notes: list[str]) -> Iterator[Job]:
    """The requests of a trace, as they come; each is made when it is looked at."""
    scenario = proxy.scenario
    groups = proxy.groups
    first_group, first_key = next(iter(groups.values())), scenario.keys[0]
    names = {key.name: key for key in reversed(scenario.keys)}
    names |= {key.tenant: key for key in reversed(scenario.keys)}
    names |= {key.team: key for key in reversed(scenario.keys) if key.team is not None}
    draws_of = _Draws(scenario, seed)
    strangers: set[str] = set()
    index = 0
    for piece in pieces:
        arrival = piece.arrival_s.tolist()
        prompts, outputs = piece.prompt_tokens.tolist(), piece.output_tokens.tolist()
        models = _each(piece.model, groups, first_group, strangers)
        keys = _each(piece.tenant, names, first_key, set())
        sessions, priorities, deadlines = map(_listed, (piece.session, piece.priority, piece.deadline_s))
        caps = _listed(piece.cap_tokens)
        draws = draws_of.next(len(piece))
        if piece.lexical is None:
            _unseen(proxy, notes)
        for row, arrival_s in enumerate(arrival):
            group = first_group if models is None else models[row]
            key = first_key if keys is None else keys[row]
            job = proxy.job(index, key, group)
            job.started_s = arrival_s
            job.takes(prompts[row], outputs[row])
            job.piece, job.row = piece, row
            if sessions is not None and sessions[row] >= 0:
                job.session = f"{key.tenant}/{sessions[row]}"
            if priorities is not None:
                job.priority = priorities[row]
            if deadlines is not None and deadlines[row] == deadlines[row]:
                job.until_s = arrival_s + deadlines[row]
            if piece.lexical is not None and group.reads:
                job.features = Features(tuple(piece.lexical[row].tolist()))
            job.cap_tokens = group.config.max_output_tokens
            if caps is not None and caps[row] > 0:
                job.cap_tokens = caps[row]
            if draws is not None:
                job.draws = draws[row]
            yield job
            index += 1
    if strangers:
        shown = ", ".join(sorted(strangers)[:5])
        notes.append(f"The trace's models {shown} are not the scenario's: {first_group.name} answered them.")


class _Draws:
    """Numbers drawn for each request by its place in the trace, however that is cut into pieces."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        kinds = [endpoint.profile.kind for endpoint in scenario.endpoints if endpoint.profile is not None]
        strategies = any(model.strategy is not None for model in scenario.models)
        self._wanted = "hosted" in kinds or strategies or scenario.cache is not None
        self._normal, self._uniform = (np.random.default_rng([seed, which]) for which in (0, 1))

    def next(self, n: int) -> list[list[float]] | None:
        """For each of the next ``n``: two standard normal numbers, two uniform ones; None where nobody needs them."""
        if not self._wanted:
            return None
        found: list[list[float]] = np.hstack(
            [self._normal.standard_normal((n, 2)), self._uniform.random((n, 2))]
        ).tolist()
        return found


def _listed(column: NDArray[Any] | None) -> list[Any] | None:
    return None if column is None else column.tolist()


def _each(
    labels: Labels | None, known: dict[str, Any], otherwise: Any, strangers: set[str]
) -> list[Any] | None:
    """What each row's label names."""
    if labels is None:
        return None
    found = [known.get(name, otherwise) for name in labels.names]
    strangers |= {name for name in labels.names if name not in known}
    return [found[code] if code >= 0 else otherwise for code in labels.codes.tolist()]


def _unseen(proxy: Proxy, notes: list[str]) -> None:
    """Say who decides without what the requests said."""
    for group in proxy.groups.values():
        for name in group.sees:
            note = f"{group.name}: {name} looks at what requests say, which this trace does not have."
            if note not in notes:
                notes.append(note)


def _result(proxy: Proxy, seed: int, notes: list[str]) -> Result:
    clock, machines = proxy.clock, proxy.fleet.machines
    there_s = [machine.there_s(clock.now_s) for machine in machines]
    for machine in machines:
        machine.engine.stop(clock.now_s)  # what is left in it nobody waits for
    unused = [machine.engine.unused_j(clock.now_s) for machine in machines]
    facts: dict[str, Any] = {
        "seed": seed,
        "horizon_s": clock.now_s,
        "in_system_s": proxy.in_system_s,
        "iterations": sum(machine.engine.iterations for machine in machines),
        "busy_s": [float(machine.engine.busy_s) for machine in machines],
        "there_s": [
            None if isinstance(m.engine, Hosted) else s for m, s in zip(machines, there_s, strict=True)
        ],
        "rented_usd": _rented_usd(proxy, there_s),
        "instances": {
            site.name: site.scaler.changes for site in proxy.sites.values() if site.scaler is not None
        },
        "idle_j": float(sum(joules for joules in unused if joules == joules)),
        "budgets": proxy.accounts.summary(proxy.now),
        "shadow_prices": proxy.accounts.shadow_prices(proxy.now),
        "events": [
            {"at_s": e.at_s, "endpoint": e.endpoint, "kind": e.kind, "value": e.value, "instance": e.instance}
            for e in proxy.scenario.events
        ],
        "not_answered": dict(sorted(proxy.ended.items())),
        "notes": notes,
    }
    if proxy.answers is not None:
        facts["cache"] = proxy.answers.summary()
    return Result(proxy.rows.columns(), dict(proxy.names()), facts, proxy.scenario.name)


def _rented_usd(proxy: Proxy, there_s: list[float]) -> float:
    """What the machines that are paid for by the hour cost while they were there, busy or not; nan where none is."""
    prices = {
        route.site.name: route.machine.usd_per_s / route.site.config.instances
        for group in proxy.groups.values()
        for route in group.routes
        if route.machine is not None
    }
    paid = [
        seconds * prices[machine.site.name]
        for machine, seconds in zip(proxy.fleet.machines, there_s, strict=True)
        if machine.site.name in prices
    ]
    return sum(paid) if paid else math.nan
