"""What ends an answer: the wish to end, calm, length, loops that count; and how seldom it ends an ordinary one."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import Drawn, Features
from apportion.policy.guard._history import History
from apportion.policy.guard._watch import Watch
from apportion.policy.guard.overflow import Overflow

X = Features((0.3, 0.7))


def fed(watch: Watch, drawn: list[Drawn]) -> int | None:
    """How many tokens come until the answer is stopped; None if it never is."""
    for place, one in enumerate(drawn):
        if watch.feed("", 1, [one]):
            return place + 1
    return None


# --- the wish to end ---


@pytest.mark.parametrize("alpha", [0.01, 0.1])
def test_answers_that_end_when_they_draw_their_end_are_seldom_stopped(alpha: float) -> None:
    """Ville: whatever the probabilities of the end, and although each token is looked at."""
    generator = random.Random(1)
    n, stopped = 4000, 0
    for _ in range(n):
        watch, p = Watch(300, 250, false_ends=alpha), 0.5
        for _ in range(400):
            p = generator.choice((0.05, 0.3, 0.6, p))
            if generator.random() < p:
                break
            if watch.feed("", 1, [Drawn(-1.0, math.log(p))]):
                stopped += 1
                break
    assert stopped <= (alpha + 3.0 * math.sqrt(alpha / n)) * n


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    places=st.lists(st.none() | st.floats(0.01, 0.99), max_size=80), alpha=st.sampled_from([0.1, 0.01, 1e-4])
)
def test_a_suppressed_end_is_seen_as_soon_as_the_bound_allows(
    places: list[float | None], alpha: float
) -> None:
    drawn = [Drawn(-2.0, None if p is None else math.log(p)) for p in places]
    chance, wanted = 1.0, None
    for place, p in enumerate(places):
        chance *= 1.0 - (p or 0.0)
        if math.log(chance) < math.log(alpha) - 1e-9:
            wanted = place + 1
            break
    assert fed(Watch(300, 250, false_ends=alpha), drawn) == wanted


def test_without_a_rate_of_false_alarms_no_wish_stops_anything() -> None:
    assert fed(Watch(300, 250), [Drawn(-9.0, -0.001)] * 500) is None


def test_one_certain_end_is_not_enough() -> None:
    assert fed(Watch(300, 250, false_ends=1e-4), [Drawn(-9.0, 0.0)]) is None
    assert fed(Watch(300, 250, false_ends=1e-4), [Drawn(-9.0, 0.0)] * 2) == 2


# --- calm ---


@settings(deadline=None, max_examples=100, derandomize=True)
@given(logprobs=st.lists(st.floats(-3.0, 0.0), max_size=60))
def test_calm_is_the_best_stretch(logprobs: list[float]) -> None:
    heard: list[float] = []
    watch = Watch(300, 250, heard_calm=heard.append)
    assert fed(watch, [Drawn(one) for one in logprobs]) is None
    watch.ended()
    rises = [1.0 + one / 0.1 for one in logprobs]
    best = max(
        (sum(rises[a:b]) for a in range(len(rises)) for b in range(a, len(rises) + 1)),
        default=0.0,
    )
    assert heard == ([pytest.approx(best, abs=1e-9)] if logprobs else [])


def answer(generator: random.Random, n: int) -> list[Drawn]:
    """Most tokens a surprise, some stretches of certainty."""
    found: list[Drawn] = []
    while len(found) < n:
        found += [Drawn(-generator.expovariate(1.5)) for _ in range(generator.randrange(1, 30))]
        found += [Drawn(-0.002)] * generator.randrange(40)
    return found[:n]


def test_a_loop_is_stopped_by_its_calm_and_ordinary_answers_are_not() -> None:
    generator, guard, alarms = random.Random(2), Overflow(alpha=0.01, logprobs=True), 0
    guard.learn(X, "t", "m", 10.0)
    n = 3000
    for place in range(n):
        watch = guard.watch("t", "m", None, X)
        if any(watch.feed("", 1, [one]) for one in answer(generator, 100)):
            alarms += place >= 1000
        else:
            watch.ended()
    assert alarms <= (0.005 + 3 * math.sqrt(0.005 / (n - 1000))) * (n - 1000)
    late = []
    for _ in range(40):
        watch = guard.watch("t", "m", None, X)
        loop = [*answer(generator, 100), *([Drawn(-0.001)] * 500)]
        stop = next((place for place, one in enumerate(loop) if watch.feed("", 1, [one])), None)
        late.append(stop is None or stop > 250)
    assert sum(late) == 2, "one in twenty is not held to what others did"
    twin = Overflow(alpha=0.01, logprobs=True)
    twin.load(json.loads(json.dumps(guard.save())))
    assert twin.save() == guard.save()


def test_before_anything_is_known_no_calm_stops() -> None:
    guard = Overflow(logprobs=True)
    watch = guard.watch("t", "m", None, X)
    assert all(watch.feed("", 1, [Drawn(0.0)]) is None for _ in range(2000))


# --- length ---

SHORT, LONG = Features((1.0, 0.0)), Features((0.0, 1.0))


def taught(generator: random.Random, n: int, *, attacks: float = 0.0, scale: float = 1.0) -> Overflow:
    guard = Overflow(alpha=0.02)
    teach(guard, generator, n, attacks=attacks, scale=scale)
    return guard


def teach(
    guard: Overflow, generator: random.Random, n: int, *, attacks: float = 0.0, scale: float = 1.0
) -> dict[Features, list[int]]:
    """Traffic of two kinds of requests, each answer as far as its watch lets it come; how many were cut."""
    cut: dict[Features, list[int]] = {SHORT: [0, 0], LONG: [0, 0]}
    for _ in range(n):
        x = generator.choice((SHORT, LONG))
        attack = generator.random() < attacks
        tokens = scale * generator.lognormvariate(4.5 if x is SHORT else 6.5, 0.3)
        most = limit(guard, x)
        length = 5000.0 if attack else tokens
        if not attack:
            cut[x][0] += most < length
            cut[x][1] += 1
        guard.learn(x, "t", "m", min(length, most), censored=attack or most < length)
    return cut


def limit(guard: Overflow, x: Features) -> float:
    """The length at which the next answer would be stopped."""
    watch = guard.watch("t", "m", None, x)
    low, high = 0, 1 << 40
    assert isinstance(watch, Watch)
    while high - low > 1:
        middle = (low + high) // 2
        watch.tokens = 0
        if watch.feed("", middle):
            high = middle
        else:
            low = middle
    return low


def bound(guard: Overflow, x: Features) -> float:
    """The same, of one that is held to what was learned."""
    return min(limit(guard, x), limit(guard, x))


def test_of_answers_that_are_all_seen_the_bound_holds_for_its_share() -> None:
    generator, history, over, n = random.Random(3), History(2), 0, 6000
    for place in range(n):
        x = generator.choice((SHORT, LONG)).lexical
        tokens = generator.lognormvariate(4.5 if x == SHORT.lexical else 6.5, 0.3)
        over += place >= 1000 and tokens > history.most_tokens(x, 0.02)
        history.learn(x, tokens, 1e9, censored=False)
        history.ended(x, tokens, 1)
    assert 0.005 * n < over <= (0.02 + 3 * math.sqrt(0.02 / n)) * n


@pytest.mark.parametrize("attacks", [0.0, 0.05])
def test_the_bound_follows_the_request_and_holds_whatever_runs_away(attacks: float) -> None:
    generator = random.Random(4)
    guard = taught(generator, 3000, attacks=attacks)
    assert bound(guard, SHORT) < 400
    assert 1000 < bound(guard, LONG) < 3500
    cut = teach(guard, generator, 3000, attacks=attacks)
    all_cut, all_seen = (sum(row[k] for row in cut.values()) for k in (0, 1))
    assert all_cut <= (0.01 + 3 * math.sqrt(0.01 / all_seen)) * all_seen


def test_a_change_of_the_traffic_is_followed() -> None:
    generator = random.Random(5)
    guard = taught(generator, 2000)
    assert bound(guard, LONG) < 3500
    cut = teach(guard, generator, 200, scale=4.0)
    assert sum(row[0] for row in cut.values()) > 20
    cut = teach(guard, generator, 1000, scale=4.0)
    assert sum(row[0] for row in cut.values()) <= 20


def test_nothing_is_bounded_before_it_is_known_or_where_little_can_be_saved() -> None:
    guard = taught(random.Random(6), 80)
    assert limit(guard, SHORT) > 1e11
    guard = Overflow(slack=1.0)
    for _ in range(600):
        guard.learn(X, "t", "m", 3.0)
    assert bound(guard, X) == 64
    assert limit(guard, Features((1.0,))) > 1e11, "of such a request nothing is known"


def test_what_is_expected_is_never_cut() -> None:
    guard = taught(random.Random(7), 2000)
    said = [
        (watch.feed("", 900), watch.feed("", 1))
        for watch in (guard.watch("t", "m", 900.0, SHORT) for _ in "ab")
    ]
    assert all(first is None for first, _ in said)
    assert any(second for _, second in said)


# --- loops that count ---


def stopped_after(text: str) -> int | None:
    watch = Watch(300, 250)
    for place in range(0, len(text), 4):
        if watch.feed(text[place : place + 4]):
            return place
    return None


def test_a_loop_that_counts_is_stopped() -> None:
    said = "we go back to the beginning, look at what we have found, and correct it where it is wrong.\n"
    after = stopped_after("".join(f"Step {n}: {said}" for n in range(1, 400)))
    assert after is not None
    assert after < 4 * 400


@pytest.mark.parametrize(
    "row",
    [
        "INSERT INTO customers (id, name) VALUES ({n}, 'customer {n}');\n",
        "    assert convert(value={n}, unit='metre', target='foot') == approx({f:.6f}, rel=0.0001)\n",
        "2026-01-01T10:{m:02d}:{s:02d}.{n:03d} INFO worker-{m}: request {n} handled in {s} ms, status 200\n",
        "{n}. Check item {n}.\n",
    ],
)
def test_rows_made_from_a_template_are_not(row: str) -> None:
    rows = [row.format(n=n, f=n * 3.28084, m=n % 60, s=(n * 7) % 60) for n in range(100, 500)]
    assert stopped_after("".join(rows)) is None
