"""The final answer in a text: a number, a choice or the text itself, written one way so that votes can be counted."""

from __future__ import annotations

import re

_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_MARKED = re.compile(r"(?:####|\banswer(?:\s+is)?\s*:?)\s*([^\n]+)", re.IGNORECASE)
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+")
_CHOICE = re.compile(r"\(([A-Ja-j])\)|(?<![\w'])([A-J])(?![\w'])")
_LONGEST_AS_TEXT = 80
"""Longer answers, in characters, are compared by their last number or choice."""


def final(text: str, kind: str = "auto") -> str | None:
    """The answer that ``text`` ends with, None when there is none of that ``kind``: "number", "choice", "text" or
    "auto" (what was marked as the answer, else a short text as it is, else its last number).

    >>> final("She has 12 apples, so each gets 1,200.00 grams.")
    '1200'
    >>> final("The answer is (B) because it is blue.", "choice")
    'B'
    >>> final("Paris.") == final(" paris")
    True
    """
    marked = _last(_BOXED, text) or _last(_MARKED, text)
    if kind == "number":
        return _number(marked or "") or _number(text)
    if kind == "choice":
        return _choice(marked or "") or _choice(text)
    if kind == "text":
        return _plain(marked or text)
    if marked:
        return _number(marked) or _plain(marked)
    if len(text.strip()) <= _LONGEST_AS_TEXT and not _NUMBER.search(text):
        return _plain(text)
    return _number(text) or _plain(text)


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.findall(text)
    return found[-1] if found else None


def _number(text: str) -> str | None:
    found = _NUMBER.findall(text)
    if not found:
        return None
    plain = found[-1].replace(",", "")
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    if plain.lstrip("-").startswith("."):
        plain = plain.replace(".", "0.", 1)
    return plain if plain not in ("", "-", "-0") else "0"


def _choice(text: str) -> str | None:
    found = _CHOICE.findall(text)
    return (found[-1][0] or found[-1][1]).upper() if found else None


def _plain(text: str) -> str | None:
    return " ".join(text.split()).strip(" .\"'`*").casefold() or None
