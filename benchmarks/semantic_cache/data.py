"""The data sets as questions with what is known of their answers."""

from __future__ import annotations

import csv
import gzip
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from apportion.serve.cache.check import Reading, conflict, difference, read

DATA = Path(os.environ.get("APPORTION_DATA", Path(__file__).parents[3] / "shared" / "data"))
NEAR = 4
"""Candidates that are looked at for each question, as the cache does."""
FLOOR = 0.7
"""Candidates of a stream that are less similar are not looked at."""

Embed = Callable[[Sequence[str], str], Any]


def rows(name: str, file: str) -> list[dict[str, str]]:
    """The rows of a file of the shared data; none where it is absent."""
    path = DATA / name / f"{file}.csv.gz"
    if not path.exists():
        return []
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


class Looks(NamedTuple):
    """Look-ups with their candidates, in arrays: one row a look-up, one column a candidate, nearest first.

    ``verdict``: 1 the candidate's answer is right, 0 it is wrong, -1 nobody knows. ``group`` keeps together in
    cross-validation what belongs together. ``able`` says whether a right answer is there at all.
    """

    cos: Any
    conflict: Any
    novelty: Any
    balance: Any
    disorder: Any
    verdict: Any
    group: Any
    able: Any
    texts: list[tuple[str, str]]


def pairs(
    name: str, ones: list[str], others: list[str], right: list[int], group: list[str], embed: Embed
) -> Looks:
    """One candidate for each look-up."""
    texts = sorted({*ones, *others})
    place = {text: row for row, text in enumerate(texts)}
    vectors = np.asarray(embed(texts, name))
    a, b = [place[t] for t in ones], [place[t] for t in others]
    readings = [read(text) for text in texts]
    cos = np.einsum("ij,ij->i", vectors[a], vectors[b])[:, None]
    features = [_features(readings[i], readings[j]) for i, j in zip(a, b, strict=True)]
    columns = [np.array([f[k] for f in features])[:, None] for k in range(4)]
    named = {g: i for i, g in enumerate(dict.fromkeys(group))}
    verdict = np.array(right)[:, None]
    return Looks(
        cos,
        *columns,
        verdict,
        np.array([named[g] for g in group]),
        verdict[:, 0] == 1,
        list(zip(ones, others, strict=True)),
    )


def gsm(embed: Embed) -> Looks | None:
    """Word problems and their changes: the answers say which may share one."""
    found = rows("gsm_plus_variants", "testmini")
    if not found:
        return None
    # A variant of another kind with the same answer by chance (or with a distraction) says nothing either way.
    kept = [
        r
        for r in found
        if r["perturbation_type"] == "problem understanding" or r["seed_answer"] != r["answer"]
    ]
    kept = [r for r in kept if r["seed_question"] != r["question"]]
    seeds = [r["seed_question"] for r in kept]
    right = [int(r["seed_answer"] == r["answer"]) for r in kept]
    return pairs("gsm_plus_variants", seeds, [r["question"] for r in kept], right, seeds, embed)


def paws(embed: Embed) -> Looks | None:
    """Sentences with the same words; people said whether they mean the same."""
    found = rows("paws_wiki_en", "pairs")
    if not found:
        return None
    ones, others = [r["sentence1"] for r in found], [r["sentence2"] for r in found]
    return pairs("paws_wiki_en", ones, others, [int(r["is_paraphrase"]) for r in found], ones, embed)


def stream(name: str, embed: Embed, seed: int) -> Looks | None:
    """Questions of many intents in a random order, each looked up among all before it.

    Another intent is another answer. The same intent is the same answer only if the two also have the same particular
    words: those that less than 5% of the intent's questions and less than 1% of all have (a city, an amount, a word to
    be translated). Otherwise nobody knows.
    """
    found = [(r["text"], r.get("intent") or r.get("category") or "") for r in rows(name, "queries")]
    found = [one for one in found if one[1] != "oos"]
    if not found:
        return None
    order = np.random.default_rng(seed).permutation(len(found))
    texts, intents = [found[i][0] for i in order], [found[i][1] for i in order]
    vectors = np.asarray(embed(texts, name), dtype=np.float32)
    special = particular(texts, intents)
    readings = [read(text) for text in texts]
    shape = (len(texts), NEAR)
    cos, verdict = np.zeros(shape), np.zeros(shape, int)
    columns = [np.ones(shape) for _ in range(4)]
    seen: set[tuple[str, frozenset[str]]] = set()
    able = np.zeros(len(texts), bool)
    chosen: list[tuple[str, str]] = []
    for i in range(len(texts)):
        able[i] = (intents[i], special[i]) in seen
        seen.add((intents[i], special[i]))
        near = vectors[:i] @ vectors[i] if i else np.zeros(0)
        top = np.argpartition(near, -NEAR)[-NEAR:] if i > NEAR else np.arange(i)
        top = top[np.argsort(near[top])[::-1]]
        chosen.append((texts[i], texts[top[0]] if len(top) else ""))
        for k, j in enumerate(top):
            if near[j] < FLOOR:
                break  # what is further away is served by nobody
            cos[i, k] = near[j]
            for column, value in zip(columns, _features(readings[i], readings[j]), strict=True):
                column[i, k] = value
            same = intents[i] == intents[j]
            verdict[i, k] = (1 if special[i] == special[j] else -1) if same else 0
    return Looks(cos, *columns, verdict, np.arange(len(texts)), able, chosen)


def _features(one: Reading, other: Reading) -> tuple[float, float, float, float]:
    apart = difference(one, other)
    return float(conflict(one, other) is not None), apart.novelty, apart.balance, apart.disorder


def particular(texts: list[str], intents: list[str]) -> list[frozenset[str]]:
    """The words of each text that neither its intent nor all texts use often."""
    words = [frozenset("".join(c if c.isalnum() else " " for c in text.casefold()).split()) for text in texts]
    common = {w for w, n in Counter(w for ws in words for w in ws).items() if n >= 0.01 * len(texts)}
    by_intent: dict[str, list[frozenset[str]]] = defaultdict(list)
    for intent, ws in zip(intents, words, strict=True):
        by_intent[intent].append(ws)
    usual = {
        intent: {w for w, n in Counter(w for ws in of for w in ws).items() if n >= 0.05 * len(of)}
        for intent, of in by_intent.items()
    }
    return [ws - common - usual[intent] for ws, intent in zip(words, intents, strict=True)]
