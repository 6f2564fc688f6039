"""Metrics of several workers, rendered as one, read back with Prometheus's own parser."""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from apportion.measure import metrics
from apportion.measure.metrics import Registry

BOUNDS = (0.1, 1.0, 10.0)
labels = st.text(max_size=8)
moves = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["counter", "gauge", "histogram"]),
        labels,
        st.sampled_from([0.0, 0.1, 0.25, 1.0, 3.0, 10.0, 1e9]),
    ),
    max_size=40,
)


class Families:
    """The same three families in any worker."""

    def __init__(self, directory: Path, worker: int) -> None:
        self.registry = Registry(directory, worker)
        self.counter = self.registry.counter("a_total", 'Counts "things" \\ and\nmore.', ("x",))
        self.gauge = self.registry.gauge("b", "Now.", ("x",))
        self.histogram = self.registry.histogram("c_seconds", "Times.", ("x",), BOUNDS)

    def move(self, kind: str, label: str, amount: float) -> None:
        if kind == "counter":
            self.counter.at(label).add(amount)
        elif kind == "gauge":
            self.gauge.at(label).add(amount)
        else:
            self.histogram.histogram_at(label).observe(amount)


def read(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found: dict[Any, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


@settings(max_examples=60, deadline=None)
@given(moves, st.sets(st.integers(0, 2)))
def test_what_is_rendered_is_the_sum_over_the_workers(
    moves: list[tuple[int, str, str, float]], restarted: set[int]
) -> None:
    """Whoever is asked; and a worker that is replaced counts on, but for its gauges, which begin anew."""
    with tempfile.TemporaryDirectory() as name:
        workers = [Families(Path(name), w) for w in range(3)]
        half = len(moves) // 2
        for worker, kind, label, amount in moves[:half]:
            workers[worker].move(kind, label, amount)
        for worker in restarted:
            workers[worker] = Families(Path(name), worker)
        for worker, kind, label, amount in moves[half:]:
            workers[worker].move(kind, label, amount)
        expected: dict[Any, float] = defaultdict(float)
        for at, (worker, kind, label, amount) in enumerate(moves):
            x = (("x", label),)
            if kind == "counter":
                expected["a_total", x] += amount
            elif kind == "gauge":
                expected["b", x] += amount if at >= half or worker not in restarted else 0.0
            else:
                expected["c_seconds_sum", x] += amount
                expected["c_seconds_count", x] += 1
                for bound in (*BOUNDS, math.inf):
                    le = "+Inf" if bound == math.inf else f"{bound:g}"
                    expected["c_seconds_bucket", (("le", le), *x)] += amount <= bound
        for worker in workers:
            found = read(worker.registry.render())
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                assert found[key] == pytest.approx(value), key


@given(st.text(max_size=20))
def test_any_label_value_comes_back(value: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        workers = Families(Path(name), 0)
        workers.move("counter", value, 1.0)
        assert read(workers.registry.render()) == {("a_total", (("x", value),)): 1.0}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e300, -0.0, 0.1, 2.0**60, 5e-324])
def test_any_number_is_rendered(tmp_path: Path, value: float) -> None:
    """One strange gauge must not take all the others away."""
    families = Families(tmp_path, 0)
    families.gauge.at("x").set(value)
    (found,) = read(families.registry.render()).values()
    assert found == value or (math.isnan(found) and math.isnan(value))
    assert families.gauge.at("x").value == value or math.isnan(value)


def test_series_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_SERIES", 5)
    families = Families(tmp_path, 0)
    for i in range(100):
        families.move("counter", f"label {i}", 1.0)
    found = read(families.registry.render())
    assert len(found) == 6
    assert found["a_total", (("x", "other"),)] == 95
    assert sum(found.values()) == 100


def test_cells_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_CELLS", 10)
    families = Families(tmp_path, 0)
    for i in range(10):
        families.move("counter", f"label {i}", 1.0)
    with pytest.raises(MemoryError):
        families.move("counter", "label 10", 1.0)
    assert len(read(families.registry.render())) == 10


def test_the_wrong_number_of_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a_total"):
        Families(tmp_path, 0).counter.at("x", "y")


def test_a_family_is_made_once(tmp_path: Path) -> None:
    registry = Registry(tmp_path, 0)
    assert registry.counter("a_total", "A.") is registry.counter("a_total", "A.")
    registry.counter("a_total", "A.").at().add()
    assert registry.counter("a_total", "A.").at().value == 1.0


def test_bounds_count_what_is_equal_to_them(tmp_path: Path) -> None:
    families = Families(tmp_path, 0)
    for value in (0.1, 0.10001, 1.0, 10.0, 11.0):
        families.move("histogram", "x", value)
    found = read(families.registry.render())
    by_bound = {dict(k[1])["le"]: v for k, v in found.items() if k[0] == "c_seconds_bucket"}
    assert by_bound == {"0.1": 1, "1": 3, "10": 4, "+Inf": 5}


@pytest.mark.parametrize("cut", range(1, 35, 6))
def test_a_worker_killed_while_it_wrote_a_name(tmp_path: Path, cut: int) -> None:
    """Half a line is passed over, by others at once and by its successor for good."""
    before = Families(tmp_path, 0)
    before.move("counter", "x", 2.0)
    names = tmp_path / "worker-0.names"
    whole = names.read_bytes()
    names.write_bytes(whole + whole.replace(b'"x"', b'"y"')[:cut])
    other = Families(tmp_path, 1)
    assert read(other.registry.render()) == {("a_total", (("x", "x"),)): 2.0}
    for _ in range(2):
        after = Families(tmp_path, 0)
        after.move("counter", "y", 3.0)
        after.move("counter", "x", 1.0)
    assert read(other.registry.render()) == {
        ("a_total", (("x", "x"),)): 4.0,
        ("a_total", (("x", "y"),)): 6.0,
    }


def test_a_worker_without_cells_is_passed_over(tmp_path: Path) -> None:
    families = Families(tmp_path, 0)
    families.move("counter", "x", 1.0)
    (tmp_path / "worker-7.names").write_bytes((tmp_path / "worker-0.names").read_bytes())
    assert read(families.registry.render()) == {("a_total", (("x", "x"),)): 1.0}


def test_nothing_was_counted_yet(tmp_path: Path) -> None:
    assert read(Families(tmp_path, 0).registry.render()) == {}
