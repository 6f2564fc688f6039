"""The documentation is what the code does: generated pages, configurations, names, commands."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from apportion.cli.app import app
from apportion.core import catalogue
from apportion.measure.metrics import Registry
from apportion.serve import budget_metrics
from apportion.serve.config.reader import loads
from apportion.serve.ledger.balances import Balance
from apportion.serve.lessons import LessonMeters
from apportion.serve.meters import Meters

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SECRETS = ("RESEARCH_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GROQ_API_KEY", "LITELLM_MASTER_KEY")


def blocks(page: Path, language: str) -> Iterator[str]:
    """The code blocks of a page in one language, without the indentation of tabs and notes."""
    text = page.read_text(encoding="utf-8")
    for indent, block in re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE):
        yield "".join(line.removeprefix(indent) for line in block.splitlines(keepends=True))


def named(language: str) -> list[tuple[str, str]]:
    return [(f"{page.relative_to(ROOT)}", block) for page in PAGES for block in blocks(page, language)]


CONFIGURATIONS = [(page, block) for page, block in named("yaml") if block.startswith("# apportion.yaml\n")]


def test_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, "-m", "tools.reference", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(("page", "text"), CONFIGURATIONS)
def test_configurations_are_valid(page: str, text: str) -> None:
    assert loads(text, page, environ=dict.fromkeys(SECRETS, "secret")).models


def test_the_pages_show_configurations() -> None:
    assert len(CONFIGURATIONS) >= 10
    assert any(page == "README.md" for page, _ in CONFIGURATIONS)


@pytest.mark.parametrize(("page", "text"), named("python"))
def test_programs_compile(page: str, text: str) -> None:
    compile(text, page, "exec")


def test_every_page_is_in_the_navigation() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]

    def pages(entries: list[dict[str, object]]) -> Iterator[str]:
        for entry in entries:
            for value in entry.values():
                if isinstance(value, str):
                    yield value
                elif isinstance(value, list):
                    yield from pages(value)

    assert set(pages(site["nav"])) == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


class Named(Registry):
    """A registry that remembers what was declared: name, kind and labels."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, 0)
        self.named: set[tuple[str, str, tuple[str, ...]]] = set()

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Any:
        self.named.add((name, "counter", tuple(labels)))
        return super().counter(name, text, labels)

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Any:
        self.named.add((name, "gauge", tuple(labels)))
        return super().gauge(name, text, labels)

    def histogram(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> Any:
        self.named.add((name, "histogram", tuple(labels)))
        return super().histogram(name, text, labels, bounds)


def read_at_each_scrape() -> set[tuple[str, str, tuple[str, ...]]]:
    """Name, kind and labels of the metrics of budgets and prices."""
    one = Decimal(1)
    balance = Balance("b", "all", "usd", one, one, one, one, True, None)
    text = budget_metrics.render([balance], {"scopes": {"all": {"prices": {"usd": 1.0}}}})
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    samples = re.findall(r"^(\w+)\{(.*)\} ", text, re.MULTILINE)
    assert {name for name, _ in samples} == set(kinds)
    return {(name, kinds[name], tuple(re.findall(r"(\w+)=", labels))) for name, labels in samples}


def test_every_metric_is_listed(tmp_path: Path) -> None:
    registry = Named(tmp_path)
    Meters(registry)
    LessonMeters(registry)
    text = (DOCS / "guides" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(apportion_\w+)` \| (\w+) \| (.*?) \|", text, re.MULTILINE)
    said = registry.named | read_at_each_scrape()
    assert {(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows} == said
    known = {name for name, _, _ in said}
    for name in re.findall(r"apportion_\w+", text):
        assert name in known or re.sub(r"_(bucket|sum|count)$", "", name) in known


def test_every_dependency_is_explained() -> None:
    project = PROJECT["project"]
    groups = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
        *(name for group in PROJECT["dependency-groups"].values() for name in group),
        *PROJECT["build-system"]["requires"],
    ]
    text = (DOCS / "dependencies.md").read_text(encoding="utf-8")
    for requirement in groups:
        name = re.split(r"[\s<>=;\[]", requirement)[0]
        assert f"`{name}`" in text, f"docs/dependencies.md says nothing about {name}"


def test_every_parameter_of_a_method_is_in_the_words() -> None:
    text = (DOCS / "reference" / "glossary.md").read_text(encoding="utf-8")
    for name in catalogue.names():
        for parameter in catalogue.describe(name).parameters:
            assert f"| `{parameter.name}` |" in text, f"{name}: {parameter.name}"


def test_the_imported_configuration_is_what_the_import_writes(tmp_path: Path) -> None:
    before, after = list(blocks(DOCS / "guides" / "litellm.md", "yaml"))
    file = tmp_path / "config.yaml"
    file.write_text(before, encoding="utf-8")
    run = CliRunner().invoke(app, ["import", "litellm", str(file)])
    assert run.exit_code == 0, run.output
    environ = dict.fromkeys(SECRETS, "secret")
    assert loads(run.stdout, environ=environ) == loads(after, environ=environ)
    for line in re.findall(r"^#   (.*)$", after, re.MULTILINE):
        assert line in run.stdout


def test_the_readme_sets_up_with_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = next(blocks(ROOT / "README.md", "sh"))
    assert re.findall(r"^make \w+", first, re.MULTILINE) == ["make up", "make test"]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)", text)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor and found.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}
            assert anchor in slugs, target
