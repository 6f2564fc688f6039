"""What is wrong with a configuration file, where, and what mends it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from apportion.core.errors import ApportionError


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing wrong: where (file, line from 1, dotted path), what, and the fix."""

    file: str
    line: int | None
    path: str
    message: str
    fix: str | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line is not None else self.file
        what = f"{self.path}: {self.message}" if self.path else self.message
        return f"{where}: {what}" + (f" {self.fix}" if self.fix else "")


class ConfigError(ApportionError):
    """The configuration is not valid. ``problems`` holds everything that is wrong, not only the first."""

    code = "invalid_config"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        first = self.problems[0]
        super().__init__(
            "\n".join(str(problem) for problem in self.problems),
            field=first.path or None,
            fix=None,
        )
