"""Live replay: the schedule on a virtual clock, and requests against a server in this process."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import numpy as np
import pytest
from workloads import small

from apportion.cli._load import OpenAI
from apportion.serve.http.server import Request, Responder, Server, ServerLimits
from apportion.simulate.result import COLUMNS, FAILED, OK, REFUSED
from apportion.simulate.trace import Blocks, Labels, Trace, TraceError
from apportion.simulate.workload import replay
from apportion.simulate.workload.prompts import Prompts
from apportion.simulate.workload.replay import Ask, Progress, Reply, Stop
from virtual import VirtualLoop


def at(*times: float, **columns: Any) -> Trace:
    n = len(times)
    return Trace(
        np.array(times, float), np.full(n, 12, np.int32), np.arange(1, n + 1, dtype=np.int32), **columns
    )


class Recorded:
    """A transport that notes what it is asked and answers after ``takes_s``."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.takes_s = takes_s
        self.asked: list[Ask] = []
        self.under_way = 0
        self.most = 0

    def ready(self, ask: Ask) -> Callable[[], Awaitable[Reply]]:
        async def go() -> Reply:
            self.asked.append(ask)
            sent = now_s()
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            try:
                await asyncio.sleep(self.takes_s)
            finally:
                self.under_way -= 1
            now = now_s()
            return Reply(OK, sent, now, now, math.nan, 12, 0, ask.output_tokens, "here")

        return go


def now_s() -> float:
    return asyncio.get_running_loop().time()


def virtually(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """The test in virtual time: however slow the machine is."""

    @functools.wraps(test)
    def run() -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test())

    return run


async def sent(trace: Trace, transport: Any, **how: Any) -> Any:
    return await replay.send(trace, transport, Prompts(trace), clock=now_s, **how)


@virtually
async def test_every_request_is_sent_when_it_is_due_and_never_before() -> None:
    trace = at(5.0, 5.02, 5.02, 5.3, model=Labels(np.array([0, 1, 0, 1], np.int32), ("a", "b")))
    seen: list[int] = []
    run = await sent(trace, Recorded(), watch=lambda progress: seen.append(progress.done))
    assert sorted(run["request"]) == [0, 1, 2, 3]
    assert set(run.columns) == set(COLUMNS)
    assert {name: str(column.dtype) for name, column in run.columns.items()} == dict(COLUMNS)
    by_row = np.argsort(run["request"])
    np.testing.assert_allclose(run["arrival_s"][by_row], [0, 0.02, 0.02, 0.3], atol=1e-9)
    assert run["output_tokens"][by_row].tolist() == [1, 2, 3, 4]
    assert run.names["model"] == ("a", "b")
    assert run.names["action"] == ("here",)
    assert run.facts["sent"] == 4
    assert run.facts["lateness_s"]["p50"] >= 0
    assert seen == [1, 2, 3, 4]
    assert run.facts["output_tokens_of_wanted"] == 1.0
    assert np.all(run["first_token_s"] >= run["arrival_s"])


@virtually
async def test_the_loop_is_open_and_speed_shortens_it() -> None:
    transport = Recorded(0.3)
    run = await sent(at(*np.arange(0, 10, 1.0)), transport, speed=100.0)
    assert transport.most == 10  # nobody waited for an answer
    np.testing.assert_allclose(sorted(run["arrival_s"]), np.arange(10) / 100, atol=1e-9)


@virtually
async def test_no_more_under_way_than_allowed() -> None:
    waiting = Recorded(0.05)
    run = await sent(at(*[0.0] * 9), waiting, most_in_flight=2)
    assert waiting.most == 2
    assert len(run) == 9
    assert 4 <= run.facts["waited_for_room"] <= 7
    # The wait counts: times are from when a request was due.
    assert np.max(run.ttft_s) >= 4 * 0.05
    assert np.max(run["arrival_s"]) == 0.0
    dropping = Recorded(0.2)
    run = await sent(at(*[0.0] * 9), dropping, most_in_flight=2, when_full="drop")
    assert len(run) == 2
    assert run.facts["dropped"] == 7
    assert run.facts["sent"] == 2
    assert [ask.row for ask in dropping.asked] == [0, 1]


@virtually
async def test_a_run_can_be_stopped() -> None:
    stop = Stop()
    transport = Recorded(0.05)

    def watch(progress: Progress) -> None:
        if progress.done == 2:
            stop.asked.set()

    run = await sent(at(0.0, 0.01, 60.0), transport, watch=watch, stop=stop)
    assert len(run) == 2
    assert run.facts["given_up"] == 0
    slow = Recorded(60.0)
    stop = Stop()
    asyncio.get_running_loop().call_later(0.2, stop.asked.set)
    asyncio.get_running_loop().call_later(0.25, stop.now.set)
    run = await sent(at(0.0, 0.01, 60.0), slow, stop=stop)
    assert len(run) == 0
    assert run.facts["given_up"] == 2
    assert slow.under_way == 0


@virtually
async def test_a_fault_of_the_transport_is_not_a_slow_answer() -> None:
    with pytest.raises(TraceError, match="above 0"):
        await sent(at(0.0), Recorded(), speed=0.0)


# --- prompts ----------------------------------------------------------------------------------------


def test_prompts_have_the_wanted_number_of_words_and_are_their_own() -> None:
    trace = small(30, 0)
    prompts = [Prompts(trace).of(row) for row in range(30)]
    assert [len(prompt.split()) for prompt in prompts] == trace.prompt_tokens.tolist()
    assert prompts == [Prompts(trace).of(row) for row in range(30)]
    long = [prompt.split()[:6] for prompt in prompts if len(prompt.split()) > 6]
    assert len({" ".join(words) for words in long}) == len(long)
    assert Prompts(trace, seed=1).of(0) != prompts[0]
    fitted = Prompts(trace, per_word=1.25, extra_tokens=7)
    assert len(fitted.of(3).split()) == max(1, round((trace.prompt_tokens[3] - 7) / 1.25))


def test_prompts_share_what_the_trace_says_they_share() -> None:
    talk = at(0, 1, 2, session=np.array([4, 4, 9]))
    talk = Trace(talk.arrival_s, np.array([20, 50, 50], np.int32), talk.output_tokens, session=talk.session)
    one, two, other = (Prompts(talk).of(row) for row in range(3))
    assert two.startswith(one + " ")
    assert not other.startswith(one)
    blocks = Blocks(np.array([0, 2, 4, 5]), np.array([1, 2, 1, 3, 9]), 16)
    tree = Trace(talk.arrival_s, np.array([32, 40, 10], np.int32), talk.output_tokens, blocks=blocks)
    a, b, c = (Prompts(tree).of(row).split() for row in range(3))
    assert (len(a), len(b), len(c)) == (32, 40, 10)
    assert a[:16] == b[:16]
    assert a[16:32] != b[16:32]
    assert c != b[:10]


# --- over HTTP --------------------------------------------------------------------------------------


class Endpoint:
    """An endpoint of the OpenAI kind: 1.5 tokens a word and 4 for its template; refuses and breaks when told."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.port = 0

    async def answer(self, request: Request, responder: Responder) -> None:
        body = msgspec.json.decode(request.body)
        self.asked.append(body)
        words = len(body["messages"][0]["content"].split())
        if body["model"] == "full":
            responder.send(429, b"content-type: application/json\r\n", b'{"error": {"message": "too much"}}')
            return
        responder.start(200, b"content-type: text/event-stream\r\nx-apportion-endpoint: east\r\n")
        responder.write(b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n')
        for _ in range(body["max_tokens"]):
            responder.write(b'data: {"choices":[{"index":0,"delta":{"content":"a \\"b\\""}}]}\n\n')
            await asyncio.sleep(0)
        if body["model"] == "broken":
            responder.write(b'data: {"error": {"message": "out of memory"}}\n\n')
        else:
            usage = {"prompt_tokens": round(1.5 * words + 4), "completion_tokens": body["max_tokens"]}
            responder.write(b"data: " + msgspec.json.encode({"choices": [], "usage": usage}) + b"\n\n")
            responder.write(b"data: [DONE]\n\n")
        responder.finish()


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint()
    server = Server(made.answer, ServerLimits())
    _, made.port = await server.listen("127.0.0.1", 0, reuse_port=False)
    yield made
    await server.drain(0.1)


async def test_against_a_server(endpoint: Endpoint) -> None:
    models = Labels(np.array([0, 1, 2, 0], np.int32), ("fine", "full", "broken"))
    trace = at(0.0, 0.01, 0.02, 0.03, model=models, priority=np.array([3, 0, 0, 0], np.int8))
    transport = OpenAI(f"http://127.0.0.1:{endpoint.port}/v1", key="sk", constraints=True)
    try:
        per_word, extra = await replay.measured(transport, trace)
        assert per_word == pytest.approx(1.5, abs=0.01)
        assert extra == pytest.approx(4, abs=1)
        endpoint.asked.clear()
        prompts = Prompts(trace, per_word=per_word, extra_tokens=extra)
        run = await replay.send(trace, transport, prompts, clock=time.perf_counter)
    finally:
        transport.close()
    first = next(body for body in endpoint.asked if body["max_tokens"] == 1)
    assert first["model"] == "fine"
    assert first["ignore_eos"]
    assert first["stream_options"] == {"include_usage": True}
    assert first["apportion"] == {"priority": 3}
    by_row = np.argsort(run["request"])
    assert run["status"][by_row].tolist() == [OK, REFUSED, FAILED, OK]
    assert run["output_tokens"][by_row].tolist() == [1, 0, 0, 4]
    answered = run["status"] == OK
    assert np.all(np.abs(run["prompt_tokens"][answered] - 12) <= 1)
    assert np.all(run["first_token_s"][answered] >= run["arrival_s"][answered])
    assert np.all(run["finish_s"][answered] >= run["first_token_s"][answered])
    assert np.all(np.isnan(run["first_token_s"][~answered]))
    assert np.all(np.isfinite(run["finish_s"]))
    assert run.names["action"] == ("east",)
    assert set(run.facts["why"]) == {"429: too much", "out of memory"}


async def test_nobody_there() -> None:
    transport = OpenAI("http://127.0.0.1:1/v1", model="m")
    try:
        run = await replay.send(at(0.0), transport, Prompts(at(0.0)), clock=time.perf_counter)
        assert run["status"].tolist() == [FAILED]
        assert "refused" in next(iter(run.facts["why"]))
        with pytest.raises(TraceError, match="did not answer a first question"):
            await replay.measured(transport, at(0.0))
    finally:
        transport.close()
    with pytest.raises(TraceError, match="no address"):
        OpenAI("localhost:8080")
