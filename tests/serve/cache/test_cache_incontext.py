"""Examples: near ones of the same tenant, the useful ones, within their bytes."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.serve.cache.incontext import Examples, _agreement, _Line

DIM = 16


def direction(seed: int, near: int | None = None, far: float = 0.3) -> list[float]:
    """A random direction, or one near another."""
    value = np.random.default_rng(seed).normal(size=DIM)
    value /= np.linalg.norm(value)
    if near is not None:
        value = np.array(direction(near)) + far * value
        value /= np.linalg.norm(value)
    return [float(v) for v in value]


def filled(n: int = 20, capacity: int = 10**7, tenant: str = "t") -> Examples:
    held = Examples(capacity)
    for place in range(n):
        held.add(tenant, f"q{place}", direction(place), f"a{place}", quality=0.9, usd=0.01, now=0.0)
    return held


def test_the_nearest_are_chosen_and_the_best_stands_last() -> None:
    held = filled()
    chosen = held.choose("t", direction(99, near=3), 2, now=1.0)
    assert chosen.pairs[-1] == ("q3", "a3")
    assert len(chosen.ids) <= 2


def test_nothing_crosses_tenants() -> None:
    held = filled()
    held.add("u", "mine", direction(3), "own", quality=0.9, usd=0.01, now=0.0)
    assert held.choose("u", direction(3), 4, now=1.0).pairs == (("mine", "own"),)
    assert held.choose("v", direction(3), 4, now=1.0).pairs == ()
    assert held.remove("t") == 20
    assert held.choose("t", direction(3), 4, now=1.0).pairs == ()


def test_poor_answers_are_no_examples() -> None:
    held = Examples(10**6)
    assert held.add("t", "q", direction(1), "a", quality=0.2, usd=0.01, now=0.0) is None
    assert len(held) == 0


def test_what_helps_is_learned() -> None:
    """Two examples as near to each request: one helps, one harms; after a while only the first is chosen."""
    held, rng = Examples(10**6), random.Random(1)
    good = held.add("t", "good", direction(1, near=0, far=0.2), "g", quality=0.9, usd=0.01, now=0.0)
    bad = held.add("t", "bad", direction(2, near=0, far=0.2), "b", quality=0.9, usd=0.01, now=0.0)
    nothing = held.choose("other", direction(0), 1, now=0.0)
    for now in range(300):
        held.learn(nothing, 0.5)
        chosen = held.choose("t", direction(1000 + now, near=0), rng.choice((1, 2)), now=float(now))
        held.learn(chosen, {(good,): 0.9, (bad,): 0.2}.get(chosen.ids, 0.5))
    ids = [held.choose("t", direction(5000 + n, near=0), 1, now=300.0).ids for n in range(50)]
    assert ids.count((good,)) >= 45


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 2000)), max_size=60), st.integers(3000, 40_000))
def test_bytes_are_bounded_and_added_up(added: list[tuple[int, int]], capacity: int) -> None:
    held = Examples(capacity)
    for now, (seed, size) in enumerate(added):
        held.add("t", "q", direction(seed), "x" * size, quality=0.8, usd=0.01, now=float(now))
        assert held.size_bytes <= capacity
        assert held.size_bytes == sum(one.size_bytes for one in held._held.values())
        assert len(held._near) == len(held)


def test_what_is_used_and_dear_stays() -> None:
    held = Examples(30_000)
    first = held.add("t", "q", direction(1), "x" * 100, quality=0.9, usd=1.0, now=0.0)
    assert first is not None
    for now in range(1, 100):
        held.choose("t", direction(1), 1, now=float(now))
        held.add("t", "q", direction(100 + now), "y" * 100, quality=0.9, usd=0.001, now=float(now))
    assert first in held._held
    assert len(held) < 30


def test_replays_pay_for_themselves() -> None:
    held = Examples(10**6)

    def add(question: str, place: int, quality: float, asked: bytes = b"again") -> str:
        kept = held.add("t", question, direction(place), "a", quality=quality, usd=0.01, now=0.0, asked=asked)
        assert kept is not None
        return kept

    poor, fine = add("poor", 1, 0.5), add("fine", 3, 1.0)
    add("rare", 2, 0.5)
    add("private", 4, 0.5, asked=b"")
    for now in range(10):
        for place in (1, 3, 4):
            held.choose("t", direction(place), 1, now=float(now))
    (due,) = held.replays(5, worth_usd=1.0, now=10.0)
    assert (due.id, due.asked) == (poor, b"again")
    # ten uses, three quarters of new answers right, each adding 0.05 more: what the prior says, less the cost
    assert abs(due.worth_usd - (10 * 0.75 * 0.05 - 0.01)) < 1e-3
    assert held.replays(5, worth_usd=0.02, now=10.0) == []
    assert held.replays(5, worth_usd=1.0, now=10.0 + 30 * 86_400.0) == []
    held.tried(poor, 10.0)
    assert held.replays(5, worth_usd=1.0, now=10.0) == []
    assert held.replayed(poor, "better", 0.9, now=11.0)
    assert not held.replayed(fine, "worse", 0.3, now=11.0)
    assert held.choose("t", direction(1), 1, now=12.0).pairs == (("poor", "better"),)


def test_an_answer_that_was_wrong_is_shown_no_more_until_it_is_replaced() -> None:
    held = Examples(10**6)
    kept = held.add(
        "t", "q", direction(1), "a", quality=0.9, usd=0.01, now=0.0, decision_id="dec_1", asked=b"q"
    )
    assert kept is not None
    held.judged("dec_1", 0.0)
    held.judged("dec_of_nobody", 1.0)
    for now in range(5):
        assert held.choose("t", direction(1), 1, now=float(now)).ids == ()
    assert [due.id for due in held.replays(5, worth_usd=1.0, now=5.0)] == [kept]
    assert held.replayed(kept, "right", 1.0, 6.0, "dec_2")
    assert held.choose("t", direction(1), 1, now=7.0).pairs == (("q", "right"),)
    held.judged("dec_1", 0.0)  # of an answer that is gone
    assert held.choose("t", direction(1), 1, now=8.0).ids == (kept,)
    held.judged("dec_2", 0.0)
    assert held.choose("t", direction(1), 1, now=9.0).ids == ()


def test_wrong_answers_leave_first() -> None:
    """However often an example is near: what must not be shown brings nothing for its bytes."""
    held = Examples(30_000)

    def add(n: int) -> None:
        vector = direction(n)
        held.add("t", "q", vector, "x", quality=0.9, usd=1.0, now=0.0, decision_id=f"dec_{n}")

    add(0)
    for n in range(1, 1 + 30_000 // next(iter(held._held.values())).size_bytes):
        for _ in range(3):
            held.choose("t", direction(0), 1, now=0.0)
        if n == 5:
            held.judged("dec_0", 0.0)
        assert "ex_1" in held._held
        add(n)
    assert "ex_1" not in held._held
    assert len(held) >= 20


def test_agreement_is_what_tells_where_examples_help() -> None:
    """Examples that agree make the small model right, others do not: the predicted gain comes to say so, and against
    what was predicted without them."""
    held, rng = Examples(10**7, curiosity=0.05), random.Random(2)
    for place in range(40):
        for n in range(3):
            answer = "same words" if place % 2 else f"word{n}"
            vector = direction(1000 * place + n + 1, near=1000 * place, far=0.2)
            held.add("t", f"q{place}", vector, answer, quality=0.9, usd=0.01, now=0.0)
    for now in range(400):
        place = rng.randrange(40)
        chosen = held.choose("t", direction(1000 * place), 3, now=float(now))
        held.learn(chosen, 0.9 if place % 2 else 0.1, plain=0.3)
    told = [held.choose("t", direction(1000 * place), 3, now=400.0).utility for place in range(40)]
    assert all(abs(utility - 0.6) < 0.15 for utility in told[1::2])
    assert max(told[::2]) < min(told[1::2]) - 0.2  # by now they are shown others' examples, or none


@given(st.lists(st.text(max_size=30), min_size=1, max_size=6))
def test_agreement_is_a_share(answers: list[str]) -> None:
    assert 0.0 < _agreement(answers) < 1.0
    last = answers[-1]
    if last.split():
        n = len(answers)
        assert _agreement([last] * n) == (n - 0.5) / n
        assert _agreement(answers) <= _agreement([last] * n)


def test_the_line_is_least_squares() -> None:
    rng = np.random.default_rng(0)
    x, truth = rng.normal(size=(400, 3)), np.array([0.5, -0.2, 1.0])
    line = _Line((0.1, 0.1, 0.1))
    for row in x:
        line.learn(list(row), float(row @ truth))
    assert np.allclose([line(list(row)) for row in x[:20]], x[:20] @ truth, atol=0.02)
