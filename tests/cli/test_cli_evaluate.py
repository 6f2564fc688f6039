"""`apportion evaluate`: from a log on disk to a table, honest about what it cannot know."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from apportion.cli.evaluate import command
from apportion.measure.decision_log import Entry, Header, Offered, Word, line

COSTS = {"small": 0.001, "large": 0.005}
RIGHT = {"small": 0.5, "large": 0.9}


def write(
    path: Path, n: int = 600, *, drawn: bool = True, model: str = "chat", labelled: float = 1.0
) -> Path:
    """The log of a policy that draws among two, or always takes the small one."""
    generator = random.Random(1)
    with path.open("wb") as file:
        file.write(line(Header(1, 0, 0.0)))
        for number in range(n):
            choice = generator.randrange(2) if drawn else 0
            action = list(COSTS)[choice]
            entry = Entry(
                id=f"dec_{number}",
                at=float(number),
                model=model,
                options=[Offered(name, 0.02 * RIGHT[name], {"usd": usd}) for name, usd in COSTS.items()],
                choice=choice,
                probability=0.5 if drawn else 1.0,
                prices={"usd": 1.0},
                worth_usd=0.02,
                cost={"usd": COSTS[action]},
            )
            file.write(line(entry))
            if generator.random() < labelled:
                quality = float(generator.random() < RIGHT[action])
                word = Word(id=entry.id, at=number + 1.0, source="user", score=quality, quality=quality)
                file.write(line(word))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)


def asked(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


@pytest.mark.parametrize("labelled", [1.0, 0.5])
def test_the_other_policy_is_estimated(tmp_path: Path, labelled: float) -> None:
    log = write(tmp_path / "log.jsonl", labelled=labelled)
    found = asked(log, "--policy", "route/priced")
    quality = found["estimates"]["quality"]["doubly robust"]
    assert quality["low"] < 0.9 < quality["high"]
    assert quality["high"] - quality["low"] < 0.2
    assert found["estimates"]["cost_usd"]["doubly robust"]["mean"] == pytest.approx(0.005, rel=1e-3)
    assert found["logged"]["quality"]["low"] < 0.7 < found["logged"]["quality"]["high"]
    net = found["estimates"]["net_usd"]["doubly robust"]
    assert net["low"] < 0.02 * 0.9 - 0.005 < net["high"]
    assert found["agreement"] == pytest.approx(0.5, abs=0.06)


def test_another_price_makes_another_policy(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl")
    found = asked(log, "--policy", "route/priced", "--against", "route/random", "--against-param", "seed=3")
    difference = found["against"]["quality"]
    assert difference["low"] < 0.2 < difference["high"]
    assert difference["low"] > 0.0


def test_the_table_says_the_same(tmp_path: Path) -> None:
    result = run(write(tmp_path / "log.jsonl"), "--policy", "route/priced")
    assert result.exit_code == 0
    for text in ("doubly robust", "quality", "cost, $ a request", "effective sample size", "600"):
        assert text in result.output
    assert "warning" not in result.output


def test_certain_choices_are_warned_of(tmp_path: Path) -> None:
    result = run(write(tmp_path / "log.jsonl", drawn=False), "--policy", "route/priced")
    assert "Every logged choice was certain" in result.output
    assert "Overlap is poor" in result.output


def test_few_labels_are_warned_of(tmp_path: Path) -> None:
    result = run(write(tmp_path / "log.jsonl", labelled=0.2), "--policy", "route/priced")
    assert "answers is known" in result.output


def test_several_models_need_a_name(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    text = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "b.jsonl").write_text(text.replace('"chat"', '"other"').replace("dec_", "dec_b"))
    refused = run(tmp_path, "--policy", "route/priced")
    assert refused.exit_code == 2
    assert "chat, other" in refused.output
    assert asked(tmp_path, "--policy", "route/priced", "--model", "other")["rows"] == 600


def test_a_replay_uses_what_matches(tmp_path: Path) -> None:
    found = asked(write(tmp_path / "log.jsonl"), "--policy", "route/priced", "--replay")
    quality = found["estimates"]["quality"]["replay"]
    assert quality["low"] < 0.9 < quality["high"]
    assert 250 < found["rows"] < 350


def test_mistakes_are_explained(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", 10)
    assert run(log, "--policy", "route/priced", "--param", "unknown").exit_code == 2
    assert run(log, "--policy", "route/priced", "--replay", "--learn-from", "0.5").exit_code == 2
