"""The five data sets in one form: what a proxy sees of each request, what each model's answer was worth and cost.

Costs are in units of no meaning; everything is reported as a share of the best single model's cost. Where the data
have no dollars, a price is assumed and named in ``costs``.
"""

from __future__ import annotations

import csv
import gzip
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apportion.core import Features

Array = npt.NDArray[np.float64]
SAME_MISTAKE = 0.6
"""Chance that two wrong answers are the same. Measured: 0.59 between samples of one model on mathematics
(`qwen_math_rm_best_of_8`); different models agree less, so this is on the safe side."""
NAMES = (
    "routellm_mmlu",
    "llmrouter_9_models",
    "gsm8k_multi_model",
    "routerarena_2_models",
    "wildbench_scores",
)

GSM8K_SIZES = {
    "abel_7b": 7, "abel_13b": 13, "abel_70b": 70, "metamath_7b": 7, "metamath_13b": 13, "metamath_70b": 70,
    "tora_7b": 7, "tora_13b": 13, "openai_gpt3_6b_finetuning": 6, "openai_gpt3_6b_verification": 6,
    "openai_gpt3_175b_finetuning": 175, "openai_gpt3_175b_verification": 175, "mixtral-8x7b-instruct": 13,
    "gpt-3.5-turbo": 20, "gpt-4-1106-preview": 140, "gpt4": 140,
}  # fmt: skip
"""Active parameters in billions, twice the largest open model for both GPT-4s: with these the floor and the
oracle come out as they were measured beforehand (0.80; 0.04 and 0.05)."""
WILDBENCH_SIZES = {
    "gemma-2b-it": 2, "Phi-3-mini-128k-instruct": 4, "gemma-7b-it": 7, "reka-edge": 7, "reka-flash-20240226": 21,
    "reka-core-20240501": 67, "gpt-3.5-turbo-0125": 20, "Qwen1.5-72B-Chat": 72, "Qwen1.5-72B-Chat-greedy": 72,
}  # fmt: skip
"""Likewise; a fine-tuned Llama-3-8B, and anything unknown, has 8."""


class Absent(Exception):
    """The data set is not where it should be."""


@dataclass
class Data:
    """n requests and m models.

    ``quality`` and ``cost`` are (n, m); ``stated_cost`` is the cost as known before the call, None where it has to
    be predicted from past requests; ``length`` (n, m) is what a call tells besides its answer, None where the data do
    not have it. ``agreement`` (n) is the chance that two wrong answers are the same, NaN where answers cannot be
    compared, None where no answer can. ``testable`` (n) says where a check tells right
    from wrong before the answer is used (unit tests).
    """

    name: str
    models: list[str]
    texts: list[str] | None
    known: list[dict[str, float]]
    quality: Array
    cost: Array
    stated_cost: Array | None
    length: Array | None
    costs: str
    agreement: Array | None = None
    testable: Array | None = None

    @property
    def best(self) -> int:
        """The best single model."""
        return int(self.quality.mean(0).argmax())

    def take(self, rows: npt.NDArray[np.intp]) -> Data:
        """Only ``rows``."""

        def part(array: Array | None) -> Array | None:
            return None if array is None else array[rows]

        return Data(
            self.name,
            self.models,
            None if self.texts is None else [self.texts[row] for row in rows],
            [self.known[row] for row in rows],
            self.quality[rows],
            self.cost[rows],
            part(self.stated_cost),
            part(self.length),
            self.costs,
            part(self.agreement),
            part(self.testable),
        )


def directory() -> Path:
    """Where the data are."""
    return Path(os.environ.get("APPORTION_DATA", Path(__file__).parents[3] / "shared" / "data"))


def _read(path: str) -> list[dict[str, str]]:
    place = directory() / path
    if not place.exists():
        raise Absent(f"{place} is absent; set APPORTION_DATA to the folder of the data sets")
    with gzip.open(place, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def load(name: str) -> Data:
    """The data set ``name``; raises `Absent`."""
    return _LOADERS[name]()


def _mmlu() -> Data:
    rows = _read("routellm_mmlu/mmlu.csv.gz")
    models = [column for column in rows[0] if column not in ("subject", "prompt", "prompt_chars")]
    chars = np.array([float(row["prompt_chars"]) for row in rows])
    quality = np.array([[float(row[model]) for model in models] for row in rows])
    cost = chars[:, None] * np.where(np.arange(len(models)) == quality.mean(0).argmax(), 1.0, 0.01)
    texts = [row["prompt"] for row in rows]
    known = [{"turn_chars": count} for count in chars]
    told = "characters of the prompt (the answer is one letter); Mixtral at 1% of GPT-4's price"
    return Data("routellm_mmlu", models, texts, known, quality, cost, cost, None, told)


def _llmrouter() -> Data:
    rows = _read("llmrouter_9_models/scores.csv.gz")
    listed = _read("llmrouter_9_models/models.csv.gz")
    prices = {row["model"]: float(row["usd_per_mtok_input"]) for row in listed}
    models = [column for column in rows[0] if column in prices]
    chars = np.array([float(row["query_chars"]) for row in rows])
    quality = np.array([[float(row[model] or "nan") for model in models] for row in rows])
    cost = np.maximum(chars, 1.0)[:, None] * np.array([prices[model] for model in models])
    texts = [row["query"] for row in rows]
    known = [{"turn_chars": count} for count in chars]
    told = "characters of the prompt times the listed price"
    short = np.array([row["metric"] in ("em_mc", "GSM8K", "MATH") for row in rows])
    agreement = np.where(short, SAME_MISTAKE, np.nan)
    tested = np.array([float(row["metric"] == "code_eval") for row in rows])
    return Data(
        "llmrouter_9_models", models, texts, known, quality, cost, cost, None, told, agreement, tested
    )


def _gsm8k() -> Data:
    questions = _read("gsm8k_multi_model/questions.csv.gz")
    outcomes = _read("gsm8k_multi_model/outcomes.csv.gz")
    models = sorted({row["model"] for row in outcomes})
    place = {row["idx"]: number for number, row in enumerate(questions)}
    column = {model: number for number, model in enumerate(models)}
    quality = np.full((len(questions), len(models)), np.nan)
    length = np.full_like(quality, np.nan)
    for row in outcomes:
        if row["idx"] in place:
            where = place[row["idx"]], column[row["model"]]
            quality[where], length[where] = float(row["correct"]), float(row["response_chars"] or 0.0)
    cost = length * np.array([float(GSM8K_SIZES.get(model, 13)) for model in models])
    texts = [row["question"] for row in questions]
    told = "characters of the answer times the model's size; both GPT-4 at 140 billion (twice the largest open one)"
    agreement = np.full(len(texts), SAME_MISTAKE)
    known: list[dict[str, float]] = [{} for _ in texts]
    return Data("gsm8k_multi_model", models, texts, known, quality, cost, None, length, told, agreement)


def _routerarena() -> Data:
    rows = _read("routerarena_2_models/outcomes.csv.gz")
    models = sorted({row["model"] for row in rows})
    by_query: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for row in rows:
        by_query[row["query_id"]][row["model"]] = row
    whole = [found for found in by_query.values() if len(found) == len(models)]
    score = np.array([[float(found[model]["score"]) for model in models] for found in whole])
    quality = np.clip(score, 0.0, 1.0)  # METEOR and chess scores fall a little below zero
    cost = np.array([[float(found[model]["cost_usd"]) for model in models] for found in whole])
    length = np.array([[float(found[model]["output_tokens"]) for model in models] for found in whole])
    known = [
        {
            "chars": float(found[models[0]]["question_chars"]),
            "tokens": float(found[models[0]]["input_tokens"]),
        }
        for found in whole
    ]
    return Data(
        "routerarena_2_models", models, None, known, quality, cost, None, length, "dollars as recorded"
    )


def _wildbench() -> Data:
    rows = _read("wildbench_scores/scores.csv.gz")
    panels: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        panels[row["judge"], row["bench_version"]].add(row["model"])
    panel = max(sorted(panels), key=lambda one: len(panels[one]))
    models = sorted(panels[panel])
    by_task: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for row in rows:
        if (row["judge"], row["bench_version"]) == panel and row["score_1_10"]:
            by_task[row["session_id"]][row["model"]] = row
    whole = [found for found in by_task.values() if len(found) == len(models)]
    score = np.array([[float(found[model]["score_1_10"]) for model in models] for found in whole])
    length = np.array([[float(found[model]["output_chars"]) for model in models] for found in whole])
    judged = np.array([[float(found[model]["judge_prompt_tokens"]) for model in models] for found in whole])
    # What the judge read without the answer is the request (and its check list): known before the call.
    request = np.median(judged - length / 4.0, axis=1)
    cost = length * np.array([float(WILDBENCH_SIZES.get(model, 8)) for model in models])
    known = [{"tokens": max(float(tokens), 1.0)} for tokens in request]
    quality = np.clip((score - 1.0) / 9.0, 0.0, 1.0)
    told = "characters of the answer times the model's size"
    return Data("wildbench_scores", models, None, known, quality, cost, None, length, told)


_LOADERS: dict[str, Any] = {
    "routellm_mmlu": _mmlu,
    "llmrouter_9_models": _llmrouter,
    "gsm8k_multi_model": _gsm8k,
    "routerarena_2_models": _routerarena,
    "wildbench_scores": _wildbench,
}


def features(data: Data, vectors: Array | None) -> list[Features]:
    """What the proxy would know of each request: marks of the text, or the columns that stand in for it."""
    from apportion.core import catalogue

    if data.texts is None:
        names = sorted(data.known[0])
        return [Features(tuple(float(np.log1p(known[name])) for name in names)) for known in data.known]
    encoder: Any = catalogue.build("text/lexical")
    found = []
    for number, (text, known) in enumerate(zip(data.texts, data.known, strict=True)):
        vector = None if vectors is None else tuple(vectors[number].tolist())
        found.append(Features(encoder.features(text, facts=known), vector))
    return found
