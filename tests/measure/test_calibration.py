"""Predicted against observed: the table, its error, and drift that is noticed and rarely imagined."""

from __future__ import annotations

import random

import pytest

from apportion.measure.calibration import Calibration, merged


def fed(predicted: float, truth: float, n: int, seed: int) -> Calibration:
    generator = random.Random(seed)
    found = Calibration()
    for _ in range(n):
        found.observe(predicted, float(generator.random() < truth))
    return found


def test_the_error_is_the_weighted_gap() -> None:
    found = Calibration()
    for predicted, observed in ((0.25, 0.0), (0.25, 1.0), (0.75, 1.0), (0.75, 1.0)):
        found.observe(predicted, observed)
    assert found.error == pytest.approx((2 * 0.25 + 2 * 0.25) / 4, abs=1e-3)
    assert found.quality == pytest.approx(0.75, abs=1e-3)
    assert [(b["from"], round(b["observed"], 3)) for b in found.table()["bins"]] == [(0.2, 0.5), (0.7, 1.0)]


def test_what_was_corrected_counts_once() -> None:
    one, other = Calibration(), Calibration()
    one.observe(0.5, 0.0)
    one.observe(0.5, 1.0, earlier=0.0)
    other.observe(0.5, 1.0)
    assert one.table() == other.table()


def test_nothing_is_known_of_nothing() -> None:
    assert Calibration().error is None
    assert Calibration().table()["bins"] == []
    assert merged([])["quality"] is None


@pytest.mark.parametrize("predicted", [0.0, 0.05, 0.5, 0.9, 1.0])
def test_no_drift_is_imagined(predicted: float) -> None:
    alarms = sum(fed(predicted, predicted, 3000, seed).drift is not None for seed in range(20))
    assert alarms == 0


@pytest.mark.parametrize(("truth", "drift"), [(0.5, "worse"), (0.9, "better")])
def test_drift_is_noticed_and_forgotten(truth: float, drift: str) -> None:
    for seed in range(10):
        found = fed(0.7, truth, 400, seed)
        assert found.drift == drift
        for _ in range(200):
            found.observe(0.7, 0.7)
        assert found.drift is None


def test_old_observations_fade() -> None:
    found = fed(0.7, 0.7, 5000, 0)
    for _ in range(8000):
        found.observe(0.7, 0.0)
    assert found.quality is not None
    assert found.quality < 0.02
    assert found.count == 13_000


def test_workers_are_merged() -> None:
    one, other = fed(0.7, 0.7, 500, 0), fed(0.7, 0.2, 500, 1)
    whole = merged([one.table(), other.table()])
    assert whole["count"] == 1000
    assert whole["drift"] == "worse"
    assert one.quality is not None
    assert other.quality is not None
    assert whole["quality"] == pytest.approx((one.quality + other.quality) / 2)
