"""YAML text as a tree that still knows the line of everything. Nothing is constructed, nothing runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

import yaml

from apportion.serve.config.problems import Problem

MAX_NODES = 100_000
"""Bound on the tree with aliases expanded, far above any real file (a "billion laughs" has 10^9)."""
MAX_DEPTH = 64

_PLAIN_STEP = re.compile(r"[\w$/:@-]+")
_TAGS = {
    "tag:yaml.org,2002:null": "null",
    "tag:yaml.org,2002:bool": "bool",
    "tag:yaml.org,2002:int": "int",
    "tag:yaml.org,2002:float": "float",
    "tag:yaml.org,2002:timestamp": "str",
    "tag:yaml.org,2002:value": "str",
    "tag:yaml.org,2002:str": "str",
}


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value as written; ``kind`` is what YAML takes it for: null, bool, int, float or str."""

    text: str
    kind: str
    line: int


@dataclass(frozen=True, slots=True)
class Items:
    """A YAML sequence."""

    items: tuple[Node, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Fields:
    """A YAML mapping: key -> (line of the key, value), in the order of the file."""

    fields: dict[str, tuple[int, Node]]
    line: int


Node = Scalar | Items | Fields
Path = tuple[str | int, ...]
"""Where a node is: names of keys and indices of items, from the root."""


def show_path(path: Path) -> str:
    """A path as people write it: ``keys[0].name``, ``models."gpt-4.1".policy``."""
    shown = ""
    for step in path:
        if isinstance(step, int):
            shown += f"[{step}]"
            continue
        name = step if _PLAIN_STEP.fullmatch(step) else json.dumps(step, ensure_ascii=False)
        shown += f".{name}" if shown else name
    return shown


class _Refused(Exception):
    def __init__(self, line: int, message: str, fix: str | None = None) -> None:
        self.line, self.message, self.fix = line, message, fix


def parse(text: str, name: str) -> tuple[Node | None, list[Problem]]:
    """The tree of a YAML text (None if it is not YAML) and what is wrong. ``name`` is shown as the file."""
    problems: list[Problem] = []

    def refuse(line: int | None, message: str, fix: str | None = None) -> None:
        problems.append(Problem(file=name, line=line, path="", message=message, fix=fix))

    try:
        # The pure Python loader: bounded recursion, where the C one may exhaust the stack.
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return Fields({}, 1), problems
        return _Builder(refuse).build(root, 0), problems
    except yaml.MarkedYAMLError as error:
        # Not str(error): it quotes the text around the place, which may hold a secret.
        mark = error.problem_mark or error.context_mark
        message = f"not valid YAML: {error.problem or error.context or 'unreadable'}."
        lines = text.splitlines()
        quote = mark is not None and mark.line < len(lines) and "${" in lines[mark.line]
        refuse(mark.line + 1 if mark else None, message, 'Quote it: "${NAME}".' if quote else None)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        refuse(line, f"not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed.")
    except yaml.YAMLError:
        refuse(None, "not valid YAML.")
    except RecursionError:
        refuse(None, "nested too deep.", f"At most {MAX_DEPTH} levels are read.")
    except _Refused as refused:
        refuse(refused.line, refused.message, refused.fix)
    return None, problems


class _Builder:
    def __init__(self, refuse: Callable[[int, str, str], None]) -> None:
        self._refuse = refuse
        self._left = MAX_NODES

    def build(self, node: yaml.Node, depth: int) -> Node:
        line = node.start_mark.line + 1
        self._left -= 1
        if self._left < 0:
            raise _Refused(
                line, "aliases (`*name`) expand to too much.", f"At most {MAX_NODES} values are read."
            )
        if depth > MAX_DEPTH:
            raise _Refused(line, "nested too deep.", f"At most {MAX_DEPTH} levels are read.")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, line)
        if node.tag not in ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"):
            raise _tagged(node, line)
        if isinstance(node, yaml.SequenceNode):
            return Items(tuple(self.build(item, depth + 1) for item in node.value), line)
        return self._mapping(node, line, depth)

    def _scalar(self, node: yaml.ScalarNode, line: int) -> Scalar:
        kind = _TAGS.get(node.tag)
        if kind is None:
            raise _tagged(node, line)
        return Scalar(node.value, kind, line)

    def _mapping(self, node: yaml.Node, line: int, depth: int) -> Fields:
        own: dict[str, tuple[int, Node]] = {}
        merged: dict[str, tuple[int, Node]] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise _Refused(key_line, "a key must be text.")
            if key_node.tag == "tag:yaml.org,2002:merge":
                for key, entry in self._merged(value_node, depth).items():
                    merged.setdefault(key, entry)
                continue
            key = key_node.value
            value = self.build(value_node, depth + 1)
            if key in own:
                self._refuse(
                    key_line,
                    f"the key {key!r} is there twice (first on line {own[key][0]}).",
                    "Remove one of them.",
                )
                continue
            own[key] = (key_line, value)
        for key, entry in merged.items():
            own.setdefault(key, entry)
        return Fields(own, line)

    def _merged(self, node: yaml.Node, depth: int) -> dict[str, tuple[int, Node]]:
        built = self.build(node, depth + 1)
        parts = built.items if isinstance(built, Items) else (built,)
        found: dict[str, tuple[int, Node]] = {}
        for part in parts:
            if not isinstance(part, Fields):
                raise _Refused(part.line, "`<<` takes a mapping or a list of mappings.")
            for key, entry in part.fields.items():
                found.setdefault(key, entry)
        return found


def _tagged(node: yaml.Node, line: int) -> _Refused:
    return _Refused(line, f"the YAML tag {node.tag!r} is not allowed.", "Remove it.")
