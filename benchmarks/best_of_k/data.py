"""The recorded samples, votes and outcomes, read from the shared data."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """How many of ``n`` samples of each setting passed on each problem: ``right`` has shape (settings, problems)."""

    name: str
    settings: tuple[str, ...]
    problems: tuple[str, ...]
    n: Ints
    right: Ints


@dataclass(frozen=True)
class Stream:
    """The answers that a model gave to one question, in order: classes of equal answers, -1 where none was found."""

    answers: tuple[int, ...]
    correct: int
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outcomes:
    """Right (in [0, 1]) and cost of every model's answer to every question: shape (questions, models)."""

    name: str
    models: tuple[str, ...]
    texts: tuple[str, ...]
    right: Floats
    cost: Floats
    about_cost: str


def folder() -> Path:
    """Where the shared data lies: ``$APPORTION_DATA`` or ``../shared/data``."""
    return Path(os.environ.get("APPORTION_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def rows(path: str) -> list[dict[str, str]]:
    """One file of the shared data; `FileNotFoundError` where it is not there."""
    with gzip.open(folder() / f"{path}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def pass_counts() -> list[Counts]:
    """Every table of pass counts: one for each benchmark whose problems are the same for all its settings."""
    found = []
    osca = rows("osca_pass_counts/pass_counts")
    for benchmark in sorted({row["benchmark"] for row in osca}):
        part = [row for row in osca if row["benchmark"] == benchmark]
        found.append(_counts(benchmark, part, "setting", "problem_id"))
    found.append(_counts("evalperf", rows("evalperf_pass_counts/pass_counts"), "model", "task_id"))
    found.append(_counts("cruxeval", rows("cruxeval_pass_counts/pass_counts"), "task", "problem_id"))
    return found


def _counts(name: str, table: Sequence[Mapping[str, str]], setting: str, problem: str) -> Counts:
    """The problems that every setting of ``table`` tried."""
    tried: dict[str, dict[str, tuple[int, int]]] = {}
    for row in table:
        tried.setdefault(row[setting], {})[row[problem]] = (int(row["n_samples"]), int(row["n_correct"]))
    settings = tuple(sorted(tried))
    problems = tuple(sorted(set.intersection(*(set(of) for of in tried.values()))))
    both = np.array([[tried[s][p] for p in problems] for s in settings], dtype=np.int64)
    return Counts(name, settings, problems, both[..., 0], both[..., 1])


def last_letters() -> list[Stream]:
    """GPT-3.5 on last letters: 40 ordered answers a question."""
    return [
        Stream(tuple(int(a) for a in row["answer_ids"].split()), int(row["correct_answer_id"]))
        for row in rows("esc_answer_streams/gpt35_last_letters")
    ]


def qwen_math() -> list[Stream]:
    """Qwen2.5-Math on MATH: 8 answers a question with the scores of a reward model."""
    problems: dict[str, list[dict[str, str]]] = {}
    for row in rows("qwen_math_rm_best_of_8/samples"):
        problems.setdefault(row["problem_id"], []).append(row)
    found = []
    for samples in problems.values():
        samples.sort(key=lambda row: int(row["sample"]))
        right = {int(row["answer_id"]) for row in samples if row["correct"] == "1"}
        found.append(
            Stream(
                tuple(int(row["answer_id"]) for row in samples),
                next(iter(right), -2),
                tuple(float(row["reward_model_score"]) for row in samples),
            )
        )
    return found


def llmrouter() -> Outcomes:
    """Nine open models on fourteen benchmarks, with their prices."""
    prices = {row["model"]: float(row["usd_per_mtok_output"]) for row in rows("llmrouter_9_models/models")}
    table = rows("llmrouter_9_models/scores")
    models = tuple(name for name in table[0] if name in prices)
    right = np.array([[float(row[m] or 0.0) for m in models] for row in table])
    cost = np.array([float(row["query_chars"]) for row in table])[:, None] * [prices[m] for m in models]
    return Outcomes(
        "llmrouter_9_models",
        models,
        tuple(row["query"] for row in table),
        right,
        cost,
        "characters of the request times the price of a token",
    )


SIZES = {
    "abel_7b": 7, "abel_13b": 13, "abel_70b": 70, "metamath_7b": 7, "metamath_13b": 13, "metamath_70b": 70,
    "tora_7b": 7, "tora_13b": 13, "mixtral-8x7b-instruct": 13, "gpt-3.5-turbo": 20, "gpt-4-1106-preview": 140,
    "gpt4": 140, "openai_gpt3_6b_finetuning": 6, "openai_gpt3_6b_verification": 6, "openai_gpt3_175b_finetuning": 175,
    "openai_gpt3_175b_verification": 175,
}  # fmt: skip
"""Billions of active parameters; those of the closed models are guesses that keep the order of their prices."""


def gsm8k() -> Outcomes:
    """Sixteen model configurations on GSM8K; what an answer costs is its length times the model's size."""
    questions = {row["idx"]: row["question"] for row in rows("gsm8k_multi_model/questions")}
    table = rows("gsm8k_multi_model/outcomes")
    models = tuple(sorted({row["model"] for row in table} & SIZES.keys()))
    index = {idx: i for i, idx in enumerate(questions)}
    right, cost = np.zeros((len(index), len(models))), np.zeros((len(index), len(models)))
    for row in table:
        if row["idx"] in index and row["model"] in SIZES:
            at = index[row["idx"]], models.index(row["model"])
            right[at] = float(row["correct"])
            cost[at] = float(row["response_chars"] or 0.0) * SIZES[row["model"]]
    return Outcomes(
        "gsm8k_multi_model",
        models,
        tuple(questions.values()),
        right,
        cost,
        "characters of the answer times parameters",
    )
