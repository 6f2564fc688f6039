"""The files of the sentence encoder: its graph and its tokenizer, from the store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from apportion.serve.store.download import Progress
from apportion.serve.store.errors import ModelRefError
from apportion.serve.store.known import KNOWN
from apportion.serve.store.shelf import fetch

DEFAULT = "minilm-l6-v2-int8"


class EncoderFiles(NamedTuple):
    """Where the two files of an encoder are."""

    model_file: Path
    tokenizer_file: Path


def ensure_encoder(
    name: str = DEFAULT,
    *,
    progress: Progress | None = None,
    directory: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> EncoderFiles:
    """The files of the known encoder ``name``, fetched and checked by hash when they are not here yet. It blocks.

    Raises:
        ModelRefError: when ``name`` is no known encoder.
        StoreError: another of its subclasses, as `fetch` does.
    """
    entry = KNOWN.get(name)
    if entry is None or len(entry.needs) != 1:
        known = ", ".join(sorted(model.name for model in KNOWN.values() if model.needs))
        raise ModelRefError(f"{name!r} is not a known encoder.", field="weights", fix=f"Known: {known}.")
    graph, tokenizer = (
        fetch(part, progress=progress, directory=directory, environ=environ) for part in (name, *entry.needs)
    )
    return EncoderFiles(graph, tokenizer)
