"""Several configurations on the same work, side by side, with the best possible: what ``apportion compare`` runs."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from apportion.simulate import paired, pool
from apportion.simulate.best import Best, best_possible
from apportion.simulate.metrics import METRICS, Digest, Digester, Objective
from apportion.simulate.paired import Difference, Estimate, Run
from apportion.simulate.result import Result, Sink, sink
from apportion.simulate.scenario import Endpoint, Scenario
from apportion.simulate.trace import Trace
from apportion.simulate.whatif import AS_IS, WhatIf

KEPT: Final = 2_000_000
"""Requests of a run that is kept whole, for exact quantiles; of a longer one they are sketched."""
_LITTLE: Final = 1e-3
"""Relative error of Little's law from which on something is wrong with a run."""
_REASONS: Final = 5
"""Why requests were not answered: so many are shown."""
BAD_FIT: Final = 0.15
"""Error of a profile on what was held out, from which on it must be said."""
RUNNER: Final = "apportion.simulate.gateway:run"


@dataclass(frozen=True, slots=True)
class Case:
    """One configuration under its name."""

    name: str
    scenario: Scenario


class Job(NamedTuple):
    """One run: of which case, under which what-if, with which seed and which draw of the profiles (0: as fitted)."""

    case: int
    what_if: int
    seed: int
    draw: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What all runs share. ``runner`` names the function that simulates, as ``module:name``; ``out`` is a folder for
    the rows of every run, written as ``form`` (parquet, csv).
    """

    cases: tuple[Case, ...]
    trace: Trace
    what_ifs: tuple[WhatIf, ...] = (AS_IS,)
    seeds: tuple[int, ...] = (0,)
    draws: int = 0
    objective: Objective = field(default_factory=Objective)
    out: Path | None = None
    form: str = "parquet"
    runner: str = RUNNER
    kept: int = KEPT

    def jobs(self) -> list[Job]:
        """Every case under every what-if: with every seed as fitted, and the first seed with every draw. In an order
        in which an interruption leaves whole comparisons.
        """
        pairs = [(seed, 0) for seed in self.seeds] + [(self.seeds[0], draw + 1) for draw in range(self.draws)]
        return [
            Job(case, what_if, seed, draw)
            for seed, draw in pairs
            for what_if in range(len(self.what_ifs))
            for case in range(len(self.cases))
        ]

    def named(self, job: Job) -> str:
        """What a run is called in messages."""
        what_if = self.what_ifs[job.what_if]
        told = "" if what_if is AS_IS or not what_if.changes else f", what if {what_if.text}"
        draw = f", draw {job.draw} of the profiles" if job.draw else ""
        return f"{self.cases[job.case].name}{told}, seed {job.seed}{draw}"

    def file(self, job: Job) -> Path | None:
        """Where the rows of a run are written."""
        if self.out is None:
            return None
        parts = [self.cases[job.case].name, f"seed{job.seed}"]
        if self.what_ifs[job.what_if].changes:
            parts.insert(1, self.what_ifs[job.what_if].text)
        if job.draw:
            parts.append(f"draw{job.draw}")
        name = "-".join("".join(c if c.isalnum() or c in "._" else "_" for c in part) for part in parts)
        return self.out / f"{name}.{self.form}"


@dataclass(slots=True)
class Outcome:
    """One case under one what-if: its runs, and over them each metric with its interval. ``tests`` are against the
    baseline (none for the baseline itself).
    """

    case: str
    what_if: str
    runs: list[Run]
    estimates: dict[str, Estimate] = field(default_factory=dict)
    tests: list[Difference] = field(default_factory=list)

    @property
    def digest(self) -> Digest:
        """The first run's: what is drawn."""
        return self.runs[0].digest

    def value(self, metric: str) -> float:
        """One number: the mean over the seeds, as fitted; nan where it is not known."""
        values = [run.digest.total[metric] for run in self.runs if run.draw == 0]
        return float(np.mean(values)) if values else math.nan


@dataclass(slots=True)
class Comparison:
    """Everything side by side: ``outcomes`` by what-if, the baseline first; ``best`` by what-if."""

    plan: Plan
    outcomes: dict[str, list[Outcome]]
    best: dict[str, Best]
    level: float
    interrupted: int = 0
    """Runs that were not made any more."""
    notes: list[str] = field(default_factory=list)


def simulate(plan: Plan, job: Job) -> Digest:
    """One run, digested."""
    scenario, trace = plan.what_ifs[job.what_if].apply(plan.cases[job.case].scenario, plan.trace)
    if job.draw:
        scenario = drawn(scenario, job.draw - 1)
    start, end = (float(trace.arrival_s[0]), float(trace.arrival_s[-1])) if len(trace) else (0.0, 0.0)
    digester = Digester(len(trace), start, end + 0.05 * (end - start), plan.objective)
    run = _function(plan.runner)
    path = plan.file(job)
    if len(trace) <= plan.kept:
        result: Result = run(scenario, trace, job.seed)
        result.name = plan.named(job)
        _told(scenario, result.facts)
        if path is not None:
            result.save(path)
        digester.add(result.columns)
        columns = result.columns
        return digester.finish(name=result.name, names=result.names, facts=result.facts, columns=columns)
    if path is None:
        result = run(scenario, trace, job.seed, digester)
    else:
        with sink(path) as file:
            result = run(scenario, trace, job.seed, _Both(digester, file))
            file.close(names=result.names, facts=result.facts, name=plan.named(job))
    _told(scenario, result.facts)
    return digester.finish(name=plan.named(job), names=result.names, facts=result.facts)


def _told(scenario: Scenario, facts: dict[str, Any]) -> None:
    """What a run's facts lack: of every budget how long its amount lasts, so that it can be drawn how it burns down
    (None: for ever); and that energy is unknown where there is a machine of which nobody knows what it draws, even if
    it had nothing to do.
    """
    if any(_draws_unknown_power(endpoint) for endpoint in scenario.endpoints):
        facts["idle_j"] = math.nan
    known = {budget.name: budget for budget in scenario.budgets}
    for name, told in facts.get("budgets", {}).items():
        budget = known.get(name.rpartition("@")[0] or name)
        if (
            budget is not None
            and budget.refill_per_s is None
            and not budget.sliding
            and budget.calendar is None
        ):
            told["window_s"] = budget.window_s


def _draws_unknown_power(endpoint: Endpoint) -> bool:
    profile = endpoint.profile
    return (
        profile is not None
        and profile.kind == "batch"
        and profile.prefill_w is None
        and endpoint.watts is None
    )


def drawn(scenario: Scenario, draw: int) -> Scenario:
    """The scenario with other constants in its profiles, which explain what was measured as well."""
    endpoints = tuple(
        endpoint if endpoint.profile is None else replace(endpoint, profile=endpoint.profile.drawn(draw))
        for endpoint in scenario.endpoints
    )
    return replace(scenario, endpoints=endpoints)


def bad_fits(scenario: Scenario) -> list[str]:
    """What is to be said of profiles that did not foretell what was measured."""
    profiles = {e.profile.name: e.profile for e in scenario.endpoints if e.profile is not None}
    return [
        f"profile {name} is off by {worst:.0%} on measurements that were held out ({quantity}): what is told of its "
        "endpoints is no better. Calibrate again on an idle machine, for longer."
        for name, profile in profiles.items()
        for quantity, worst in [max(profile.error.items(), key=lambda each: each[1], default=("", 0.0))]
        if worst > BAD_FIT
    ]


def has_draws(scenario: Scenario) -> bool:
    """Whether any profile says how uncertain it is."""
    return any(endpoint.profile is not None and endpoint.profile.draws for endpoint in scenario.endpoints)


def compare(
    plan: Plan,
    *,
    engine: pool.Engine = "processes",
    workers: int | None = None,
    level: float = 0.95,
    told: Callable[[int, int, str], None] = lambda done, of, name: None,
) -> Comparison:
    """Run the plan and compare each case with the first. ``told`` hears how many runs are done, of how many, and which
    one was the last. An interrupt ends the runs; what is complete by then is compared. Where nothing
    depends on the seed, the others would only say the same again: the first is all that is run, and a note says so.

    Raises `pool.RunError` naming the run that failed.
    """
    for what_if in plan.what_ifs:
        for case in plan.cases:
            what_if.apply(case.scenario, plan.trace.take(slice(0, 0)))
    if plan.out is not None:
        plan.out.mkdir(parents=True, exist_ok=True)
    single = replace(plan, seeds=plan.seeds[:1])
    made: dict[Job, Digest] = {}

    def work(part: Plan) -> None:
        jobs = [job for job in part.jobs() if job not in made]
        source = pool.run(simulate, plan, jobs, engine=engine, workers=workers, named=plan.named)
        of = len(made) + len(jobs)
        told(len(made), of, "")
        with closing(source):
            for place, digest in source:
                made[jobs[place]] = digest
                told(len(made), of, plan.named(jobs[place]))

    notes: list[str] = []
    try:
        if len(plan.seeds) > 1 and not _draws_for_requests(plan):
            work(single)
            if not any(digest.total["retries"] for digest in made.values()):
                notes.append(
                    f"Nothing here depends on the run's seed (a policy that tosses coins has its own): one run stands "
                    f"for all {len(plan.seeds)}."
                )
                plan = single
        work(plan)
    except KeyboardInterrupt:
        if not _complete(plan, made):
            raise
    compared = _compared(plan, made, level, len(plan.jobs()) - len(made))
    compared.notes[:0] = notes
    return compared


def _draws_for_requests(plan: Plan) -> bool:
    """Whether requests meet luck from the beginning (of somebody else's machines, of a strategy, of what a cache
    finds); besides these only the pause before another try is drawn. Of another simulator nothing is known.
    """
    return plan.runner != RUNNER or any(
        case.scenario.cache is not None
        or any(model.strategy is not None for model in case.scenario.models)
        or any(e.profile is not None and e.profile.kind == "hosted" for e in case.scenario.endpoints)
        for case in plan.cases
    )


def _compared(plan: Plan, made: Mapping[Job, Digest], level: float, missing: int) -> Comparison:
    kept = _complete(plan, made)
    outcomes: dict[str, list[Outcome]] = {}
    best: dict[str, Best] = {}
    notes = dict.fromkeys(note for case in plan.cases for note in bad_fits(case.scenario))
    for number, what_if in enumerate(plan.what_ifs):
        of = []
        for place, case in enumerate(plan.cases):
            runs = [Run(seed, draw, made[Job(place, number, seed, draw)]) for seed, draw in kept]
            notes |= {
                f"{case.name}: {note}": None for run in runs for note in run.digest.facts.get("notes", ())
            }
            outcome = Outcome(case.name, what_if.text, runs)
            known = [metric for metric in paired.COMPARED if all(_known(run, metric) for run in runs)]
            outcome.estimates = paired.estimates(runs, known, level=level)
            of.append(outcome)
            notes |= dict.fromkeys(
                _warnings(outcome, "" if what_if is AS_IS else f", what if {what_if.text}")
            )
        outcomes[what_if.text] = of
        notes |= dict.fromkeys(_tested(of, level, "" if what_if is AS_IS else f", what if {what_if.text}"))
        scenario, trace = what_if.apply(plan.cases[0].scenario, plan.trace)
        best[what_if.text] = best_possible(scenario, trace, plan.objective, of[0].digest.total)
    return Comparison(plan, outcomes, best, level, missing, [*notes])


def _tested(outcomes: list[Outcome], level: float, told: str) -> list[str]:
    """Each case against the first, corrected for all tests that stand in one table; and for whom that is in vain."""
    first = outcomes[0].runs
    tests = [
        (other, test) for other in outcomes[1:] for test in paired.differences(first, other.runs, level=level)
    ]
    for (other, _), test in zip(
        tests, paired.corrected([test for _, test in tests], level=level), strict=True
    ):
        other.tests.append(test)
    return [
        f"{other.case}{told}: no difference can be significant: the trace has too few independent parts for "
        f"{len(tests)} tests. A longer trace or fewer configurations at once would tell."
        for other in outcomes[1:]
        if len(tests) * paired.least_p(first, other.runs) >= 1.0 - level
    ]


def _warnings(outcome: Outcome, told: str) -> list[str]:
    """What must be known to read the numbers of a case rightly."""
    found = []
    reasons = outcome.digest.facts.get("not_answered") or {}
    if reasons:
        shown = sorted(reasons.items(), key=lambda each: -each[1])[:_REASONS]
        more = f", {len(reasons) - _REASONS} more reasons" if len(reasons) > _REASONS else ""
        told_of = ", ".join(f"{why}: {count:,}" for why, count in shown)
        found.append(f"{outcome.case}{told}, why requests got no answer: {told_of}{more}.")
    answered = outcome.value("answered_share")
    if answered < 1.0:
        found.append(
            f"{outcome.case}{told} answered {100.0 * answered:.1f} % of the requests: its times and costs are of "
            "these, and may be better than the best possible for all."
        )
    worst = max((run.digest.little for run in outcome.runs), key=lambda little: little.error)
    if worst.error > _LITTLE:
        found.append(
            f"{outcome.case}{told}: Little's law is off by {100.0 * worst.error:.1f} %: {worst.in_system:.4g} requests "
            f"in the system on average, where rate times time is {worst.rate_per_s * worst.mean_s:.4g}."
        )
    return found


def _complete(plan: Plan, made: Mapping[Job, Digest]) -> list[tuple[int, int]]:
    """The seeds and draws of which every case has been run under every what-if."""
    every = [(case, what_if) for case in range(len(plan.cases)) for what_if in range(len(plan.what_ifs))]
    pairs = dict.fromkeys((job.seed, job.draw) for job in plan.jobs())
    return [pair for pair in pairs if all(Job(*each, *pair) in made for each in every)]


def _known(run: Run, metric: str) -> bool:
    return math.isfinite(run.digest.total[metric])


class _Both:
    """Two sinks in one."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def add(self, columns: dict[str, Any]) -> None:
        """To both."""
        for each in self._sinks:
            each.add(columns)


def _function(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def shown_metrics(outcomes: Sequence[Outcome]) -> list[str]:
    """The metrics worth a row: known of some case, and not zero of all where zero is what is expected."""
    quiet = {"refused", "failed", "timeout", "cut", "retries", "preempted", "hit_share", "cached_share"}
    found = []
    for metric in METRICS:
        values = [outcome.value(metric) for outcome in outcomes]
        if all(math.isnan(value) for value in values):
            continue
        if metric in quiet and not any(values):
            continue
        found.append(metric)
    return found
