"""Streams: ordinary texts from this machine's packages as answers, and 5% that run away."""

from __future__ import annotations

import random
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apportion.core import Features
from apportion.core.guard import Guard
from apportion.policy.guard.overflow import Overflow
from apportion.policy.guard.repetition import Repetition

BUDGET_TOKENS = 5000
"""What a runaway stream would take: the cap of BenchOverflow."""
START_CHARS = 1200
X = Features((0.0,))
"""Of every request: nothing is known that would tell the length of its answer."""
KINDS = (
    "*.md",
    "*.rst",
    "*.txt",
    "*.json",
    "*.py",
    "*.js",
    "*.html",
    "*.css",
    "*.c",
    "*.h",
    "*.pyi",
    "*.csv",
)


def texts(n: int, seed: int) -> list[str]:
    """Real files, cut to the length of an answer: documentation, data, code, notices."""
    generator, found = random.Random(seed), list[str]()
    root = Path(sysconfig.get_paths()["purelib"])
    for kind in KINDS:
        paths = sorted(root.rglob(kind))
        for path in generator.sample(paths, min(len(paths), 2 * n // len(KINDS))):
            try:
                text = path.read_text()
            except (UnicodeDecodeError, OSError):
                continue
            if len(text) > 400:
                start = generator.randrange(max(len(text) - 4000, 1))
                found.append(text[start : start + int(generator.lognormvariate(8.0, 1.0))])
    generator.shuffle(found)
    return found[:n]


LOOPS = ("exact", "varied", "counting")


def runaway(start: str, loop: str, seed: int) -> str:
    """An answer that gets lost: after an ordinary start the same again and again, exactly, in four variants at
    random, or with a counter.
    """
    generator = random.Random(seed)
    words = start.split() or ["so"]
    sentence = " ".join(words[: generator.choice((3, 5, 12, 40, 150))]) + generator.choice((" ", ". ", "\n"))
    times = range(4 * BUDGET_TOKENS // len(sentence) + 1)
    if loop == "exact":
        rest = sentence * len(times)
    elif loop == "varied":
        variants = [sentence, sentence.upper(), f"Again: {sentence}", f"{sentence}And so on. "]
        rest = "".join(generator.choice(variants) for _ in times)
    else:
        rest = "".join(f"Step {n}: {sentence}" for n in times)
    return (start[:START_CHARS] + "\n" + rest)[: 4 * BUDGET_TOKENS]


def play(guard: Guard, text: str, seed: int) -> tuple[int, int, str | None]:
    """Tokens until it ended or was stopped, tokens in all, and why it was stopped."""
    watch, generator, place, tokens = guard.watch("t", "m", None, X), random.Random(seed), 0, 0
    while place < len(text):
        size = generator.randint(2, 6)
        piece = text[place : place + size]
        place += size
        tokens += 1
        why = watch.feed(piece, 1)
        if why:
            return tokens, tokens + (len(text) - place) // 4, why
    return tokens, tokens, None


def learned() -> Overflow:
    """A guard that has seen the lengths of a thousand other ordinary answers."""
    guard = Overflow()
    for text in texts(1000, seed=3):
        guard.learn(X, "t", "m", len(text) / 4.0)
    return guard


def run(n: int) -> dict[str, Any]:
    """False alarms, and of the tokens that runaway streams take beyond their start, the share stopped."""
    plain = texts(n, seed=1)
    found: dict[str, Any] = {"ordinary": len(plain), "runaway": 3 * (n // 57)}
    for name, guard in (("repetition", Repetition()), ("overflow", learned())):
        came = [play(guard, text, seed) for seed, text in enumerate(plain)]
        cuts = [why for _, _, why in came if why]
        row: dict[str, Any] = {"cut": len(cuts), "cut_why": sorted({why.partition(":")[0] for why in cuts})}
        row["cut_for_length"] = sum(why.startswith("runs on") for why in cuts)
        sent_all = total_all = 0
        for loop in LOOPS:
            sent = total = 0
            for seed, text in enumerate(texts(n // 57, seed=2)):
                tokens, whole, _ = play(guard, runaway(text, loop, seed), seed)
                begun = min(len(text), START_CHARS) // 4
                sent += max(tokens - begun, 0)
                total += max(whole - begun, 0)
            row[loop] = 1.0 - sent / total
            sent_all += sent
            total_all += total
        row["all"] = 1.0 - sent_all / total_all
        found[name] = row
    found["feed_us"] = _time(lambda: play(Repetition(), plain[0] * 3, 0), len(plain[0]) * 3 / 4)
    return found


def _time(call: Callable[[], object], n: float) -> float:
    start = time.process_time()
    for _ in range(20):
        call()
    return 1e6 * (time.process_time() - start) / 20 / n
