"""A request in numbers."""

from __future__ import annotations

from typing import NamedTuple


class Features(NamedTuple):
    """What predictors and contextual policies see of a request's text.

    ``lexical`` are cheap counts and marks, always there, in the order of the lexical encoder's ``names``;
    ``vector`` is a sentence embedding of unit length, None without an encoder or when its time ran out.
    """

    lexical: tuple[float, ...]
    vector: tuple[float, ...] | None = None
