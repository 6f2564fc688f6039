"""Drift: noticed soon when it is there, and by mistake no more often than stated."""

from __future__ import annotations

import json

import numpy as np
import pytest

from apportion.predict.quality._drift import Detector, DriftMonitor


@pytest.mark.parametrize("mean", [0.5, 0.55, 0.45, 0.95, 0.02])
def test_false_alarms_are_no_more_frequent_than_stated(mean: float) -> None:
    """Within the tolerance of the reference the mean time to an alarm is at least the stated one: in 40 runs of a
    tenth of it, at most a tenth of them alarms on the average (sd 1.9)."""
    random = np.random.default_rng(int(100 * mean))
    reference = 0.5 if 0.45 <= mean <= 0.55 else mean
    alarms = 0
    for _ in range(40):
        detector = Detector(rows_per_false_alarm=3000.0, tolerance=0.05)
        for right in random.random(300) < mean:
            detector.notice(float(right) - reference)
        alarms += detector.changed
    assert alarms <= 8


@pytest.mark.parametrize(("after", "within"), [(0.3, 500), (0.0, 80), (1.0, 250)])
def test_a_change_is_noticed_soon(after: float, within: int) -> None:
    random = np.random.default_rng(1)
    monitor = DriftMonitor(rows_per_false_alarm=10_000)
    monitor.expect("m", 0.7)
    for right in random.random(1000) < 0.7:
        monitor.notice("m", 0.7, float(right))
    assert not monitor.report()["m"].changed
    for right in random.random(within) < after:
        monitor.notice("m", 0.7, float(right))
    found = monitor.report()["m"]
    assert found.quality_changed
    assert found.calibration_changed
    assert found.quality_evidence >= 1.0
    assert found.rows == 1000 + within


def test_quality_may_change_while_predictions_stay_true() -> None:
    """Other requests came, and the predictor knew: quality has changed, calibration has not."""
    random = np.random.default_rng(2)
    monitor = DriftMonitor(rows_per_false_alarm=1000)
    monitor.expect("m", 0.8)
    for right in random.random(600) < 0.4:
        monitor.notice("m", 0.4, float(right))
    found = monitor.report()["m"]
    assert found.quality_changed
    assert not found.calibration_changed


def test_the_reference_is_taken_from_the_first_rows() -> None:
    monitor = DriftMonitor(settle=100)
    for _ in range(500):
        monitor.notice("m", 1.0, 1.0)
    assert not monitor.report()["m"].changed
    for _ in range(200):
        monitor.notice("m", 1.0, 0.0)
    assert monitor.report()["m"].quality_changed


def test_it_survives_json_and_forgets_on_request() -> None:
    random = np.random.default_rng(4)
    monitor = DriftMonitor()
    for right in random.random(700) < 0.6:
        monitor.notice("m", 0.6, float(right))
    twin = DriftMonitor()
    twin.load(json.loads(json.dumps(monitor.save())))
    for one in (monitor, twin):
        for _ in range(50):
            one.notice("m", 0.6, 0.0)
    assert twin.report() == monitor.report()
    assert twin.report()["m"].changed
    twin.forget("m")
    assert twin.report() == {}
