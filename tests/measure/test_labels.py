"""Tables of graded answers: every form that is read, and what is said of what is not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from apportion.measure import labels
from apportion.measure.labels import LabelsError, read


def written(path: Path, text: str, *, zipped: bool = False) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    return path


def test_a_long_table(tmp_path: Path) -> None:
    text = (
        "id,prompt,model,quality,output_tokens,finish_reason,cost_usd\n"
        'q1,"What, now?",small,1,10,stop,0.001\nq1,"What, now?",large,0.5,200,length,\nq2,,small,1,5,stop,\n'
    )
    for zipped in (False, True):
        found = read([written(tmp_path / "a.csv", text, zipped=zipped)])
        assert found.skipped == 1
        one, other = found.rows
        assert one == labels.Label("What, now?", "small", 1.0, 10.0, False, None, 0.001, "q1", None)
        assert (other.quality, other.censored, other.cost_usd) == (0.5, True, None)


def test_json_lines_and_conversations(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "Why?", "model": "m", "correct": True},
        {"question": "How?", "model": "m", "correct": False},
        {"question": "Who?", "model": "m", "correct": None},
    ]
    found = read([written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")])
    assert [row.quality for row in found.rows] == [1.0, 0.0]
    assert found.skipped == 1
    talk = [{"role": "assistant", "content": "Shall I?"}, {"role": "user", "content": "yes"}]
    row = {"messages": talk, "model": "m", "score": 7}
    [one] = read([written(tmp_path / "b.jsonl", json.dumps(row))], scale=10).rows
    assert (one.prompt, one.quality) == ("Shall I?\nyes", 0.7)


def test_a_wide_table(tmp_path: Path) -> None:
    text = "idx,subject,prompt,small,large,prompt_chars\n1,algebra,1+1?,0,1,4\n2,algebra,2+2?,,0.5,4\n"
    found = read([written(tmp_path / "a.csv", text)])
    assert [(row.model, row.quality) for row in found.rows] == [
        ("small", 0.0),
        ("large", 1.0),
        ("large", 0.5),
    ]
    [only, _] = read([tmp_path / "a.csv"], models=["large"]).rows
    assert only.model == "large"


def test_characters_stand_for_tokens_where_there_are_none(tmp_path: Path) -> None:
    [row] = read([written(tmp_path / "a.csv", "query,model,response_chars\nx,m,425\n")]).rows
    assert row.output_tokens == pytest.approx(100)


def test_decision_logs_with_words_in_another_file(tmp_path: Path) -> None:
    head = {"kind": "log", "version": 1, "worker": 0, "at": 0.0}
    entry = {
        "kind": "decision",
        "id": "dec_1",
        "at": 1.0,
        "model": "auto",
        "options": [{"action": "small", "value": 1.0, "cost": {}}],
        "choice": 0,
        "probability": 1.0,
        "lexical": [0.5, 0.25],
        "output_tokens": 77,
        "finish": "length",
    }
    word = {"kind": "feedback", "id": "dec_1", "at": 2.0, "source": "person", "score": 1.0, "quality": 0.75}
    written(
        tmp_path / "worker-00.jsonl", "\n".join(map(json.dumps, (head, entry))).replace('": ', '":') + "\n"
    )
    written(
        tmp_path / "worker-01.jsonl", "\n".join(map(json.dumps, (head, word))).replace('": ', '":') + "\n"
    )
    for paths in ([tmp_path], sorted(tmp_path.glob("*.jsonl"))):
        [row] = read(paths).rows
        assert (row.model, row.quality, row.output_tokens, row.censored) == ("small", 0.75, 77.0, True)
        assert row.lexical == (0.5, 0.25)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "prompt,model,quality\nx,m,7\n", "line 2, column quality: '7' is not in \\[0, 1\\]"),
        ("a.csv", "prompt,model,quality\nx,m,good\n", "'good' is not in"),
        ("a.csv", "prompt,model,quality\nx,,1\n", "line 2, column model: no model"),
        ("a.csv", "prompt,model,quality\nx,m\n", "line 2: 2 values for 3 columns"),
        ("a.csv", "prompt,model,output_tokens\nx,m,-1\n", "column output_tokens: '-1' is not a number"),
        ("a.csv", "words,model,quality\nx,m,1\n", "no column with the prompt"),
        ("a.csv", "prompt,model\nx,m\n", "no column with the quality or the output tokens"),
        ("a.csv", "prompt,subject\nx,algebra\n", "neither a column `model`"),
        ("a.csv", "prompt,turn\nx,1\ny,2\n", "--models"),
        ("a.csv", "prompt,prompt\nx,1\n", "no header"),
        ("a.csv", "prompt,model,quality\n", "No answer was found"),
        ("a.csv", "", "no header"),
        ("a.jsonl", '{"prompt": 1\n', "line 1: not JSON"),
        ("a.jsonl", '{"prompt": "x", "model": "m", "quality": 1}\n[1]\n', "line 2: not a JSON object"),
        ("a.json", '[{"prompt": "x"}]', "one JSON array"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(LabelsError, match=said):
        read([written(tmp_path / name, text)])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="is not there"):
        read([tmp_path / "none.csv"])
    (tmp_path / "a.csv").write_bytes(b"prompt,model\n\xff\xfe,1\n")
    with pytest.raises(LabelsError, match="not UTF-8"):
        read([tmp_path / "a.csv"])
    (tmp_path / "b.csv").write_bytes(gzip.compress(b"prompt,model,quality\n" + b"x,m,1\n" * 5000)[:-20])
    with pytest.raises(LabelsError, match="cannot be read"):
        read([tmp_path / "b.csv"])
    with pytest.raises(LabelsError, match="no column 'huge'"):
        read([written(tmp_path / "c.csv", "prompt,small\nx,1\n")], models=["huge"])


def test_progress_ends_at_the_size_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "prompt,model,quality\n" + "x,m,1\n" * 2000)
    told: list[tuple[int, int | None, str]] = []
    read([path], progress=lambda *said: told.append(said))
    assert told[-1] == (path.stat().st_size, path.stat().st_size, "a.csv")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
