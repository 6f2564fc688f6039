"""The mathematics that the benchmark rests on, on counts that are made up."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from benchmarks.best_of_k import allocation, cascading, voting
from benchmarks.best_of_k.data import Counts, Stream

from apportion.core import Cost, Option, Reply, drive
from apportion.reason import _curve
from apportion.reason.best_of_k import BestOfK
from apportion.reason.cascade import free_energy


@pytest.mark.parametrize(("n", "right"), [(10, 0), (10, 3), (10, 10), (300, 7)])
def test_the_chance_of_a_pass_is_that_of_drawing_without_replacement(n: int, right: int) -> None:
    found = allocation.passed(n, right, 8)
    for k in range(9):
        assert found[k] == pytest.approx(1.0 - math.comb(n - right, k) / math.comb(n, k))


def counts(settings: int = 4, problems: int = 60, n: int = 40) -> Counts:
    """Problems whose difficulty all settings share."""
    generator = np.random.default_rng(5)
    rate = np.where(generator.random(problems) < 0.3, 0.0, generator.beta(0.5, 0.7, problems))
    right = generator.binomial(
        n, np.clip(rate + generator.normal(0.0, 0.03, (settings, problems)) * (rate > 0), 0, 1)
    )
    names = tuple(str(i) for i in range(max(settings, problems)))
    return Counts("made up", names[:settings], names[:problems], np.full((settings, problems), n), right)


def test_with_a_history_that_tells_samples_are_saved_and_never_more_than_possible() -> None:
    found = allocation.summary(allocation.evaluate(counts(), [0]))
    row = found["saved"][8]  # type: ignore[index]
    assert row["ours, k fixed beforehand"]["mean"] > 0.25
    assert row["ours, checked after each"]["mean"] > row["stop at the first that passes"]["mean"]
    for ours in ("ours, k fixed beforehand", "ours, checked after each"):
        best = row[
            "best possible, k fixed beforehand" if "fixed" in ours else "best possible, checked after each"
        ]
        assert row[ours]["mean"] <= best["mean"] + 1e-9
    assert 0.3 < found["share_of_gain"][8] <= 1.0  # type: ignore[index]


def test_the_sweep_is_what_the_strategy_does() -> None:
    """Sample k + 1 is drawn while worth times chance is above its price: the strategy, driven, draws as many."""
    strategy = BestOfK(max_samples=30)
    strategy.calibrate("model", [(float(r), 20.0 - r, None, None) for r in (0, 0, 0, 1, 4, 9, 15, 20)])
    saved = strategy.save()
    for quality in (0.05, 0.3, 0.8):
        option = Option("model", 0.0, Cost(samples=1.0), quality=quality, quality_sd=0.2)
        curve = np.array([_curve.curve(strategy.rates(option), 30)])
        chances = np.diff(curve, axis=1) / (1.0 - curve[:, :-1])
        for worth in (2.0, 12.0, 90.0):
            pays = chances[0] * worth > 1.0
            k = max(1, 30 if pays.all() else int(pays.argmin()))
            strategy.load(saved)
            request = {"options": [option], "prices": {"samples": 1.0}, "worth_usd": worth}
            answer = drive(
                strategy.run(request, 0.0),
                lambda c: Reply("ok", {"text": "x", "accepted": False}, Cost(samples=1.0)),
            )
            assert answer.details["calls"] == k


def test_samples_are_read_off_between_the_points() -> None:
    points = [(1.0, 0.2), (3.0, 0.6), (5.0, 0.7)]
    assert allocation._samples_for(points, 0.4, 99.0) == pytest.approx(2.0)
    assert allocation._samples_for(points, 0.9, 99.0) == 99.0
    assert allocation._samples_for(points, 0.1, 99.0) == 1.0
    assert allocation._success_for(points, 4.0) == pytest.approx(0.65)


def test_energies_of_many_rows_are_those_of_the_strategy() -> None:
    logits = np.random.default_rng(2).normal(0.0, 5.0, (20, 6))
    for temperature in (0.1, 1.0, 2.0):
        expected = [-free_energy(row, temperature) for row in logits.tolist()]
        assert cascading.energy(temperature, False)(logits) == pytest.approx(expected)
    assert cascading.energy(0.001, True)(logits) == pytest.approx(cascading.confidence(logits), abs=1e-3)


def test_area_is_greatest_for_the_order_of_true_gain() -> None:
    generator = np.random.default_rng(3)
    small, large = (generator.random(200) < p for p in (0.6, 0.9))
    pair = cascading.Pair(np.zeros((200, 2)), small.astype(float), large.astype(float), 0.1)
    every = np.arange(200)
    best = cascading.area(pair.right_small - pair.right_large, pair, every)
    for seed in range(20):
        assert cascading.area(np.random.default_rng(seed).random(200), pair, every) <= best


def test_votes() -> None:
    assert voting.majority([3, 5, 5, -1, -1, -1]) == 5
    assert voting.majority([3, 5]) == 3
    assert voting.majority([-1]) == -1
    assert voting.window([1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 7]) == (2, 10)
    generator = Random(4)
    streams = [
        Stream(tuple(0 if generator.random() < rate else generator.randrange(1, 4) for _ in range(20)), 0)
        for rate in [0.9] * 40 + [0.5] * 20
    ]
    found = voting.evaluate(streams, [0])["methods"]
    every, best = found["every question 16"], found["best possible"]  # type: ignore[index]
    ours = [row for name, row in found.items() if name.startswith("ours")]  # type: ignore[attr-defined]
    assert any(row["accuracy"] >= every["accuracy"] - 0.02 and row["samples"] < 8.0 for row in ours)
    assert best["accuracy"] >= max(row["accuracy"] for row in ours)
