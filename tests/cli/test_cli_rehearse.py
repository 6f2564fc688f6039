"""``apportion replay`` and ``apportion compare`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from apportion.cli.app import app

CONFIG = """\
endpoints:
  large:
    kind: openai
    base_url: http://127.0.0.1:9/v1
    profile: large.json
    slots: 16
    price: {input_usd_per_mtok: 1.0, output_usd_per_mtok: 3.0}
  small:
    kind: openai
    base_url: http://127.0.0.1:9/v1
    profile: small.json
    slots: 16
    price: {input_usd_per_mtok: 0.1, output_usd_per_mtok: 0.2}
models:
  chat:
    policy: POLICY
    worth_usd: 0.001
    endpoints:
      - {endpoint: large, model: big, quality: 0.9}
      - {endpoint: small, model: tiny, quality: 0.7}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two configurations, their profiles and a trace."""
    from apportion.simulate.profile import Profile

    for name, factor in (("large", 2.0), ("small", 1.0)):
        curve = tuple(factor * x for x in (0.01, 0.02, 0.08))
        Profile(name=name, tokens=(1.0, 256.0, 2048.0), seconds=curve, slots=16).save(
            tmp_path / f"{name}.json"
        )
    for name, policy in (("a", "route/priced"), ("b", "route/round_robin")):
        (tmp_path / f"{name}.yaml").write_text(CONFIG.replace("POLICY", policy))
    lines = ["arrival_s,prompt_tokens,output_tokens,tenant"]
    lines += [
        f"{i * 0.25},{64 + i * 37 % 900},{1 + i * 13 % 90},{'red' if i % 2 else 'green'}" for i in range(120)
    ]
    (tmp_path / "trace.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_replay_shows_the_baseline_the_policy_and_the_best(folder: Path) -> None:
    result = invoke("replay", folder / "trace.csv", "--config", folder / "a.yaml", "--engine", "serial")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    [head] = [line for line in lines if "best possible" in line and "baseline" in line]
    assert head.split()[-3:] == ["a", "best", "possible"]
    for title in (
        "TTFT p90",
        "TPOT mean",
        "end to end p99",
        "cost per 1,000 requests",
        "expected quality",
        "utilisation",
    ):
        assert any(line.strip().startswith(title) for line in lines), title
    assert "Reading" in result.stderr
    assert "120 requests" in result.stderr


def test_replay_as_json_is_only_json(folder: Path) -> None:
    result = invoke(
        "replay",
        folder / "trace.csv",
        "--config",
        folder / "a.yaml",
        "--no-baseline",
        "--json",
        "--objective",
        "ttft=1s",
    )
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    [case] = data["what_ifs"][0]["cases"]
    assert case["name"] == "a"
    assert data["objective"]["ttft_s"] == 1.0
    assert case["metrics"]["answered_share"]["value"] == 1.0
    assert case["metrics"]["usd"]["value"] >= data["what_ifs"][0]["best_possible"]["usd"]["value"]
    assert (
        invoke(
            "replay",
            folder / "trace.csv",
            "--config",
            folder / "a.yaml",
            "--no-baseline",
            "--json",
            "--objective",
            "ttft=1s",
        ).stdout
        == result.stdout
    )


def test_replay_writes_everything_into_a_folder(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("pyarrow")
    out = folder / "out"
    result = invoke(
        "replay",
        folder / "trace.csv",
        "--config",
        folder / "a.yaml",
        "--no-baseline",
        "--out",
        out,
        "--until",
        "10s",
        "--rate",
        2,
    )
    assert result.exit_code == 0, result.stderr
    from apportion.simulate.result import load

    assert (
        len(load(out / "a-seed0.parquet"))
        == json.loads((out / "report.json").read_text())["trace"]["requests"]
    )
    assert (out / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert {path.suffix for path in out.iterdir()} == {".parquet", ".json", ".html", ".png", ".svg"}
    assert (out / "latency.png").read_bytes()[:4] == b"\x89PNG"


def test_rows_as_csv(folder: Path) -> None:
    out = folder / "out"
    result = invoke(
        "replay",
        folder / "trace.csv",
        "--config",
        folder / "a.yaml",
        "--no-baseline",
        "--out",
        out,
        "--rows",
        "csv",
    )
    assert result.exit_code == 0, result.stderr
    assert (out / "a-seed0.csv").read_text().count("\n") == 121


def test_compare_puts_configurations_side_by_side(folder: Path) -> None:
    result = invoke(
        "compare", folder / "a.yaml", folder / "b.yaml", "--trace", folder / "trace.csv", "--seeds", 2,
        "--engine", "serial", "--what-if", "rate=2", "--what-if", "lose=small@5s", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert [each["what_if"] for each in data["what_ifs"]] == ["as is", "rate=2", "lose=small@5s"]
    assert [case["name"] for case in data["what_ifs"][0]["cases"]] == ["a", "b"]
    assert data["what_ifs"][0]["cases"][1]["against_baseline"]
    assert data["what_ifs"][1]["cases"][0]["metrics"]["requests"]["value"] == 240
    lost = data["what_ifs"][2]["cases"][1]["by"]["action"]
    assert lost["large/big"]["requests"] > lost["small/tiny"]["requests"]


def test_an_endpoint_without_a_profile_says_how_to_get_one(folder: Path) -> None:
    text = (folder / "a.yaml").read_text().replace("    profile: small.json\n", "")
    (folder / "a.yaml").write_text(text)
    result = invoke("replay", folder / "trace.csv", "--config", folder / "a.yaml")
    assert result.exit_code == 1
    assert "small" in result.stderr
    assert "apportion calibrate small" in result.stderr
    assert "Traceback" not in result.stderr


def test_malformed_rows_are_told_with_their_lines(folder: Path) -> None:
    with (folder / "trace.csv").open("a") as file:
        file.write("soon,1,1,red\n31,-5,1,red\n")
    arguments = ("replay", folder / "trace.csv", "--config", folder / "a.yaml", "--no-baseline", "--json")
    refused = invoke(*arguments)
    assert refused.exit_code == 1
    assert "2 malformed rows" in refused.stderr
    assert "line 122" in refused.stderr
    assert "--skip-bad" in refused.stderr
    skipped = invoke(*arguments, "--skip-bad")
    assert skipped.exit_code == 0, skipped.stderr
    assert "2 malformed rows skipped" in skipped.stderr
    assert json.loads(skipped.stdout)["trace"]["requests"] == 120


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--objective", "fast", "is no objective"),
        ("--what-if", "lose=huge", "There is no endpoint 'huge'"),
        ("--what-if", "warp=9", "is no what-if"),
        ("--until", "soon", "is no duration"),
        ("--until", "0s", "has no requests"),
    ],
)
def test_wrong_options_are_told_with_the_fix(folder: Path, option: str, value: str, told: str) -> None:
    result = invoke("replay", folder / "trace.csv", "--config", folder / "a.yaml", option, value)
    assert result.exit_code == 1
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_files_that_are_not_there_are_told(folder: Path) -> None:
    for arguments in (
        ("replay", folder / "none.csv", "--config", folder / "a.yaml"),
        ("replay", folder / "trace.csv", "--config", folder / "none.yaml"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 1
        assert "none." in result.stderr
        assert "Traceback" not in result.stderr


def test_options_are_refused_before_the_trace_is_read(folder: Path) -> None:
    for wrong in (("--what-if", "lose=larg"), ("--what-if", "rate=1e9"), ("--objective", "ttfb=1s")):
        told = invoke("replay", "not-there.csv", "--config", folder / "a.yaml", *wrong)
        assert told.exit_code != 0
        assert "not-there" not in told.output
        assert wrong[1].partition("=")[2] in told.output


def test_columns_may_be_named(folder: Path) -> None:
    text = (folder / "trace.csv").read_text().replace("arrival_s", "when")
    (folder / "named.csv").write_text(text)
    words = ("replay", folder / "named.csv", "--config", folder / "a.yaml", "--until", "5s")
    assert invoke(*words).exit_code != 0
    told = invoke(*words, "--column", "arrival_s=when")
    assert told.exit_code == 0, told.output
    assert "Its cost is that at the quality of baseline" in told.output


def test_what_is_not_installed_is_said_before_the_trace_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apportion.cli._rehearsing.find_spec", lambda name: None)
    for words, needed in (
        (("--html", folder / "a.html"), "--html needs matplotlib for pictures"),
        (("--out", folder / "out"), "--out needs matplotlib for pictures"),
    ):
        told = invoke("replay", "not-there.csv", "--config", folder / "a.yaml", *words)
        assert told.exit_code != 0
        assert needed in " ".join(told.output.split())
        assert "apportion[simulate]" in told.output
        assert "not-there" not in told.output
