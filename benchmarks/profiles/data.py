"""The tables, read from `$APPORTION_DATA`."""

from __future__ import annotations

import csv
import gzip
import os
from functools import cache
from pathlib import Path

Rows = list[dict[str, str]]


class DataAbsent(Exception):
    """The data sets are not on this machine."""


def folder() -> Path:
    """``$APPORTION_DATA``, else ``../shared/data`` beside the repository."""
    return Path(os.environ.get("APPORTION_DATA") or Path(__file__).parents[2].parent / "shared" / "data")


@cache
def table(name: str) -> Rows:
    """All rows of a table, for example ``splitwise_perf_model/perf_model``."""
    path = folder() / f"{name}.csv.gz"
    if not path.exists():
        raise DataAbsent(f"{path} is absent; set APPORTION_DATA to the folder of the data sets.")
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
