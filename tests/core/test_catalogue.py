"""The catalogue: discovery, names, descriptions read from docstrings, plugins, and its page."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import final

import pytest

from apportion.core import (
    DuplicateMethodError,
    MethodFileError,
    ParameterError,
    Policy,
    UnknownMethodError,
    catalogue,
)
from apportion.core.catalogue import describe_class
from apportion.core.catalogue_page import page
from apportion.core.method import Method
from apportion.policy.route._base import Router

ROOT = Path(__file__).parents[2]


def test_names_are_paths() -> None:
    assert "route/power_of_two" in catalogue.names("route")
    assert "route" in catalogue.families()
    assert catalogue.names("no-such-family") == ()
    found = catalogue.find("route/power_of_two")
    assert found.__name__ == "PowerOfTwo"
    assert found.__module__ == "apportion.policy.route.power_of_two"


def test_every_file_of_a_family_holds_its_method() -> None:
    for name in catalogue.names():
        assert issubclass(catalogue.find(name), Method), name


def test_build_passes_parameters_and_names_a_wrong_one() -> None:
    assert repr(catalogue.build("route/power_of_two", d=3)) == "PowerOfTwo(d=3, seed=0)"
    with pytest.raises(ParameterError) as caught:
        catalogue.build("route/power_of_two", d=0)
    assert str(caught.value) == "The 'd' parameter of PowerOfTwo must be an integer in [1, inf), got 0."
    with pytest.raises(
        ParameterError, match=r"PowerOfTwo has no parameter 'choices'\. .*It takes: d, seed\."
    ):
        catalogue.build("route/power_of_two", choices=3)


def test_an_unknown_name_lists_the_nearest_and_all() -> None:
    with pytest.raises(UnknownMethodError) as caught:
        catalogue.build("route/prised")
    text = str(caught.value)
    assert "There is no method 'route/prised'. Did you mean 'route/priced'?" in text
    assert all(name in text for name in catalogue.names())


def test_a_description_is_read_from_the_code() -> None:
    info = catalogue.describe("route/power_of_two")
    assert info.family == "route"
    assert info.summary == "Draws two options and chooses the less loaded of them."
    assert [p.name for p in info.parameters] == ["d", "seed"]
    assert info.parameters[0].default == "2"
    assert info.parameters[0].allowed == "an integer in [1, inf)"
    assert info.parameters[0].meaning.startswith("How many options are drawn")
    assert info.complexity.startswith("O(d)")
    assert info.papers[0].title == "The Power of Two Choices in Randomized Load Balancing"
    assert info.papers[0].doi == "10.1109/71.963420"
    assert not info.baseline
    assert catalogue.describe("route/priced").papers[0].arxiv == "2011.10124"
    assert catalogue.describe("route/random").baseline


def test_the_listing_is_json() -> None:
    listing = json.loads(json.dumps(catalogue.listing()))
    assert [entry["name"] for entry in listing] == list(catalogue.names())
    assert all(entry["papers"] or entry["baseline"] for entry in listing)


def test_the_documentation_page_is_what_the_code_says() -> None:
    written = (ROOT / "docs" / "catalog.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m apportion.core.catalogue_page > docs/catalog.md"


GOOD = """Does a thing. And more.

    Parameters
    ----------
    seed
        Start of the generator.

    Complexity
    ----------
    O(1).

    References
    ----------
    .. [1] A. Author (2020). "A Title, With Commas." Journal. doi:10.1000/xyz.1
    .. [2] "Another." https://example.org/paper
    """


def documented(text: str) -> type[Policy]:
    class Some(Router):
        def __init__(self, *, seed: int = 0) -> None:
            self.seed = seed
            self.start()

        def decide(self, state):  # type: ignore[no-untyped-def]
            return self.nothing(state)

    Some.__doc__ = text
    return Some


def test_references_of_every_kind_are_read() -> None:
    info = describe_class(documented(GOOD), "some/thing")
    assert info.summary == "Does a thing."
    assert [(p.title, p.doi, p.url) for p in info.papers] == [
        ("A Title, With Commas", "10.1000/xyz.1", None),
        ("Another", None, "https://example.org/paper"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            "    seed\n        Start of the generator.\n",
            "",
            "explains \\[\\], the constructor takes \\['seed'\\]",
        ),
        ("Complexity", "Complexities", "no Complexity section"),
        ("References\n", "Reference\n", "needs a References section"),
        ("doi:10.1000/xyz.1", "", 'needs a "title" and an arXiv id, a doi or an address'),
        ('"Another."', "Another.", 'needs a "title"'),
    ],
)
def test_a_docstring_that_says_too_little_fails(old: str, new: str, complaint: str) -> None:
    assert old in GOOD
    with pytest.raises(MethodFileError, match=complaint):
        describe_class(documented(GOOD.replace(old, new)), "some/thing")


@final
class Plugin(Router):
    """Chooses nothing, for this test.

    Complexity
    ----------
    O(1).

    References: none, baseline
    """

    def __init__(self) -> None:
        self.start()

    def decide(self, state):  # type: ignore[no-untyped-def]
        """Choose nothing."""
        return self.nothing(state, "it never does")


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[importlib.metadata.EntryPoint]]:
    found: list[importlib.metadata.EntryPoint] = []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found)
    catalogue._places.cache_clear()
    yield found
    catalogue._places.cache_clear()


def test_a_plugin_is_found_by_its_entry_point(entry_points: list[importlib.metadata.EntryPoint]) -> None:
    entry_points.append(importlib.metadata.EntryPoint("route/plugin", f"{__name__}:Plugin", catalogue.GROUP))
    assert "route/plugin" in catalogue.names("route")
    assert catalogue.find("route/plugin") is Plugin
    assert catalogue.describe("route/plugin").baseline


def test_a_plugin_may_not_take_a_name(entry_points: list[importlib.metadata.EntryPoint]) -> None:
    entry_points.append(importlib.metadata.EntryPoint("route/priced", f"{__name__}:Plugin", catalogue.GROUP))
    with pytest.raises(DuplicateMethodError, match="route/priced"):
        catalogue.names()


def test_a_plugin_that_is_no_method_is_named(entry_points: list[importlib.metadata.EntryPoint]) -> None:
    entry_points.append(importlib.metadata.EntryPoint("route/odd", f"{__name__}:ROOT", catalogue.GROUP))
    with pytest.raises(MethodFileError, match="route/odd"):
        catalogue.find("route/odd")


def test_listing_names_imports_no_method() -> None:
    code = (
        "import sys; from apportion.core import catalogue; catalogue.names(); "
        "print([m for m in sys.modules if m.startswith('apportion.policy.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
