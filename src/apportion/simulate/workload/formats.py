"""The forms in which workloads are published: what their columns are called, and how a file is recognised."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from apportion.simulate.trace import TraceError


@dataclass(frozen=True, slots=True)
class Format:
    """One form. ``columns`` maps fields of a trace to the names, in lower case, under which they occur (the first that
    is there counts); ``second`` is how many of its units of time make a second, by name of the column.
    """

    name: str
    columns: Mapping[str, tuple[str, ...]]
    second: Mapping[str, float] = field(default_factory=dict)
    signature: frozenset[str] = frozenset()
    """A header with all of these is of this form."""
    block_tokens: int = 512
    failed_without_output: bool = False


BURSTGPT: Final = Format(
    "burstgpt",
    {
        "arrival_s": ("timestamp",),
        "prompt_tokens": ("request tokens",),
        "output_tokens": ("response tokens",),
        "model": ("model",),
        "tenant": ("log type",),
        "session": ("session id", "sessionid"),
    },
    signature=frozenset({"timestamp", "request tokens", "response tokens"}),
    failed_without_output=True,
)
"""https://github.com/HPMLL/BurstGPT: seconds; a row without response tokens has failed. The kind of service
("Conversation log" or "API log") is taken for the tenant."""

AZURE: Final = Format(
    "azure",
    {
        "arrival_s": ("timestamp",),
        "prompt_tokens": ("contexttokens",),
        "output_tokens": ("generatedtokens",),
    },
    signature=frozenset({"timestamp", "contexttokens", "generatedtokens"}),
)
"""https://github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023 and 2024: dates with the time."""

MOONCAKE: Final = Format(
    "mooncake",
    {
        "arrival_s": ("timestamp", "t_ms"),
        "prompt_tokens": ("input_length", "prompt_tokens"),
        "output_tokens": ("output_length", "output_tokens"),
        "blocks": ("hash_ids", "block_ids"),
    },
    second={"timestamp": 1e3, "t_ms": 1e3},
    signature=frozenset({"timestamp", "input_length", "output_length"}),
)
"""https://github.com/kvcache-ai/Mooncake: milliseconds; ids of prompt blocks of 512 tokens."""

TABLE: Final = Format(
    "table",
    {
        "arrival_s": (
            "arrival_s",
            "t_s",
            "time_s",
            "timestamp_s",
            "t_ms",
            "timestamp",
            "time",
            "arrival",
            "at",
        ),
        "prompt_tokens": ("prompt_tokens", "input_tokens", "context_tokens", "input_length", "prompt_length"),
        "output_tokens": (
            "output_tokens",
            "completion_tokens",
            "generated_tokens",
            "response_tokens",
            "output_length",
        ),
        "model": ("model", "model_name"),
        "tenant": ("tenant", "team", "key", "user", "client"),
        "session": ("session", "session_id", "conversation", "conversation_id"),
        "priority": ("priority",),
        "deadline_s": ("deadline_s",),
        "failed": ("failed",),
        "blocks": ("blocks", "block_ids", "hash_ids"),
    },
    second={"t_ms": 1e3},
)
"""Any table with these columns; the first three are needed. Seconds, or dates with the time (then from the first)."""

SERVEGEN: Final = Format("servegen", {}, signature=frozenset({"client", "t_s", "rate_rps", "cv"}))
DECISIONS: Final = Format("decisions", {}, signature=frozenset({"kind", "version", "worker"}))
TRACE: Final = Format("trace", {})

FORMATS: Final[Mapping[str, Format]] = {
    form.name: form for form in (BURSTGPT, AZURE, MOONCAKE, SERVEGEN, DECISIONS, TRACE, TABLE)
}
"""By name, as ``--format`` takes them."""


def named(name: str) -> Format:
    """The form of that name. Raises `TraceError`."""
    if name not in FORMATS:
        raise TraceError(
            f"There is no format {name!r}.", field="format", fix=f"Use one of: {', '.join(FORMATS)}."
        )
    return FORMATS[name]


def recognised(header: Collection[str]) -> Format:
    """The form of a file whose columns are called so (in lower case)."""
    there = set(header)
    for form in FORMATS.values():
        if form.signature and form.signature <= there:
            return form
    if "t_ms" in there and "block_ids" in there:
        return MOONCAKE
    return TABLE


def placed(
    form: Format, header: Collection[str], columns: Mapping[str, str] | None, path: Any
) -> dict[str, str]:
    """Which column of the file holds which field of a trace. ``columns`` are the caller's own names by field.

    Raises:
        TraceError: a column is not there, with those that are.
    """
    by_lower = {name.strip().lower(): name for name in header}
    found = {
        own: by_lower[name]
        for own, names in form.columns.items()
        if (name := next((name for name in names if name in by_lower), None)) is not None
    }
    for own, wanted in (columns or {}).items():
        if own not in TABLE.columns:
            raise TraceError(
                f"A trace has no field {own!r}.", field="columns", fix=f"Use: {', '.join(TABLE.columns)}."
            )
        if wanted.strip().lower() not in by_lower:
            raise TraceError(
                f"{path} has no column {wanted!r}.", field="columns", fix=_there(by_lower.values())
            )
        found[own] = by_lower[wanted.strip().lower()]
    for needed in ("arrival_s", "prompt_tokens", "output_tokens"):
        if needed not in found:
            raise TraceError(
                f"{path} has no column for '{needed}' ({' or '.join(form.columns.get(needed, (needed,)))}).",
                field="columns",
                fix=f"{_there(by_lower.values())} Name it with --column {needed}=NAME.",
            )
    return found


def _there(names: Collection[str]) -> str:
    return f"There are: {', '.join(names)}."
