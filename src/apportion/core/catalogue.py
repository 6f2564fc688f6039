"""The catalogue of methods: found by path, described by their docstrings.

A method is a file. ``policy/route/power_of_two.py`` with the class ``PowerOfTwo`` is
``"route/power_of_two"``. Other packages add theirs through entry points of the group ``apportion``.
Nothing is imported before it is asked for.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from apportion.core.errors import DuplicateMethodError, MethodFileError, ParameterError, UnknownMethodError
from apportion.core.method import Method

GROUP = "apportion"
"""The entry point group of plugins: the entry's name is the method's, its value ``module:Class``."""

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = ("policy", "predict")
"""Rooms whose folders are families of methods. ``reason`` is one family."""


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """One constructor parameter: its ``default`` as source text, what is ``allowed``, what it means."""

    name: str
    default: str
    allowed: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Paper:
    """A source: its ``title`` and where known its arXiv id, DOI or address."""

    title: str
    arxiv: str | None = None
    doi: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """What the catalogue knows of a method, all of it read from the code."""

    name: str
    family: str
    summary: str
    parameters: tuple[ParameterInfo, ...]
    complexity: str
    papers: tuple[Paper, ...]
    baseline: bool
    """Whether it is a baseline, without a paper of its own."""


def names(family: str | None = None) -> tuple[str, ...]:
    """The names of all methods, or of one family's, sorted."""
    return tuple(name for name in sorted(_places()) if family is None or name.rpartition("/")[0] == family)


def families() -> tuple[str, ...]:
    """The families that have methods, sorted."""
    return tuple(sorted({name.rpartition("/")[0] for name in _places()}))


def find(name: str) -> type[Method]:
    """The class called ``name``, imported now; raises `UnknownMethodError` with the nearest and all names."""
    place = _places().get(name)
    if place is None:
        near = difflib.get_close_matches(name, _places(), n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise UnknownMethodError(
            f"There is no method {name!r}.", field="policy", fix=f"{hint}Known: {', '.join(names())}."
        )
    module_name, _, attribute = place.partition(":")
    module = importlib.import_module(module_name)
    found = getattr(module, attribute, None) if attribute else _named_after_file(module)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise MethodFileError(f"The method {name!r} is not found as a Method in {place}.", field=name)
    return found


def build(name: str, **parameters: Any) -> Method:
    """A new object of the method called ``name``; raises `ParameterError` for a wrong or missing
    parameter.
    """
    found = find(name)
    known = found.signature()
    for parameter in parameters:
        if parameter not in known:
            near = difflib.get_close_matches(parameter, known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise ParameterError(
                f"{found.__name__} has no parameter {parameter!r}.",
                field=parameter,
                fix=f"{hint}It takes: {', '.join(known) or 'none'}.",
            )
    for parameter, declared in known.items():
        if declared.default is declared.empty and parameter not in parameters:
            raise ParameterError(f"{found.__name__} needs the parameter {parameter!r}.", field=parameter)
    return found(**parameters)


def describe(name: str) -> MethodInfo:
    """What the code says of the method called ``name``; raises `MethodFileError` where it does not say
    enough.
    """
    return describe_class(find(name), name)


def describe_class(cls: type[Method], name: str) -> MethodInfo:
    """`describe` for a class that need not be in the catalogue."""
    text = inspect.cleandoc(cls.__doc__ or "")
    parts = _sections(text)
    meanings = _definitions(parts.get("Parameters", ""))
    signature = cls.signature()
    if meanings.keys() != signature.keys():
        raise MethodFileError(
            f"The Parameters section of {name!r} explains {sorted(meanings)}, "
            f"the constructor takes {sorted(signature)}.",
            field=name,
        )
    baseline = bool(re.search(r"^References: none, baseline\.?$", text, re.MULTILINE))
    papers = _papers(name, parts.get("References", ""))
    if bool(papers) == baseline:
        raise MethodFileError(
            f"The docstring of {name!r} needs a References section with titled papers, "
            "or the line 'References: none, baseline'.",
            field=name,
        )
    if "Complexity" not in parts:
        raise MethodFileError(f"The docstring of {name!r} has no Complexity section.", field=name)
    return MethodInfo(
        name=name,
        family=name.rpartition("/")[0],
        summary=_first_sentence(text),
        parameters=tuple(
            ParameterInfo(
                parameter.name,
                "required" if parameter.default is parameter.empty else repr(parameter.default),
                str(cls.constraints.get(parameter.name, "anything")),
                meanings[parameter.name],
            )
            for parameter in signature.values()
        ),
        complexity=_one_line(parts["Complexity"]),
        papers=papers,
        baseline=baseline,
    )


def listing() -> list[dict[str, Any]]:
    """Every method as JSON-able data: what ``apportion methods --json`` prints."""
    return [asdict(describe(name)) for name in names()]


@functools.cache
def _places() -> dict[str, str]:
    """Where each method is: a module, or ``module:Class`` for a plugin's."""
    from importlib.metadata import entry_points  # it loads sockets and mail; most processes never ask

    found = dict(_built_in())
    for entry in entry_points(group=GROUP):
        if found.setdefault(entry.name, entry.value) != entry.value:
            raise DuplicateMethodError(
                f"The method {entry.name!r} of {entry.value} is already {found[entry.name]}.",
                field=entry.name,
                fix="Rename one of the two entry points.",
            )
    return found


def _built_in() -> Iterable[tuple[str, str]]:
    for room in _FOLDERS:
        for path in sorted((_PACKAGE / room).glob("[!_]*/[!_]*.py")):
            yield f"{path.parent.name}/{path.stem}", f"apportion.{room}.{path.parent.name}.{path.stem}"
    for path in sorted((_PACKAGE / "reason").glob("[!_]*.py")):
        yield f"reason/{path.stem}", f"apportion.reason.{path.stem}"


def _named_after_file(module: ModuleType) -> object:
    """The class of ``module`` that has the file's name, capitals and underscores aside."""
    wanted = module.__name__.rpartition(".")[2].replace("_", "")
    for attribute, value in vars(module).items():
        if attribute.lower() == wanted and isinstance(value, type) and value.__module__ == module.__name__:
            return value
    return None


def _sections(text: str) -> dict[str, str]:
    """The underlined sections of a docstring, by heading."""
    pieces = re.split(r"^(\w[\w ]*)\n-{3,}\n", text, flags=re.MULTILINE)
    return {heading: body.strip("\n") for heading, body in zip(pieces[1::2], pieces[2::2], strict=True)}


def _definitions(body: str) -> dict[str, str]:
    """``name`` or ``name : type`` at the margin, its meaning indented below."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in body.splitlines():
        if line and not line[0].isspace():
            name = line.partition(":")[0].strip()
            found[name] = []
        elif name:
            found[name].append(line)
    return {name: _one_line("\n".join(lines)) for name, lines in found.items()}


def _papers(name: str, body: str) -> tuple[Paper, ...]:
    found = []
    for entry in re.split(r"^\.\. \[\w+\]", body, flags=re.MULTILINE)[1:]:
        text = _one_line(entry)
        title = re.search(r'"(.+?)[.,]?"', text)
        arxiv = re.search(r"arXiv:\s?(\d{4}\.\d{4,5}|[a-z-]+/\d{7})", text)
        doi = re.search(r"doi:\s?(10\.\S+\w)", text)
        url = re.search(r"https?://\S+[\w/]", text)
        if not title or not (arxiv or doi or url):
            raise MethodFileError(
                f'A reference of {name!r} needs a "title" and an arXiv id, a doi or an address: {text!r}.',
                field=name,
            )
        found.append(
            Paper(
                title.group(1),
                arxiv.group(1) if arxiv else None,
                doi.group(1) if doi else None,
                url.group(0) if url else None,
            )
        )
    return tuple(found)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", _one_line(text.partition("\n\n")[0]), maxsplit=1)[0]


def _one_line(text: str) -> str:
    return " ".join(text.split())
