"""Whether two questions that look alike ask the same, told by their words.

A sentence encoder puts "enable 2FA" and "disable 2FA" next to each other, and "12 red cars" next to "20 red cars": no
threshold on the similarity separates them. So a candidate for a hit is read word by word, and refused when the two
differ in anything of which a change changes the answer:

- numbers (in figures or in words), quoted strings, code, addresses, identifiers, names;
- negation, opposites (enable/disable, more/less, before/after, ...), what is asked for (who, when, how), who does what
  to whom (I, you, she), past or future;
- which of two is which: the direction in "from A to B", what each number counts, the order of names.

What is left are words that only one of them has, and common words in another order. There a small change is the
dangerous one: whoever means the same either says the same or says it all in other words, and who means something else
adds a clause or changes a word. So two questions agree if they have the same words in the same order, function words
aside; or, where a category allows it (`Limits`), if the wording differs as a whole and neither says more than the
other. Any unknown word, in any language, is a difference.
"""

from __future__ import annotations

import re
from bisect import bisect, insort
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from typing import Final, NamedTuple

from apportion.serve.cache.words import (
    APART,
    ASKED,
    AXES,
    CLOSING,
    DIRECTIONS,
    IRREGULAR,
    LIGHT,
    NEGATIONS,
    NUMBERS,
    PERSONS,
    PHRASED,
    PHRASES,
    PREAMBLE,
    SAME,
    TENSES,
    UNITS,
)

_GLUES: Final = "s|am|pm|k|m|h|g|kg|km|cm|mm|ms|gb|mb|kb|tb|mi|ft|lbs?|oz|hrs?|mph"
"""Units that stand right after their number."""
_QUOTES: Final = re.compile(
    r"```.*?```|`[^`\n]+`|\"[^\"\n]{1,400}\"|“[^”\n]{1,400}”|«[^»\n]{1,400}»|(?<!\w)'[^'\n]{2,400}'(?!\w)",
    re.DOTALL,
)
_LITERALS: Final = re.compile(
    r"\b\w+://\S+|\b[\w.+-]+@[\w-]+\.[\w.]+|(?<!\w)[~.]?/[\w./-]+|\b[A-Za-z]:\\\S+|"  # addresses and paths
    r"\b\w*[A-Za-z]\w*_\w+\b|\b[a-z]+[A-Z]\w*\b|\b\w+\.\w+\([^)\n]*\)|\b\w+\(\)|"  # identifiers
    r"--?[A-Za-z][\w-]*(?==)|(?<!\w)--[A-Za-z][\w-]*|\bv?\d+(?:\.\d+){2,}\b|"  # options, versions
    rf"\b(?=\w*\d)(?=\w*[A-Za-z])(?!\d+(?:st|nd|rd|th|{_GLUES})\b)\w+\b|"  # 2FA, B52
    r"(?<![\w)])-(?=[\d.])|(?<=\d)\s*-\s*(?=\d)|!=|[<>=+*^|&]=?|(?<!\d)/|/(?!\d)|"  # minus, operators
    r"[^\w\s.,:!?'\"()\-–—’“”«»$€£¥%…/]"  # brackets and all other signs
)
_SPECIAL: Final = re.compile(r"[^A-Za-z\s.,?!']|[a-z][A-Z]|(?<!\w)'|[A-Za-z]\.[A-Za-z]")
"""Without one of these there is nothing of the kind."""
_TOKENS: Final = re.compile(
    r"\uf8ff\d+|\d+/\d+|\d+(?:[,\u00a0]\d{3})+(?:\.\d+)?(?!\d)|\d*\.?\d+|[$€£¥%]|"
    r"n't\b|[^\W\d_]+(?:-[^\W\d_]+)*|'(?:s|re|m|ve|d|ll)\b"
)
_CLOSING_CHARS: Final = 80
_PLACE: Final = "\uf8ff"
"""Stands where a literal was."""
_ORDINAL: Final = re.compile(r"(\d+)(?:st|nd|rd|th)\b", re.IGNORECASE)
_GLUED: Final = re.compile(rf"(?<=\d)(?=(?:{_GLUES})\b)", re.IGNORECASE)
_CONTRACTED: Final = {
    "can't": "can not",
    "won't": "will not",
    "cannot": "can not",
    "ain't": "is not",
    "shan't": "shall not",
}


class Limits(NamedTuple):
    """How far two questions may differ in wording that share an answer: see `Difference`. The default: not at all."""

    most: float = 0.0
    """Novelty of the two, at most."""
    least: float = 0.2
    """And at least, if they are not worded alike: less is an edit."""
    balance: float = 0.5
    disorder: float = 0.0


STRICT: Final = Limits()


class Reading(NamedTuple):
    """A question as it is compared. Words are stems in the order of the text."""

    words: tuple[str, ...]
    numbers: tuple[str, ...]
    """All but 1, which often goes without saying; it is a word."""
    ordinals: tuple[str, ...]
    bound: tuple[tuple[str, str], ...]
    """Each number with the word that it counts."""
    literals: tuple[str, ...]
    names: frozenset[str]
    negations: int
    asked: frozenset[str]
    manner: frozenset[str]
    """What kind of question it is: whether something is so, what is so, what may be."""
    persons: tuple[str, ...]
    """In their order, each once in a row."""
    tenses: frozenset[str]
    axes: frozenset[tuple[int, bool]]
    directed: frozenset[tuple[str, str]]
    """Words with the preposition that says which of two they are."""


class Difference(NamedTuple):
    """How two wordings differ, in shares from 0 to 1: of all words, those that only one has (``novelty``); how evenly
    these are spread over the two (``balance``); of the pairs of common words, those in another order (``disorder``)."""

    novelty: float
    balance: float
    disorder: float


def same(one: Reading, other: Reading, limits: Limits = STRICT) -> bool:
    """Whether an answer to one is one to the other. Symmetric."""
    return conflict(one, other) is None and within(difference(one, other), limits)


def within(apart: Difference, limits: Limits) -> bool:
    """Whether a difference in wording is one that ``limits`` allow."""
    if apart.novelty == 0.0 and apart.disorder == 0.0:
        return True
    return (
        limits.least <= apart.novelty <= limits.most
        and apart.balance >= limits.balance
        and apart.disorder <= limits.disorder
    )


def conflict(one: Reading, other: Reading) -> str | None:
    """What of meaning the two differ in, or None. Symmetric."""
    if sorted(one.numbers) != sorted(other.numbers):
        return "numbers"
    if _each_has_more(one.ordinals, other.ordinals):
        return "ordinals"
    if sorted(one.literals) != sorted(other.literals):
        return "literals"
    if one.negations != other.negations:
        return "negation"
    for name in ("asked", "persons", "tenses"):
        mine, theirs = set(getattr(one, name)), set(getattr(other, name))
        if mine and theirs and not mine & theirs:
            return name
    if _roles(one) != _roles(other) and len(set(one.persons)) > 1 and len(set(other.persons)) > 1:
        return "persons"
    if any(
        (axis, not side) in other.axes and (axis, side) not in other.axes
        for axis, side in one.axes - other.axes
    ) and any(
        (axis, not side) in one.axes and (axis, side) not in one.axes for axis, side in other.axes - one.axes
    ):
        return "opposites"
    if not (one.names <= _known(other) and other.names <= _known(one)):
        return "names"
    return "order" if _swapped(one, other) else None


def difference(one: Reading, other: Reading) -> Difference:
    """How much else the two differ. Symmetric."""
    mine, theirs = Counter(one.words + _marks(one)), Counter(other.words + _marks(other))
    common = mine & theirs
    more, others = (mine - theirs).total(), (theirs - mine).total()
    novelty = (more + others) / (mine.total() + theirs.total()) if more + others else 0.0
    balance = 2.0 * min(more, others) / (more + others) if more + others else 1.0
    rank = {word: place for place, word in enumerate(_told_apart(other.words))}
    places = [rank[word] for word in _told_apart(one.words) if word in rank]
    pairs = len(places) * (len(places) - 1) // 2
    turned, before = 0, list[int]()
    for place in places:
        turned += len(before) - bisect(before, place)
        insort(before, place)
    loose = len({pair for pair in one.directed ^ other.directed if pair[1] in common})
    disorder = (turned + loose) / (pairs + loose) if pairs + loose else 0.0
    return Difference(novelty, balance, disorder)


def _marks(reading: Reading) -> tuple[str, ...]:
    return (*reading.asked, *reading.manner, *set(reading.persons), *reading.tenses)


def _roles(reading: Reading) -> tuple[str, ...]:
    """Who speaks of whom: only me and you are told apart by their order, all others have names."""
    return tuple(person for person in reading.persons if person in ("first", "second"))


def _told_apart(words: tuple[str, ...]) -> list[tuple[str, int]]:
    """Each word with how often it was there before."""
    seen: Counter[str] = Counter()
    found = []
    for word in words:
        found.append((word, seen[word]))
        seen[word] += 1
    return found


def _each_has_more(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    mine, theirs = Counter(one), Counter(other)
    return bool(mine - theirs) and bool(theirs - mine)


def read(text: str) -> Reading:
    """What of ``text`` is compared."""
    literals: list[str] = []

    def take(match: re.Match[str]) -> str:
        literals.append(_plain(match[0]))
        return f" {_PLACE}{len(literals) - 1} "

    rest = text.replace("’", "'").replace("‘", "'").replace(_PLACE, "?")
    if _SPECIAL.search(rest):
        rest = _LITERALS.sub(take, _QUOTES.sub(take, rest))
    rest = _GLUED.sub(" ", _ORDINAL.sub(lambda m: f" {m[1]} ordinal ", rest))
    names = _names(rest)
    lower = _expanded(rest.casefold())
    return _reading(_TOKENS.findall(lower), tuple(literals), names)


def _plain(literal: str) -> str:
    return " ".join(literal.strip("`\"'“”«»").split())


def _expanded(text: str) -> str:
    for short, long in _CONTRACTED.items():
        text = text.replace(short, long)
    text = re.sub(r"(?<=\w)n't\b", " n't", text)
    text = re.sub(r"\bhow (?:many|much)\b", "howmany", text)
    bare = PREAMBLE.sub("", text)
    text = bare[:-_CLOSING_CHARS] + CLOSING.sub("", bare[-_CLOSING_CHARS:]) or text
    for phrase, plain in PHRASED:
        text = phrase.sub(plain, text)
    for pattern, meanings in PHRASES:
        text = pattern.sub(lambda m, meanings=meanings: meanings[m[1]], text)  # type: ignore[misc]
    particles = PHRASES[0][1]
    return APART.sub(lambda m: f"{particles[m['how']]}{m['what']}", text)


def _names(text: str) -> frozenset[str]:
    """Words with a capital inside a sentence; none where the case tells nothing."""
    words = [(m.start(), m[0]) for m in re.finditer(r"[^\W\d_]+", text)]
    small = sum(word[0].islower() for _, word in words)
    if not words or small * 4 < len(words):
        return frozenset()
    return frozenset(
        stem(word.casefold())
        for start, word in words
        if word[0].isupper()
        and word.casefold() not in LIGHT
        and not (word[1:].islower() and _begins(text, start))
    )


def _begins(text: str, start: int) -> bool:
    """Whether a sentence begins there."""
    before = text[max(0, start - 8) : start].rstrip(" \t*-•(")
    return start == 0 or not before.strip() or before[-1] in ".!?:\n"


def _reading(tokens: list[str], literals: tuple[str, ...], names: frozenset[str]) -> Reading:
    words: list[str] = []
    numbers: list[str] = []
    ordinals: list[str] = []
    bound: list[tuple[str, str]] = []
    directed: set[tuple[str, str]] = set()
    axes: set[tuple[int, bool]] = set()
    negations = 0
    direction = ""
    unbound: list[str] = []
    for number, token in _numbered(tokens):
        if number:
            words.append(token)
            if token.startswith("#"):
                ordinals.append(token)
                continue
            if token != "1":
                numbers.append(token)
                unbound.append(token)
            if direction:
                directed.add((direction, token))
                direction = ""
            continue
        if token.startswith(_PLACE):
            words.append(f"`{literals[int(token[1:])]}")
            continue
        if token in NEGATIONS:
            negations += 1
            continue
        word = SAME.get(token) or stem(token)
        word = SAME.get(word, word)
        opposites = AXES.get(token) or AXES.get(word)
        if opposites:
            axes |= opposites
        if token in DIRECTIONS:
            direction = token
            if token in LIGHT:
                continue
        elif token in LIGHT or (token in ("time", "times") and words and words[-1][0].isdecimal()):
            continue
        words.append(word)
        bound += [(one, word) for one in unbound]
        unbound.clear()
        if direction and token not in DIRECTIONS:
            directed.add((direction, word))
            direction = ""
    return Reading(
        words=tuple(words),
        numbers=tuple(numbers),
        ordinals=tuple(ordinals),
        bound=tuple(bound),
        literals=literals,
        names=names,
        negations=negations,
        asked=frozenset(ASKED[token] for token in tokens if token in ASKED),
        manner=_manner(tokens),
        persons=_persons(tokens),
        tenses=frozenset(TENSES[token] for token in tokens if token in TENSES),
        axes=frozenset(axes),
        directed=frozenset(directed),
    )


def _persons(tokens: list[str]) -> tuple[str, ...]:
    found: list[str] = []
    for token in tokens:
        person = PERSONS.get(token)
        if person is not None and found[-1:] != [person]:
            found.append(person)
    return tuple(found)


def _manner(tokens: list[str]) -> frozenset[str]:
    found = {"may" for before, token in pairwise(["", *tokens]) if token in _MAY and before != "how"}
    if tokens and tokens[0] in _WHETHER:
        found.add("whether")
    plain = tokens[:1] == ["what"] and tokens[1:2] and tokens[1] in ("is", "'s", "are", "'re", "was", "were")
    if not _WHAT.isdisjoint(tokens[1:] if plain else tokens):
        found.add("what")
    return frozenset(found)


_WHETHER: Final = frozenset("is are am was were do does did has have had will would should must".split())  # noqa: SIM905
_WHAT: Final = frozenset(("what", "which"))
_MAY: Final = frozenset(("can", "could", "may", "might"))


def _numbered(tokens: list[str]) -> list[tuple[bool, str]]:
    """The tokens, numbers in figures and in words as one kind, a unit after its number."""
    spread = [part for token in tokens for part in (token.split("-") if "-" in token else [token])]
    found: list[tuple[bool, str]] = []
    held: Fraction | None = None
    currency = ""
    for place, token in enumerate(spread):
        value = _value(token, spread[place - 1] if place else "")
        following = spread[place + 1] if place + 1 < len(spread) else ""
        if value is not None and value[0] not in "#*":
            amount = Fraction(value)
            if held is not None and not token[0].isdecimal() and _goes_on(held, amount):
                held += amount
                continue
        if token == "and" and held is not None and held >= 100 and _value(following, token) is not None:
            continue
        if value is not None and value[0] == "*":
            held = Fraction(value[1:]) * (1 if held is None else held)
            continue
        part = _PARTS.get(token) if held is not None and held < 20 else None
        if part is not None and held is not None:
            held *= part
            continue
        if token in ("%", "percent") and held is not None:
            held /= 100
            continue
        if held is not None:
            found.append((True, str(held)))
            held = None
            if currency:
                found.append((False, currency))
                currency = ""
        if value is None:
            if token in "$€£¥":
                currency = UNITS[token]
            elif token == "ordinal":
                if found and found[-1][0]:
                    found[-1] = (True, f"#{found[-1][1]}")
            else:
                unit = UNITS.get(token) if found and found[-1][0] else None
                found.append((False, unit or token))
        elif value[0] == "#":
            found.append((True, value))
        else:
            held = Fraction(value)
    if held is not None:
        found.append((True, str(held)))
        if currency:
            found.append((False, currency))
    return found


def _goes_on(held: Fraction, amount: Fraction) -> bool:
    """Whether a number in words goes on with another: "twenty five", "two hundred six"."""
    return held >= 20 and 0 < amount < (100 if held % 100 == 0 else 10 if held % 10 == 0 else 0)


_PARTS: Final[dict[str, Fraction]] = {
    name + plural: Fraction(1, share)
    for share, name in enumerate(
        ("half", "third", "quarter", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"), start=2
    )
    for plural in ("", "s")
}
"""What a number before makes a fraction of."""


def _value(token: str, before: str) -> str | None:
    """A number as text: ``#`` before it for an ordinal, ``*`` for a factor; None for any other word."""
    if not token:
        return None
    if token[0].isdecimal() or token[0] == ".":
        plain = token.replace(",", "").replace("\u00a0", "")
        top, _, bottom = plain.partition("/")
        return top if bottom and not int(bottom) else plain
    if token == "one" and before not in (
        "twenty",
        "thirty",
        "forty",
        "fifty",
        "sixty",
        "seventy",
        "eighty",
        "ninety",
    ):
        return "1" if before not in _NOT_ONE else None
    if token == "second" and before in ("per", "a", "each", "every"):
        return None
    if token in ("third", "quarter", "fifth", "sixth", "eighth", "tenth") and before in ("a", "one"):
        return str(_PARTS[token])
    return NUMBERS.get(token)


_NOT_ONE: Final = frozenset("the this that which no any every another new old my each".split())  # noqa: SIM905


def stem(word: str) -> str:
    """A word without its ending: crude, the same for both sides."""
    known = IRREGULAR.get(word)
    if known is not None:
        return known
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "ches", "shes", "xes", "zes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        base = word[: -len(ending)]
        if word.endswith(ending) and len(base) >= 3 and re.search("[aeiouy]", base):
            if len(base) > 3 and base[-1] == base[-2] and base[-1] not in "lsz":
                base = base[:-1]
            return base.rstrip("e")
    return word.rstrip("e") if len(word) > 3 else word


def _known(reading: Reading) -> frozenset[str]:
    return reading.names | frozenset(reading.words)


def _swapped(one: Reading, other: Reading) -> bool:
    """Whether numbers, directions or names have changed places."""
    mine, theirs = _by_word(one.bound), _by_word(other.bound)
    if any(mine[word].isdisjoint(theirs[word]) for word in mine.keys() & theirs.keys()):
        return True
    if one.literals != other.literals:
        return True
    to, towards = _by_word(one.directed), _by_word(other.directed)
    if any(
        _REVERSED.get(way, set()) & (towards[word] - to[word])
        for word in to.keys() & towards.keys()
        for way in to[word] - towards[word]
    ):
        return True
    named = one.names & other.names
    order = [word for word in dict.fromkeys(one.words) if word in named]
    return order != [word for word in dict.fromkeys(other.words) if word in named]


def _by_word(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for what, word in pairs:
        found.setdefault(word, set()).add(what)
    return found


_AGAINST: Final = (
    ("from", "to"),
    ("from", "into"),
    ("from", "onto"),
    ("from", "until"),
    ("since", "until"),
    ("since", "till"),
    ("before", "after"),
    ("before", "since"),
    ("over", "under"),
    ("over", "below"),
    ("above", "below"),
    ("above", "under"),
    ("by", "to"),
)
_REVERSED: Final = {
    word: {b if a == word else a for a, b in _AGAINST if word in (a, b)} for pair in _AGAINST for word in pair
}
