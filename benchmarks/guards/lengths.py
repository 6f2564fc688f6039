"""The bound on an answer's length: how many ordinary answers exceed it, and what it saves of those that run away."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from apportion.core import Features
from apportion.core.guard import StreamWatch
from apportion.policy.guard.overflow import Overflow
from apportion.predict.text.lexical import Lexical
from benchmarks.guards.prompts import rows

BUDGET_TOKENS = 5000
RUNAWAY = 0.05


def run(seed: int, n: int) -> dict[str, Any]:
    """Three tenants with one model each, real questions and real lengths, 5% of the answers not ended by the model.
    Half-way each tenant's model becomes one that says more.
    """
    questions = {row["idx"]: row["question"] for row in rows("gsm8k_multi_model", "questions")}
    by_model: dict[str, list[tuple[str, float]]] = {}
    for row in rows("gsm8k_multi_model", "outcomes"):
        if row["idx"] in questions:
            pair = (questions[row["idx"]], int(row["response_chars"]) / 4.0)
            by_model.setdefault(row["model"], []).append(pair)
    ranked = sorted(by_model, key=lambda name: float(np.mean([tokens for _, tokens in by_model[name]])))
    changes = [(ranked[0], ranked[-1]), (ranked[3], ranked[-4]), (ranked[6], ranked[7])]
    parts = [
        _tenant(by_model[a], by_model[b], random.Random(10 * seed + k), n) for k, (a, b) in enumerate(changes)
    ]
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}


def _tenant(
    before: list[tuple[str, float]], after: list[tuple[str, float]], generator: random.Random, n: int
) -> dict[str, float]:
    guard, lexical = Overflow(action="pass"), Lexical()
    features = {question: Features(lexical.features(question)) for question, _ in (*before, *after)}
    cut: list[bool] = []
    lost: list[float] = []
    saved: list[float] = []
    for place in range(n):
        question, tokens = generator.choice(before if place < n // 2 else after)
        runs = generator.random() < RUNAWAY
        length = float(BUDGET_TOKENS) if runs else tokens
        most = _most(guard.watch("t", "m", None, features[question]), length)
        guard.learn(features[question], "t", "m", min(length, most), censored=runs or most < length)
        if runs:
            saved.append(
                max(length - max(most, tokens), 0.0) / (length - tokens) if place >= n // 4 else np.nan
            )
        else:
            cut.append(most < length)
            lost.append(place)
    cuts, places = np.array(cut), np.array(lost)
    steady = (places >= n // 4) & (places < n // 2)
    soon = (places >= n // 2) & (places < n // 2 + 500)
    late = places >= n // 2 + n // 4
    return {
        "cut_steady": float(cuts[steady].mean()),
        "cut_soon": float(cuts[soon].mean()),
        "cut_late": float(cuts[late].mean()),
        "saved": float(np.nanmean(saved)),
    }


def _most(watch: StreamWatch, length: float) -> float:
    """Tokens of an answer of ``length`` that its watch lets pass."""
    tokens = 0
    while tokens < length:
        tokens += 1
        if watch.feed("", 1):
            return tokens
    return length
