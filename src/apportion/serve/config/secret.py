"""A secret that no log, error, trace or repr can show by accident."""

from __future__ import annotations

import hashlib
import hmac
from typing import final


@final
class Secret:
    """A string that shows itself only to whoever calls ``reveal``."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself, for the one place that has to send it."""
        return self._value

    def sha256(self) -> str:
        """Lower-case hexadecimal SHA-256 of the secret in UTF-8."""
        return hashlib.sha256(self._value.encode()).hexdigest()

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> tuple[type[Secret], tuple[str]]:
        return (Secret, (self._value,))
