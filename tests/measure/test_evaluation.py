"""Policies judged on logs of a world that is known: frozen, learning beforehand, learning as they go."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import ClassVar, final

import numpy as np
import pytest

from apportion.core.decision import Decision
from apportion.core.method import Constraint
from apportion.core.outcome import Outcome
from apportion.core.policy import Policy
from apportion.core.state import State
from apportion.measure.decision_log import Entry, Offered, Row
from apportion.measure.evaluation import EvaluationError, Logged, Report, evaluate, replay, target_of

RIGHT = {"a": 0.3, "b": 0.8}


class Fixed(Policy):
    """Chooses by a rule that the test gives, with a probability."""

    constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(self, choose: Callable[[State], int], probability: float | None = 1.0) -> None:
        self.choose, self.chance = choose, probability

    def reset(self) -> None:
        pass

    def decide(self, state: State) -> Decision:
        if not state.options or (index := self.choose(state)) < 0:
            return self.nothing(state)
        return Decision(
            state.id,
            index,
            state.options[index].action,
            self.chance,
            state.prices,
            state.options,
            (None,) * len(state.options),
            "told",
        )


@final
class Greedy(Policy):
    """Learns the mean of each action, hopefully at first, and takes the best."""

    def __init__(self) -> None:
        self.start()

    def reset(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def decide(self, state: State) -> Decision:
        ranks = [self._rank(option.action) for option in state.options]
        return Fixed(lambda _: int(np.argmax(ranks))).decide(state)

    def _rank(self, action: str) -> float:
        known = self.sums.get(action, [5.0, 5.0])
        return known[0] / known[1]

    def learn(self, outcome: Outcome) -> None:
        if outcome.quality is not None and outcome.action is not None:
            known = self.sums.setdefault(outcome.action, [5.0, 5.0])
            known[0] += outcome.quality
            known[1] += 1.0


def log(
    n: int = 1500,
    seed: int = 0,
    *,
    chance: float = 0.5,
    labelled: dict[str, float] | None = None,
    failing: float = 0.0,
    probability: float | None = -1.0,
) -> list[Row]:
    """``a`` is taken with ``chance``; how often the quality becomes known may depend on the action."""
    generator = random.Random(seed)
    rows = []
    for number in range(n):
        choice = 0 if generator.random() < chance else 1
        action = "ab"[choice]
        failed = generator.random() < failing
        entry = Entry(
            id=f"dec_{number}",
            at=float(number),
            model="m",
            options=[Offered("a", 0.1, {"usd": 0.01}), Offered("b", 0.2, {"usd": 0.02})],
            choice=choice,
            probability=(chance, 1 - chance)[choice] if probability == -1.0 else probability,
            worth_usd=1.0,
            cost={"usd": 0.01 * (choice + 1)},
            status="failed" if failed else "ok",
        )
        known = not failed and generator.random() < (labelled or {}).get(action, 1.0)
        rows.append(Row(entry, float(generator.random() < RIGHT[action]) if known else None))
    return rows


def quality(report: Report, estimator: str = "doubly robust") -> tuple[float, float]:
    return report.estimates["quality"][estimator].interval


ALWAYS_B = Fixed(lambda state: 1)


@pytest.mark.parametrize("labelled", [None, {"a": 0.9, "b": 0.2}])
def test_the_truth_is_covered(labelled: dict[str, float] | None) -> None:
    hits = dict.fromkeys(("doubly robust", "self-normalised", "inverse propensity"), 0)
    for seed in range(40):
        report = evaluate(log(500, seed, chance=0.7, labelled=labelled), ALWAYS_B, level=0.9)
        for estimator in hits:
            low, high = quality(report, estimator)
            hits[estimator] += low <= RIGHT["b"] <= high
    assert min(hits.values()) >= 33  # 36 expected


def test_labels_that_depend_on_the_action_bend_nothing() -> None:
    """Each action is as often right among the labelled, but the mean over the labelled is another."""
    rows = log(6000, labelled={"a": 1.0, "b": 0.1})
    half = Fixed(lambda state: int(state.id[-1] in "13579"))
    report = evaluate(rows, half)
    truth = 0.5 * (RIGHT["a"] + RIGHT["b"])
    assert report.estimates["quality"]["self-normalised"].mean == pytest.approx(truth, abs=0.04)
    assert report.estimates["quality"]["doubly robust"].mean == pytest.approx(truth, abs=0.04)
    assert report.logged["quality"].mean == pytest.approx(truth, abs=0.04)


def test_failures_are_worth_nothing() -> None:
    report = evaluate(log(4000, failing=0.25), ALWAYS_B)
    low, high = quality(report)
    assert low < 0.75 * RIGHT["b"] < high
    assert report.estimates["net_usd"]["doubly robust"].mean == pytest.approx(0.6 - 0.02, abs=0.04)


def test_a_policy_that_draws_is_asked_often() -> None:
    generator = random.Random(5)
    drawing = Fixed(lambda state: int(generator.random() < 0.25), None)
    target = target_of(drawing, Logged(log(2000)), draws=16)
    assert target[:, 1].mean() == pytest.approx(0.25, abs=0.01)
    assert np.allclose(target.sum(axis=1), 1.0)
    assert len(np.unique(target)) > 5
    low, high = quality(evaluate(log(2000), drawing))
    assert low < 0.75 * RIGHT["a"] + 0.25 * RIGHT["b"] < high


def test_a_comparison_is_paired() -> None:
    rows = log(1500)
    nearly = Fixed(lambda state: 0 if state.id.endswith("7") else 1)
    report = evaluate(rows, nearly, against=ALWAYS_B)
    low, high = report.against["quality"].interval
    assert low < 0.1 * (RIGHT["a"] - RIGHT["b"]) < high
    own = quality(report)
    assert high - low < 0.6 * (own[1] - own[0])


def test_a_learning_policy_frozen_after_half_the_log() -> None:
    report = evaluate(log(1000), Greedy(), learn_from=0.5)
    assert report.rows == 500
    assert "500" in report.method
    assert report.agreement == pytest.approx(0.5, abs=0.1)
    low, high = quality(report)
    assert low < RIGHT["b"] < high


@pytest.mark.parametrize("chance", [0.5, 0.8])
def test_a_learning_policy_replayed(chance: float) -> None:
    """It learns only from what it would have chosen itself, and comes to the better action."""
    report = replay(log(4000, chance=chance), Greedy())
    low, high = quality(report, "replay")
    assert low < RIGHT["b"] < high + 0.03
    # Of the better action's rows all are used where it is the rarer one.
    expected = 4000 * min(chance, 1 - chance)
    assert report.rows == pytest.approx(expected, rel=0.15)


def test_a_replay_of_one_that_draws_has_its_own_mixture() -> None:
    generator = random.Random(5)
    drawing = Fixed(lambda state: int(generator.random() < 0.25), 0.25)
    report = replay(log(20_000, chance=0.8), drawing)
    mean = report.estimates["quality"]["replay"].mean
    assert mean == pytest.approx(0.75 * RIGHT["a"] + 0.25 * RIGHT["b"], abs=0.03)


@pytest.mark.parametrize(
    ("rows", "policy", "words"),
    [
        (log(200, probability=1.0), ALWAYS_B, "certain"),
        (log(200), Fixed(lambda state: 1 if state.id == "dec_7" else -1), "chooses nothing"),
        (log(200, probability=0.9), ALWAYS_B, "logged probabilities are wrong"),
        (log(300, labelled={"a": 0.1, "b": 0.1}), ALWAYS_B, "is known"),
        (log(60, chance=0.95), ALWAYS_B, "Overlap is poor"),
        (log(300, labelled={"b": 0.0}), ALWAYS_B, "an answer of b"),
    ],
)
def test_weak_evidence_is_warned_of(rows: list[Row], policy: Policy, words: str) -> None:
    assert any(words in warning for warning in evaluate(rows, policy).warnings)


def test_good_evidence_is_not() -> None:
    assert evaluate(log(), ALWAYS_B).warnings == []


@pytest.mark.parametrize("rows", [[], log(5, probability=None), log(1)])
def test_nothing_to_go_by(rows: list[Row]) -> None:
    with pytest.raises(EvaluationError, match="known probability"):
        evaluate(rows, ALWAYS_B)


def test_the_direct_method_claims_no_interval() -> None:
    low, high = quality(evaluate(log(), ALWAYS_B), "direct")
    assert low != low
    assert high != high


def test_it_is_deterministic() -> None:
    one, other = (evaluate(log(), ALWAYS_B, seed=3) for _ in range(2))
    assert one.estimates["quality"]["doubly robust"] == other.estimates["quality"]["doubly robust"]
