"""What is special to each scheduler: its order, its bound on waiting, its fairness, its optimality where it has any."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apportion.core import Cost, Option, Outcome, Policy, State, catalogue

FAST = settings(max_examples=60, deadline=None, derandomize=True)


def build(name: str, **parameters: Any) -> Any:
    found = catalogue.build(f"schedule/{name}", **parameters)
    assert isinstance(found, Policy)
    return found


def job(
    id: str, arrived_s: float = 0.0, service_s: float | None = None, value: float = 0.01, **facts: Any
) -> Option:
    cost = Cost() if service_s is None else Cost(server_seconds=service_s)
    return Option(id, value, cost, facts={"arrived_s": arrived_s, **facts})


def run(
    policy: Policy, jobs: list[Option], service_s: dict[str, float], slots: int = 1, prices: Any = None
) -> dict[str, tuple[float, float]]:
    """Serve ``jobs`` by ``policy``; for each id when it started and ended."""
    coming = sorted(jobs, key=lambda o: (o.facts["arrived_s"], o.action))  # type: ignore[index]
    waiting: list[Option] = []
    busy: list[tuple[float, Option]] = []
    now = 0.0
    found: dict[str, tuple[float, float]] = {}
    while coming or waiting or busy:
        moments = [end for end, _ in busy] + [o.facts["arrived_s"] for o in coming[:1]]  # type: ignore[index]
        if moments:
            now = max(now, min(moments))
        for end, option in [one for one in busy if one[0] <= now]:
            busy.remove((end, option))
            spent = Cost(server_seconds=service_s[option.action])
            policy.learn(Outcome(option.action, "ok", option.action, spent, state=State(now, [option])))
        while coming and coming[0].facts["arrived_s"] <= now:  # type: ignore[index]
            waiting.append(coming.pop(0))
        while waiting and len(busy) < slots:
            request = {"running": len(busy), "slots": slots}
            choice = policy.decide(State(now, waiting, "d", request, prices or {})).choice
            assert choice is not None
            option = waiting.pop(choice)
            end = now + service_s[option.action]
            found[option.action] = (now, end)
            busy.append((end, option))
    return found


def names(policy: Any, jobs: list[Option], now: float = 0.0, prices: Any = None) -> list[str]:
    return [jobs[i].action for i in policy.order(State(now, jobs, prices=prices or {}))]


ALL = ["alise", "edf", "fcfs", "predictive_sjf", "priced", "sjf", "weighted_fair"]

numbers = st.floats(0.01, 50.0)
crowds = st.lists(
    st.tuples(
        st.floats(0.0, 30.0),
        numbers,
        numbers,
        st.integers(-1, 1),
        st.floats(0.0, 1.0),
        st.sampled_from("abc"),
    ),
    min_size=1,
    max_size=12,
)


def crowd(drawn: list[tuple[float, float, float, int, float, str]], priorities: bool = True) -> list[Option]:
    return [
        job(
            f"{k:02}",
            arrived,
            predicted,
            priority=priority if priorities else 0,
            p_long=chance,
            tenant=tenant,
        )
        for k, (arrived, _, predicted, priority, chance, tenant) in enumerate(drawn)
    ]


@pytest.mark.parametrize("name", ALL)
@FAST
@given(crowds)
@example([(0.0, 1.0, 1.0, 0, 0.0, "b"), (0.0, 1.0, 1.0, 0, 0.0, "a")])
def test_order_is_what_repeated_decisions_do(name: str, drawn: Any) -> None:
    """`order` (positions) foretells `decide`, for those that are all there and nobody else comes."""
    jobs = crowd(drawn)
    foretold = names(build(name), jobs, 40.0)
    policy, waiting, started = build(name), list(jobs), []
    while waiting:
        started.append(waiting.pop(policy.decide(State(40.0, waiting)).choice).action)
        if name == "priced":  # its look-ahead depends on who waits, so only the first is certain
            break
    assert foretold[: len(started)] == started


@pytest.mark.parametrize("name", ALL)
@FAST
@given(crowds, st.randoms(use_true_random=False))
def test_ties_go_by_arrival_then_id_in_whatever_order_they_are_offered(
    name: str, drawn: Any, shuffle: Any
) -> None:
    jobs = [*crowd(drawn), job("twin-b", 1.0, 1.0), job("twin-a", 1.0, 1.0), job("older", 0.5, 1.0)]
    expected = names(build(name), jobs, 40.0)
    assert expected.index("twin-a") < expected.index("twin-b")
    shuffle.shuffle(jobs)
    assert names(build(name), jobs, 40.0) == expected


@FAST
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_sjf_has_the_least_mean_wait_of_all_orders(sizes: list[int]) -> None:
    service_s = {f"{k}": float(size) for k, size in enumerate(sizes)}
    ends = run(build("sjf"), [job(name, 0.0, s) for name, s in service_s.items()], service_s)
    best = min(sum(itertools.accumulate(order)) for order in itertools.permutations(sizes))
    assert sum(end for _, end in ends.values()) == pytest.approx(best)


@FAST
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=1, max_size=6))
def test_edf_meets_every_deadline_that_can_be_met(drawn: list[tuple[int, int]]) -> None:
    service_s = {f"{k}": float(size) for k, (size, _) in enumerate(drawn)}
    due_s = {f"{k}": float(due) for k, (_, due) in enumerate(drawn)}
    feasible = any(
        all(
            end <= due_s[name]
            for name, end in zip(order, itertools.accumulate(service_s[n] for n in order), strict=True)
        )
        for order in itertools.permutations(service_s)
    )
    ends = run(build("edf"), [job(name, 0.0, deadline_s=due_s[name]) for name in service_s], service_s)
    assert all(end <= due_s[name] for name, (_, end) in ends.items()) == feasible


@FAST
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 4)), min_size=1, max_size=6))
def test_priced_is_smiths_rule_when_waiting_costs_are_linear(drawn: list[tuple[int, int]]) -> None:
    """Among all orders the least cost of waiting, brute force (Cox and Smith's c-mu rule, no arrivals)."""
    service_s = {f"{k}": float(size) for k, (size, _) in enumerate(drawn)}
    weight = {f"{k}": 3.0**priority for k, (_, priority) in enumerate(drawn)}
    jobs = [job(f"{k}", 0.0, float(size), priority=priority) for k, (size, priority) in enumerate(drawn)]
    ends = run(build("priced", priority_factor=3.0), jobs, service_s, prices={"seconds": 0.001})
    best = min(
        sum(
            weight[n] * end
            for n, end in zip(order, itertools.accumulate(service_s[n] for n in order), strict=True)
        )
        for order in itertools.permutations(service_s)
    )
    assert sum(weight[name] * end for name, (_, end) in ends.items()) == pytest.approx(best)


@FAST
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 50)), min_size=1, max_size=6),
    st.sampled_from([5.0, 30.0]),
)
def test_priced_is_rothkopfs_rule_when_answers_age(drawn: list[tuple[int, int]], half_life_s: float) -> None:
    """With only the ageing of answers to lose, the most value of all orders, brute force."""
    service_s = {f"{k}": float(size) for k, (size, _) in enumerate(drawn)}
    value = {f"{k}": float(worth) for k, (_, worth) in enumerate(drawn)}
    jobs = [job(name, 0.0, s, value[name]) for name, s in service_s.items()]
    policy = build("priced", half_life_s=half_life_s, second_usd=1e-12)
    ends = run(policy, jobs, service_s)

    def gained(order: Any) -> float:
        times = itertools.accumulate(service_s[n] for n in order)
        return sum(value[n] * 0.5 ** (end / half_life_s) for n, end in zip(order, times, strict=True))

    best = max(gained(order) for order in itertools.permutations(service_s))
    assert gained(sorted(ends, key=lambda name: ends[name])) == pytest.approx(best, rel=1e-6)


def test_priced_gives_up_what_can_only_be_late_and_what_is_not_worth_its_cost() -> None:
    late = job("late", 0.0, 5.0, value=9.0, deadline_s=4.0)
    dear = Option("dear", 0.01, Cost(server_seconds=0.1, usd=0.02), facts={"arrived_s": 0.0})
    plain = Option("plain", 0.01, Cost(server_seconds=20.0, usd=0.001), facts={"arrived_s": 3.0})
    policy = build("priced")
    assert names(policy, [late, dear, plain], 3.5, {"usd": 1.0})[0] == "plain"
    assert names(policy, [late, dear, plain], 3.5, {"usd": 0.01})[0] == "dear", (
        "cheaper dollars, another order"
    )


def test_priced_lets_a_deadline_go_when_serving_it_makes_too_many_others_wait() -> None:
    due = job("due", 0.0, 5.0, value=0.05, deadline_s=8.0)
    others = [job(f"{k:03}", 0.0, 5.0) for k in range(200)]
    policy = build("priced")
    assert names(policy, [due, *others[:5]], 0.0, {"seconds": 1e-3})[0] == "due", "five wait 5 s: 2.5 cents"
    assert names(policy, [due, *others], 0.0, {"seconds": 1e-3})[-1] == "due", "two hundred: a dollar"


def test_a_dearer_second_changes_the_order() -> None:
    due = job("due", 0.0, 5.0, value=0.05, deadline_s=8.0)
    quick = job("quick", 0.0, 0.5)
    policy = build("priced")
    assert names(policy, [due, quick], 0.0, {"seconds": 1e-5})[0] == "due"
    assert names(policy, [due, quick], 0.0, {"seconds": 1.0})[0] == "quick"


@pytest.mark.parametrize("slots", [1, 3])
@FAST
@given(drawn=crowds)
def test_alise_bounds_the_wait(slots: int, drawn: Any) -> None:
    """(levels - 1) * ageing + service of those waiting on arrival / slots + the longest service, whatever was
    predicted and whoever comes later.
    """
    levels, ageing_s = 4, 3.0
    policy = build("alise", levels=levels, ageing_s=ageing_s, quantum_s=1.0)
    _bounded(policy, drawn, (levels - 1) * ageing_s, slots)


@pytest.mark.parametrize("slots", [1, 3])
@FAST
@given(drawn=crowds)
def test_predictive_sjf_bounds_the_wait(slots: int, drawn: Any) -> None:
    _bounded(build("predictive_sjf", starvation_s=7.0), drawn, 7.0, slots)


def _bounded(policy: Policy, drawn: Any, patience_s: float, slots: int) -> None:
    jobs = crowd(drawn)
    service_s = {o.action: true for o, (_, true, *_) in zip(jobs, drawn, strict=True)}
    found = run(policy, jobs, service_s, slots)
    longest = max(service_s.values())
    for option in jobs:
        arrived_s = option.facts["arrived_s"]  # type: ignore[index]
        before = sum(
            service_s[other.action]
            for other in jobs
            if other is not option
            and other.facts["arrived_s"] <= arrived_s  # type: ignore[index]
            and found[other.action][0] >= arrived_s
        )
        waited_s = found[option.action][0] - arrived_s
        assert waited_s <= patience_s + before / slots + longest + 1e-9


def test_without_ageing_the_bound_does_not_hold() -> None:
    """The bound is the ageing's work: a stream of short jobs keeps a long one out without it."""
    jobs = [job("long", 0.0, 30.0, p_long=1.0)] + [
        job(f"s{k:03}", 0.9 * k, 1.0, p_long=0.0) for k in range(200)
    ]
    service_s = {o.action: 30.0 if o.action == "long" else 1.0 for o in jobs}
    jobs.append(job("before", 0.0, 1.0, p_long=0.0))  # something runs when the long one could start
    service_s["before"] = 1.0
    for aged, free in [
        (build("alise", ageing_s=2.0), build("alise", ageing_s=math.inf)),
        (build("predictive_sjf", starvation_s=10.0), build("predictive_sjf", starvation_s=math.inf)),
    ]:
        assert run(aged, jobs, service_s)["long"][0] < 40.0
        assert run(free, jobs, service_s)["long"][0] > 150.0


def test_seconds_that_grow_dearer_let_a_long_wait_win() -> None:
    jobs = [job("long", 0.0, 30.0), job("short", 100.0, 1.0)]
    assert names(build("priced"), jobs, 100.0) == ["short", "long"]
    assert names(build("priced", doubles_s=2.0), jobs, 100.0) == ["long", "short"]


def test_a_prediction_off_by_less_than_a_level_changes_nothing() -> None:
    policy = build("alise", levels=5, quantum_s=1.0, base=2.0)
    assert [policy.level(s) for s in (0.0, 0.99, 1.0, 1.9, 2.0, 4.0, 8.0, 1e9, math.inf)] == [
        0, 0, 1, 1, 2, 3, 4, 4, 4,
    ]  # fmt: skip
    assert [policy.level(4.0, priority) for priority in (-9, -1, 0, 1, 2, 9)] == [4, 4, 3, 2, 1, 0]
    jobs = [job("a", 0.0, 3.9), job("b", 1.0, 2.1)]
    assert names(policy, jobs, 2.0) == ["a", "b"]


def test_priorities_go_first_and_can_be_left_out() -> None:
    jobs = [job("early", 0.0, priority=0), job("urgent", 5.0, priority=2)]
    assert names(build("fcfs"), jobs, 6.0) == ["urgent", "early"]
    assert names(build("fcfs", priorities=False), jobs, 6.0) == ["early", "urgent"]


@FAST
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.1, 5.0)), min_size=40, max_size=80),
    st.floats(0.5, 4.0),
    st.floats(0.2, 5.0),
)
def test_weighted_fair_shares_differ_by_at_most_one_job_each(drawn: Any, weight: float, lie: float) -> None:
    """Goyal's bound, while both tenants have jobs waiting; predictions are wrong by the factor ``lie`` and
    corrected when the job has been measured, which is before the next decision with one slot.
    """
    weights = {"a": 1.0, "b": weight}
    jobs, service_s = [], {}
    for k, (tenant, size) in enumerate(drawn):
        jobs.append(job(f"{k:03}", 0.0, size * lie, tenant=tenant, weight=weights[tenant]))
        service_s[f"{k:03}"] = size
    tenant_of = {o.action: o.facts["tenant"] for o in jobs}  # type: ignore[index]
    found = run(build("weighted_fair"), jobs, service_s)
    left = {t: sum(1 for name in tenant_of if tenant_of[name] == t) for t in "ab"}
    most = {t: max((s for n, s in service_s.items() if tenant_of[n] == t), default=0.0) for t in "ab"}
    had = {"a": 0.0, "b": 0.0}
    for name in sorted(found, key=lambda n: found[n]):
        if not all(left.values()):
            break
        tenant = tenant_of[name]
        had[tenant] += service_s[name]
        left[tenant] -= 1
        gap = abs(had["a"] / weights["a"] - had["b"] / weights["b"])
        assert gap <= most["a"] / weights["a"] + most["b"] / weights["b"] + 1e-9


def test_weighted_fair_neither_saves_up_credit_nor_punishes_the_use_of_an_idle_server() -> None:
    policy = build("weighted_fair")
    for k in range(50):  # only a is there
        policy.decide(State(float(k), [job(f"a{k}", 0.0, 1.0, tenant="a")]))
    waiting = [job(f"{t}{k}", 50.0, 1.0, tenant=t) for k in range(100, 104) for t in "ab"]
    started = []
    while waiting:
        started.append(waiting.pop(policy.decide(State(60.0, waiting)).choice).action[0])
    assert all(started[:k].count("b") - started[:k].count("a") in (-1, 0, 1) for k in range(8))


def test_weighted_fair_ignores_the_second_word_on_a_job_and_forgets_old_tenants() -> None:
    policy = build("weighted_fair", kept_max=8)
    option = job("j", 0.0, 1.0, tenant="t")
    policy.decide(State(0.0, [option]))
    for _ in range(3):
        policy.learn(Outcome("d", "ok", "j", Cost(server_seconds=5.0), state=State(0.0, [option])))
    assert policy.tags["t"] == 5.0
    for k in range(100):
        policy.decide(State(0.0, [job(f"j{k}", 0.0, 1.0, tenant=f"t{k}")]))
    assert len(policy.tags) <= 8
    assert len(policy.charged) <= 8


def test_remaining_time_counts_what_was_attained() -> None:
    jobs = [job("new", 0.0, 5.0), job("resumed", 1.0, expected_s=9.0, attained_s=7.0)]
    assert names(build("sjf"), jobs) == ["resumed", "new"]
    overrun = job("overrun", 1.0, expected_s=2.0, attained_s=7.0)
    assert names(build("sjf"), [*jobs, overrun]) == ["resumed", "new", "overrun"], "it may need as much again"
