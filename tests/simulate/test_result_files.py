"""Results as files, in chunks, and put together."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from made_runs import run

from apportion.simulate.result import COLUMNS, ParquetSink, ResultError, concat, load, sink


def same(one, other) -> bool:
    return all(
        np.array_equal(one[name], other[name], equal_nan=COLUMNS[name] == "float64") for name in COLUMNS
    )


def test_parquet_gives_back_what_was_saved(tmp_path: Path) -> None:
    made = run(100, lost=True)
    read = load(made.save(tmp_path / "run.parquet"))
    assert same(made, read)
    assert (read.names, read.name) == (made.names, "made")
    assert read.facts == made.facts
    assert {name: read[name].dtype.name for name in COLUMNS} == dict(COLUMNS)


def test_chunks_are_one_file(tmp_path: Path) -> None:
    made = run(100)
    with ParquetSink(tmp_path / "run.parquet") as file:
        for part in range(0, 100, 17):
            file.add({name: values[part : part + 17] for name, values in made.columns.items()})
    assert same(made, load(tmp_path / "run.parquet"))


def test_csv_has_names_and_leaves_out_what_is_unknown(tmp_path: Path) -> None:
    made = run(60, lost=True)
    made.names["tenant"] = ("red, the", "green", "blue")
    made.save(tmp_path / "run.csv")
    with (tmp_path / "run.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert [int(row["request"]) for row in rows] == made["request"].tolist()
    assert {row["tenant"] for row in rows} == {"red, the", "green", "blue", ""}
    assert {row["status"] for row in rows} == {"ok", "refused", "failed"}
    assert [row["first_token_s"] for row in rows if row["status"] != "ok"] == [""] * sum(made["status"] != 0)
    assert [float(row["finish_s"]) for row in rows] == made["finish_s"].tolist()


def test_put_together_names_are_one_list() -> None:
    one, other = run(30), run(30)
    other.names["tenant"] = ("green", "pink", "red")
    both = concat([one, other], name="both")
    assert both.names["tenant"] == ("red", "green", "blue", "pink")
    assert len(both) == 60
    labels = [(*both.names["tenant"], "")[code] for code in both["tenant"].tolist()]
    expected = [
        (*each.names["tenant"], "")[code] for each in (one, other) for code in each["tenant"].tolist()
    ]
    assert labels == expected
    assert both.facts["idle_j"] == 20.0
    assert len(concat([])) == 0


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"\.txt.*Name it \.parquet or \.csv"):
        sink(tmp_path / "run.txt")
    (tmp_path / "run.parquet").write_text("no")
    with pytest.raises(ResultError, match="cannot be read as Parquet"):
        load(tmp_path / "run.parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"request": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ResultError, match=r"no saved run.*arrival_s"):
        load(tmp_path / "other.parquet")
