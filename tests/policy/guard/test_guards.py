"""Guards: ordinary traffic is left alone, what runs away is stopped, tenants do not see each other."""

from __future__ import annotations

import base64
import copy
import doctest
import inspect
import json
import math
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import Features, catalogue
from apportion.core.errors import ParameterError, SavedStateError
from apportion.core.guard import Guard
from apportion.policy.guard._history import Recent
from apportion.policy.guard._watch import Watch
from apportion.policy.guard.overflow import Overflow
from apportion.policy.guard.repetition import Repetition

NAMES = tuple(name for name in catalogue.names("guard") if issubclass(catalogue.find(name), Guard))
SOURCE = Path(inspect.getfile(Watch)).parents[2]


def pieces(text: str, seed: int = 0, most: int = 8) -> list[str]:
    """As a stream brings it."""
    generator, found, place = random.Random(seed), list[str](), 0
    while place < len(text):
        size = generator.randint(1, most)
        found.append(text[place : place + size])
        place += size
    return found


def stopped_after(text: str, most: int = 8, watch: Watch | None = None) -> int | None:
    """Tokens until the answer is stopped; None if it never is."""
    watch = watch or Watch(300, 250)
    for piece in pieces(text, most=most):
        if watch.feed(piece, max(len(piece) // 4, 1)):
            return watch.tokens
    return None


# --- what must not be cut ---


def ordinary() -> dict[str, str]:
    generator = random.Random(1)
    line = "the a cat dog sat ran on under mat house blue green very often never again with of and then"
    words = line.split(" ")
    prose = " ".join(generator.choice(words) for _ in range(3000))
    row = "| {n} | customer {n} | {a:.2f} | {b} | active |\n"
    chorus = "And the river runs on to the sea, my love,\nand the river runs on to the sea.\n"
    verses = [" ".join(generator.choice(words) for _ in range(8)) + "\n" for _ in range(80)]
    return {
        "prose of few words": prose,
        "table": "| id | name | sum | n | state |\n| --- | --- | --- | --- | --- |\n"
        + "".join(row.format(n=n, a=generator.random() * 100, b=generator.randrange(50)) for n in range(400)),
        "table with rules": "".join(
            f"{'-' * 120}\n{'=' * 80}\nsection {n}: {verses[n % 80]}" for n in range(60)
        ),
        "json records": json.dumps(
            [{"id": n, "name": f"item {n}", "price": n * 1.5} for n in range(500)], indent=1
        ),
        "json numbers": json.dumps([generator.randrange(1000) for _ in range(3000)]),
        "matrix of bits": "\n".join(
            " ".join(str(generator.randrange(2)) for _ in range(40)) for _ in range(60)
        ),
        "numbers in order": ", ".join(str(n) for n in range(2000)),
        "numbered list": "\n".join(
            f"{n}. Step {n}: check the {generator.choice(words)}." for n in range(400)
        ),
        "poem with a chorus": "".join("".join(verses[n : n + 6]) + chorus * 2 for n in range(0, 78, 6)),
        "base64": base64.b64encode(generator.randbytes(12_000)).decode(),
        "base64 in lines": base64.encodebytes(generator.randbytes(12_000)).decode(),
        "hexadecimal dump": generator.randbytes(6000).hex(" "),
        "some zeros": json.dumps([[0] * 16 for _ in range(16)]),
        "csv": "".join(f"2026-01-{1 + n % 28:02d},{generator.random():.3f},EU,ok\n" for n in range(600)),
        "chinese": "".join(chr(0x4E00 + int(800 * generator.random() ** 2)) for _ in range(6000)),
        "html list": "".join(
            f'<li class="entry"><a href="/page/{n}">Page {n}</a></li>\n' for n in range(300)
        ),
    }


@pytest.mark.parametrize("kind", ordinary())
@pytest.mark.parametrize("most", [1, 8, 200])
def test_ordinary_answers_are_not_cut(kind: str, most: int) -> None:
    assert stopped_after(ordinary()[kind], most) is None


@pytest.mark.parametrize(
    "path", sorted(SOURCE.glob("*/*.py"))[::4], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_code_is_not_cut(path: Path) -> None:
    assert stopped_after(path.read_text()) is None


# --- what must be ---


@pytest.mark.parametrize("most", [1, 8, 200])
@pytest.mark.parametrize(
    "loop",
    [
        "I am sorry, let me try again. ",
        "no ",
        "a",
        "0, ",
        "\n",
        "哈",
        "| --- | --- |\n",
        "Wait, that is not right. Let me think about this once more, from the beginning, step by step.\n\n"
        * 6,
    ],
)
def test_exact_loops_are_stopped_soon(loop: str, most: int) -> None:
    start = " ".join(f"word{n}" for n in range(200))
    text = start + loop * (20_000 // len(loop) + 1)
    after = stopped_after(text, most)
    assert after is not None
    before = stopped_length(start, most)
    assert after - before <= max(400, 800 / len(loop) if most == 1 else 0) * (
        2 if most == 1 else 1
    ) + 100 + 8 * len(loop)


def stopped_length(text: str, most: int) -> int:
    watch = Watch(300, 250)
    for piece in pieces(text, most=most):
        watch.feed(piece, max(len(piece) // 4, 1))
    return watch.tokens


def test_loops_with_small_changes_are_stopped() -> None:
    generator = random.Random(3)
    sentences = [
        f"Then we look at the {thing} again and see that it is fine." for thing in ("cat", "dog", "house")
    ]
    text = " ".join(generator.choice(sentences) for _ in range(2000))
    after = stopped_after(text)
    assert after is not None
    assert after < 3000


def test_a_loop_longer_than_the_buffer_is_stopped() -> None:
    generator = random.Random(4)
    page = " ".join(f"w{generator.randrange(3000)}" for _ in range(1200))
    assert len(page) > 5000
    after = stopped_after((page + " ") * 10)
    assert after is not None
    assert after < 2.5 * len(page) / 2


def test_length_far_beyond_the_known_is_stopped() -> None:
    watch = Watch(300, 250, 100.0)
    assert watch.feed("x " * 10, 100) is None
    why = watch.feed("y", 1)
    assert why is not None
    assert "runs on" in why


@settings(deadline=None, max_examples=60, derandomize=True)
@given(text=st.text(max_size=400), cuts=st.lists(st.integers(0, 5), max_size=50))
def test_any_text_in_any_pieces_is_taken(text: str, cuts: list[int]) -> None:
    watch, place = Watch(300, 250), 0
    for size in cuts:
        assert watch.feed(text[place : place + size], size) is None
        place += size
    assert watch.feed(text[place:], 1) is None


# --- requests ---


def traffic(n: int, seed: int, over: float = 0.1) -> list[tuple[Features, float]]:
    """Features and answer lengths: the second feature makes answers long, mostly."""
    generator = random.Random(seed)
    found = []
    for _ in range(n):
        long = generator.random() < over
        x = (generator.random(), (0.7 if long else 0.0) + 0.4 * generator.random(), generator.random())
        tokens = generator.lognormvariate(7.8 if long else 4.5, 0.5)
        found.append((Features(x), tokens))
    return found


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_false_alarms_keep_to_their_share_and_overflow_is_found(alpha: float) -> None:
    guard = Overflow(alpha=alpha, action="pass")
    for features, tokens in traffic(3000, seed=1):
        guard.learn(features, "t", "m", tokens)
    flagged = {True: 0, False: 0}
    seen = {True: 0, False: 0}
    for features, tokens in traffic(6000, seed=2):
        verdict = guard.inspect(features, "t", "m", None)
        over = tokens >= 1000
        seen[over] += 1
        flagged[over] += verdict.factor > 1.0 or bool(verdict.why)
        guard.learn(features, "t", "m", tokens)
    assert flagged[False] <= (alpha + 3 * math.sqrt(alpha / seen[False])) * seen[False]
    assert flagged[True] >= 0.9 * seen[True]


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_where_nothing_can_be_told_alarms_keep_to_their_share_too(share: float) -> None:
    generator = random.Random(3)
    guard = Overflow(alpha=0.01)
    alarms = 0
    for n in range(6000):
        features = Features(tuple(generator.random() for _ in range(5)))
        if n > 2000:
            alarms += guard.inspect(features, "t", "m", None).action != "pass"
        guard.learn(features, "t", "m", 2000.0 if generator.random() < share else 50.0)
    assert alarms <= 0.02 * 4000


def test_what_becomes_of_a_flagged_request() -> None:
    long = Features((0.5, 1.0, 0.5))
    for action in ("brief", "cap", "refuse", "pass"):
        guard = Overflow(action=action, cap_tokens=300)  # type: ignore[arg-type]
        assert guard.inspect(long, "t", "m", None).action == "pass", "nothing is known yet"
        for features, tokens in traffic(2000, seed=4):
            guard.learn(features, "t", "m", tokens)
        verdict = guard.inspect(long, "t", "m", None)
        assert verdict.action == action
        assert verdict.why
        assert verdict.factor > 1.0
        assert verdict.probability is not None
        assert verdict.probability > 0.5
        assert (verdict.note is not None) == (action in ("brief", "cap"))
        assert verdict.max_tokens == (300 if action == "cap" else None)
        assert guard.inspect(long, "t", "m", 200).action == "pass", "its client allows no more than that"
        assert guard.inspect(long, "t", "m", 5000).max_tokens == (300 if action == "cap" else None)


def test_a_guard_that_works_does_not_unlearn() -> None:
    guard = Overflow(action="cap", cap_tokens=300, alpha=0.02)
    for features, tokens in traffic(2000, seed=5):
        guard.learn(features, "t", "m", tokens)
    caught = []
    for features, tokens in traffic(4000, seed=6):
        verdict = guard.inspect(features, "t", "m", None)
        if tokens >= 1000:
            caught.append(verdict.action == "cap" or "let through" in verdict.why)
        served = min(tokens, 300.0) if verdict.action == "cap" else tokens
        guard.learn(features, "t", "m", served, censored=served < tokens)
    assert sum(caught[-100:]) >= 90


def test_nothing_known_of_one_tenant_or_model_shows_to_another() -> None:
    alone, beside = Overflow(action="cap"), Overflow(action="cap")
    loud = traffic(2000, seed=7)
    for features, tokens in loud:
        beside.learn(features, "loud", "m", tokens)
        beside.learn(features, "quiet", "other model", tokens)
    for features, tokens in traffic(300, seed=8, over=0.3):
        for guard in (alone, beside):
            guard.learn(features, "quiet", "m", tokens)
    for features, _ in loud[:300]:
        assert alone.inspect(features, "quiet", "m", None) == beside.inspect(features, "quiet", "m", None)


def test_a_stream_is_stopped_when_its_end_is_suppressed() -> None:
    guard = Overflow(slack=2.0, limit_tokens=100)
    generator = random.Random(9)
    assert stop_of(guard) is None, "nothing is known yet"
    for _ in range(500):
        guard.learn(Features((0.1,)), "t", "m", generator.lognormvariate(4.0, 0.3))
    after = stop_of(guard)
    assert after is not None
    assert 200 < after < 400


def stop_of(guard: Guard) -> int | None:
    watch = guard.watch("t", "m", None, Features((0.1,)))
    for n in range(2000):
        if watch.feed(f"new{n * 7919} ", 1):
            return n
    return None


@settings(deadline=None, max_examples=60, derandomize=True)
@given(values=st.lists(st.integers(0, 50), max_size=80), alpha=st.sampled_from([0.01, 0.1, 0.5]))
def test_the_conformal_bound_is_the_right_order_statistic(values: list[int], alpha: float) -> None:
    recent = Recent()
    for value in values:
        recent.add(value)
    rank = math.ceil((len(values) + 1) * (1 - alpha))
    assert recent.bound(alpha) == (sorted(values)[rank - 1] if rank <= len(values) else math.inf)


def test_only_the_last_thousand_count() -> None:
    recent = Recent()
    for value in range(5000):
        recent.add(float(value))
    assert recent.bound(0.5) == pytest.approx(4500, abs=2)
    assert len(recent.values) == 1000


# --- as methods of the catalogue ---


@pytest.mark.parametrize("name", NAMES)
def test_guards_are_documented_checked_and_saved(name: str) -> None:
    cls = catalogue.find(name)
    assert issubclass(cls, Guard)
    info = catalogue.describe(name)
    assert info.summary.endswith(".")
    assert cls.constraints.keys() == cls.signature().keys()
    for key, constraint in cls.constraints.items():
        with pytest.raises(ParameterError, match=f"The '{key}' parameter of {cls.__name__} must be"):
            cls(**{key: constraint.wrong()})
    report = list[str]()
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder(recurse=False).find(cls, cls.__name__, sys.modules[cls.__module__]):
        runner.run(test, out=report.append)
    assert not report, "".join(report)
    for parameters in ({}, *cls.examples()):
        guard = cls(**parameters)
        given_ = copy.deepcopy(guard.parameters())
        for features, tokens in traffic(1200, seed=10):
            guard.inspect(features, "t", "m", None)
            guard.learn(features, "t", "m", tokens)
        twin = cls(**parameters)
        twin.load(json.loads(json.dumps(guard.save(), allow_nan=False)))
        for features, tokens in traffic(300, seed=11):
            assert guard.inspect(features, "t", "m", None) == twin.inspect(features, "t", "m", None)
            guard.learn(features, "t", "m", tokens)
            twin.learn(features, "t", "m", tokens)
        assert guard.parameters() == given_
        fresh = guard.clone()
        assert fresh.parameters() == given_
        assert fresh.inspect(features, "t", "m", None).action == "pass"
        with pytest.raises(SavedStateError):
            guard.load({"method": "other", "learned": {}})


def test_memory_is_bounded_over_many_tenants() -> None:
    guard = Overflow()
    for tenant in range(2000):
        guard.learn(Features((0.1,)), str(tenant), "m", 10.0)
    assert len(guard.save()["learned"]["histories"]) == 512
    for odd in (math.nan, math.inf, -1.0):
        guard.learn(Features((0.1,)), "t", "m", odd)
    json.dumps(guard.save(), allow_nan=False)


def test_repetition_passes_every_request() -> None:
    guard = Repetition()
    assert guard.inspect(Features((1.0,)), "t", "m", None).action == "pass"
