"""Counters, gauges and histograms in memory-mapped cells: cheap to move, right with several workers.

Every worker owns one file of 64-bit floats (its cells) and one text file naming them. A counter moves by one
addition on a memoryview, some 0.2 microseconds (``prometheus_client``: 0.6, in its multi-process mode 1.3;
a histogram 0.4 against 3.1). Whoever is scraped reads the files of all workers and adds them up, so that any
worker answers for all; a worker that crashed keeps its counts, and one that takes its place counts on.

Text format: https://prometheus.io/docs/instrumenting/exposition_formats/ (version 0.0.4).
"""

from __future__ import annotations

import json
import mmap
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]

_CELLS: Final = 65_536
MAX_SERIES: Final = 1_000
"""Most label sets of one family; what comes after them is counted under ``other``."""

LATENCY_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
OVERHEAD_S: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0)


class Counter:
    """One number that only grows (or, as a gauge, goes up and down)."""

    __slots__ = ("_cells", "_index")

    def __init__(self, cells: memoryview[float], index: int) -> None:
        self._cells = cells
        self._index = index

    def add(self, amount: float = 1.0) -> None:
        """Move by ``amount``."""
        self._cells[self._index] += amount

    def set(self, value: float) -> None:
        """Set a gauge."""
        self._cells[self._index] = value

    @property
    def value(self) -> float:
        """This worker's number."""
        return float(self._cells[self._index])


class Histogram:
    """Counts of observations by upper bound, and their sum."""

    __slots__ = ("_bounds", "_cells", "_index")

    def __init__(self, cells: memoryview[float], index: int, bounds: Sequence[float]) -> None:
        self._cells = cells
        self._index = index
        self._bounds = bounds

    def observe(self, value: float) -> None:
        """Count one observation."""
        cells, index = self._cells, self._index
        cells[index] += value
        cells[index + 1 + bisect_left(self._bounds, value)] += 1.0


class Family:
    """All series of one name. ``at`` gives the series of one set of label values; keep what it returns."""

    __slots__ = ("_series", "bounds", "help", "kind", "labels", "name", "registry")

    def __init__(
        self,
        registry: Registry,
        kind: Kind,
        name: str,
        help: str,
        labels: tuple[str, ...],
        bounds: tuple[float, ...],
    ) -> None:
        self.registry = registry
        self.kind = kind
        self.name = name
        self.help = help
        self.labels = labels
        self.bounds = bounds
        self._series: dict[tuple[str, ...], int] = {}

    def index(self, *values: str) -> int:
        """The cell of these label values in ``Registry.cells``: for whoever moves several at once."""
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, got {values}")
        index = self._series.get(values)
        if index is None:
            if len(self._series) >= MAX_SERIES:
                values = ("other",) * len(self.labels)
                if values in self._series:
                    return self._series[values]
            index = self._series[values] = self.registry._allocate(self, values)
        return index

    def at(self, *values: str) -> Counter:
        """The counter or gauge of these label values."""
        return Counter(self.registry.cells, self.index(*values))

    def histogram_at(self, *values: str) -> Histogram:
        """The histogram of these label values."""
        return Histogram(self.registry.cells, self.index(*values), self.bounds)

    @property
    def width(self) -> int:
        """Cells of one series."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


class Registry:
    """The families and cells of one worker; ``directory`` is shared by all workers of a proxy."""

    def __init__(self, directory: Path, worker: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._names = directory / f"worker-{worker}.names"
        path = directory / f"worker-{worker}.cells"
        with path.open("a+b") as file:
            file.truncate(_CELLS * 8)
            self._map = mmap.mmap(file.fileno(), _CELLS * 8)
        self.cells = memoryview(self._map).cast("d")
        self._known: dict[tuple[str, tuple[str, ...]], int] = {}
        self._next = 0
        self._families: dict[str, Family] = {}
        _end_last_line(self._names)
        for kind, name, values, index, width in _read_names(self._names):
            self._known[name, values] = index
            self._next = max(self._next, index + width)
            if kind == "gauge":
                self.cells[index] = 0.0

    def counter(self, name: str, help: str, labels: Iterable[str] = ()) -> Family:
        """A family of counters; ``name`` ends in ``_total``."""
        return self._family("counter", name, help, tuple(labels), ())

    def gauge(self, name: str, help: str, labels: Iterable[str] = ()) -> Family:
        """A family of gauges; the workers' values are added up."""
        return self._family("gauge", name, help, tuple(labels), ())

    def histogram(self, name: str, help: str, labels: Iterable[str], bounds: tuple[float, ...]) -> Family:
        """A family of histograms with these upper bounds (``+Inf`` is added)."""
        return self._family("histogram", name, help, tuple(labels), bounds)

    def _family(
        self, kind: Kind, name: str, help: str, labels: tuple[str, ...], bounds: tuple[float, ...]
    ) -> Family:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = Family(self, kind, name, help, labels, bounds)
        return family

    def _allocate(self, family: Family, values: tuple[str, ...]) -> int:
        index = self._known.get((family.name, values))
        if index is None:
            index = self._next
            if index + family.width > _CELLS:
                raise MemoryError(f"more than {_CELLS} metric cells")
            self._next += family.width
            self._known[family.name, values] = index
            with self._names.open("a", encoding="utf-8") as file:
                file.write(json.dumps([family.kind, family.name, values, index, family.width]) + "\n")
        return index

    def render(self) -> str:
        """All workers' numbers, added up, in the Prometheus text format."""
        sums: dict[str, dict[tuple[str, ...], list[float]]] = {}
        for names in sorted(self.directory.glob("worker-*.names")):
            try:
                content = names.with_suffix(".cells").read_bytes()
            except FileNotFoundError:
                continue
            cells = memoryview(content).cast("d")
            for _, name, values, index, width in _read_names(names):
                series = sums.setdefault(name, {}).setdefault(values, [0.0] * width)
                if len(series) != width:
                    continue
                for offset in range(width):
                    series[offset] += cells[index + offset]
        lines: list[str] = []
        for name, family in self._families.items():
            found = sums.get(name)
            if not found:
                continue
            said = family.help.replace("\\", r"\\").replace("\n", r"\n")
            lines += (f"# HELP {name} {said}", f"# TYPE {name} {family.kind}")
            for values, numbers in found.items():
                labels = [f'{k}="{_escape(v)}"' for k, v in zip(family.labels, values, strict=True)]
                if family.kind == "histogram":
                    lines += _histogram_lines(name, labels, family.bounds, numbers)
                else:
                    lines.append(f"{name}{_braces(labels)} {_number(numbers[0])}")
        return "\n".join(lines) + "\n"


def sample(name: str, labels: Mapping[str, str], value: float) -> str:
    """One line of the Prometheus text format."""
    said = [f'{k}="{_escape(v)}"' for k, v in labels.items()]
    return f"{name}{_braces(said)} {_number(value)}"


def _histogram_lines(
    name: str, labels: list[str], bounds: tuple[float, ...], numbers: list[float]
) -> list[str]:
    lines = []
    total = 0.0
    for bound, count in zip((*(f"{b:g}" for b in bounds), "+Inf"), numbers[1:], strict=True):
        total += count
        upper = f'le="{bound}"'
        lines.append(f"{name}_bucket{_braces([*labels, upper])} {_number(total)}")
    lines.append(f"{name}_sum{_braces(labels)} {_number(numbers[0])}")
    lines.append(f"{name}_count{_braces(labels)} {_number(total)}")
    return lines


def _read_names(path: Path) -> Iterable[tuple[Kind, str, tuple[str, ...], int, int]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            kind, name, values, index, width = json.loads(line)
        except ValueError:
            continue  # the last line of a worker that was killed while it wrote
        yield kind, name, tuple(values), index, width


def _end_last_line(path: Path) -> None:
    """A worker that was killed while it wrote a line leaves half of it; the next line must not continue it."""
    try:
        written = path.read_bytes()
    except FileNotFoundError:
        return
    if written and not written.endswith(b"\n"):
        path.write_bytes(written + b"\n")


def _braces(labels: list[str]) -> str:
    return "{" + ",".join(labels) + "}" if labels else ""


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)
