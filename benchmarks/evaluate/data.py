"""Queries with what every model's answer to them was worth and cost, so that the truth of any policy is known."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apportion.predict.text.lexical import Lexical

Array = NDArray[np.float64]

_OUTPUT_TOKENS = 256
_CHARS_PER_TOKEN = 4.0


class DataAbsent(Exception):
    """The data sets are not where they are looked for."""


@dataclass(frozen=True)
class Outcomes:
    """``quality`` and ``cost`` are ``(queries, models)``, ``lexical`` is ``(queries, d)``."""

    name: str
    models: tuple[str, ...]
    quality: Array
    cost: Array
    unit: str
    lexical: Array


def folder() -> Path:
    """``$APPORTION_DATA``, else ``../shared/data`` beside the repository."""
    return Path(os.environ.get("APPORTION_DATA") or Path(__file__).parents[2].parent / "shared" / "data")


def load() -> list[Outcomes]:
    """Both data sets. Raises `DataAbsent`."""
    return [_llmrouter(), _gsm8k()]


def _llmrouter() -> Outcomes:
    prices = {
        row["model"]: float(row["usd_per_mtok_output"]) for row in _rows("llmrouter_9_models", "models")
    }
    rows = list(_rows("llmrouter_9_models", "scores"))
    models = tuple(name for name in rows[0] if name in prices)
    quality = np.array([[float(row[name] or 0.0) for name in models] for row in rows])
    tokens = np.array([float(row["query_chars"] or 0.0) for row in rows]) / _CHARS_PER_TOKEN + _OUTPUT_TOKENS
    cost = tokens[:, None] * np.array([prices[name] for name in models]) * 1e-6
    texts = [row["query"] for row in rows]
    return Outcomes("llmrouter_9_models", models, np.clip(quality, 0.0, 1.0), cost, "$", _lexical(texts))


def _gsm8k() -> Outcomes:
    questions = {row["idx"]: row["question"] for row in _rows("gsm8k_multi_model", "questions")}
    outcomes = list(_rows("gsm8k_multi_model", "outcomes"))
    models = tuple(sorted({row["model"] for row in outcomes}))
    place = {id: index for index, id in enumerate(questions)}
    quality = np.zeros((len(questions), len(models)))
    chars = np.zeros_like(quality)
    for row in outcomes:
        at = place[row["idx"]], models.index(row["model"])
        quality[at], chars[at] = float(row["correct"]), float(row["response_chars"] or 0.0)
    lexical = _lexical(list(questions.values()))
    return Outcomes("gsm8k_multi_model", models, quality, chars / 1000.0, "1000 characters", lexical)


def _lexical(texts: list[str]) -> Array:
    encoder = Lexical()
    found = np.array([encoder.features(text) for text in texts], dtype=np.float64)
    return found[:, found.std(axis=0) > 0]


def _rows(data_set: str, table: str) -> Iterator[dict[str, str]]:
    path = folder() / data_set / f"{table}.csv.gz"
    if not path.is_file():
        raise DataAbsent(f"{path} is absent; set APPORTION_DATA to the folder of the data sets.")
    with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)
