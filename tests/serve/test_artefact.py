"""Files of fitted predictors: the way there and back, and everything that may be wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apportion.core import Features, LengthPredictor
from apportion.serve.artefact import ArtefactError, load, write


def document() -> dict[str, Any]:
    from apportion.core import catalogue

    predictor: Any = catalogue.build("length/typical")
    for tokens in (90, 100, 110, 120):
        predictor.learn(Features((0.5,)), "m", tokens)
    return {
        "apportion": "length",
        "version": 1,
        "method": "length/typical",
        "parameters": predictor.parameters(),
        "encoder": "text/minilm",
        "saved": predictor.save(),
    }


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "length.json"
    digest = write(path, document())
    found, told = load(path, "length", encoder="text/minilm")
    assert isinstance(found, LengthPredictor)
    assert found.predict(Features((0.5,)), "m") is not None
    assert told["sha256"] == digest == write(path, told)
    load(path, "length")
    assert [file.name for file in path.parent.iterdir()] == ["length.json"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"apportion": "quality"}, "predictor of 'quality', not of 'length'"),
        ({"version": 2}, "version 2"),
        ({"method": "length/linear"}, "was changed"),
    ],
)
def test_what_is_not_what_it_should_be(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "a.json"
    write(path, document())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtefactError, match=said):
        load(path, "length")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="apportion fit length"):
        load(tmp_path / "none.json", "length")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ArtefactError, match="no fitted predictor"):
        load(tmp_path / "a.json", "length")
    write(tmp_path / "b.json", document())
    with pytest.raises(ArtefactError, match="vectors of 'text/minilm'"):
        load(tmp_path / "b.json", "length", encoder="text/other")
    write(
        tmp_path / "c.json",
        {
            **document(),
            "saved": {"method": "Typical", "learned": {"_models": {"anyone": None, "known": {"m": {}}}}},
        },
    )
    with pytest.raises(ArtefactError, match="does not hold"):
        load(tmp_path / "c.json", "length")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write(path, document())
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write(path, {"apportion": object()})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
