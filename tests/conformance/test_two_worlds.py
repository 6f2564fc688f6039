"""The promise of the project: one recorded trace through the proxy and through the simulator, equal decision logs.

The proxy is the real worker under a virtual clock; its upstreams and the simulator's endpoints are the same engines.
Everything that was decided must be equal: the options with what they were predicted to be worth and to cost, the
choice, its probability, the prices, and what it really cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

import virtual
from apportion.cli._scenario import scenario_of
from apportion.core import catalogue
from apportion.measure.decision_log import Entry
from apportion.serve import asking
from apportion.serve.cache.answers import AnswerCache
from apportion.serve.config.reader import loads
from apportion.simulate.engine import Batching, Engine
from apportion.simulate.gateway import run
from apportion.simulate.profile import Profile
from apportion.simulate.proxy import many
from apportion.simulate.proxy.answers import Answers
from apportion.simulate.result import Result
from apportion.simulate.scenario import Event, Scenario
from apportion.simulate.trace import Blocks, Trace, labels
from inprocess import chat
from virtual import EPOCH_S, Asked, Reply, serve_log

SMALL = Profile(
    name="small",
    tokens=(1.0, 256.0, 2048.0),
    seconds=(0.004, 0.011, 0.07),
    decode_attention_s=2e-8,
    slots=4,
)
LARGE = replace(SMALL, name="large", seconds=(0.011, 0.024, 0.16))
PROFILES = {"small": SMALL, "large": LARGE, "spare": replace(SMALL, name="spare", slots=2)}

CONFIG: dict[str, Any] = {
    "keys": [
        {"name": "alice", "secret": "sk-alice", "team": "blue"},
        {"name": "bob", "secret": "sk-bob"},
    ],
    "teams": {"blue": {}},
    "ledger": {"url": "memory"},
    "records": {"log": {}},
    "endpoints": {
        "small": {
            "kind": "openai",
            "base_url": "http://small.test/v1",
            "slots": 4,
            "price": {"input_usd_per_mtok": 0.5, "output_usd_per_mtok": 1.5},
            "watts": 300,
        },
        "large": {
            "kind": "openai",
            "base_url": "http://large.test/v1",
            "slots": 4,
            "price": {"input_usd_per_mtok": 3, "output_usd_per_mtok": 15},
            "watts": 900,
        },
        "spare": {"kind": "openai", "base_url": "http://spare.test/v1", "slots": 2, "usd_per_hour": 2.5},
    },
    "models": {
        "m": {
            "endpoints": [
                {"endpoint": "small", "quality": 0.6, "weight": 3},
                {"endpoint": "large", "quality": 0.9},
                {"endpoint": "spare", "quality": 0.55},
            ],
            "policy": "route/priced",
            "worth_usd": 0.01,
            "sticky": "off",
        }
    },
}


class Machines:
    """The upstreams of the proxy: the simulator's engines, one for each endpoint."""

    def __init__(self, errors: Sequence[Event] = ()) -> None:
        self._engines = {name: Engine(profile, Batching()) for name, profile in PROFILES.items()}
        self._of: dict[int, str] = {}
        self._unbegun: dict[int, str] = {}
        """Calls of which no token has come."""
        self._wanted: dict[int, tuple[int, int]] = {}
        self._errors = errors

    @property
    def next_s(self) -> float:
        return min(engine.next_s for engine in self._engines.values())

    def ask(
        self,
        now_s: float,
        call: int,
        endpoint: str,
        request: int,
        prompt_tokens: int,
        output_tokens: int,
        cap_tokens: int | None,
    ) -> Reply | None:
        status = 0
        for event in self._errors:
            if event.endpoint == endpoint and event.at_s <= now_s:
                status = int(event.value)
        if status:
            return Reply(now_s, now_s, 0, status=status)
        tokens = output_tokens if cap_tokens is None else min(output_tokens, cap_tokens)
        self._of[call] = endpoint
        self._unbegun[call] = endpoint
        self._wanted[call] = (output_tokens, tokens)
        self._engines[endpoint].submit(now_s, call, prompt_tokens, tokens)
        return None

    def advance(self, until_s: float) -> list[tuple[int, Reply]]:
        found = []
        for engine in self._engines.values():
            while engine.next_s <= until_s:
                for done in engine.advance(until_s):
                    wanted, tokens = self._wanted.pop(done.request)
                    finish = "stop" if tokens == wanted else "length"
                    reply = Reply(done.first_token_s, done.finish_s, tokens, finish=finish)
                    found.append((done.request, reply))
        ended = {call for call, _ in found}
        for call, endpoint in list(self._unbegun.items()):
            if call in ended:
                del self._unbegun[call]
            elif self._engines[endpoint].progress(until_s, call).tokens >= 1:
                del self._unbegun[call]
                found.append((call, Reply(until_s, math.inf, 0)))
        return found

    def cancel(self, now_s: float, call: int) -> int:
        self._unbegun.pop(call, None)
        return self._engines[self._of[call]].cancel(now_s, call).tokens


def changed(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A configuration with ``changes``; a name with dots goes down."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(base))
    for path, value in changes.items():
        *parents, last = path.split("__")
        at = found
        for parent in parents:
            at = at[parent]
        at[last] = value
    return found


def trace(n: int = 150, rate: float = 12.0, *, seed: int = 1, repeated: bool = False) -> Trace:
    """Requests of two tenants, a few conversations, in bursts."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.gamma(0.5, 2.0 / rate, n))
    prompt = rng.integers(100, 900, n)
    output = rng.integers(100, 300, n) if repeated else rng.integers(2, 120, n)
    blocks = None
    if repeated:
        asked = rng.zipf(1.3, n) % 24
        prompt = 200 + 20 * asked
        output = 100 + 7 * asked
        blocks = Blocks(np.arange(n + 1), asked.astype(np.int64), 512)
    return Trace(
        arrival_s=arrival,
        prompt_tokens=prompt.astype(np.int32),
        output_tokens=output.astype(np.int32),
        tenant=labels([("alice", "bob")[i] for i in rng.integers(0, 2, n)]),
        session=np.where(rng.random(n) < 0.3, -1, rng.integers(0, 12, n)).astype(np.int64),
        blocks=blocks,
    )


def bodies(trace: Trace, cap_tokens: int | None = None, *, stream: bool = False) -> list[Asked]:
    """The same as requests to the proxy."""
    found = []
    for row in range(len(trace)):
        session = -1 if trace.session is None else int(trace.session[row])
        kind = row if trace.blocks is None else f"block {trace.blocks.of(row)[0]}"
        tenant = "alice" if trace.tenant is None else trace.tenant.at(row)
        found.append(
            Asked(
                float(trace.arrival_s[row]),
                int(trace.prompt_tokens[row]),
                int(trace.output_tokens[row]),
                secret=f"sk-{tenant}",
                session="" if session < 0 else str(session),
                text=f"Question {kind}: how do we write a {'poem' if len(str(kind)) % 3 else 'program'}?",
                cap_tokens=cap_tokens,
                stream=stream,
            )
        )
    return found


def read(asked: Sequence[Asked]) -> np.ndarray[Any, Any]:
    """What the proxy counts of every request's text: what a decision log has recorded."""
    lexical: Any = catalogue.build("text/lexical")
    rows = []
    for one in asked:
        fields = msgspec.json.decode(one.body(), type=dict[str, msgspec.Raw])
        found = asking.read("chat", fields)
        rows.append(lexical.features(found.turn, found.before, found.facts))
    return np.array(rows, np.float64)


def both(
    config: dict[str, Any],
    trace: Trace,
    *,
    cap_tokens: int | None = None,
    errors: Sequence[Event] = (),
    change: Any = None,
    stream: bool = False,
) -> tuple[list[Entry], list[Entry], Result]:
    """The decision logs of the proxy and of the simulator, and the simulator's result."""
    text = msgspec.json.encode(config).decode()
    asked = bodies(trace, cap_tokens, stream=stream)
    served = serve_log(text, asked, Machines(errors))
    scenario: Scenario = replace(
        scenario_of(loads(text, "apportion.yaml"), profiles_of=PROFILES),
        epoch_s=EPOCH_S,
        events=tuple(errors),
        stream=stream,
    )
    if change is not None:
        scenario = change(scenario)
    recorded = replace(trace, lexical=read(asked))
    if cap_tokens is not None:
        recorded = replace(recorded, cap_tokens=np.full(len(trace), cap_tokens, np.int32))
    logged: list[Entry] = []
    result = run(scenario, recorded, log=logged.append)
    assert len(result) == len(trace)
    answered = [answer.status == 200 for answer in served.answers]
    mine = np.zeros(len(trace), bool)
    mine[result["request"]] = np.isin(result["status"], (0, 4))
    if not stream:  # a stream that breaks has begun with a good status
        assert mine.tolist() == answered
    return served.entries, logged, result


def close(one: Any, other: Any) -> bool:
    """Equal, numbers to a billionth."""
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12) or (one != one and other != other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(close, one, other))
    return bool(one == other)


def assert_equal(served: Sequence[Entry], simulated: Sequence[Entry]) -> None:
    """Both logs say the same of every attempt, but for the moment, which is compared loosely."""

    def order(entry: Entry) -> tuple[str, int]:
        return entry.id, entry.attempt

    one, other = sorted(served, key=order), sorted(simulated, key=order)
    for mine, theirs in zip(one, other, strict=False):
        left, right = (msgspec.to_builtins(entry) for entry in (mine, theirs))
        differing = {
            name: (left.get(name), right.get(name))
            for name in left.keys() | right.keys()
            if not close(left.get(name), right.get(name))
        }
        assert not differing, f"{mine.id} attempt {mine.attempt}: proxy, simulator: {differing}"
    assert [order(entry) for entry in one] == [order(entry) for entry in other]


@pytest.mark.parametrize("policy", catalogue.names("route"))
def test_every_router_decides_alike(policy: str) -> None:
    served, simulated, _ = both(changed(CONFIG, models__m__policy=policy), trace())
    assert_equal(served, simulated)
    assert len(served) == 150


BUDGETS = [
    {"name": "money", "resource": "usd", "amount": 0.03, "window": 10},
    {"name": "blue", "resource": "usd", "amount": 0.02, "window": 20, "scope": "team:blue", "hard": False},
    {"name": "words", "resource": "tokens", "amount": 40_000, "window": 15, "scope": "key:bob"},
    {"name": "pace", "resource": "server_seconds", "amount": 2.0, "refill_per_s": 0.8, "hard": False},
]


@pytest.mark.parametrize("policy", ["route/priced", "route/thompson", "route/carrot", "route/cost_capacity"])
@pytest.mark.parametrize("update", ["additive", "multiplicative"])
def test_prices_of_binding_budgets_move_alike(policy: str, update: str) -> None:
    config = changed(CONFIG, models__m__policy=policy, budgets=BUDGETS, pricer={"update": update})
    served, simulated, result = both(config, trace(300))
    assert_equal(served, simulated)
    prices = {entry.prices["usd"] for entry in simulated}
    assert len(prices) > 10, "prices hardly move"
    assert max(prices) > 2.0, "the budgets do not bind"
    assert all(told["overrun"] == 0.0 for told in result.facts["budgets"].values() if told["hard"])


def test_hard_budgets_cut_and_refuse_alike() -> None:
    budgets = [{"name": "money", "resource": "usd", "amount": 0.02, "window": "forever"}]
    config = changed(CONFIG, budgets=budgets, models__m__policy="route/weighted")
    served, simulated, result = both(config, trace(200), cap_tokens=150)
    assert_equal(served, simulated)
    assert 0 < np.sum(result["status"] == 1) < 200, "nobody was refused"
    assert result.facts["budgets"]["money@all"]["overrun"] == 0.0


def test_limits_of_keys_and_requests_hold_alike() -> None:
    budgets = [
        {"name": "each", "resource": "tokens", "amount": 4000, "scope": "request"},
        {"name": "talk", "resource": "tokens", "amount": 20_000, "window": "forever", "scope": "session"},
    ]
    config = changed(CONFIG, budgets=budgets)
    config["keys"][1]["limits"] = {"requests_per_minute": 60, "parallel": 3}
    served, simulated, result = both(config, trace(200))
    assert_equal(served, simulated)
    assert 0 < np.sum(result["status"] == 1) < 200


QUEUED = changed(
    CONFIG,
    endpoints__small__slots=2,
    endpoints__large__slots=2,
    prices={"seconds": 0.0002},
)


@pytest.mark.parametrize("policy", catalogue.names("schedule"))
def test_every_queue_goes_on_alike(policy: str) -> None:
    config = changed(QUEUED)
    for name in ("small", "large", "spare"):
        config["endpoints"][name]["queue"] = {"policy": policy, "max_waiting": 12, "max_wait_s": 6}
    served, simulated, result = both(config, trace(200, 16.0))
    assert_equal(served, simulated)
    assert np.sum(result["queued_s"] > 0.05) > 20, "nobody waited"


def test_queues_under_binding_budgets_go_alike() -> None:
    """Waiting has a price here, and answers that may have to be cut are asked for as streams: what is learned of their
    first tokens is the same, too."""
    config = changed(QUEUED, budgets=BUDGETS)
    for name in ("small", "large", "spare"):
        config["endpoints"][name]["queue"] = {"policy": "schedule/weighted_fair", "max_waiting": 12}
    served, simulated, result = both(config, trace(300, 14.0, seed=20))
    assert_equal(served, simulated)
    assert 0 < np.sum(result["status"] == 1) < 300


@pytest.mark.parametrize("policy", catalogue.names("admit"))
def test_every_admission_lets_in_alike(policy: str) -> None:
    config = changed(CONFIG, models__m__admit=policy, budgets=BUDGETS)
    served, simulated, _ = both(config, trace(200, 20.0))
    assert_equal(served, simulated)


@pytest.mark.parametrize("policy", catalogue.names("cache"))
def test_every_cache_keeps_alike(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some methods count by a hash of the key, so both caches know a question by the proxy's digest of it."""
    keys: list[str] = []
    ask = AnswerCache.question

    def asked(self: AnswerCache, *given: Any, **named: Any) -> Any:
        found = ask(self, *given, **named)
        keys.append("" if found is None else found.key)
        return found

    monkeypatch.setattr(AnswerCache, "question", asked)
    monkeypatch.setattr(Answers, "_key", lambda self, job: (keys[job.index], ""))
    config = changed(CONFIG, cache={"enabled": True, "eviction": policy, "bytes": 30_000})
    served, simulated, result = both(config, trace(300, repeated=True), change=_size_of_answers)
    assert_equal(served, simulated)
    told = result.facts["cache"]
    assert told["hits"] > 30
    assert told["misses"] > 60


def _size_of_answers(scenario: Scenario) -> Scenario:
    """The cache counts bytes of what the upstream of the test answers, with counts of three digits."""
    empty = chat("", model="m", tokens_in=200, completion_tokens=200, total_tokens=400)
    answer = {
        **virtual._CHUNK,
        "object": "chat.completion",
        "choices": empty["choices"],
        "usage": empty["usage"],
    }
    answer["usage"]["prompt_tokens_details"] = {"cached_tokens": 0}
    bytes_ = 1024 + len(msgspec.json.encode(answer))
    assert scenario.cache is not None
    return replace(scenario, cache=replace(scenario.cache, entry_bytes=bytes_))


@pytest.mark.parametrize("policy", catalogue.names("guard"))
def test_every_guard_watches_alike(policy: str) -> None:
    config = changed(CONFIG, models__m__guard=policy)
    served, simulated, _ = both(config, trace(200))
    assert_equal(served, simulated)


def _as_the_upstream_speaks(tokens: int, right: bool, rng: Any) -> str:
    return "abcd" * tokens


@pytest.mark.parametrize("strategy", catalogue.names("reason"))
def test_every_strategy_calls_alike(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "said", _as_the_upstream_speaks)
    served, simulated, _ = both(changed(CONFIG, models__m__strategy=strategy), trace(100, 6.0))
    assert_equal(served, simulated)


@pytest.mark.parametrize("strategy", [None, "reason/vote"])
def test_streams_and_their_first_tokens_go_alike(
    strategy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "said", _as_the_upstream_speaks)
    config = changed(QUEUED, models__m__policy="route/priced")
    if strategy is not None:
        config["models"]["m"]["strategy"] = strategy
    served, simulated, _ = both(config, trace(120, 8.0), stream=True)
    assert_equal(served, simulated)
    assert sum("seconds" in entry.options[0].cost for entry in simulated) > 80


def test_retries_after_faults_go_alike() -> None:
    errors = [
        Event(at_s=3.0, endpoint="small", kind="error", value=500),
        Event(at_s=7.0, endpoint="small", kind="error", value=0),
        Event(at_s=5.0, endpoint="large", kind="error", value=429),
        Event(at_s=6.0, endpoint="large", kind="error", value=0),
        Event(at_s=5.2, endpoint="spare", kind="error", value=503),
        Event(at_s=6.0, endpoint="spare", kind="error", value=0),
    ]
    served, simulated, result = both(
        changed(CONFIG, models__m__policy="route/epsilon_greedy"), trace(200), errors=errors
    )
    assert_equal(served, simulated)
    assert np.sum(result["tries"] > 1) > 5, "nothing was tried again"


@pytest.mark.parametrize("stream", [False, True])
def test_time_outs_go_alike(stream: bool) -> None:
    limits = {"total_s": 0.4, "first_token_s": 0.03} if stream else {"total_s": 0.35}
    config = changed(CONFIG, models__m__policy="route/weighted")
    for name in ("small", "spare"):
        config["endpoints"][name]["timeouts"] = limits
        config["endpoints"][name]["breaker"] = {"failures": 3, "open_s": 2}
    served, simulated, result = both(config, trace(150), stream=stream)
    assert_equal(served, simulated)
    failures = {entry.failure for entry in simulated}
    assert failures >= ({"timeout first_token", "timeout"} if stream else {"timeout total"})
    assert np.sum(result["tries"] > 1) > 3


def test_rollout_shadow_and_conversations_go_alike() -> None:
    config = changed(
        CONFIG,
        models__m__rollout=0.4,
        models__m__baseline="route/random",
        models__m__shadow="route/linucb",
        models__m__sticky="always",
    )
    served, simulated, _ = both(config, trace(250))
    assert_equal(served, simulated)
    assert {"the conversation is there"} < {entry.why for entry in simulated}


def test_the_comparison_would_notice() -> None:
    """Logs of machines that are a little slower are not equal."""
    config = changed(CONFIG, models__m__policy="route/priced")
    served, _, _ = both(config, trace(60))
    slower = {name: replace(profile, request_s=1e-5) for name, profile in PROFILES.items()}
    text = msgspec.json.encode(config).decode()
    scenario = replace(scenario_of(loads(text, "a.yaml"), profiles_of=slower), epoch_s=EPOCH_S, stream=False)
    simulated: list[Entry] = []
    run(scenario, trace(60), log=simulated.append)
    with pytest.raises(AssertionError, match="latency_s"):
        assert_equal(served, simulated)
