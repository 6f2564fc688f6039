"""The proxy under a virtual clock: the same run every time, times to the moment, and nothing left behind."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence

import pytest

from apportion.serve import flow
from virtual import EPOCH_S, Asked, Reply, Steady, VirtualLoop, serve_log

CONFIG = """
ledger: {url: memory}
keys: [{name: user, secret: sk-user}]
endpoints:
  a:
    {kind: openai, base_url: http://a/v1, price: {input_usd_per_mtok: 1, output_usd_per_mtok: 2}, slots: 2, queue: {}}
  b: {kind: openai, base_url: http://b/v1, price: {input_usd_per_mtok: 3, output_usd_per_mtok: 9}, slots: 4}
models:
  m:
    endpoints: [{endpoint: a, quality: 0.6}, {endpoint: b, quality: 0.9}]
    worth_usd: 0.01
    policy: POLICY
"""


def trace(n: int, *, rate: float = 8.0, stream: bool = False) -> list[Asked]:
    rng = random.Random(3)
    now_s, found = 0.0, []
    for _ in range(n):
        now_s += rng.expovariate(rate)
        found.append(Asked(now_s, rng.randint(64, 2000), rng.randint(1, 400), stream=stream))
    return found


@pytest.mark.parametrize("policy", ["route/priced", "route/epsilon_greedy", "route/linucb"])
def test_the_same_run_every_time(policy: str) -> None:
    config = CONFIG.replace("POLICY", policy)
    one, two = (serve_log(config, trace(150), Steady()) for _ in range(2))
    assert len(one.entries) == 150
    assert one.entries == two.entries
    assert [a.finish_s for a in one.answers] == [a.finish_s for a in two.answers]
    assert len({entry.action for entry in one.entries}) > 1 or policy == "route/priced"


@pytest.mark.parametrize("stream", [False, True])
def test_times_are_to_the_moment(stream: bool) -> None:
    """The time of the upstream is all there is: the proxy's own work takes none."""
    asked = [Asked(1.0, 100, 50, stream=stream)]
    served = serve_log(CONFIG.replace("POLICY", "route/priced"), asked, Steady(0.25, 0.01))
    (answer,), (entry,) = served.answers, served.entries
    assert answer.status == 200
    assert answer.finish_s == pytest.approx(1.0 + 0.25 + 0.5)
    assert answer.first_s == pytest.approx(1.25 if stream else 1.75)
    assert entry.latency_s == pytest.approx(0.75)
    assert entry.id == "dec_000000000000000001"
    assert entry.at == EPOCH_S + 1.0
    assert (entry.input_tokens, entry.output_tokens) == (100, 50)
    assert entry.options[0].cost["tokens"] == 100 + 256  # four bytes of its body are a token


def test_a_queue_in_virtual_time() -> None:
    config = CONFIG.replace("POLICY", "route/priced").replace("b, quality: 0.9", "b, quality: 0.0")
    asked = [Asked(0.001 * i, 100, 100) for i in range(6)]
    served = serve_log(config, asked, Steady(0.0, 0.01))
    ends = [round(answer.finish_s, 2) for answer in served.answers]
    assert ends == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]  # two at once, in their order


class Failing(Steady):
    """Every call of endpoint a is answered with an error after 100 ms."""

    def ask(self, now_s: float, call: int, endpoint: str, request: int, *sizes: int | None) -> Reply | None:
        if endpoint == "a":
            return Reply(now_s + 0.1, now_s + 0.1, 0, status=500)
        return super().ask(now_s, call, endpoint, request, *sizes)  # type: ignore[arg-type]


def test_failures_lead_to_the_next_endpoint() -> None:
    served = serve_log(CONFIG.replace("POLICY", "route/priced"), trace(3), Failing(0.1, 0.0))
    assert [a.status for a in served.answers] == [200, 200, 200]
    assert {e.status for e in served.entries if e.endpoint == "a"} == {"failed"}
    assert {e.status for e in served.entries if e.endpoint == "b"} == {"ok"}
    assert all(e.latency_s == pytest.approx(0.1) for e in served.entries)


class OneByOne:
    """A machine that works on one call at a time, a second for each: what it says is known only when it is done."""

    def __init__(self) -> None:
        self._line: list[int] = []
        self._free_s = 0.0

    @property
    def next_s(self) -> float:
        return self._free_s if self._line else math.inf

    def ask(self, now_s: float, call: int, endpoint: str, request: int, *sizes: int | None) -> Reply | None:
        if not self._line:
            self._free_s = now_s + 1.0
        self._line.append(call)
        return None

    def advance(self, until_s: float) -> Sequence[tuple[int, Reply]]:
        found = []
        while self._line and self._free_s <= until_s:
            found.append((self._line.pop(0), Reply(self._free_s, self._free_s, 10)))
            self._free_s += 1.0
        return found

    def cancel(self, now_s: float, call: int) -> int:
        raise AssertionError("nobody leaves here")


def test_a_machine_that_tells_later() -> None:
    asked = [Asked(0.1 * i, 100, 10) for i in range(4)]
    served = serve_log(CONFIG.replace("POLICY", "route/least_load"), asked, OneByOne())
    assert [round(a.finish_s, 6) for a in served.answers] == [1.0, 2.0, 3.0, 4.0]


def test_too_late_is_to_the_moment() -> None:
    config = CONFIG.replace("POLICY", "route/priced").replace("b, quality: 0.9", "b, quality: 0.0")
    config = config.replace("slots: 2", "slots: 2, timeouts: {total_s: 0.5}")
    served = serve_log(config, [Asked(0.0, 100, 400)], Steady(0.0, 0.01))
    late, other = served.entries
    assert (late.endpoint, late.status, late.latency_s) == ("a", "timeout", 0.5)
    assert other.endpoint == "b"


def test_an_answer_that_is_cut_has_what_had_come() -> None:
    """A deadline of a second: what was produced until then is sent, counted and paid."""
    config = CONFIG.replace("POLICY", "route/priced")
    asked = [Asked(0.0, 100, 400, constraints={"deadline_s": 1.0})]
    served = serve_log(config, asked, Steady(0.5, 0.0101))
    (answer,), (entry,) = served.answers, served.entries
    assert (answer.status, answer.finish_s) == (200, 1.0)
    assert entry.censored
    assert entry.estimated
    assert (entry.input_tokens, entry.output_tokens) == (100, 1 + 49)


def test_nothing_is_left_behind() -> None:
    before = flow.time
    serve_log(CONFIG.replace("POLICY", "route/priced"), [Asked(0.0, 100, 1)], Steady())
    assert flow.time is before is time
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_time_stops_where_nothing_can_happen() -> None:
    loop = VirtualLoop()
    try:
        with pytest.raises(RuntimeError, match="somebody still waits"):
            loop.run_until_complete(loop.create_future())
    finally:
        loop.close()
