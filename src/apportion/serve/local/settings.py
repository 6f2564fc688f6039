"""What the parent tells the child about the engine to run: one JSON line on the child's standard input."""

from __future__ import annotations

from typing import Literal

import msgspec

Pooling = Literal["model", "mean", "cls", "last"]


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters of one llama.cpp server. The key travels here, for argv is open to other users."""

    path: str
    alias: str
    api_key: str
    parent_pid: int
    slots: int
    context_tokens: int
    threads: int | None
    embeddings: bool
    pooling: Pooling
    reuse_prompts: bool
    prompt_cache_bytes: int
    connections: int


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the child says on its standard output, once: where it listens, or why it cannot."""

    address: str | None = None
    error: str | None = None
    missing: bool = False
