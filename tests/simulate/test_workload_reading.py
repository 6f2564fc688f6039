"""Readers: every form that is known, malformed rows to the line, and the columnar file."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workloads import same, small

from apportion.core.cost import Cost
from apportion.core.option import Option
from apportion.measure.decision_log import Entry, Header, Offered, Word, line
from apportion.simulate.trace import Trace, TraceError, joined
from apportion.simulate.workload import (
    DisorderError,
    generated_pieces,
    open_trace,
    pieces,
    plain,
    store,
    write,
)

DATA = Path(os.environ.get("APPORTION_DATA", Path(__file__).parents[2].parent / "shared" / "data"))

BURSTGPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,0,417,API log
"""


def data(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"no {path.name}: set APPORTION_DATA to the data folder")
    return path


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["b.csv", "b.csv.gz"])
def test_burstgpt(tmp_path: Path, name: str) -> None:
    trace = open_trace(written(tmp_path, name, BURSTGPT))
    assert trace.arrival_s.tolist() == [5, 45, 118]
    assert trace.prompt_tokens.tolist() == [472, 1087, 417]
    assert trace.output_tokens.tolist() == [18, 230, 0]
    assert trace.failed is not None
    assert trace.failed.tolist() == [False, False, True]
    assert trace.model is not None
    assert [trace.model.at(i) for i in range(3)] == [
        "ChatGPT",
        "ChatGPT",
        "GPT-4",
    ]
    assert trace.tenant is not None
    assert trace.tenant.at(2) == "API log"
    assert trace.session is None
    assert trace.name == "b"


def test_burstgpt_sessions(tmp_path: Path) -> None:
    text = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "1,s9,2.0,GPT-4,10,5,15,API log\n2,,1.0,GPT-4,10,5,15,API log\n3,s9,1.0,GPT-4,30,5,35,API log\n"
    )
    trace = open_trace(written(tmp_path, "b.csv", text))
    assert trace.session is not None
    assert trace.session.tolist() == [0, -1, 0]


def test_azure_dates_count_from_the_first_and_keep_their_microseconds(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n2023-11-17 18:15:46.6805910,1,2\n"
    )
    trace = open_trace(written(tmp_path, "a.csv", text))
    np.testing.assert_allclose(trace.arrival_s, [0.0, 4.314579, 86400.000001], rtol=0, atol=1e-9)
    zoned = text.replace("46.6805900", "46.680590+00:00").replace("50.9951690", "50.995169+00:00")
    again = open_trace(written(tmp_path, "z.csv", zoned.replace("46.6805910", "46.680591+00:00")))
    np.testing.assert_allclose(again.arrival_s, trace.arrival_s, rtol=0, atol=1e-6)
    east = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00,1,1\n2024-05-10 02:00:05+02:00,1,1\n"
    assert open_trace(written(tmp_path, "e.csv", east)).arrival_s.tolist() == [0.0, 5.0]


def test_mooncake_in_both_forms(tmp_path: Path) -> None:
    rows = [(0, 1100, 5, [7, 8, 9]), (3000, 512, 6, [7]), (3000, 10, 1, [])]
    lines = [
        json.dumps({"timestamp": t, "input_length": p, "output_length": o, "hash_ids": ids})
        for t, p, o, ids in rows
    ]
    original = open_trace(written(tmp_path, "m.jsonl", "\n".join(lines)))
    table = "t_ms,prompt_tokens,output_tokens,block_ids\n" + "".join(
        f"{t},{p},{o},{' '.join(map(str, ids))}\n" for t, p, o, ids in rows
    )
    same(original, open_trace(written(tmp_path, "m.csv.gz", table)))
    assert original.arrival_s.tolist() == [0.0, 3.0, 3.0]
    assert original.blocks is not None
    assert original.blocks.of(0).tolist() == [7, 8, 9]
    assert original.blocks.block_tokens == 512


def test_decision_log(tmp_path: Path) -> None:
    offered = [Offered.of(Option("east/m", 0.5, Cost())), Offered.of(Option("west/m", 0.4, Cost()))]

    def entry(id: str, at: float, choice: int, **fields: object) -> Entry:
        return Entry(id=id, at=at, model="chat", options=offered, choice=choice, probability=1.0, **fields)  # type: ignore[arg-type]

    records = [
        Header(1, 0, 0.0),
        entry(
            "r2",
            105.0,
            0,
            key="k2",
            input_tokens=20,
            output_tokens=7,
            request={"priority": 3, "deadline_s": 2.5},
        ),
        entry("r1", 100.0, 0, team="blue", key="k1", status="failed", attempt=1),
        entry("r1", 101.0, 1, team="blue", key="k1", attempt=2, input_tokens=10, output_tokens=4),
        entry("r3", 106.0, 1, status="timeout", input_tokens=5),
        Word(id="r1", at=200.0, source="user", score=1.0, quality=0.9),
    ]
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(map(line, records)))
    trace = open_trace(path)
    assert trace.arrival_s.tolist() == [0.0, 5.0, 6.0]
    assert trace.output_tokens.tolist() == [4, 7, 0]
    assert trace.failed is not None
    assert trace.failed.tolist() == [False, False, True]
    assert trace.tenant is not None
    assert [trace.tenant.at(i) for i in range(3)] == ["blue", "k2", ""]
    assert trace.priority is not None
    assert trace.priority.tolist() == [0, 3, 0]
    assert trace.deadline_s is not None
    assert trace.deadline_s[1] == 2.5
    assert np.isnan(trace.deadline_s[0])
    assert trace.actions == ("west/m",)
    assert trace.quality is not None
    np.testing.assert_array_equal(trace.quality[:, 0], [0.9, np.nan, np.nan])
    same(trace, open_trace(tmp_path))  # a directory of logs
    path.write_bytes(path.read_bytes() + b'{"kind": "deci')
    with pytest.raises(TraceError, match=r"1 malformed row: line 7"):
        open_trace(path)
    assert len(open_trace(path, skip_bad=True)) == 3


def test_servegen_keeps_rates_and_lengths(tmp_path: Path) -> None:
    written(
        tmp_path,
        "x_rates.csv",
        "client,t_s,rate_rps,cv,arrival,param1,param2\n3,600,2.0,1,Gamma,1,1\n8,600,1,2,Weibull,.6,1\n",
    )
    quantiles = ",".join(
        f"{side}_{q}"
        for side in ("in", "out")
        for q in ("p05", "p25", "p50", "p75", "p90", "p95", "p99", "max")
    )
    written(
        tmp_path, "x_lengths.csv", f"client,t_s,{quantiles}\n3,0,10,20,30,40,50,60,70,80,1,2,3,4,5,6,7,8\n"
    )
    whole = open_trace(tmp_path / "x_rates.csv", seed=4)
    assert 1600 < len(whole) < 2000
    assert whole.arrival_s[0] >= 600
    assert whole.arrival_s[-1] < 1200
    assert whole.prompt_tokens.max() <= 80
    assert abs(np.median(whole.prompt_tokens) - 30) <= 2
    assert whole.tenant is not None
    assert set(whole.tenant.names) == {"client 3", "client 8"}
    same(whole, joined(list(pieces(tmp_path / "x_rates.csv", rows=100, seed=4))))
    (tmp_path / "x_lengths.csv").unlink()
    with pytest.raises(TraceError, match="lengths is missing"):
        open_trace(tmp_path / "x_rates.csv")


def test_columns_are_named_and_missed(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv", "when,in,out,who\n0.5,3,4,me\n1.5,5,6,you\n")
    with pytest.raises(
        TraceError, match=r"no column for 'arrival_s'.*There are: when, in, out, who.*--column"
    ):
        open_trace(path)
    named = {"arrival_s": "when", "prompt_tokens": "in", "output_tokens": "out", "tenant": "who"}
    trace = open_trace(path, columns=named)
    assert trace.arrival_s.tolist() == [0.5, 1.5]
    assert trace.tenant is not None
    assert trace.tenant.at(1) == "you"
    with pytest.raises(TraceError, match="no field 'size'"):
        open_trace(path, columns={"size": "in"})
    with pytest.raises(TraceError, match="There is no format 'csv'"):
        open_trace(path, "csv")
    with pytest.raises(TraceError, match="is not there"):
        open_trace(tmp_path / "none.csv")


def test_malformed_rows_are_counted_shown_and_refused(tmp_path: Path) -> None:
    bad = {3: "x,1,1", 5: "1,2", 6: "2,-1,3", 8: "3,1.5,1", 9: "nan,1,1", 10: "4,,1"}
    good = "7,10,20"
    text = "t_s,prompt_tokens,output_tokens\n" + "\n".join(bad.get(row, good) for row in range(2, 12)) + "\n"
    path = written(tmp_path, "t.csv", text)
    with pytest.raises(TraceError) as caught:
        open_trace(path)
    message = str(caught.value)
    assert "6 malformed rows" in message
    assert "--skip-bad" in message
    assert all(f"line {row}:" in message for row in bad)
    trace = open_trace(path, skip_bad=True)
    assert len(trace) == 4
    assert "6 malformed rows skipped" in trace.notes[0]
    with pytest.raises(TraceError, match="6 malformed rows"):
        list(pieces(path, rows=2))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from(["good", "word", "short", "minus", "empty"]), min_size=1, max_size=40),
    st.integers(1, 7),
)
def test_every_row_is_read_or_counted(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], size: int
) -> None:
    rows = {"good": "{i},5,6", "word": "{i},five,6", "short": "{i},5", "minus": "{i},5,-6", "empty": ""}
    text = "\n".join(rows[kind].format(i=i) for i, kind in enumerate(kinds))
    path = tmp_path_factory.getbasetemp() / "rows.csv"
    path.write_text(f"t_s,prompt_tokens,output_tokens\n{text}\n")
    good, bad = kinds.count("good"), len(kinds) - kinds.count("good") - kinds.count("empty")
    trace = open_trace(path, skip_bad=True)
    assert trace.arrival_s.tolist() == [i for i, kind in enumerate(kinds) if kind == "good"]
    assert sum(len(piece) for piece in pieces(path, rows=size, skip_bad=True)) == good
    if bad:
        with pytest.raises(TraceError, match=f"{bad} malformed row"):
            open_trace(path)
    else:
        same(trace, open_trace(path))


def test_times_out_of_order_are_sorted_and_said(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv", "t_s,prompt_tokens,output_tokens\n3,1,1\n1,2,2\n2,3,3\n")
    trace = open_trace(path)
    assert trace.prompt_tokens.tolist() == [2, 3, 1]
    assert "sorted by time: 1 rows" in trace.notes[0]
    with pytest.raises(DisorderError, match="trace convert"):
        list(pieces(path, rows=1))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60), st.integers(0, 10**6), st.booleans(), st.integers(1, 25))
def test_parquet_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, n: int, seed: int, full: bool, size: int
) -> None:
    trace = small(n, seed, full=full)
    path = tmp_path_factory.getbasetemp() / "round.parquet"
    assert write(path, (trace.take(slice(i, i + size)) for i in range(0, max(n, 1), size))) == n
    assert store.length(path) == n
    if n:
        same(trace, open_trace(path))
        found = list(pieces(path, rows=size))
        assert max(map(len, found)) <= size
        same(trace, joined(found))
        if full:  # codes mean the same in every piece
            names = found[-1].tenant
            assert names is not None
            for piece in found:
                assert piece.tenant is not None
                assert names.names[: len(piece.tenant.names)] == piece.tenant.names


def test_parquet_refuses_what_does_not_fit_and_leaves_nothing(tmp_path: Path) -> None:
    trace = small(10, 0)
    with pytest.raises(TraceError, match="not in order"):
        write(tmp_path / "x.parquet", [trace, trace])
    with pytest.raises(TraceError, match="A piece has the columns"):
        write(tmp_path / "x.parquet", [trace.take(slice(0, 5)), small(10, 0, full=True).take(slice(5, 10))])
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_parquet_file_is_a_table(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {"t_s": [0.0, 1.0], "prompt_tokens": [3, 4], "output_tokens": [5, 6], "model": ["a", None]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    trace = open_trace(tmp_path / "t.parquet")
    assert trace.prompt_tokens.tolist() == [3, 4]
    assert trace.model is not None
    assert trace.model.codes.tolist() == [0, -1]


def test_a_long_trace_is_written_and_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.parquet"
    model = plain(1000.0, 1000.0)
    write(
        path, generated_pieces(model, rows=8192)
    )  # compiled and cached things are there before it is measured
    peaks = []
    for requests in (50_000, 400_000):
        tracemalloc.start()
        write(path, generated_pieces(model, rows=8192, requests=requests))
        assert sum(len(piece) for piece in pieces(path, rows=8192)) == requests
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_the_published_files() -> None:
    conv = open_trace(data("azure_llm_2023/azure_conv.csv.gz"))
    assert len(conv) == 14524
    assert conv.notes == ()
    assert conv.name == "azure_conv"
    kimi = open_trace(data("mooncake_fast25/mooncake_conversation.csv.gz"))
    assert len(kimi) == 9032
    assert isinstance(kimi, Trace)
    assert kimi.blocks is not None
    # A prompt has as many blocks as it needs, the last one cut short.
    sizes = np.diff(kimi.blocks.offsets)
    assert np.mean(sizes == -(-kimi.prompt_tokens // 512)) > 0.99
