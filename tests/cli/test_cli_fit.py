"""`apportion fit`: from a table to a file that predicts."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from apportion.cli.app import app
from apportion.core import Features, LengthPredictor, QualityPredictor, catalogue
from apportion.serve.artefact import load

pytest.importorskip("sklearn")

ASKED = ("Why is", "Write an essay of 900 words on", "Compute 17 + 4 *", "List ten examples of", "Translate")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Answers of two models: essays are long, arithmetic is hard for the small one."""
    generator, path = Random(1), tmp_path / "trace.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "model", "quality", "output_tokens", "finish_reason"])
        for n in range(120):
            kind = n % len(ASKED)
            prompt = f"{ASKED[kind]} subject {n} {'and more ' * generator.randrange(4)}?"
            for model, right in (("small", 0.1 if kind == 2 else 0.8), ("large", 0.95)):
                tokens = (60, 900, 20, 300, 40)[kind] * math.exp(generator.gauss(0, 0.2))
                cut = tokens > 1000
                row = [prompt, model, int(generator.random() < right), min(round(tokens), 1000)]
                rows.writerow([*row, "length" if cut else "stop"])
    return path


def features(prompt: str) -> Features:
    lexical = catalogue.build("text/lexical")
    return Features(lexical.features(prompt))  # type: ignore[attr-defined]


def test_length(trace: Path, tmp_path: Path) -> None:
    output = tmp_path / "length.json"
    done = CliRunner().invoke(app, ["fit", "length", str(trace), "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert "240 answers" in done.stdout
    assert "small" in done.stdout
    predictor, document = load(output, "length")
    assert isinstance(predictor, LengthPredictor)
    assert document["encoder"] is None
    long = predictor.predict(features("Write an essay of 900 words on subject 7 ?"), "small")
    short = predictor.predict(features("Compute 17 + 4 * subject 7 ?"), "small")
    assert long is not None
    assert short is not None
    assert long.p50 > 5 * short.p50


def test_length_as_json(trace: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["fit", "length", str(trace), "-o", str(tmp_path / "a.json"), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["report"]["heads"]["plain"]["ranking"] > 0.9
    assert told["sha256"] == json.loads((tmp_path / "a.json").read_text())["sha256"]


def test_quality(trace: Path, tmp_path: Path) -> None:
    output = tmp_path / "quality.json"
    arguments = ["fit", "quality", str(trace), "-o", str(output), "--method", "linear", "--no-encoder"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "120 prompts, 2 models" in done.stdout
    predictor, _ = load(output, "quality")
    assert isinstance(predictor, QualityPredictor)
    [small, large] = predictor.predict(features("Compute 17 + 4 * subject 7 ?"), ["small", "large"])
    assert small is not None
    assert large is not None
    assert small.mean < 0.5 < large.mean


def test_quality_of_a_wide_table(tmp_path: Path) -> None:
    generator, path = Random(2), tmp_path / "wide.jsonl"
    rows = [
        {
            "prompt": f"{ASKED[n % 5]} subject {n}?",
            "a": int(generator.random() < 0.7),
            "b": generator.random(),
        }
        for n in range(100)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["fit", "quality", str(path), "-o", str(tmp_path / "q.json"), "--method", "linear", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--no-encoder", "--models", "a,b"])
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)["report"]["models"]) == {"a", "b"}


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("length", "prompt,model,quality\nx,m,1\n", "No row has output tokens"),
        ("quality", "prompt,model,output_tokens\nx,m,1\n", "No row has a quality"),
        ("length", "prompt,model,output_tokens\nx,m,1\n", "a fit needs 50"),
        ("length", "prompt,model,output_tokens\nx,m,many\n", "line 2, column output_tokens"),
    ],
)
def test_what_cannot_be_fitted_is_explained(tmp_path: Path, kind: str, text: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    done = CliRunner().invoke(app, ["fit", kind, str(tmp_path / "a.csv"), "-o", str(tmp_path / "out.json")])
    assert done.exit_code == 1
    assert said in done.stderr
    assert not (tmp_path / "out.json").exists()
