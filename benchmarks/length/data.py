"""Prompts with the lengths of answers to them, and measured latencies."""

from __future__ import annotations

import csv
import gzip
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CHARS_PER_TOKEN = 4.25


class Answers(NamedTuple):
    """One data set: an answer is the place of its prompt, its model and its length in tokens."""

    name: str
    prompts: list[str]
    place: list[int]
    models: list[str]
    tokens: list[float]


class Served(NamedTuple):
    """One measured request at an endpoint."""

    endpoint: str
    load: float
    input_tokens: float
    output_tokens: float
    first_s: float
    total_s: float


def directory() -> Path:
    """Where the data sets are; ends the program with a word if they are not."""
    found = Path(os.environ.get("APPORTION_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not (found / "gsm8k_multi_model").is_dir():
        sys.exit(f"There are no data sets in {found}; set APPORTION_DATA to their directory.")
    return found


def table(name: str) -> Iterator[dict[str, str]]:
    """The rows of one file."""
    csv.field_size_limit(2**31 - 1)
    with gzip.open(directory() / f"{name}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def many_models() -> Answers:
    """GSM8K questions, answered by 16 models."""
    questions = {row["idx"]: row["question"] for row in table("gsm8k_multi_model/questions")}
    place = {idx: n for n, idx in enumerate(questions)}
    rows = [row for row in table("gsm8k_multi_model/outcomes") if row["idx"] in place]
    return Answers(
        "gsm8k_multi_model",
        list(questions.values()),
        [place[row["idx"]] for row in rows],
        [row["model"] for row in rows],
        [float(row["response_chars"]) / CHARS_PER_TOKEN for row in rows],
    )


def solutions() -> Answers:
    """GSM8K training questions with the length of the reference solution."""
    rows = list(table("gsm8k_train_questions/questions"))
    return Answers(
        "gsm8k_train_questions",
        [row["question"] for row in rows],
        list(range(len(rows))),
        ["reference"] * len(rows),
        [float(row["solution_chars"]) / CHARS_PER_TOKEN for row in rows],
    )


def programs() -> Answers:
    """HumanEval prompts with the length of the reference solution."""
    rows = list(table("humaneval_prompts/prompts"))
    return Answers(
        "humaneval_prompts",
        [row["prompt"] for row in rows],
        list(range(len(rows))),
        ["reference"] * len(rows),
        [float(row["canonical_solution_chars"]) / CHARS_PER_TOKEN for row in rows],
    )


def served() -> list[Served]:
    """Measured prompt and token times of two models on four kinds of machine; load is the batch over 64.

    The end is prompt time plus tokens times token time: the column of end-to-end times is not used, for beyond 512
    tokens it does not grow with the tokens.
    """
    return [
        Served(
            f"{row['model']} {row['hardware']} x{row['tensor_parallel']}",
            int(row["batch_size"]) / 64.0,
            float(row["prompt_size"]),
            float(row["token_size"]),
            float(row["prompt_time"]) / 1e3,
            (float(row["prompt_time"]) + int(row["token_size"]) * float(row["token_time"])) / 1e3,
        )
        for row in table("splitwise_perf_model/perf_model")
    ]
