"""The example of a rehearsal: its trace is the one its program makes, and its story is true."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from apportion.cli.app import app

EXAMPLE = Path(__file__).parents[2] / "examples" / "rehearse"


def test_the_trace_is_what_the_program_makes(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "make_trace.py", tmp_path)
    runpy.run_path(str(tmp_path / "make_trace.py"), run_name="__main__")
    assert (tmp_path / "trace.csv").read_text() == (EXAMPLE / "trace.csv").read_text()


@pytest.mark.parametrize("name", ["least_load", "priced", "fixed", "scaled"])
def test_the_configurations_are_valid(name: str) -> None:
    done = CliRunner().invoke(app, ["check", str(EXAMPLE / f"{name}.yaml"), "--json"])
    assert done.exit_code == 0, done.output


def test_prices_keep_the_budget_and_answer_everybody() -> None:
    configs = [str(EXAMPLE / f"{name}.yaml") for name in ("least_load", "priced")]
    command = ["compare", *configs, "--trace", str(EXAMPLE / "trace.csv"), "--seeds", "1", "--draws", "0"]
    done = CliRunner().invoke(app, [*command, "--engine", "serial", "--json"])
    assert done.exit_code == 0, done.stderr
    least_load, priced = json.loads(done.stdout)["what_ifs"][0]["cases"]
    assert least_load["metrics"]["refused"]["value"] > 0
    assert priced["metrics"]["refused"]["value"] == 0
    assert priced["metrics"]["quality"]["value"] > least_load["metrics"]["quality"]["value"]
    for case in (least_load, priced):
        assert not case["budget_violations"]
        assert case["little"]["error"] < 1e-9


def test_fewer_machines_for_the_same_answers_where_their_number_follows_the_load() -> None:
    configs = [str(EXAMPLE / f"{name}.yaml") for name in ("fixed", "scaled")]
    command = ["compare", *configs, "--trace", str(EXAMPLE / "trace.csv"), "--seeds", "1", "--draws", "0"]
    done = CliRunner().invoke(app, [*command, "--engine", "serial", "--json"])
    assert done.exit_code == 0, done.stderr
    fixed, scaled = json.loads(done.stdout)["what_ifs"][0]["cases"]
    assert [case["metrics"]["answered_share"]["value"] for case in (fixed, scaled)] == [1.0, 1.0]
    assert fixed["metrics"]["instances"]["value"] == pytest.approx(3.0, rel=0.01)
    assert scaled["metrics"]["instances"]["value"] < 2.0
    assert scaled["metrics"]["rented_usd"]["value"] < 0.6 * fixed["metrics"]["rented_usd"]["value"]
    assert scaled["metrics"]["joules"]["value"] < fixed["metrics"]["joules"]["value"]
    assert scaled["metrics"]["e2e_mean_s"]["value"] > fixed["metrics"]["e2e_mean_s"]["value"]
    assert "scaled" not in fixed
    changes = scaled["scaled"]["large"]
    assert all(1 <= each["ready"] <= each["there"] <= 3 for each in changes)
    assert len(changes) > 4
