"""The fast path: equal to single engines, to itself in pieces, and bounded in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from apportion.core import Policy, catalogue
from apportion.simulate import fleet
from apportion.simulate.engine import Batching, Done, Engine, EngineError
from apportion.simulate.fleet import FleetError, Loads
from apportion.simulate.profile import Profile
from apportion.simulate.result import COLUMNS, FAILED, OK
from apportion.simulate.station import little
from apportion.simulate.trace import Trace, labels


def profile(**changes: Any) -> Profile:
    values: dict[str, Any] = {
        "name": "made",
        "tokens": (1.0, 512.0, 2048.0),
        "seconds": (0.02, 0.06, 0.2),
        "prefill_attention_s": 1e-8,
        "decode_attention_s": 1e-7,
        "request_s": 1e-5,
        "before_s": 0.004,
        "before_s_per_token": 1e-5,
        "mixed_s": 0.003,
        "after_s": 0.002,
        "slots": 16,
        "kv_tokens": 3000,
        "idle_w": 60.0,
        "prefill_w": 400.0,
        "decode_tokens": (1.0, 16.0),
        "decode_w": (200.0, 300.0),
        "usd_per_hour": 3.6,
    }
    return Profile(**{**values, **changes})


def trace(n: int, rate: float, seed: int = 0, start_s: float = 0.0) -> Trace:
    rng = np.random.default_rng(seed)
    return Trace(
        start_s + np.cumsum(rng.exponential(1.0 / rate, n)),
        rng.integers(1, 900, n).astype(np.int32),
        rng.integers(1, 120, n).astype(np.int32),
        priority=rng.integers(0, 2, n).astype(np.int8),
    )


def by_engines(made: Trace, profiles: list[Profile], batching: Batching) -> list[tuple[int, Done]]:
    """The same in turn, through one engine object for each instance."""
    engines = [Engine(p, batching) for p in profiles]
    done: list[tuple[int, Done]] = []
    for j, at in enumerate(made.arrival_s.tolist()):
        n = j % len(engines)
        while engines[n].next_s < at:
            done += [(n, d) for d in engines[n].advance(engines[n].next_s)]
        assert made.priority is not None
        engines[n].submit(
            at, j, int(made.prompt_tokens[j]), int(made.output_tokens[j]), priority=int(made.priority[j])
        )
    for n, engine in enumerate(engines):
        while engine.next_s < float("inf"):
            done += [(n, d) for d in engine.advance(float("inf"))]
    return done


@pytest.mark.parametrize("kind", ["prefill_first", "chunked"])
def test_equal_to_engines_one_by_one(kind: Any) -> None:
    made = trace(1500, 20.0)
    profiles = [profile(), profile(name="fast", seconds=(0.01, 0.03, 0.1)), profile(name="small", slots=5)]
    batching = Batching(kind, watermark=0.02)
    result = fleet.run(made, profiles, batching=batching)
    expected = {d.request: (n, d) for n, d in by_engines(made, profiles, batching)}
    assert sorted(result["request"].tolist()) == list(range(1500)) == sorted(expected)
    assert result["preempted"].sum() > 0
    assert (np.diff(result["finish_s"]) >= -0.1).all()
    for at, request in enumerate(result["request"].tolist()):
        n, d = expected[request]
        assert result["instance"][at] == n
        for column in ("first_token_s", "finish_s", "longest_gap_s", "server_s", "joules"):
            assert result[column][at] == getattr(d, column), column
        assert result["queued_s"][at] == d.started_s - made.arrival_s[request]
    assert result["usd"].sum() == pytest.approx(sum(result.facts["busy_s"]) * 0.001)
    assert result["joules"].sum() == pytest.approx(sum(result.facts["busy_j"]))
    assert all(j > 0.0 for j in result.facts["idle_j"])
    little(result)


@pytest.mark.parametrize("router", [*(r for r in fleet.ROUTERS if r != "table"), "function"])
def test_pieces_and_sink_change_nothing(router: Any) -> None:
    made = trace(900, 20.0)
    if router == "function":

        def router(now_s: float, loads: Loads) -> int:
            return int(loads.kv_share.argmin() if now_s > 5.0 else loads.requests.argmin())

    profiles = [profile(), profile(), profile(name="slow", seconds=(0.04, 0.12, 0.4))]
    whole = fleet.run(made, profiles, router=router, seed=3)
    given: list[dict[str, Any]] = []

    def pieces() -> Iterator[Trace]:
        for a, b in ((0, 1), (1, 1), (1, 350), (350, 900)):
            yield Trace(
                made.arrival_s[a:b], made.prompt_tokens[a:b], made.output_tokens[a:b], priority=made.priority[a:b]
            )  # fmt: skip

    parted = fleet.run(pieces(), profiles, router=router, seed=3, sink=given.append, rows=64)
    assert len(parted) == 0
    assert parted.facts["requests"] == 900
    assert len(given) > 5
    rows = {name: np.concatenate([g[name] for g in given]) for name in COLUMNS}
    for name in COLUMNS:
        np.testing.assert_array_equal(rows[name], whole[name])
    assert parted.facts == whole.facts
    again = fleet.run(made, profiles, router=router, seed=3)
    for name in COLUMNS:
        np.testing.assert_array_equal(again[name], whole[name])


def test_memory_is_by_requests_in_flight() -> None:
    """A hundred times the requests at the same rate: the same number in flight, and a pool of the same size."""
    most = []
    for pieces in (1, 30):
        parts = (trace(300, 5.0, seed=n, start_s=60.0 * n) for n in range(pieces))
        ordered = (Trace(np.minimum(p.arrival_s, 60.0 * n + 60.0), p.prompt_tokens, p.output_tokens)
                   for n, p in enumerate(parts))  # fmt: skip
        result = fleet.run(ordered, [profile()] * 2, sink=lambda rows: None, rows=128)
        most.append(result.facts["most_in_flight"])
        assert result.facts["requests"] == 300 * pieces
    assert most[1] < 4 * most[0] < 1024


def test_a_better_router_waits_less() -> None:
    made = trace(3000, 22.0)
    profiles = [profile(), profile(seconds=(0.04, 0.12, 0.4)), profile(), profile()]
    ttft = {
        r: fleet.run(made, profiles, router=r, seed=1).ttft_s.mean() for r in fleet.ROUTERS if r != "table"
    }
    assert ttft["least_requests"] < ttft["power_of_two"] < ttft["random"]
    assert ttft["least_work"] < ttft["round_robin"]


def test_a_policy_of_the_catalogue_routes() -> None:
    made = trace(600, 20.0)
    profiles = [profile(), profile(), profile()]
    names = ["a", "b", "c"]
    policy = catalogue.build("route/least_load", seed=1)
    assert isinstance(policy, Policy)
    result = fleet.run(made, profiles, router=fleet.by_policy(policy, names))
    ours = fleet.run(made, profiles, router="least_requests")
    worst = fleet.run(made, profiles, router="random")
    assert result.ttft_s.mean() == pytest.approx(ours.ttft_s.mean(), rel=0.2)
    assert result.ttft_s.mean() < worst.ttft_s.mean()


def test_labels_table_and_what_does_not_fit() -> None:
    made = Trace(
        np.array([0.0, 1.0, 2.0]),
        np.array([10, 2990, 20], np.int32),
        np.array([5, 50, 0], np.int32),
        model=labels(["m", "", "n"]),
        tenant=labels(["t", "u", ""]),
    )
    result = fleet.run(made, [profile(), profile()], router="table", assign=np.array([1, 0, 1]))
    rows = {int(r): at for at, r in enumerate(result["request"])}
    assert [int(result["status"][rows[r]]) for r in range(3)] == [OK, FAILED, OK]
    assert [int(result["instance"][rows[r]]) for r in range(3)] == [1, 0, 1]
    assert [int(result["model"][rows[r]]) for r in range(3)] == [0, -1, 1]
    assert [int(result["tenant"][rows[r]]) for r in range(3)] == [0, 1, -1]
    assert result["finish_s"][rows[1]] == 1.0
    assert np.isnan(result["first_token_s"][rows[1]])
    assert result.names["model"] == ("m", "n")


def test_bad_input() -> None:
    made = trace(5, 1.0)
    with pytest.raises(FleetError, match="No router") as found:
        fleet.run(made, [profile()], router="nobody")
    assert found.value.field == "router"
    with pytest.raises(FleetError, match="no table"):
        fleet.run(made, [profile()], router="table")
    with pytest.raises(FleetError, match="does not name"):
        fleet.run(made, [profile()], router="table", assign=np.array([0, 0, 1, 0, 0]))
    with pytest.raises(FleetError, match="chose 7"):
        fleet.run(made, [profile()], router=lambda now_s, loads: 7)
    with pytest.raises(FleetError, match="order of arrival"):
        fleet.run([made, made], [profile()])
    with pytest.raises(EngineError, match="hosted"):
        fleet.run(made, [profile(kind="hosted", tokens_per_s=9.0)])
    with pytest.raises(EngineError, match="in blocks of 16"):
        fleet.run(made, [profile(kv_tokens=10)])
    with pytest.raises(EngineError, match="kind"):
        Batching("nobody")  # type: ignore[arg-type]
