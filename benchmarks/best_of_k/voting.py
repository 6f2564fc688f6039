"""When to stop a vote: recorded answers played to the strategy, against a fixed number, a window and the library."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from apportion.core import Call, Cost, Option, Reply, drive
from apportion.reason.vote import Vote
from benchmarks.best_of_k.data import Stream

WORTHS = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)
"""Worth of a right answer in samples: what is swept to spend more or less."""
WINDOW = 5
"""Equal answers in a row at which the window stops, the value of its paper."""

Method = Callable[[Sequence[int]], tuple[int, int]]
"""From the ordered answers to (answer, samples)."""


def majority(answers: Sequence[int]) -> int:
    """The most frequent answer, ties to the one that came first; -1 (none found) only where there is no other."""
    counts = Counter(answer for answer in answers if answer >= 0)
    return max(counts, key=lambda answer: (counts[answer], -answers.index(answer))) if counts else -1


def uniform(k: int) -> Method:
    return lambda answers: (majority(answers[:k]), min(k, len(answers)))


def window(answers: Sequence[int]) -> tuple[int, int]:
    """Early-stopping self-consistency: in blocks, until a whole block agrees."""
    for start in range(0, len(answers), WINDOW):
        block = answers[start : start + WINDOW]
        if len(block) == WINDOW and len(set(block)) == 1:
            return majority(answers[: start + WINDOW]), start + WINDOW
    return majority(answers), len(answers)


def library() -> tuple[Method, str] | None:
    """Adaptive-Consistency as its authors published it, where installed in ``$APPORTION_PEERS``; else None."""
    place = os.environ.get("APPORTION_PEERS")
    if place and place not in sys.path:
        sys.path.append(place)
    try:
        found = importlib.import_module("adaptive_consistency")
    except ImportError:
        return None
    criterion = found.AC(max_gens=10_000, stop_criteria=found.BetaStoppingCriteria(0.95))

    def stop(answers: Sequence[int]) -> tuple[int, int]:
        for k in range(1, len(answers)):
            if criterion.should_stop(list(answers[:k])):
                return majority(answers[:k]), k
        return majority(answers), len(answers)

    return stop, "adaptiveconsistency 1.0.0"


def strategy(vote: Vote, worth: float, learning: bool, correct: int = 0) -> Method:
    """`Vote` with samples at a price of one each, a right answer being worth so many of them."""
    offer = [Option("model", 0.0, Cost(samples=1.0))]
    request = {"options": offer, "prices": {"samples": 1.0}, "worth_usd": worth}

    def stop(answers: Sequence[int]) -> tuple[int, int]:
        left = iter(answers)

        def call(one: Call) -> Reply:
            answer = next(left)
            text = f"The answer is {answer}." if answer >= 0 else "none " * 60
            return Reply("ok", {"text": text, "id": answer}, Cost(samples=1.0))

        answer = drive(vote.run(request, 0.0), call)
        given = int(answer.content["id"])  # type: ignore[index]
        if learning:
            vote.learn(answer.details, float(given == correct))
        return given, int(str(answer.details["calls"]))

    return stop


def evaluate(streams: Sequence[Stream], seeds: Sequence[int], folds: int = 5) -> dict[str, object]:
    """Accuracy and mean samples of each method, over seeds that shuffle the answers of each question."""
    most = min(len(stream.answers) for stream in streams)
    peer = library()
    fixed: dict[str, Method] = {
        f"every question {k}": uniform(k) for k in (1, 2, 3, 5, 8, 12, 16, 24, 32, 40) if k <= most
    }
    fixed["window of 5 (ESC)"] = window
    if peer:
        fixed[f"Adaptive-Consistency ({peer[1]})"] = peer[0]
    runs: dict[str, list[tuple[int, float, float]]] = {}
    for seed in seeds:
        generator = np.random.default_rng(seed)
        order = [
            [stream.answers[i] for i in generator.permutation(len(stream.answers))] for stream in streams
        ]
        fold = generator.permutation(len(streams)) % folds
        for name, method in fixed.items():
            _add(runs, name, seed, [method(answers) for answers in order], streams)
        oracle = [_oracle(answers, stream.correct) for answers, stream in zip(order, streams, strict=True)]
        _add(runs, "best possible", seed, oracle, streams)
        if streams[0].scores:
            _add(
                runs, "every question 8, best by reward model", seed, [_rewarded(s) for s in streams], streams
            )
        for worth in WORTHS:
            results: list[tuple[int, int]] = [(0, 0)] * len(streams)
            for f in range(folds):
                vote = Vote(max_samples=most, kind="auto")
                for i in np.flatnonzero(fold != f):
                    explored = float(generator.choice(WORTHS))
                    strategy(vote, explored, True, streams[i].correct)(order[i])
                trained = json.dumps(vote.save())
                vote.load(json.loads(trained))
                for i in np.flatnonzero(fold == f):
                    results[i] = strategy(vote, worth, False)(order[i])
            _add(runs, f"ours, worth {worth:g} samples", seed, results, streams)
    return {
        "questions": len(streams),
        "most": most,
        "library": peer[1] if peer else None,
        "methods": {
            name: {
                "accuracy": float(np.mean([a for _, a, _ in of])),
                "samples": float(np.mean([n for _, _, n in of])),
                "by_seed": [[a, n] for _, a, n in of],
            }
            for name, of in runs.items()
        },
    }


def _add(
    runs: dict[str, list[tuple[int, float, float]]],
    name: str,
    seed: int,
    results: Sequence[tuple[int, int]],
    streams: Sequence[Stream],
) -> None:
    right = np.mean([answer == stream.correct for (answer, _), stream in zip(results, streams, strict=True)])
    runs.setdefault(name, []).append((seed, float(right), float(np.mean([n for _, n in results]))))


def _oracle(answers: Sequence[int], correct: int) -> tuple[int, int]:
    """Knows the right answer: stops at it, and does not begin where it never comes."""
    return (correct, answers.index(correct) + 1) if correct in answers else (-1, 1)


def _rewarded(stream: Stream) -> tuple[int, int]:
    best = max(range(len(stream.answers)), key=lambda i: stream.scores[i])
    return stream.answers[best], len(stream.answers)
