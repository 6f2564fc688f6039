"""What pictures of runs show."""

from __future__ import annotations

import made_scenarios as made
import numpy as np
import pytest

from apportion.simulate.compare import Case, Plan, compare

pytest.importorskip("matplotlib")

from apportion.simulate.pictures import pictures


def test_arrivals_are_drawn_as_far_as_the_trace_fills_the_bins() -> None:
    found = compare(Plan((Case("one", made.scenario()),), made.trace(2000), runner="made_scenarios:fake"))
    [(what_if, outcomes)] = found.outcomes.items()
    series = outcomes[0].digest.series
    shown = {name: figure for name, _, figure in pictures(outcomes, found.best[what_if])}
    arrivals, in_system, _ = (axis.lines[0].get_ydata() for axis in shown["load"].axes)
    assert series["arrivals_per_s"][-1] == 0.0
    assert arrivals.min() > 0.5 * np.median(arrivals)
    assert len(arrivals) == np.flatnonzero(series["arrivals_per_s"])[-1]
    assert len(in_system) == len(series["in_system"])
    assert "p90" in shown["latency"].axes[0].get_ylabel()
