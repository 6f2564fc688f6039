"""A tree of YAML into the structs of the schema, collecting everything that is wrong instead of the first."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import inspect

from apportion.serve.config import schema, units
from apportion.serve.config.document import Fields, Items, Node, Path, Scalar, show_path
from apportion.serve.config.problems import Problem
from apportion.serve.config.secret import Secret

_VARIABLE = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\})?")
_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*")
_WINDOWS: Final = {"forever": None, "day": "day", "week": "week", "month": "month"}
"""Windows that are words; see `schema.Window`."""
_TRUE = frozenset({"true", "yes", "on"})
_FALSE = frozenset({"false", "no", "off"})
_LOOKS_SECRET = re.compile(r"(?=\S*[0-9])(?=\S*[A-Za-z])\S{20,}")


class Invalid:
    """Stands for a value that could not be read; what is wrong with it is among the problems."""


INVALID: Final = Invalid()


class Converter:
    """Reads nodes as the types of the schema. ``problems`` grows; ``lines`` has the line of every path."""

    def __init__(self, file: str, environ: Mapping[str, str]) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.lines: dict[Path, int] = {}
        self._environ = environ
        self._kept: dict[Path, list[int]] = {}

    def as_written(self, path: Path) -> Path:
        """``path`` into the structs as a path into the file: items that could not be read count again."""
        written: Path = ()
        for step in path:
            kept = self._kept.get(written)
            written = (*written, kept[step] if kept and isinstance(step, int) else step)
        return written

    def refuse(self, path: Path, line: int | None, message: str, fix: str | None = None) -> Invalid:
        """Notes one problem."""
        self.problems.append(
            Problem(file=self.file, line=line, path=show_path(path), message=message, fix=fix)
        )
        return INVALID

    def struct(self, cls: type[msgspec.Struct], node: Node, path: Path) -> Any:
        """``node`` as ``cls``. A wrong optional field keeps its default, a wrong required one spoils it."""
        node = _long_form(cls, node)
        self.lines.setdefault(path, node.line)
        if isinstance(node, Scalar) and node.kind == "null":
            node = Fields({}, node.line)
        if not isinstance(node, Fields):
            return self.refuse(path, node.line, f"expected a mapping, found {_found(node)}.")
        fields = _fields(cls)
        values: dict[str, Any] = {}
        for key, (line, value) in node.fields.items():
            # The parameters of a policy are written beside its name.
            here = path if cls is schema.PolicyChoice and key == "parameters" else (*path, key)
            self.lines[here] = line
            if key in fields:
                values[key] = self.value(fields[key].type, value, here)
            elif not (not path and key.startswith("x-")):
                self.refuse(here, line, "unknown key.", nearest(key, fields))
        broken = False
        for name, field in fields.items():
            if name not in node.fields and field.required:
                self.refuse((*path, name), node.line, "missing.", _description(field.type))
            broken = broken or (field.required and values.get(name, INVALID) is INVALID)
        if broken:
            return INVALID
        return cls(**{name: value for name, value in values.items() if value is not INVALID})

    def value(self, kind: inspect.Type, node: Node, path: Path) -> Any:
        """``node`` as a value of the type ``kind``, or `INVALID`."""
        unit: str | None = None
        while isinstance(kind, inspect.Metadata):
            unit = unit or (kind.extra or {}).get("unit")
            kind = kind.type
        if isinstance(kind, inspect.UnionType):
            return self._union(kind, node, path)
        if isinstance(kind, inspect.StructType):
            return self.struct(kind.cls, node, path)
        if isinstance(kind, inspect.ListType):
            return self._list(kind, node, path)
        if isinstance(kind, inspect.DictType):
            return self._dict(kind, node, path)
        if isinstance(kind, inspect.CustomType) and kind.cls is object:
            return self.plain(node, path)
        if not isinstance(node, Scalar):
            return self.refuse(path, node.line, f"expected {_expected(kind, unit)}, found {_found(node)}.")
        text = self.expand(node, path)
        if isinstance(text, Invalid):
            return INVALID
        return self._scalar(kind, unit, node, text, path)

    def expand(self, node: Scalar, path: Path) -> str | Invalid:
        """The text of a scalar with ``${NAME}`` and ``${NAME:-default}`` filled in; ``$${`` stays ``${``."""
        if "${" not in node.text:
            return node.text
        missing: list[str] = []

        def fill(match: re.Match[str]) -> str:
            name, default = match[1], match[2]
            if match[0] == "$${":
                return "${"
            if name is None:
                self.refuse(
                    path, node.line, "unfinished `${`.", "Write `${NAME}`, or `$${` for a plain `${`."
                )
                missing.append("")
                return ""
            value = self._environ.get(name)
            if default is not None:
                return value or default
            if value is None:
                missing.append(name)
                self.refuse(
                    path,
                    node.line,
                    f"the environment variable {name} is not set.",
                    f"Set it, or give a default: `${{{name}:-...}}`.",
                )
            return value or ""

        text = _VARIABLE.sub(fill, node.text)
        return INVALID if missing else text

    def plain(self, node: Node, path: Path) -> Any:
        """``node`` as plain data: the parameters of a policy."""
        self.lines.setdefault(path, node.line)
        if isinstance(node, Fields):
            return {key: self.plain(value, (*path, key)) for key, (_, value) in node.fields.items()}
        if isinstance(node, Items):
            return [self.plain(item, (*path, index)) for index, item in enumerate(node.items)]
        text = self.expand(node, path)
        if isinstance(text, Invalid) or node.kind == "null":
            return INVALID if isinstance(text, Invalid) else None
        if node.kind == "bool":
            return text.lower() in _TRUE
        if text == node.text and node.kind == "str" and not _is_exponent(text):
            return text
        if _INTEGER.fullmatch(text):
            return int(text.replace("_", ""))
        number = _number(text)
        return text if number is None else number

    def _union(self, kind: inspect.UnionType, node: Node, path: Path) -> Any:
        choices = [choice for choice in kind.types if not isinstance(choice, inspect.NoneType)]
        optional = len(choices) < len(kind.types)
        if optional and isinstance(node, Scalar) and node.kind == "null":
            return None
        for choice in choices:
            if len(choices) == 1 or isinstance(choice, inspect.StructType) == isinstance(node, Fields):
                return self.value(choice, node, path)
        expected = " or ".join(_expected(choice, None) for choice in choices)
        return self.refuse(path, node.line, f"expected {expected}, found {_found(node)}.")

    def _list(self, kind: inspect.ListType, node: Node, path: Path) -> Any:
        if isinstance(node, Scalar) and node.kind == "null":
            node = Items((), node.line)
        if not isinstance(node, Items):
            return self.refuse(path, node.line, f"expected a list, found {_found(node)}.")
        if len(node.items) < (kind.min_length or 0):
            return self.refuse(path, node.line, "the list is empty.", "Name at least one.")
        values = []
        kept = self._kept[path] = []
        for index, item in enumerate(node.items):
            self.lines[(*path, index)] = item.line
            value = self.value(kind.item_type, item, (*path, index))
            if value is not INVALID:
                values.append(value)
                kept.append(index)
        return values

    def _dict(self, kind: inspect.DictType, node: Node, path: Path) -> Any:
        if isinstance(node, Scalar) and node.kind == "null":
            node = Fields({}, node.line)
        if not isinstance(node, Fields):
            return self.refuse(path, node.line, f"expected a mapping of names, found {_found(node)}.")
        values = {}
        for key, (line, item) in node.fields.items():
            here = (*path, key)
            self.lines[here] = line
            if not key or key != key.strip() or not key.isprintable():
                self.refuse(here, line, "a name must be printable and without spaces at its ends.")
            value = self.value(kind.value_type, item, here)
            if value is not INVALID:
                values[key] = value
        return values

    def _scalar(self, kind: inspect.Type, unit: str | None, node: Scalar, text: str, path: Path) -> Any:
        filled = text != node.text
        value: Any = None
        if unit == "window" and text in _WINDOWS:
            return _WINDOWS[text]
        if isinstance(kind, inspect.CustomType) and kind.cls is Secret:
            if node.kind in ("null", "bool") or not text.strip():
                return self.refuse(
                    path, node.line, "expected a secret, found nothing.", "Write it in quotes."
                )
            if not text.isprintable():
                return self.refuse(
                    path, node.line, "a secret may not hold control characters or line breaks."
                )
            return Secret(text)
        if isinstance(kind, inspect.StrType):
            if node.kind in ("null", "bool"):
                fix = f'If you mean the text, quote it: "{node.text}".' if node.text else None
                return self.refuse(path, node.line, f"expected text, found {_found(node)}.", fix)
            value = text
        elif isinstance(kind, inspect.LiteralType):
            value = text if text in kind.values else None
        elif isinstance(kind, inspect.BoolType):
            if (node.kind == "bool" or filled) and text.lower() in _TRUE | _FALSE:
                value = text.lower() in _TRUE
        elif isinstance(kind, inspect.IntType):
            if unit == "size":
                value = units.size_bytes(text)
            elif (node.kind == "int" or filled) and _INTEGER.fullmatch(text):
                value = int(text.replace("_", ""))
        elif isinstance(kind, inspect.FloatType):
            if node.kind in ("int", "float") or filled or _is_exponent(text):
                value = _number(text)
            if unit == "moment":
                value = units.moment_s(text)
            elif value is None and unit in ("duration", "window"):
                value = units.duration_s(text)
        if value is None or not _within(kind, value):
            near = isinstance(kind, inspect.LiteralType) and not filled and _near(text, kind.values)
            fix = f"Did you mean `{near}`?" if near else None
            return self.refuse(
                path, node.line, f"expected {_expected(kind, unit)}, found {_found(node)}.", fix
            )
        return value


def nearest(wrong: str, right: Iterable[object]) -> str:
    """The fix for a misspelt name: the nearest right one, or all of them."""
    names = [str(name) for name in right]
    near = _near(wrong, names)
    if near:
        return f"Did you mean `{near}`?"
    return f"Known: {', '.join(f'`{name}`' for name in names)}." if names else "There are none."


def _near(wrong: str, right: Iterable[object]) -> str | None:
    found = difflib.get_close_matches(wrong, [str(name) for name in right], n=1, cutoff=0.6)
    return found[0] if found else None


@functools.cache
def _fields(cls: type[msgspec.Struct]) -> dict[str, inspect.Field]:
    kind = inspect.type_info(cls)
    fields = kind.fields if isinstance(kind, inspect.StructType) else ()
    return {field.encode_name: field for field in fields}


def _long_form(cls: type[msgspec.Struct], node: Node) -> Node:
    """Short forms written out: ``policy: NAME``, ``endpoints: [NAME]``, ``models: {NAME: ENDPOINT}``."""
    given = not (isinstance(node, Scalar) and node.kind == "null")
    if cls is schema.Target and isinstance(node, Scalar) and given:
        return Fields({"endpoint": (node.line, node)}, node.line)
    if cls is schema.Model and isinstance(node, Scalar) and given:
        return Fields({"endpoints": (node.line, Items((node,), node.line))}, node.line)
    if cls is schema.Model and isinstance(node, Items):
        return Fields({"endpoints": (node.line, node)}, node.line)
    if cls is schema.Queue and isinstance(node, Scalar) and given:
        return Fields({"policy": (node.line, node)}, node.line)
    if cls is schema.PolicyChoice:
        if isinstance(node, Scalar) and given:
            return Fields({"name": (node.line, node)}, node.line)
        if isinstance(node, Fields):
            own = {key: value for key, value in node.fields.items() if key == "name"}
            rest = {key: value for key, value in node.fields.items() if key != "name"}
            return Fields({**own, "parameters": (node.line, Fields(rest, node.line))}, node.line)
    return node


def _unit(kind: inspect.Type) -> str | None:
    unit = (kind.extra or {}).get("unit") if isinstance(kind, inspect.Metadata) else None
    return str(unit) if unit is not None else None


def _description(kind: inspect.Type) -> str | None:
    schema_part = kind.extra_json_schema if isinstance(kind, inspect.Metadata) else None
    return (schema_part or {}).get("description")


def _is_exponent(text: str) -> bool:
    """``1e-3``, which YAML 1.1 takes for text."""
    return re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+", text) is not None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _within(kind: inspect.Type, value: Any) -> bool:
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        return (
            (kind.ge is None or value >= kind.ge)
            and (kind.gt is None or value > kind.gt)
            and (kind.le is None or value <= kind.le)
            and (kind.lt is None or value < kind.lt)
        )
    if isinstance(kind, inspect.StrType):
        return len(value) >= (kind.min_length or 0) and (
            kind.pattern is None or re.search(kind.pattern, value) is not None
        )
    return True


def bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    """The range of a number in words: ``from 1 to 256``, ``more than 0``; empty if it has none."""
    low = (
        f"from {kind.ge:g}"
        if kind.ge is not None
        else f"more than {kind.gt:g}"
        if kind.gt is not None
        else ""
    )
    high = (
        f"to {kind.le:g}" if kind.le is not None else f"less than {kind.lt:g}" if kind.lt is not None else ""
    )
    if low.startswith("from") and not high:
        return f"{kind.ge:g} or more"
    return f"{low} {high}".strip()


def _expected(kind: inspect.Type, unit: str | None) -> str:
    while isinstance(kind, inspect.Metadata):
        unit = unit or _unit(kind)
        kind = kind.type
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        noun = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
        if unit == "size":
            noun = "a size such as `20MiB`"
        elif unit == "moment":
            return "a date and time with its zone such as `2027-01-31T12:00:00Z`"
        elif unit == "window":
            return "`day`, `week`, `month`, `forever` or a duration such as `1h`"
        elif unit is not None:
            noun = "a duration such as `30s`"
        return f"{noun}, {bounds(kind)}" if bounds(kind) else noun
    if isinstance(kind, inspect.LiteralType):
        return " or ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, inspect.StrType):
        if kind.pattern:
            return "64 hexadecimal digits" if "64" in kind.pattern else f"text like {kind.pattern}"
        return "text that is not empty" if kind.min_length else "text"
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, inspect.CustomType):
        return "a secret"
    return "a list" if isinstance(kind, inspect.ListType) else "a mapping"


def _found(node: Node) -> str:
    """What was found, for a message. Anything filled from the environment or like a secret is not shown."""
    if isinstance(node, Fields):
        return "a mapping"
    if isinstance(node, Items):
        return "a list"
    if node.kind == "null":
        return "nothing"
    if _LOOKS_SECRET.search(node.text):
        return "a text"
    text = node.text if len(node.text) <= 40 else f"{node.text[:37]}..."
    return f"the text {text!r}" if node.kind == "str" else text
