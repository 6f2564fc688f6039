"""The profiles of the package are what the published tables say."""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from apportion.simulate.profiles import load
from apportion.simulate.profiles.tables import passes

DATA = Path(os.environ.get("APPORTION_DATA") or Path(__file__).parents[2].parent / "shared" / "data")


def test_a_profile_of_the_package_predicts_its_table() -> None:
    path = DATA / "splitwise_perf_model" / "perf_model.csv.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent; set APPORTION_DATA to the folder of the data sets")
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    shipped = load("h100-llama2-70b-tp8")
    again = passes(rows, "llama2-70b", "h100-80gb", 8, name=shipped.name, source=shipped.source)
    assert again.seconds == shipped.seconds
    assert again.error == shipped.error
    wrong = []
    for row in rows:
        at = (row["model"], row["hardware"], row["tensor_parallel"])
        if at == ("llama2-70b", "h100-80gb", "8"):
            b, p, t = (int(row[name]) for name in ("batch_size", "prompt_size", "token_size"))
            said = float(shipped.seconds_of(b, decode_context=b * (p + t / 2)))
            wrong.append(abs(said * 1e3 / float(row["token_time"]) - 1.0))
    assert np.mean(wrong) < 0.03
