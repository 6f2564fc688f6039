"""Profiles: their file, what is refused, the law, draws, and finding them by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.simulate.profile import Profile, ProfileError, from_json, linear, read
from apportion.simulate.profiles import SHIPPED, load, names
from apportion.simulate.profiles.machines import MACHINES, machine
from apportion.simulate.profiles.roofline import roofline
from apportion.simulate.profiles.shapes import shape

amounts = st.floats(0, 1e6, allow_nan=False)


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    points = sorted(draw(st.sets(st.integers(1, 10**6), min_size=1, max_size=6)))
    return Profile(
        name=draw(st.text(min_size=1, max_size=8)),
        tokens=tuple(float(p) for p in points),
        seconds=tuple(draw(amounts) for _ in points),
        prefill_attention_s=draw(amounts),
        slots=draw(st.integers(1, 1000)),
        idle_w=draw(st.none() | amounts),
        error={"ttft_s": draw(amounts)},
        draws=({"seconds": [draw(amounts) for _ in points], "mixed_s": draw(amounts)},),
        facts={"tp": 2},
    )


@given(profiles())
def test_a_file_says_the_same_again(profile: Profile) -> None:
    assert from_json(profile.to_json()) == profile


def test_saving_and_reading(tmp_path: Path) -> None:
    profile = Profile(name="mine", tokens=(1.0, 8.0), seconds=(0.01, 0.02))
    profile.save(tmp_path / "folder" / "mine.json")
    assert read(tmp_path / "folder" / "mine.json") == profile
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["mine.json"]


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("[1]", "profile", "no JSON object"),
        ("{}", "name", "missing"),
        ('{"name": ""}', "name", "empty"),
        ('{"name": "a", "slotz": 3}', "slotz", "slots"),
        ('{"name": "a", "slots": "many"}', "slots", "int"),
        ('{"name": "a", "slots": 0}', "slots", "at least 1"),
        ('{"name": "a", "tokens": [1, "x"], "seconds": [1, 2]}', "tokens[1]", "float"),
        ('{"name": "a", "tokens": [1, 2], "seconds": [1]}', "seconds", "one for each"),
        ('{"name": "a", "tokens": [2, 1], "seconds": [1, 2]}', "tokens", "increase"),
        ('{"name": "a", "tokens": [], "seconds": []}', "tokens", "no point"),
        ('{"name": "a", "request_s": -1}', "request_s", "zero or more"),
        ('{"name": "a", "kind": "hosted"}', "tokens_per_s", "rate"),
        ('{"name": "a", "kind": "other"}', "kind", "other"),
        ('{"name": "a", "draws": [{"colour": 1}]}', "draws[0].colour", "no constant"),
        ('{"name": "a", "version": 9}', "version", "Calibrate again"),
        ('{"name": "a", "apportion": "length"}', "apportion", "another kind"),
        ('{"name": "a"}', "seconds", "missing"),
        ('{"name": "a", "slots": 4, "idle_w": 70, "before_s": 0.1}', "seconds", "missing"),
    ],
)
def test_bad_files_name_the_field(text: str, field: str, says: str) -> None:
    with pytest.raises(ProfileError) as error:
        from_json(text.encode(), "mine.json")
    assert error.value.field == field
    assert says in str(error.value)
    assert "mine.json" in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="apportion calibrate"):
        read(tmp_path / "none.json")


def test_the_law_is_what_its_docstring_says() -> None:
    p = Profile(
        name="a",
        tokens=(1.0, 11.0, 21.0),
        seconds=(1.0, 2.0, 4.0),
        prefill_attention_s=0.1,
        decode_attention_s=0.01,
        request_s=0.5,
        mixed_s=3.0,
    )
    assert p.seconds_of(0) == 1.0
    assert p.seconds_of(6) == 1.5
    assert p.seconds_of(31) == pytest.approx(6.0)  # goes on with the last slope
    whole = p.seconds_of(11, prefill_pairs=10.0, decode_context=100.0, requests=2, mixed=True)
    assert whole == pytest.approx(2.0 + 1.0 + 1.0 + 1.0 + 3.0)
    assert p.seconds_of(np.array([1, 11])).tolist() == [1.0, 2.0]
    assert linear(5.0, (1.0,), (7.0,)) == 7.0


def test_draws_and_scaling() -> None:
    p = Profile(
        name="a", tokens=(1.0, 2.0), seconds=(1.0, 2.0), draws=({"seconds": [3.0, 4.0]}, {"request_s": 1.0})
    )
    assert p.drawn(0).seconds == (3.0, 4.0)
    assert p.drawn(1).seconds == (1.0, 2.0)
    assert p.drawn(3) == p.drawn(1)
    assert p.drawn(np.random.default_rng(0)) == p.drawn(np.random.default_rng(0))
    plain = dataclasses.replace(p, draws=())
    assert plain.drawn(5) is plain
    slow = p.scaled(2.0)
    assert slow.seconds == (2.0, 4.0)
    assert slow.drawn(0).seconds == (6.0, 8.0)
    with pytest.raises(ProfileError, match="factor"):
        p.scaled(0.0)


def test_power_between_the_points() -> None:
    p = Profile(name="a", decode_tokens=(1.0, 3.0), decode_w=(100.0, 200.0))
    assert p.decode_watts([1, 2, 3, 9]).tolist() == [100.0, 150.0, 200.0, 200.0]
    assert np.isnan(Profile(name="a").decode_watts(1)).all()


def test_names_are_found_near_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    known = next(iter(sorted(names(tmp_path))))
    assert load(known, beside=tmp_path).name == known
    Profile(name="own", load_s=5.0).save(tmp_path / "profiles" / f"{known}.json")
    assert (
        load(known, beside=tmp_path).load_s == 5.0
    )  # the folder beside the configuration hides the package's
    assert load(f"profiles/{known}.json", beside=tmp_path).name == "own"
    Profile(name="far").save(tmp_path / "data" / "apportion" / "profiles" / "far.json")
    assert load("far", beside=tmp_path).name == "far"


def test_unknown_names_list_near_ones(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="h100-llama2-70b-tp8"):
        load("h100-lama2-70b-tp8", beside=tmp_path)
    with pytest.raises(ProfileError, match="apportion profiles"):
        load("qqqq", beside=tmp_path)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda p: p.stem)
def test_profiles_of_the_package(path: Path) -> None:
    profile = read(path)
    assert profile.name == path.stem
    assert "MIT" in profile.source or "Apache-2.0" in profile.source  # nothing else may be shipped
    assert profile.error
    assert list(profile.seconds) == sorted(profile.seconds)
    assert profile.seconds[0] > 0
    for i in range(len(profile.draws)):
        assert profile.drawn(i).tokens == profile.tokens


def test_rooflines() -> None:
    one, four = load("roofline:h100/llama3.1-8b"), load("roofline:h100-sxm/llama3.1-8b/tp4")
    weights = 8.0e9 * 2 / 3.35e12
    assert weights < one.seconds_of(1) < 2 * weights  # generation reads the weights
    work = 2 * 7.0e9 * 8192 / 989e12
    assert work < one.seconds_of(8192) < 2 * work  # a long prompt computes
    assert four.seconds_of(8192) < one.seconds_of(8192)
    assert load("roofline:h100/llama3.1-8b/tp1/8bit").seconds_of(1) < one.seconds_of(1)
    sparse = shape("qwen3-30b-a3b")
    assert sparse.touched(1) < 0.2 * sparse.parameters
    assert sparse.touched(10_000) > 0.95 * sparse.parameters - sparse.vocabulary * sparse.hidden
    assert set(MACHINES) == {m.name for m in MACHINES.values()}


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("roofline:h100", "Write it as"),
        ("roofline:h101/llama3.1-8b", "h100"),
        ("roofline:h100/llama3-8b", "llama3.1-8b"),
        ("roofline:h100/llama3.1-70b/tp1", "2 or more"),
        ("roofline:h100/llama3.1-8b/tp3", "divides"),
    ],
)
def test_rooflines_that_cannot_be(ref: str, says: str) -> None:
    with pytest.raises(ProfileError, match=says):
        load(ref)


def test_a_shape_counts_parameters_as_published() -> None:
    for name, billions in (
        ("llama2-7b", 6.7),
        ("llama3.1-70b", 70.6),
        ("mixtral-8x7b", 46.7),
        ("bloom-176b", 176.2),
    ):
        assert shape(name).parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert roofline(machine("a100"), shape("llama2-7b")).kv_bytes_per_token == 2 * 32 * 4096 * 2
