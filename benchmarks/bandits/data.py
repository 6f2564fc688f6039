"""The algorithm-selection scenarios: which solver took how long on which instance."""

from __future__ import annotations

import csv
import gzip
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CUTOFFS_S = {
    "sat11_hand": 5000.0, "sat18_exp": 5000.0, "mip_2016": 7200.0, "csp_2010": 5000.0, "cpmp_2015": 3600.0,
}  # fmt: skip
"""Scenario to the time at which its runs were stopped."""


@dataclass(frozen=True)
class Scenario:
    """``times_s`` has shape (instances, solvers), stopped runs at the cutoff; ``features`` (instances, d)."""

    name: str
    cutoff_s: float
    solvers: tuple[str, ...]
    times_s: NDArray[np.float64]
    stopped: NDArray[np.bool_]
    features: NDArray[np.float64]

    def par10(self) -> NDArray[np.float64]:
        """Seconds, ten cutoffs for a run that did not finish."""
        return np.where(self.stopped, 10.0 * self.cutoff_s, self.times_s)


def folder() -> Path:
    """Where the shared data lies: ``$APPORTION_DATA`` or ``../shared/data``."""
    return Path(os.environ.get("APPORTION_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def scenarios() -> list[Scenario]:
    """All scenarios that are there; instances that no solver finished are left out, as nothing can be chosen."""
    return [_read(name, cutoff) for name, cutoff in CUTOFFS_S.items() if _path(name, "runs").exists()]


def _path(name: str, table: str) -> Path:
    return folder() / "aslib_scenarios" / f"{name}_{table}.csv.gz"


def _rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _read(name: str, cutoff_s: float) -> Scenario:
    runs = _rows(_path(name, "runs"))
    described = {row["instance_id"]: row for row in _rows(_path(name, "features"))}
    instances = sorted({row["instance_id"] for row in runs} & described.keys())
    solvers = sorted({row["algorithm"] for row in runs})
    place = {instance: k for k, instance in enumerate(instances)}
    column = {solver: k for k, solver in enumerate(solvers)}
    times = np.full((len(instances), len(solvers)), cutoff_s)
    stopped = np.ones(times.shape, dtype=bool)
    for row in runs:
        k = place.get(row["instance_id"])
        if k is not None and row["runstatus"] == "ok" and float(row["runtime"]) < cutoff_s:
            times[k, column[row["algorithm"]]] = float(row["runtime"])
            stopped[k, column[row["algorithm"]]] = False
    names = [n for n in next(iter(described.values())) if n != "instance_id"]
    features = np.array([[_number(described[i][n]) for n in names] for i in instances])
    solved = ~stopped.all(axis=1)
    return Scenario(name, cutoff_s, tuple(solvers), times[solved], stopped[solved], features[solved])


def _number(text: str) -> float:
    """A feature; one that was not computed (empty, or -512 by the extractor's convention) counts as 0."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) and value != -512.0 else 0.0
