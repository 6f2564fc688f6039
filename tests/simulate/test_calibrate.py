"""Calibration against an endpoint whose law is known, in virtual time; and the client against real bytes."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apportion.cli._endpoint import StreamClient
from apportion.simulate.calibrate import (
    Bounds,
    CalibrationError,
    Clock,
    Heard,
    Known,
    Limits,
    Log,
    Prompts,
    calibrated,
    calibrated_hosted,
    drive,
    plan,
)
from apportion.simulate.calibrate.meter import rapl
from apportion.simulate.profile import Profile
from virtual import VirtualLoop

TEMPLATE = 20
TRUTH = Profile(
    name="truth",
    tokens=(1.0, 8.0, 512.0),
    seconds=(0.012, 0.04, 0.8),
    prefill_attention_s=4e-7,
    decode_attention_s=8e-6,
    mixed_s=0.01,
    before_s=0.005,
    slots=4,
    batch_tokens=512,
)


@dataclass
class _Running:
    left: int
    output: int
    context: int
    heard: Heard
    on_token: Callable[[], None]
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Engine:
    """An engine with slots that follows `TRUTH` iteration by iteration, remembers prompts, and is never wrong."""

    def __init__(self, law: Profile, noise: float = 0.0, fails: bool = False) -> None:
        self.law, self.noise, self.fails = law, noise, fails
        self.rng = np.random.default_rng(0)
        self.waiting: list[_Running] = []
        self.running: list[_Running] = []
        self.known: set[str] = set()
        self.asked = 0
        self.work: asyncio.Task[None] | None = None

    async def ask(self, prompt: str, output_tokens: int, on_token: Callable[[], None]) -> Heard:
        loop = asyncio.get_running_loop()
        heard = Heard(loop.time())
        self.asked += 1
        if self.fails:
            heard.failure = "it answered 500: broken"
            return heard
        n = TEMPLATE + len(prompt.split())
        heard.prompt_tokens = n
        heard.output_tokens = output_tokens
        heard.cached_tokens = n - 1 if prompt in self.known else 0
        self.known.add(prompt)
        await asyncio.sleep(self.law.before_s)
        one = _Running(n - heard.cached_tokens, output_tokens, heard.cached_tokens, heard, on_token)
        self.waiting.append(one)
        if self.work is None or self.work.done():
            self.work = asyncio.create_task(self._iterate())
        await one.done.wait()
        heard.ended_s = loop.time()
        return heard

    async def _iterate(self) -> None:
        loop = asyncio.get_running_loop()
        while self.waiting or self.running:
            while self.waiting and len(self.running) < self.law.slots:
                self.running.append(self.waiting.pop(0))
            decoding = [one for one in self.running if one.left == 0]
            room, pieces, pairs = self.law.batch_tokens - len(decoding), [], 0.0
            for one in self.running:
                n = min(one.left, room)
                if n > 0:
                    pieces.append((one, n))
                    pairs += n * (one.context + n / 2)
                    room -= n
            seconds = self.law.seconds_of(
                len(decoding) + sum(n for _, n in pieces),
                prefill_pairs=pairs,
                decode_context=sum(one.context for one in decoding),
                mixed=bool(decoding and pieces),
            )
            await asyncio.sleep(float(seconds) * math.exp(self.noise * float(self.rng.normal())))
            for one, n in pieces:
                one.left -= n
                one.context += n
            for one in [*decoding, *(one for one, _ in pieces if one.left == 0)]:
                one.context += 1 if one in decoding else 0
                one.heard.token_s.append(loop.time())
                one.on_token()
                if len(one.heard.token_s) == one.output:
                    self.running.remove(one)
                    one.done.set()


def virtually(work: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


async def measured(engine: Engine, limits: Limits, bounds: Bounds, *, stop_s: float | None = None) -> Log:
    loop, clock = asyncio.get_running_loop(), Clock()
    if stop_s is not None:
        task = asyncio.current_task()
        assert task is not None
        loop.call_later(stop_s, task.cancel)
    return await drive(plan(limits, clock), clock, engine, bounds, prompts=Prompts(0), now=loop.time)


LIMITS = Limits(prompt_tokens=1024, concurrency=4, repeats=3)
KNOWN = Known(slots=4, batch_tokens=512, context_tokens=2048, batching="slots")


def test_a_known_law_is_found() -> None:
    log = virtually(measured(Engine(TRUTH), LIMITS, Bounds(seconds=1e4)))
    assert log.ended == "done"
    found = calibrated("four", log, KNOWN).profile
    for new, context, mixed in ((1, 500, False), (4, 1000, False), (100, 0, False), (513, 300, True)):
        truth = float(TRUTH.seconds_of(new, decode_context=context, mixed=mixed))
        assert float(found.seconds_of(new, decode_context=context, mixed=mixed)) == pytest.approx(
            truth, rel=0.05
        )
    assert found.before_s == pytest.approx(TRUTH.before_s, abs=0.002)
    assert found.error["unseen_s"] < 0.05
    assert found.kv_tokens == 4 * 2048
    assert found.batching == "slots"
    assert len(found.draws) == 20


def test_noise_is_averaged_out_and_stated() -> None:
    quiet = calibrated("a", virtually(measured(Engine(TRUTH), LIMITS, Bounds(seconds=1e4))), KNOWN).profile
    noisy = calibrated(
        "a", virtually(measured(Engine(TRUTH, noise=0.1), LIMITS, Bounds(seconds=1e4))), KNOWN
    ).profile
    assert float(noisy.seconds_of(2)) == pytest.approx(float(TRUTH.seconds_of(2)), rel=0.1)
    assert noisy.error["ttft_s"] > quiet.error["ttft_s"]


def test_slots_and_pieces_are_found_where_they_are_not_known() -> None:
    limits = Limits(prompt_tokens=1024, concurrency=8, repeats=2)
    log = virtually(measured(Engine(TRUTH), limits, Bounds(seconds=1e4)))
    found = calibrated("a", log, Known()).profile
    assert found.slots == 4
    assert found.facts["slots"] == "measured"
    assert found.batch_tokens == 512


def test_an_interrupted_calibration_fits_what_there_is() -> None:
    log = virtually(measured(Engine(TRUTH), LIMITS, Bounds(seconds=1e4), stop_s=20.0))
    assert log.ended == "interrupted"
    assert log.seconds == pytest.approx(20.0)
    found = calibrated("a", log, KNOWN).profile
    assert found.facts["ended"] == "interrupted"
    truth = float(TRUTH.seconds_of(100))
    assert float(found.seconds_of(100)) == pytest.approx(truth, rel=0.1)


def test_too_little_says_so() -> None:
    log = virtually(measured(Engine(TRUTH), LIMITS, Bounds(seconds=1e4), stop_s=0.05))
    with pytest.raises(CalibrationError, match="time"):
        calibrated("a", log, KNOWN)
    with pytest.raises(CalibrationError, match="Too little"):
        calibrated_hosted("a", log)


def test_it_keeps_within_its_bounds() -> None:
    engine = Engine(TRUTH)
    log = virtually(measured(engine, LIMITS, Bounds(seconds=1e4, requests=25)))
    assert log.ended == "requests"
    assert engine.asked == log.requests <= 25
    log = virtually(measured(Engine(TRUTH), LIMITS, Bounds(seconds=12.0)))
    assert log.ended in ("seconds", "done")
    assert log.seconds <= 12.0
    dear = Bounds(seconds=1e4, usd=1.0, usd_of=lambda heard: 0.3)
    log = virtually(measured(Engine(TRUTH), LIMITS, dear))
    assert log.ended == "usd"
    assert 1.0 <= log.usd < 3.0


def test_an_endpoint_that_fails_is_said_to() -> None:
    with pytest.raises(CalibrationError, match="does not answer: it answered 500"):
        virtually(measured(Engine(TRUTH, fails=True), LIMITS, Bounds(seconds=1e4)))


@pytest.mark.parametrize("field", ["prompt_tokens", "concurrency", "output_tokens", "repeats"])
def test_limits_name_the_field(field: str) -> None:
    with pytest.raises(CalibrationError) as error:
        Limits(**{field: 0})
    assert error.value.field == field


class Hosted:
    """Somebody else's machines: a log-normal time to the first token, then a rate."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(1)

    async def ask(self, prompt: str, output_tokens: int, on_token: Callable[[], None]) -> Heard:
        loop = asyncio.get_running_loop()
        n = len(prompt.split())
        heard = Heard(loop.time(), prompt_tokens=n, output_tokens=output_tokens)
        await asyncio.sleep((0.3 + 1e-4 * n) * math.exp(0.1 * float(self.rng.normal())))
        rate = 80.0 * math.exp(0.05 * float(self.rng.normal()))
        for i in range(output_tokens):
            await asyncio.sleep(1.0 / rate if i else 0.0)
            heard.token_s.append(loop.time())
        heard.ended_s = loop.time()
        return heard


def test_a_hosted_endpoint() -> None:
    async def run() -> Log:
        clock, loop = Clock(), asyncio.get_running_loop()
        rounds = plan(Limits(prompt_tokens=4096, hosted=True, repeats=12), clock)
        return await drive(rounds, clock, Hosted(), Bounds(seconds=1e4), prompts=Prompts(0), now=loop.time)

    p = calibrated_hosted("api", virtually(run())).profile
    assert p.kind == "hosted"
    assert p.ttft_s == pytest.approx(0.3, rel=0.1)
    assert p.ttft_s_per_token == pytest.approx(1e-4, rel=0.2)
    assert p.tokens_per_s == pytest.approx(80, rel=0.05)
    assert 0.05 < p.ttft_sigma < 0.2
    assert 0.02 < p.rate_sigma < 0.1
    assert len(p.draws) == 20


def test_prompts_share_no_beginning_and_have_the_length_asked_for() -> None:
    prompts = Prompts(3)
    prompts.learn(16, 36)
    prompts.learn(128, 260)  # two tokens a word, and four of the template
    texts = [prompts.make(204) for _ in range(50)]
    assert all(words == 100 for _, words in texts)
    assert len({tuple(text.split()[:8]) for text, _ in texts}) == 50


def test_the_counter_of_joules_does_not_begin_again(tmp_path: Path) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "max_energy_range_uj").write_text("999999")
    (zone / "energy_uj").write_text("900000")
    joules = rapl(tmp_path)
    assert joules is not None
    (zone / "energy_uj").write_text("100000")
    assert joules() == pytest.approx(0.2)
    assert rapl(tmp_path / "none") is None


async def test_the_client_reads_a_stream() -> None:
    seen: list[dict[str, Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(
            next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")).split()[
                1
            ]
        )
        body = json.loads(await reader.readexactly(size))
        seen.append({**body, "head": head.decode()})
        if "ignore_eos" in body:
            error = b'{"error": {"message": "unknown field ignore_eos"}}'
            writer.write(b"HTTP/1.1 400 Bad\r\ncontent-length: %d\r\n\r\n%b" % (len(error), error))
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
            events: list[dict[str, Any]] = [
                {"choices": [{"delta": {"role": "assistant", "content": None}}]},
                *({"choices": [{"delta": {"content": word}}]} for word in ("one", "two", "three")),
                {"choices": [{"delta": {}, "finish_reason": "length"}]},
                {
                    "choices": [],
                    "usage": {
                        "prompt_tokens": 9,
                        "completion_tokens": 3,
                        "prompt_tokens_details": {"cached_tokens": 2},
                    },
                },
            ]
            for event in events:
                writer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
                await writer.drain()
            writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = StreamClient(f"http://127.0.0.1:{port}/v1", "small", "secret")
    came = 0

    def count() -> None:
        nonlocal came
        came += 1

    heard = await client.ask("one two", 3, count)
    client.close()
    server.close()
    await server.wait_closed()
    assert heard.failure is None
    assert (len(heard.token_s), came) == (3, 3)
    assert (heard.prompt_tokens, heard.output_tokens, heard.cached_tokens) == (9, 3, 2)
    assert heard.sent_s < heard.token_s[0] <= heard.token_s[-1] <= heard.ended_s
    assert seen[0]["ignore_eos"] is True
    assert "ignore_eos" not in seen[1]
    assert seen[1]["max_tokens"] == 3
    assert "POST /v1/chat/completions" in seen[1]["head"]
    assert "Bearer secret" in seen[1]["head"]


async def test_the_client_tells_what_went_wrong() -> None:
    with pytest.raises(CalibrationError, match="no address"):
        StreamClient("ftp://somewhere", "a", None)
    client = StreamClient("http://127.0.0.1:9/v1", "a", None)
    heard = await client.ask("one", 2, lambda: None)
    client.close()
    assert heard.failure is not None
    assert "cannot be reached" in heard.failure
