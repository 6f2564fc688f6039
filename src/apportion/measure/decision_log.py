"""The log of decisions: what was offered and chosen, with what probability, and what became of it.

JSON lines. The first line of a file says its version; then one line for every decision (an attempt at an endpoint is
one) and one for every word on how good an answer was, which may stand in another file, days later. There is no
content in it: what a request said is there as a few counts at most. Whoever reads it can ask another policy what it
would have done (`Entry.state`) and estimate what would have come of it (`measure.off_policy`).
"""

from __future__ import annotations

import gzip
import math
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from apportion.core.cost import Cost
from apportion.core.errors import ApportionError
from apportion.core.features import Features
from apportion.core.option import Option
from apportion.core.outcome import Outcome, Status
from apportion.core.state import State

VERSION: Final = 1
LONGEST_LINE_BYTES: Final = 2**20
"""A longer line is none of ours."""
_PIECE_BYTES: Final = 2**20


class DecisionLogError(ApportionError):
    """There is no decision log where one was named, or it is of a newer version."""

    code = "decision_log"


class Header(Struct, tag="log", tag_field="kind", frozen=True):
    """The first line of every file."""

    version: int
    worker: int
    at: float


Amounts = dict[str, float | None]
"""By resource. JSON carries no infinity and no "not a number": they are null there, and unknown here."""


class Offered(Struct, omit_defaults=True, frozen=True, gc=False):
    """One option as it was offered; see `core.option.Option`."""

    action: str
    value: float | None
    cost: Amounts
    quality: float | None = None
    quality_sd: float | None = None
    load: float | None = None
    weight: float | None = 1.0
    facts: dict[str, Any] | None = None

    @classmethod
    def of(cls, option: Option) -> Offered:
        """An option, without facts that are more than words and numbers."""
        facts = option.facts
        return cls(
            option.action,
            option.value,
            dict(option.cost.items()),
            option.quality,
            option.quality_sd,
            option.load,
            option.weight,
            None if not facts else {name: value for name, value in facts.items() if _plain(value)} or None,
        )

    def option(self) -> Option:
        """It again."""
        return Option(
            self.action,
            0.0 if self.value is None else self.value,
            Cost.of(known(self.cost)),
            load=self.load,
            weight=1.0 if self.weight is None else self.weight,
            quality=self.quality,
            quality_sd=self.quality_sd,
            facts=self.facts,
        )


class Entry(Struct, tag="decision", tag_field="kind", omit_defaults=True, frozen=True, kw_only=True):
    """One decision and what it cost.

    ``probability`` is that of the choice (the propensity); ``worth_usd`` what a right answer was worth, None where
    nobody said. Several attempts at one request share its ``id``.
    """

    id: str
    at: float
    model: str
    options: list[Offered]
    choice: int | None
    probability: float | None
    prices: Amounts = field(default_factory=dict)
    key: str = ""
    team: str = ""
    api: str = ""
    attempt: int = 1
    endpoint: str = ""
    upstream_model: str = ""
    policy: str = ""
    why: str = ""
    request: dict[str, Any] = field(default_factory=dict)
    lexical: Sequence[float | None] | None = None
    worth_usd: float | None = None
    status: Status = "ok"
    cost: Amounts = field(default_factory=dict)
    estimated: bool = False
    latency_s: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    censored: bool = False
    finish: str | None = None
    failure: str | None = None

    @property
    def action(self) -> str | None:
        """What was chosen."""
        return None if self.choice is None else self.options[self.choice].action

    def state(self) -> State:
        """What the policy saw, without the embedding, which is not logged."""
        features = None if self.lexical is None else Features(tuple(number or 0.0 for number in self.lexical))
        options = [offered.option() for offered in self.options]
        return State(self.at, options, self.id, dict(self.request), known(self.prices), features)

    def outcome(self, quality: float | None, state: State | None = None) -> Outcome:
        """What a policy is told of it."""
        cost = Cost.of(known(self.cost))
        return Outcome(
            self.id, self.status, self.action, cost, quality, self.latency_s, self.censored, state=state
        )


class Word(Struct, tag="feedback", tag_field="kind", omit_defaults=True, frozen=True, kw_only=True):
    """One word on how good an answer was. ``quality`` is what all words on it together say since."""

    id: str
    at: float
    source: str
    score: float
    quality: float
    comment: str | None = None


class Row(Struct, frozen=True):
    """A decision with what is known by now of how good its answer was: in [0, 1], None where nobody said."""

    entry: Entry
    quality: float | None


class Log(Struct):
    """What was read. ``broken`` counts the lines that are none, such as the last one of a killed process."""

    rows: list[Row] = field(default_factory=list)
    words: int = 0
    broken: int = 0


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Header | Entry | Word).decode


def line(record: Header | Entry | Word) -> bytes:
    """A record as a line of the log."""
    return _encode(record) + b"\n"


def known(amounts: Mapping[str, float | None]) -> dict[str, float]:
    """The amounts that are known."""
    return {name: amount for name, amount in amounts.items() if amount is not None and math.isfinite(amount)}


def files(paths: Iterable[str | Path]) -> list[Path]:
    """The files that ``paths`` name: themselves, or those in a directory. Raises `DecisionLogError`."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted([*path.rglob("*.jsonl"), *path.rglob("*.jsonl.gz")])
            if not inside:
                raise _missing(path, "holds no decision log (*.jsonl, *.jsonl.gz)")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise _missing(path, "is not there")
    return found


def records(paths: Iterable[str | Path]) -> Iterator[Header | Entry | Word | None]:
    """Every record of the files in turn; None for a line that is none. Raises `DecisionLogError`."""
    for path in files(paths):
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while True:
                try:
                    text = file.readline(LONGEST_LINE_BYTES)
                except (EOFError, OSError, zlib.error):  # cut while it was compressed
                    yield None
                    break
                if not text:
                    break
                if text == b"\n":
                    continue
                try:
                    record = _decode(text)
                except msgspec.DecodeError:
                    yield None
                    continue
                if isinstance(record, Header) and record.version > VERSION:
                    raise DecisionLogError(
                        f"{path} is of version {record.version}; this program reads up to {VERSION}.",
                        field="version",
                        fix="Use a newer apportion.",
                    )
                yield record


def read(paths: Iterable[str | Path], *, model: str | None = None) -> Log:
    """All decisions of the files, oldest first, each with the latest word on its answer.

    A word on a request is on its last attempt that answered; the others produced nothing.
    """
    log = Log()
    entries: dict[tuple[str, int], Entry] = {}
    latest: dict[str, Word] = {}
    answered: dict[str, int] = {}
    for record in records(paths):
        if record is None:
            log.broken += 1
        elif isinstance(record, Word):
            log.words += 1
            earlier = latest.get(record.id)
            if earlier is None or record.at >= earlier.at:
                latest[record.id] = record
        elif isinstance(record, Entry) and (model is None or record.model == model):
            entries[record.id, record.attempt] = record
            if record.status == "ok":
                answered[record.id] = max(record.attempt, answered.get(record.id, 0))
    for entry in sorted(entries.values(), key=lambda entry: (entry.at, entry.id, entry.attempt)):
        word = latest.get(entry.id) if answered.get(entry.id) == entry.attempt else None
        log.rows.append(Row(entry, None if word is None else word.quality))
    return log


def find(paths: Iterable[Path], id: str, *, until_s: float = math.inf) -> Entry | None:
    """The decision ``id`` in the first of ``paths`` that has it (its last attempt that answered, if one did).

    Read in pieces, for it may be done beside an event loop; given up when ``time.monotonic()`` passes ``until_s``.
    """
    wanted = f'"id":"{id}"'.encode()
    for path in paths:
        found: Entry | None = None
        for text in _lines_with(path, wanted, until_s):
            try:
                record = _decode(text)
            except msgspec.DecodeError:
                continue
            if isinstance(record, Entry) and record.id == id and (found is None or record.status == "ok"):
                found = record
        if found is not None:
            return found
    return None


def _lines_with(path: Path, wanted: bytes, until_s: float) -> Iterator[bytes]:
    """The lines of a file that hold ``wanted``."""
    rest = b""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while (piece := file.read(_PIECE_BYTES)) and time.monotonic() < until_s:
                piece = rest + piece
                end = piece.rfind(b"\n") + 1
                rest = piece[end:][-LONGEST_LINE_BYTES:]
                at = piece.find(wanted, 0, end)
                while at >= 0:
                    stop = piece.index(b"\n", at)
                    yield piece[piece.rfind(b"\n", 0, at) + 1 : stop]
                    at = piece.find(wanted, stop, end)
    except (EOFError, OSError, zlib.error):  # cut short, or deleted meanwhile
        return


def _plain(value: object) -> bool:
    """Whether JSON carries it and it is small."""
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= 200)


def _missing(path: Path, what: str) -> DecisionLogError:
    return DecisionLogError(
        f"{path} {what}.",
        field="LOG",
        fix="Name a file or directory that `records.log` of a configuration has written.",
    )
