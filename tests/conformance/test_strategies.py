"""What every strategy of the catalogue must do, whatever the replies are."""

from __future__ import annotations

import copy
import gc
import json
import math
import pickle
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from apportion.core import (
    Answer,
    Call,
    Cost,
    Features,
    Option,
    ParameterError,
    Reply,
    Strategy,
    catalogue,
    drive,
)
from apportion.core.checks import watched

NAMES = catalogue.names("reason")
MOST_CALLS = 300
STATUSES = ("ok", "ok", "ok", "failed", "timeout", "cancelled", "refused")

Make = Callable[[], Any]
Script = Callable[[Call], Reply]


def cases() -> Iterator[object]:
    for name in NAMES:
        found = catalogue.find(name)
        for i, parameters in enumerate([{}, *found.examples()]):
            yield pytest.param(
                lambda found=found, parameters=parameters: found(**copy.deepcopy(dict(parameters))),
                id=f"{name}-{i}",
            )


every = pytest.mark.parametrize("make", list(cases()))


def content(generator: Random) -> dict[str, object]:
    """An answer with or without log probabilities, a vector, a call of a tool; empty, cut short or broken."""
    n = generator.randrange(1, 5)
    lines = [[-generator.expovariate(2.0) for _ in range(3)] for _ in range(n)]
    vector = [generator.gauss(0.0, 1.0) for _ in range(6)]
    return {
        "text": generator.choice(
            ("", "42", "The answer is 7.", '{"a": 1}', "{broken", "word " * 100, "ü\n\\boxed{3}")
        ),
        "finish": generator.choice(("stop", "length", "content_filter", None)),
        "logprobs": generator.choice((None, [], [line[0] for line in lines])),
        "top_logprobs": generator.choice((None, [], [[]], lines)),
        "tool_calls": generator.random() < 0.1,
        "vector": generator.choice((None, vector)),
        "accepted": generator.choice((None, True, False)),
        "body": object(),
    }


def replies(seed: int) -> Script:
    """Replies of every status, some with part of an answer, with known and unknown cost."""
    generator = Random(seed)

    def reply(call: Call) -> Reply:
        status = generator.choice(STATUSES)
        said = content(generator) if status == "ok" or generator.random() < 0.3 else None
        cost = generator.choice((Cost(), Cost(usd=0.001, tokens=90.0)))
        return Reply(status, said, cost, generator.random(), censored=generator.random() < 0.1)

    return reply


def requests(seed: int) -> dict[str, object]:
    """A request over some endpoints, with and without prices, predictions, features and limits."""
    generator = Random(seed)
    options = [
        Option(
            f"endpoint-{k}",
            generator.random() * 0.02,
            generator.choice((Cost(usd=0.0005 * (k + 1), tokens=100.0), Cost())),
            quality=generator.choice((None, 0.0, 1.0, generator.random())),
            load=generator.choice((None, 0.5)),
        )
        for k in range(generator.randrange(1, 5))
    ]
    return {
        "id": str(seed),
        "api": generator.choice(("chat", "completions", "messages", "responses")),
        "options": options,
        "prices": generator.choice(({}, {"usd": 1.0}, {"usd": 2.0, "tokens": 1e-6})),
        "worth_usd": generator.choice((None, 0.0, 0.01, 10.0)),
        "features": generator.choice((None, Features((1.0,)), Features((), (1.0, *[0.5] * 5)))),
        "max_usd": generator.choice((None, 0.0, 0.002)),
        "max_output_tokens": generator.choice((None, 100)),
        "question": "How many?",
    }


def answer(
    strategy: Strategy, request: dict[str, object], script: Script
) -> tuple[Answer, list[tuple[object, ...]]]:
    """Drive one plan to its end; the answer and all calls. Fails when it does not end or calls what was not offered."""
    offered = {option.action for option in request["options"]}  # type: ignore[attr-defined]
    made: list[tuple[object, ...]] = []
    said: list[object] = []

    def call(one: Call) -> Reply:
        assert one.action in offered, f"{one.action} was not offered"
        assert set(one.request) <= {"fields", "append", "want"}
        assert len(made) < MOST_CALLS, "it does not end"
        made.append((one.action, json.dumps(one.request)))
        reply = script(one)
        said.append(reply.content)
        return reply

    found = drive(strategy.run(request, 0.0), call)
    assert isinstance(found, Answer)
    assert found.why
    assert found.content is None or any(found.content is one for one in said), "the answer is nobody's reply"
    assert found.confidence is None or 0.0 <= found.confidence <= 1.0
    assert found.details.get("calls") == len(made)
    json.dumps(found.details, allow_nan=False)
    return found, made


def course(strategy: Strategy, first: int, last: int) -> list[tuple[object, ...]]:
    """Calls over a seeded course in which most answers are judged, some late, twice or never."""
    generator = Random(first)
    made: list[tuple[object, ...]] = []
    pending: list[Answer] = []
    for seed in range(first, last):
        found, calls = answer(strategy, requests(seed), replies(seed))
        made.append((*calls, found.confidence, found.why))
        pending.append(found)
        while pending and generator.random() < 0.6:
            judged = pending[generator.randrange(len(pending))]
            if generator.random() < 0.8:
                pending.remove(judged)
            details = json.loads(json.dumps(judged.details))
            strategy.learn(details, generator.choice((0.0, 1.0, generator.random())))  # type: ignore[attr-defined]
    return made


def test_the_catalogue_describes_them() -> None:
    assert {"reason/cascade", "reason/best_of_k", "reason/jisi", "reason/vote"} <= set(NAMES)
    for name in NAMES:
        assert issubclass(catalogue.find(name), Strategy)
        assert catalogue.describe(name).papers


@every
def test_parameters_are_kept_cloned_and_checked(make: Make) -> None:
    strategy = make()
    assert strategy.clone().parameters() == strategy.parameters()
    for name, constraint in strategy.constraints.items():
        with pytest.raises(ParameterError, match=name):
            type(strategy)(**{**strategy.parameters(), name: constraint.wrong()})
    assert strategy.constraints.keys() == strategy.parameters().keys()


@every
def test_it_ends_whatever_the_replies_are(make: Make) -> None:
    course(make(), 0, 200)


@every
@pytest.mark.parametrize("status", sorted(set(STATUSES) - {"ok"}))
def test_when_nothing_succeeds_it_says_so(make: Make, status: Any) -> None:
    for seed in range(20):
        found, _ = answer(make(), requests(seed), lambda call: Reply(status, None, Cost()))
        assert found.content is None
        assert found.confidence is None


@every
def test_when_one_call_succeeds_its_answer_is_given(make: Make) -> None:
    """An endpoint that works is found among those that do not."""
    for seed in range(30):
        request = requests(seed) | {"max_usd": None, "prices": {"usd": 1.0}, "worth_usd": 1.0}
        options = request["options"] = [
            Option(f"endpoint-{k}", 0.9, Cost(usd=0.001 * (k + 1)), quality=0.9) for k in range(3)
        ]
        works = options[seed % 3].action  # type: ignore[index]
        said = {"text": "42", "finish": "stop"}
        found, _ = answer(
            make(),
            request,
            lambda call, works=works, said=said: (
                Reply("ok", said, Cost(usd=0.001)) if call.action == works else Reply("failed", None, Cost())
            ),
        )
        assert found.content is said


@every
def test_an_empty_offer_is_answered_without_a_call(make: Make) -> None:
    found, made = answer(make(), {"options": []}, replies(0))
    assert found.content is None
    assert not made
    assert found.why == "nothing was offered"


@every
def test_the_same_seed_makes_the_same_calls(make: Make) -> None:
    strategy = make()
    first = course(strategy, 0, 60)
    assert first == course(make(), 0, 60)
    strategy.reset()
    assert first == course(strategy, 0, 60)


@every
def test_it_continues_where_it_was_saved(make: Make) -> None:
    strategy = make()
    course(strategy, 0, 60)
    restored = make()
    restored.load(json.loads(json.dumps(strategy.save(), allow_nan=False)))
    thawed = pickle.loads(pickle.dumps(strategy))
    expected = course(strategy, 60, 100)
    assert course(restored, 60, 100) == expected
    assert course(thawed, 60, 100) == expected


@every
def test_it_can_be_closed_at_any_yield(make: Make) -> None:
    for stop in range(4):
        script = replies(stop)
        plan = make().run(requests(stop), 0.0)
        try:
            calls = next(plan)
            for _ in range(stop):
                calls = plan.send([script(call) for call in calls])
        except StopIteration:
            continue
        plan.close()
        with pytest.raises(StopIteration):
            next(plan)


@every
def test_it_does_not_change_what_it_is_given(make: Make) -> None:
    strategy = make()
    for seed in range(20):
        request = requests(seed)
        before = copy.deepcopy(request)
        found, _ = answer(strategy, request, replies(seed))
        assert request == before
        details = copy.deepcopy(found.details)
        strategy.learn(found.details, 1.0)
        assert found.details == details


@every
def test_it_touches_nothing_outside(make: Make) -> None:
    strategy = make()
    course(strategy, 0, 3)
    gc.disable()  # other tests' hooks on the collector read a clock
    try:
        with watched() as touched:
            course(strategy, 3, 20)
    finally:
        gc.enable()
    assert not touched


@every
def test_it_stays_within_the_limit_of_the_request(make: Make) -> None:
    """With known costs, calls never cost more than ``max_usd`` together."""
    for seed in range(40):
        request = requests(seed) | {"max_usd": 0.004, "worth_usd": 100.0, "prices": {"usd": 1.0}}
        request["options"] = [Option(f"e{k}", 0.01, Cost(usd=0.001 * (k + 1)), quality=0.5) for k in range(3)]
        costs = {f"e{k}": 0.001 * (k + 1) for k in range(3)}
        generator = Random(seed)
        spent = 0.0

        def script(call: Call, costs: Any = costs, generator: Random = generator) -> Reply:
            nonlocal spent
            spent += costs[call.action]
            return Reply("ok", content(generator), Cost(usd=costs[call.action]))

        answer(make(), request, script)
        assert spent <= 0.004 + 1e-12


@every
def test_memory_is_bounded(make: Make) -> None:
    """Endpoints, answers and outcomes that never repeat do not pile up."""
    strategy = make()
    sizes = []
    generator = Random(1)
    for stop in (1500, 3000):
        for i in range(stop - 1500, stop):
            options = [Option(f"{i}-{k}", 0.01, Cost(usd=0.001), quality=0.5) for k in range(2)]
            request = {"options": options, "prices": {"usd": 1.0}, "worth_usd": 0.01}
            request["features"] = Features((), tuple(generator.gauss(0.0, 1.0) for _ in range(4)))
            said = content(generator) | {"text": str(i), "finish": "stop"}
            found, _ = answer(
                strategy, request, lambda call, said=said: Reply("ok", dict(said), Cost(usd=0.001))
            )
            strategy.learn(found.details, 1.0)
        sizes.append(len(pickle.dumps(strategy)))
    assert sizes[1] <= 1.35 * sizes[0] + 1000


@every
def test_outcomes_that_make_no_sense_are_passed_over(make: Make) -> None:
    strategy = make()
    before = json.dumps(strategy.save())
    for details in ({}, {"evidence": None}, {"evidence": {}}, {"evidence": 3, "action": None}, {"calls": 0}):
        strategy.learn(details, 1.0)
    assert json.dumps(strategy.save()) == before


@every
def test_calls_carry_a_known_reply_contract(make: Make) -> None:
    """Fields are JSON, wants are parts of a reply that a driver can give."""
    strategy = make()
    plan = strategy.run(requests(3) | {"max_usd": None, "worth_usd": 10.0}, 0.0)
    for call in next(plan):
        assert set(call.request["want"]) <= {"logprobs", "vector", "accepted"}  # type: ignore[call-overload]
        for value in dict(call.request["fields"]).values():  # type: ignore[call-overload]
            assert not isinstance(value, float) or math.isfinite(value)
    plan.close()


@every
@pytest.mark.parametrize("api", ["chat", "completions", "responses", "messages"])
def test_fields_are_those_of_the_interface(make: Make, api: str) -> None:
    known = {
        "chat": {"temperature", "seed", "logprobs", "top_logprobs"},
        "completions": {"temperature", "seed", "logprobs"},
    }.get(api, {"temperature"})
    plan = make().run(requests(3) | {"api": api, "max_usd": None, "worth_usd": 10.0}, 0.0)
    for call in next(plan):
        fields = dict(call.request["fields"])  # type: ignore[call-overload]
        assert set(fields) <= known
        if api == "completions" and "logprobs" in fields:
            assert type(fields["logprobs"]) is int
    plan.close()
