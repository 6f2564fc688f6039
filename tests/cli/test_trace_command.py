"""``apportion trace``: from a file to a fitted workload and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from apportion.cli.app import app
from apportion.cli.trace import _print_run
from apportion.simulate import result
from apportion.simulate.workload import generate, open_trace, plain, write


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["trace", *map(str, words)])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    trace = generate(plain(4.0, 100.0, sigma=0.5, shape=0.6), 1)
    rows = zip(trace.arrival_s, trace.prompt_tokens, trace.output_tokens, strict=True)
    path = tmp_path / "t.csv"
    path.write_text(
        "t_s,prompt_tokens,output_tokens\n" + "".join(f"{t + 50:.6f},{p},{o}\n" for t, p, o in rows)
    )
    return path


def test_convert_cuts_thickens_and_mixes(table: Path, tmp_path: Path) -> None:
    n = len(open_trace(table))
    done = run("convert", table, tmp_path / "a.parquet", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["requests"] == n
    whole = open_trace(tmp_path / "a.parquet")
    assert whole.arrival_s[0] == 0.0
    assert (
        run(
            "convert", table, tmp_path / "b.parquet", "--from", "10s", "--until", "1m", "--rate", "3"
        ).exit_code
        == 0
    )
    cut = open_trace(tmp_path / "b.parquet")
    assert len(cut) == 3 * np.count_nonzero((whole.arrival_s >= 10) & (whole.arrival_s < 60))
    assert run("convert", table, table, tmp_path / "c.parquet", "--after", "--faster", "2").exit_code == 0
    assert open_trace(tmp_path / "c.parquet").duration_s == pytest.approx(whole.duration_s)
    assert run("convert", table, tmp_path / "d.parquet", "--model", "x").exit_code == 1


def test_malformed_rows_are_refused_or_skipped(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("t_s,prompt_tokens,output_tokens\n1,2,3\nx,2,3\n0,2,3\n")
    refused = run("convert", path, tmp_path / "o.parquet")
    assert refused.exit_code == 1
    assert "line 3" in refused.stderr
    assert not (tmp_path / "o.parquet").exists()
    skipped = run("convert", path, tmp_path / "o.parquet", "--skip-bad")
    assert skipped.exit_code == 0
    assert "1 malformed row skipped" in skipped.stderr
    assert "sorted" in skipped.stderr
    assert len(open_trace(tmp_path / "o.parquet")) == 2
    disordered = tmp_path / "late.csv"
    disordered.write_text(
        "t_s,prompt_tokens,output_tokens\n" + "".join(f"{100 - i},2,3\n" for i in range(100))
    )
    assert run("convert", disordered, tmp_path / "p.parquet").exit_code == 0
    assert np.all(np.diff(open_trace(tmp_path / "p.parquet").arrival_s) > 0)


def test_describe_fit_and_generate(table: Path, tmp_path: Path) -> None:
    shown = run("describe", table, "--plot", tmp_path / "d.png")
    assert shown.exit_code == 0, shown.output
    assert "coefficient of variation" in shown.stdout
    facts = json.loads(run("describe", table, "--json").stdout)
    assert facts["requests"] == len(open_trace(table))
    assert facts["models"] is None
    fitted = run("fit", table, "-o", tmp_path / "m.json", "--plot", tmp_path / "f.png", "--window", "100s")
    assert fitted.exit_code == 0, fitted.output
    assert "Index of dispersion" in fitted.stdout
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("d.png", "f.png"))
    made = run(
        "generate", tmp_path / "m.json", tmp_path / "g.parquet", "--requests", 1000, "--seed", 2, "--json"
    )
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["requests"] == 1000
    assert len(open_trace(tmp_path / "g.parquet")) == 1000
    assert run("generate", table, tmp_path / "g.parquet").exit_code == 1


def test_send_says_what_is_missing(table: Path, tmp_path: Path) -> None:
    assert "--model" in run("send", table, "http://127.0.0.1:1/v1").stderr
    nobody = run("send", table, "http://127.0.0.1:1/v1", "--model", "m")
    assert nobody.exit_code == 1
    assert "did not answer a first question" in nobody.stderr
    assert ".." not in nobody.stderr
    empty = tmp_path / "none.parquet"
    write(empty, [])
    assert "no requests" in run("send", empty, "http://127.0.0.1:1/v1", "--model", "m").stderr
    alone = run(
        "send", table, "http://127.0.0.1:1/v1", "--model", "m", "--no-measure", "--until", "1s", "--json"
    )
    facts = json.loads(alone.stdout)
    assert facts["status"]["failed"] == facts["sent"] > 0


def test_a_file_is_not_called_what_it_is_not(table: Path, tmp_path: Path) -> None:
    wrong = run("convert", table, tmp_path / "out.csv")
    assert wrong.exit_code != 0
    assert "out.parquet" in wrong.output
    assert not (tmp_path / "out.csv").exists()


def test_how_late_it_was_sent_is_not_among_the_times_of_answers(capsys: pytest.CaptureFixture[str]) -> None:
    facts = dict.fromkeys(("dropped", "given_up", "waited_for_room"), 0) | {"sent": 1, "requests": 1}
    facts |= {"lateness_s": {"p50": 0.0002, "p95": 0.001, "p99": 0.0125}, "why": {}}
    facts |= {"prompt_tokens_of_wanted": 1.0, "output_tokens_of_wanted": 0.5}
    _print_run(result.Result(result.empty(1), {}, facts))
    told = capsys.readouterr().out
    assert "Sent late by 0.20 ms (median), 1.00 ms (p95), 12.50 ms (p99)." in told
    assert "50.0% of the output tokens" in told
