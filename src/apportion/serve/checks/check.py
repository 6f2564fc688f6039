"""The checks that can be configured, one class each; ``made`` builds one from its configuration.

The form of an answer says little of whether it is right, but one whose form is wrong is useless: a failed check
weighs more than a passed one (`serve.verdicts`). Only ``exact`` knows what is right.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar, Final, Protocol, final

from apportion.serve.checks import schemas
from apportion.serve.checks.exchange import Choice, Exchange
from apportion.serve.checks.schemas import BadSchemaError, CheckError
from apportion.serve.verdicts import Kind
from apportion.serve.wire import loads

_CUT: Final = frozenset(
    (
        "length",
        "max_tokens",
        "max_output_tokens",
        "incomplete",
        "content_filter",
        "model_context_window_exceeded",
    )
)
_REFUSALS: Final = (
    *("i'm sorry, but i can", "i am sorry, but i can", "i can't help with", "i cannot help with"),
    *("i can't assist", "i cannot assist", "i'm unable to", "i am unable to", "i won't be able to"),
    *("as an ai language model, i", "i'm not able to help", "i must decline"),
)
_BEGINNING: Final = 300
"""Characters of an answer in which a refusal is looked for."""
_LONGEST: Final = 2**20
_NUMBER: Final = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?")
_BOXED: Final = re.compile(r"\\boxed\{\s*(?:\\text\{)?\s*\(?([A-Za-z])\)?\s*\}")
_LETTER: Final = re.compile(r"(?<![A-Za-z0-9])\(?([A-H])\)?(?![A-Za-z0-9'])")
_SAID: Final = re.compile(r"(?i:answer|option|choice)\s*(?i:is|:)?\s*[*(\s:]{0,4}([A-Z])(?![A-Za-z])")


class Settings(Protocol):
    """What the configuration says of a check (`config.schema.Check`)."""

    @property
    def kind(self) -> str: ...
    @property
    def schema(self) -> dict[str, object] | None: ...
    @property
    def pattern(self) -> str | None: ...
    @property
    def compare(self) -> str: ...
    @property
    def phrases(self) -> list[str] | None: ...


class Check(ABC):
    """Looks at one answer. ``word`` is the kind of word that its score is."""

    name: ClassVar[str]
    word: ClassVar[Kind] = "check"

    @abstractmethod
    def score(self, choice: Choice, exchange: Exchange) -> float | None:
        """In [0, 1]; None where it does not apply."""

    @final
    def of(self, exchange: Exchange) -> float | None:
        """The mean over all answers to which it applies; None where there are none."""
        found = [self.score(choice, exchange) for choice in exchange.choices]
        scores = [score for score in found if score is not None]
        return sum(scores) / len(scores) if scores else None


@final
class JsonSchema(Check):
    """The text is JSON as a schema says: the operator's, or the one the request asks for."""

    name = "json_schema"

    def __init__(self, schema: object) -> None:
        self._schema = schema
        if schema is not None:
            _validator(schema, "schema")

    def score(self, choice: Choice, exchange: Exchange) -> float | None:
        schema = exchange.form if self._schema is None else self._schema
        if schema is None or (choice.calls and not choice.text):
            return None
        try:
            made = schemas.validator(schema)
        except BadSchemaError:  # the client's own
            return None
        try:
            value = loads(choice.text.encode())
        except (ValueError, RecursionError):
            return 0.0
        if self._schema is None and schema is True and not isinstance(value, dict):
            return 0.0
        return float(_valid(made, value))


@final
class Pattern(Check):
    """The text matches a regular expression, in time that grows with its length only."""

    name = "pattern"

    def __init__(self, pattern: str | None) -> None:
        if pattern is None:
            raise CheckError("A check of kind 'pattern' needs 'pattern'.", field="pattern")
        self._validator = _validator({"type": "string", "pattern": pattern}, "pattern")

    def score(self, choice: Choice, exchange: Exchange) -> float | None:
        if choice.calls and not choice.text:
            return None
        return float(_valid(self._validator, choice.text[:_LONGEST]))


@final
class ToolCalls(Check):
    """Every call names a tool of the request, with arguments as its schema says."""

    name = "tool_call"

    def score(self, choice: Choice, exchange: Exchange) -> float | None:
        if not choice.calls:
            return None
        return float(all(self._right(call.name, call.arguments, exchange) for call in choice.calls))

    @staticmethod
    def _right(name: str, arguments: object, exchange: Exchange) -> bool:
        if name not in exchange.tools:
            return False
        schema = exchange.tools[name]
        if not isinstance(arguments, dict):
            # No arguments are written as nothing by some servers.
            if arguments not in ("", None):
                return False
            arguments = {}
        if schema is None:
            return True
        try:
            return _valid(schemas.validator(schema), arguments)
        except BadSchemaError:
            return True


@final
class Exact(Check):
    """The answer is the one that the client said is right."""

    name = "exact"
    word = "exact"

    def __init__(self, compare: str) -> None:
        self._compare = compare

    def score(self, choice: Choice, exchange: Exchange) -> float | None:
        expected = exchange.expect
        if expected is None:
            return None
        if self._compare == "number":
            wanted = number(expected)
            return None if wanted is None else float(number(choice.text) == wanted)
        if self._compare == "choice":
            letter = option(expected) or expected.strip().upper()
            return float(option(choice.text) == letter)
        return float(plain(choice.text) == plain(expected))


@final
class Finish(Check):
    """The answer came to its own end: it was not cut by length or by a filter."""

    name = "finish"

    def score(self, choice: Choice, exchange: Exchange) -> float | None:
        return float(choice.finish not in _CUT) if choice.finish else None


@final
class NotEmpty(Check):
    """The answer says something, or calls a tool."""

    name = "not_empty"

    def score(self, choice: Choice, exchange: Exchange) -> float | None:
        return float(bool(choice.calls) or bool(choice.text.strip()))


@final
class Refusal(Check):
    """The answer does not begin with a refusal."""

    name = "refusal"

    def __init__(self, phrases: list[str] | None) -> None:
        self._phrases = tuple(_folded(phrase) for phrase in (_REFUSALS if phrases is None else phrases))

    def score(self, choice: Choice, exchange: Exchange) -> float | None:
        if not choice.text.strip():
            return None
        beginning = _folded(choice.text.strip()[:_BEGINNING])
        return float(not any(phrase in beginning for phrase in self._phrases))


def made(settings: Settings) -> Check:
    """The check that ``settings`` describe. Raises `CheckError` naming the field."""
    kind = settings.kind
    if kind in ("json_schema", "pattern", "tool_call"):
        schemas.require()
    if kind == "json_schema":
        return JsonSchema(settings.schema)
    if kind == "pattern":
        return Pattern(settings.pattern)
    if kind == "tool_call":
        return ToolCalls()
    if kind == "exact":
        return Exact(settings.compare)
    if kind == "finish":
        return Finish()
    if kind == "not_empty":
        return NotEmpty()
    if kind == "refusal":
        return Refusal(settings.phrases)
    raise CheckError(f"There is no check {kind!r}.", field="kind")


def number(text: str) -> Decimal | None:
    """The last number in a text."""
    found = _NUMBER.findall(text[-_LONGEST:])
    for each in reversed(found):
        try:
            return Decimal(each.replace(",", "").rstrip(".")).normalize()
        except InvalidOperation:
            continue
    return None


def option(text: str) -> str | None:
    """The letter that a text chooses: boxed, called the answer, or else the last that stands alone."""
    text = text[-_LONGEST:]
    for pattern in (_BOXED, _SAID, _LETTER):
        found = pattern.findall(text)
        if found:
            letter: str = found[-1]
            return letter.upper()
    return None


def plain(text: str) -> str:
    """A text without case, punctuation at its ends, and more than one space."""
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'`*()[]{}")


def _folded(text: str) -> str:
    return text.casefold().replace("\u2019", "'")


def _validator(schema: object, field: str) -> schemas.Validator:
    try:
        return schemas.validator(schema)
    except BadSchemaError as error:
        raise CheckError(
            f"The {field} of a check cannot be used: {error}.",
            field=field,
            fix="Patterns are matched in linear time: without look-around and back-references.",
        ) from None


def _valid(validator: schemas.Validator, value: Any) -> bool:
    try:
        return bool(validator.is_valid(value))
    except ValueError:  # nested too deeply
        return False
