"""Sentence vectors by the project's own encoder, kept on disk between runs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

TOGETHER = 512


def directory() -> Path:
    """Where vectors are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "apportion" / "benchmarks"


def embed(texts: list[str], name: str) -> npt.NDArray[np.float64]:
    """One vector of unit length for each text; computed once (some minutes for ten thousand texts)."""
    keys = [hashlib.sha1(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts]
    path = directory() / f"{name}.npz"
    kept: dict[str, npt.NDArray[np.float32]] = {}
    if path.exists():
        with np.load(path) as file:
            kept = dict(zip(file["keys"].tolist(), file["vec"], strict=True))
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in kept}
    if missing:
        from apportion.core import catalogue
        from apportion.core.predictor import Encoder
        from apportion.serve.store.encoder import ensure_encoder

        files = ensure_encoder()
        encoder = catalogue.build(
            "text/minilm", model_file=str(files.model_file), tokenizer_file=str(files.tokenizer_file)
        )
        assert isinstance(encoder, Encoder)
        names = sorted(missing, key=lambda key: len(missing[key]))
        for start in range(0, len(names), TOGETHER):
            part = names[start : start + TOGETHER]
            for key, vector in zip(part, encoder.encode([missing[key] for key in part]), strict=True):
                kept[key] = np.array(vector, np.float32)
            print(f"{name}: {min(start + TOGETHER, len(names))} of {len(names)} texts encoded", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, keys=np.array(list(kept)), vec=np.stack(list(kept.values())))
    return np.stack([kept[key] for key in keys]).astype(float)
