"""From a decision log and a policy to what that policy would have brought: quality, value, cost, with intervals.

A policy that learns is either frozen (as it was built, or after learning from the first part of the log; then every
estimator holds on the rest) or replayed (it learns as it goes; then only the rows that it would have caused itself may
count, `off_policy.acceptance`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from apportion.core.errors import ApportionError
from apportion.core.policy import Policy
from apportion.core.state import State
from apportion.measure import off_policy
from apportion.measure.decision_log import Entry, Row
from apportion.measure.off_policy import Array, Indices, Interval, Terms

MEASURES: Final = ("quality", "value_usd", "cost_usd", "net_usd")
"""How good the answers were, what that was worth, what they cost, and what was left."""
ESTIMATORS: Final = ("doubly robust", "self-normalised", "inverse propensity", "direct")
"""The one to believe first."""
_LOGGED: Final = "as logged"
_AGAINST: Final = "difference"
_FEW: Final = 50
"""Effective rows below which an estimate is not to be relied upon."""
_MANY: Final = 50_000
"""Rows from which on the bootstrap tells nothing that the normal interval does not."""
_LEXICAL: Final = 32
_DRAWS: Final = 16
"""Times that a policy which draws at random is asked about a row."""


class EvaluationError(ApportionError):
    """The log does not have what the evaluation needs."""

    code = "evaluation"


@dataclass(frozen=True, slots=True)
class Estimate:
    """One number with its interval."""

    mean: float
    interval: Interval


@dataclass(slots=True)
class Report:
    """What a policy would have brought. ``estimates`` are by measure, then by estimator; ``logged`` is what the policy
    that wrote the log brought; ``against`` is the difference to the policy it was compared with, by measure.
    """

    rows: int
    labelled: int
    effective: float
    agreement: float
    method: str
    estimates: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    logged: dict[str, Estimate] = field(default_factory=dict)
    against: dict[str, Estimate] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class Logged:
    """The rows of one model as arrays. Rows without a choice or without a known probability are left out and counted.

    ``actions`` are all that were ever offered, with their places; ``chosen`` is the place of each row's;
    ``features`` are what the outcome model sees of a row with an action: ``(n, k, d)``.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        usable = [
            row for row in rows if row.entry.choice is not None and (row.entry.probability or 0.0) > 0.0
        ]
        self.left_out = len(rows) - len(usable)
        self.rows = usable
        names = dict.fromkeys(o.action for row in usable for o in row.entry.options)
        self.actions = {name: index for index, name in enumerate(names)}
        entries = [row.entry for row in usable]
        self.chosen: Indices = np.array([self.actions[e.action or ""] for e in entries], dtype=np.int64)
        self.propensities: Array = np.array([e.probability or 0.0 for e in entries], dtype=np.float64)
        self.features = _features(entries, self.actions)
        self.failed: NDArray[np.bool_] = np.array([e.status != "ok" for e in entries], dtype=bool)

    def __len__(self) -> int:
        return len(self.rows)

    def states(self) -> list[State]:
        """What the policy is asked about each row."""
        return [row.entry.state() for row in self.rows]

    def rewards(self, measure: str) -> Array:
        """One number a row; not a number where it is not known."""
        return np.array([_reward(measure, row) for row in self.rows], dtype=np.float64)

    def label_rates(self, known: NDArray[np.bool_]) -> Array:
        """For each row the share of rows like it (same action, failed or not) whose reward is known."""
        rates: Array = np.ones(len(self))
        for action in range(len(self.actions)):
            for failed in (False, True):
                like = (self.chosen == action) & (self.failed == failed)
                if like.any():
                    rates[like] = known[like].mean()
        return rates


def target_of(policy: Policy, logged: Logged, *, draws: int = _DRAWS) -> Array:
    """The probabilities with which ``policy``, as it is, chooses each action in each row: ``(n, k)``.

    A certain choice is asked for once. One drawn at random is drawn ``draws`` times: the share of the draws has the
    right mean, and so has every estimate made with it.
    """
    target: Array = np.zeros((len(logged), len(logged.actions)))
    for index, state in enumerate(logged.states()):
        decision = policy.decide(state)
        times = 1 if decision.probability == 1.0 or decision.choice is None else draws
        for number in range(times):
            if number:
                decision = policy.decide(state)
            if decision.action is not None:
                target[index, logged.actions[decision.action]] += 1.0 / times
    return target


def evaluate(
    rows: Sequence[Row],
    policy: Policy,
    *,
    against: Policy | None = None,
    learn_from: float = 0.0,
    level: float = 0.95,
    most_weight: float | None = None,
    seed: int = 0,
) -> Report:
    """Estimates for a frozen policy, by every estimator.

    ``learn_from`` is the share of the log, from its beginning, that the policies learn from first; the rest is for the
    estimates. Raises `EvaluationError` if nothing can be estimated.
    """
    split = int(len(rows) * learn_from)
    for each in (policy, against):
        if each is not None:
            for row in rows[:split]:
                each.learn(row.entry.outcome(row.quality, row.entry.state()))
    logged = _usable(rows[split:])
    target = target_of(policy, logged)
    base = None if against is None else target_of(against, logged)
    weights = off_policy.importance(target, logged.chosen, logged.propensities, most=most_weight)
    report = Report(
        len(logged),
        0,
        off_policy.effective_sample_size(weights),
        float(target[np.arange(len(logged)), logged.chosen].mean()),
        "frozen" if not split else f"frozen after learning from {split} rows",
    )
    found: dict[tuple[str, str], Terms] = {}
    for measure in MEASURES:
        rewards = logged.rewards(measure)
        known = ~np.isnan(rewards)
        if known.any():
            terms = _estimates(logged, rewards, target, base, most_weight, seed)
            found |= {(measure, name): each for name, each in terms.items()}
        if measure == "quality":
            report.labelled = int(known.sum())
            report.effective = off_policy.effective_sample_size(weights * known)
    for (measure, name), estimate in _with_intervals(found, level, seed).items():
        if name == _LOGGED:
            report.logged[measure] = estimate
        elif name == _AGAINST:
            report.against[measure] = estimate
        else:
            report.estimates.setdefault(measure, {})[name] = estimate
    if not report.estimates:
        raise EvaluationError(
            "The log holds neither costs nor feedback for this model.",
            field="LOG",
            fix="Configure `feedback`, or POST it to /v1/feedback.",
        )
    report.warnings = _warnings(logged, target, weights, report)
    return report


def replay(rows: Sequence[Row], policy: Policy, *, level: float = 0.95, seed: int = 0) -> Report:
    """What ``policy`` would have brought, had it learned as it went: rows that it would not have caused are not used.

    The history it learns from is as long as the number of rows used, so this says what it brings in its beginnings.
    """
    logged = _usable(rows)
    draws = np.random.default_rng(seed).random(len(logged))
    kept = off_policy.acceptance(logged.propensities, draws)
    matched = np.zeros(len(logged), dtype=bool)
    used: list[int] = []
    for index, row in enumerate(logged.rows):
        state = row.entry.state()
        decision = policy.decide(state)
        matched[index] = decision.action == row.entry.action
        if matched[index] and kept[index]:
            used.append(index)
            policy.learn(row.entry.outcome(row.quality, state))
    report = Report(len(used), 0, float(len(used)), float(matched.mean()), "replayed, learning as it goes")
    of_used = np.zeros(len(logged))
    of_used[used] = 1.0
    found: dict[tuple[str, str], Terms] = {}
    for measure in MEASURES:
        rewards = logged.rewards(measure)
        known = ~np.isnan(rewards)
        if measure == "quality":
            report.labelled = int(known[used].sum())
        if known.any():
            found[measure, _LOGGED] = _labelled(logged, rewards, np.ones(len(logged)))
        if known[used].any():
            found[measure, "replay"] = _labelled(logged, rewards, of_used)
    for (measure, name), estimate in _with_intervals(found, level, seed).items():
        if name == _LOGGED:
            report.logged[measure] = estimate
        else:
            report.estimates[measure] = {name: estimate}
    if len(used) < _FEW:
        report.warnings.append(
            f"Only {len(used)} of {len(logged)} rows were decided as this policy would have decided: too few."
        )
    certain = float((logged.propensities == 1.0).mean())
    if certain == 1.0:
        report.warnings.append(_CERTAIN)
    return report


_CERTAIN: Final = (
    "Every logged choice was certain: nothing was ever tried besides, and only `direct` says something about other "
    "choices. Let a share of the traffic be drawn at random (route/random, route/thompson, a roll-out in percent)."
)


def _usable(rows: Sequence[Row]) -> Logged:
    logged = Logged(rows)
    if len(logged) < 2:
        raise EvaluationError(
            f"The log has {len(logged)} decisions with a known probability; at least two are needed.",
            field="LOG",
            fix="Choose a policy that says with what probability it chooses, or another --model.",
        )
    return logged


def _estimates(
    logged: Logged,
    rewards: Array,
    target: Array,
    base: Array | None,
    most_weight: float | None,
    seed: int,
) -> dict[str, Terms]:
    """The terms of every estimator, those of what was logged, and those of the paired difference to another policy.

    That a reward is known at all has a probability, too, which multiplies the choice's; a row without one weighs 0.
    """
    known = ~np.isnan(rewards)
    rates = logged.label_rates(known)
    told = np.where(known, rewards, 0.0)
    predicted = off_policy.cross_fit(logged.features, rewards, logged.chosen, seed=seed)

    def weigh(policy: Array) -> Array:
        weights = off_policy.importance(policy, logged.chosen, logged.propensities, most=most_weight)
        return np.where(known, weights / np.where(rates, rates, 1.0), 0.0)

    weights = weigh(target)
    found = {
        "doubly robust": off_policy.doubly_robust(rewards, weights, logged.chosen, target, predicted),
        "self-normalised": off_policy.snips(told, weights),
        "inverse propensity": off_policy.ips(told, weights),
        "direct": off_policy.direct(target, predicted),
        _LOGGED: _labelled(logged, rewards, np.ones(len(logged))),
    }
    if base is not None:
        found[_AGAINST] = off_policy.doubly_robust(
            rewards, weights - weigh(base), logged.chosen, target - base, predicted
        )
    return found


def _labelled(logged: Logged, rewards: Array, rows: Array) -> Terms:
    """The mean over ``rows`` (1 or 0), each known reward standing for those like it that are not known."""
    known = ~np.isnan(rewards)
    rates = logged.label_rates(known)
    weights = np.where(known, rows / np.where(rates, rates, 1.0), 0.0)
    return Terms(weights * np.where(known, rewards, 0.0), weights)


def _with_intervals(
    found: Mapping[tuple[str, str], Terms], level: float, seed: int
) -> dict[tuple[str, str], Estimate]:
    """Every estimate with its interval; how wrong its model is, the direct method cannot know."""
    terms = list(found.values())
    if terms and len(terms[0].values) > _MANY:
        intervals = [off_policy.normal_interval(each, level) for each in terms]
    else:
        intervals = off_policy.bootstrap_intervals(terms, level, seed=seed)
    made = {}
    for ((measure, name), each), (low, high) in zip(found.items(), intervals, strict=True):
        if name == "direct":
            low = high = math.nan
        elif measure == "quality" and name != _AGAINST:  # it cannot be elsewhere
            low, high = max(0.0, low), min(1.0, high)
        made[measure, name] = Estimate(each.estimate, Interval(low, high))
    return made


def _reward(measure: str, row: Row) -> float:
    """What a row brought in one measure. An attempt that failed was worth nothing."""
    entry = row.entry
    if measure == "cost_usd":
        return _usd(entry)
    quality = 0.0 if entry.status != "ok" else math.nan if row.quality is None else row.quality
    if measure == "quality":
        return quality
    worth = math.nan if entry.worth_usd is None else entry.worth_usd
    return worth * quality - (_usd(entry) if measure == "net_usd" else 0.0)


def _usd(entry: Entry) -> float:
    usd = entry.cost.get("usd")
    return math.nan if usd is None else usd


def _features(entries: Sequence[Entry], actions: Mapping[str, int]) -> Array:
    """A constant, the option's own predictions, the request's length and counts: ``(n, k, d)``."""
    lexical = max((len(e.lexical) for e in entries if e.lexical is not None), default=0)
    lexical = min(lexical, _LEXICAL)
    found: Array = np.zeros((len(entries), len(actions), 5 + lexical))
    for index, entry in enumerate(entries):
        length = entry.request.get("input_tokens") or entry.input_tokens or 0.0
        found[index, :, 0] = 1.0
        found[index, :, 1] = math.log1p(length) if isinstance(length, int | float) and length > 0 else 0.0
        if entry.lexical is not None:
            found[index, :, 5 : 5 + min(lexical, len(entry.lexical))] = [
                number or 0.0 for number in entry.lexical[:lexical]
            ]
        for offered in entry.options:
            usd = offered.cost.get("usd") or 0.0
            found[index, actions[offered.action], 2:5] = (
                offered.quality if offered.quality is not None else 0.0,
                offered.value or 0.0,
                usd,
            )
    return found


def _warnings(logged: Logged, target: Array, weights: Array, report: Report) -> list[str]:
    """What makes the estimates weaker than their intervals say."""
    said = []
    n = len(logged)
    rows = np.arange(n)
    certain = logged.propensities == 1.0
    unsupported = float(np.where(certain, 1.0 - target[rows, logged.chosen], 0.0).mean())
    if bool(certain.all()):
        said.append(_CERTAIN)
    elif unsupported > 0.01:
        said.append(
            f"In {unsupported:.0%} of the decisions this policy chooses what could not have been chosen then: "
            "there, only the outcome model speaks."
        )
    if logged.left_out:
        said.append(f"{logged.left_out} decisions have no choice or no known probability and are left out.")
    undecided = float(1.0 - target.sum(axis=1).mean())
    if undecided > 0.01:
        said.append(f"In {undecided:.0%} of the decisions this policy chooses nothing; that counts as zero.")
    if report.effective < _FEW:
        said.append(
            f"Overlap is poor: the rows weigh as much as {report.effective:.0f} that were decided by this policy."
        )
    mean, error = float(weights.mean()), float(weights.std()) / math.sqrt(n)
    expected = 1.0 - undecided
    if unsupported <= 0.01 and abs(mean - expected) > 4 * max(error, 1e-9) + 0.01:
        said.append(
            f"The weights' mean is {mean:.2f} where it should be {expected:.2f}: the logged probabilities are wrong, "
            "or some choices could not have been made."
        )
    if "quality" in report.estimates:
        known = ~np.isnan(logged.rewards("quality"))
        for action, place in logged.actions.items():
            if target[:, place].mean() > 0.01 and not known[logged.chosen == place].any():
                said.append(
                    f"Nobody has said how good an answer of {action} is: there, only the outcome model speaks."
                )
    if report.labelled and report.labelled < 0.5 * n:
        said.append(
            f"The quality of {report.labelled} of {n} answers is known; the others are taken to be like those of the "
            "same action that are."
        )
    return said
