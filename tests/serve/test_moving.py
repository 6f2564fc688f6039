"""Streams that go on at another endpoint: nothing lost, nothing said twice, everything booked once.

The upstreams speak a known text token by token and, given a beginning of it, go on from there, so that every wrong
seam shows in the text.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests import inprocess
from tests.inprocess import Json, Proxy, auth

from apportion.serve.config.pricing import all_prices
from apportion.serve.http.server import Request, Responder, Server, ServerLimits

TOKENS = [
    "Once",
    " upon",
    " a",
    " time",
    ", a",
    " café",
    " in",
    " Zürich",
    " sold",
    " 🙂",
    "🧁",
    ".",
    "\n\n",
    "The",
    " end",
]
TEXT = "".join(TOKENS)
PROMPT_TOKENS = 7
PRICE = "price: {input_usd_per_mtok: 1, output_usd_per_mtok: 3}"
CONFIG = f"""
endpoints:
  a: {{kind: openai, base_url: A/v1, model: tiny, continues: true, {PRICE}, OF_A}}
  b: {{kind: openai, base_url: B/v1, model: tiny, continues: true, {PRICE}, OF_B}}
models:
  m: {{endpoints: [a, b], retries: {{resume: true, backoff_s: 0}}}}
budgets:
  - {{name: purse, scope: key:user, resource: usd, amount: 1000, window: forever}}
"""

Fault = Callable[[Responder], object]


def reset(responder: Responder) -> None:
    """The connection is cut."""
    responder.abort()


def early_end(responder: Responder) -> None:
    """The stream ends properly in the middle."""
    responder.finish()


def half_an_event(responder: Responder) -> None:
    """An event that is not JSON."""
    responder.write(b'data: {"choices":[{"ind\n\n')
    responder.finish()


def error_inside(responder: Responder) -> None:
    """The upstream's own error event."""
    responder.write(b'data: {"error":{"message":"engine dead","type":"server_error"}}\n\n')
    responder.finish()


def silence(responder: Responder) -> None:
    """Nothing more, ever."""


FAULTS = [reset, early_end, half_an_event, error_inside, silence]


class Speaker:
    """A server of the model "tiny". ``breaks`` are shared by all: after how many tokens the next stream fails, and how.

    With ``steps`` it says a token for each of its permits.
    """

    def __init__(self, breaks: list[tuple[int, Fault]]) -> None:
        self.breaks = breaks
        self.heard: Callable[[], int] = lambda: 0
        """How many tokens the client has."""
        self.asked: list[Json] = []
        self.steps: asyncio.Semaphore | None = None
        self.refuses = False
        self.gone = asyncio.Event()
        self.port = 0
        self._server = Server(self._answer, ServerLimits())

    async def __aenter__(self) -> Speaker:
        _, self.port = await self._server.listen("127.0.0.1", 0, reuse_port=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.drain(0.1)

    async def _answer(self, request: Request, responder: Responder) -> None:
        body: Json = msgspec.json.decode(request.body)
        self.asked.append(body)
        if self.refuses:
            responder.send(400, b"content-type: application/json\r\n", b'{"error":{"message":"no"}}')
            return
        chat = request.path.endswith("/chat/completions")
        said = _beginning(body, chat)
        begun = _tokens_in(said)
        rest = TOKENS[begun:]
        most = body.get("max_tokens", 1000)
        finish = "stop" if most >= len(rest) else "length"
        rest = rest[:most]
        usage = {"prompt_tokens": PROMPT_TOKENS + begun, "completion_tokens": len(rest)}
        usage["total_tokens"] = sum(usage.values())
        names = {
            "id": f"cmpl-{self.port}-{len(self.asked)}",
            "created": self.port,
            "model": f"at {self.port}",
        }
        if not body.get("stream"):
            message = {"role": "assistant", "content": said + "".join(rest)}
            choice = {"index": 0, "message": message, "finish_reason": finish}
            whole = msgspec.json.encode({**names, "choices": [choice], "usage": usage})
            responder.send(200, b"content-type: application/json\r\n", whole)
            return
        fails_after, fault = self.breaks.pop(0) if self.breaks else (len(TOKENS) + 1, None)
        responder.start(200, b"content-type: text/event-stream\r\n")
        if chat:
            _say(responder, names, {"delta": {"role": "assistant", "content": None}})
        responder.on_gone = self.gone.set
        for made, token in enumerate(rest, 1):
            if self.steps is not None:
                await self.steps.acquire()
            timings = {"cache_n": 0, "prompt_n": PROMPT_TOKENS + begun, "predicted_n": made}
            extra = {"timings": timings} if body.get("timings_per_token") else {}
            _say(responder, names, {"delta": {"content": token}} if chat else {"text": token}, extra)
            await asyncio.sleep(0)
            if made == fails_after and fault is not None:
                while self.heard() < begun + made:  # else it fails before the client has anything
                    await asyncio.sleep(0.001)
                fault(responder)
                return
        _say(
            responder,
            names,
            {"delta": {}, "finish_reason": finish} if chat else {"text": "", "finish_reason": finish},
        )
        if body.get("stream_options", {}).get("include_usage"):
            responder.write(b"data: %b\n\n" % msgspec.json.encode({**names, "choices": [], "usage": usage}))
        responder.finish(b"data: [DONE]\n\n")


def _say(responder: Responder, names: Json, choice: Json, extra: Json | None = None) -> None:
    chunk = {**names, "choices": [{"index": 0, "finish_reason": None, **choice}], **(extra or {})}
    responder.write(b"data: %b\n\n" % msgspec.json.encode(chunk))


def _beginning(body: Json, chat: bool) -> str:
    if not chat:
        return str(body["prompt"]).removeprefix("Tell: ")
    last = body["messages"][-1]
    if last["role"] != "assistant" or not body.get("continue_final_message"):
        return ""
    assert body["add_generation_prompt"] is False
    return str(last["content"])


def _tokens_in(said: str) -> int:
    for count in range(len(TOKENS) + 1):
        if "".join(TOKENS[:count]) == said:
            return count
    raise AssertionError(f"it was never said: {said!r}")


class World:
    """A proxy in front of two servers of the same model."""

    def __init__(self, proxy: Proxy, speakers: dict[str, Speaker], breaks: list[tuple[int, Fault]]) -> None:
        self.proxy = proxy
        self.speakers = speakers
        self.breaks = breaks

    async def stream(self, on_token: Callable[[int, str], Any] | None = None, **fields: Any) -> Heard:
        chat = fields.pop("chat", True)
        if chat:
            body: Json = {"messages": [{"role": "user", "content": "Tell"}], **fields}
        else:
            body = {"prompt": "Tell: ", **fields}
        body = {"model": "m", "stream": True, "stream_options": {"include_usage": True}, **body}
        path = "/v1/chat/completions" if chat else "/v1/completions"
        heard = Heard()
        for speaker in self.speakers.values():
            speaker.heard = lambda: len(heard.tokens)
        client = self.proxy.client
        async with client.stream("POST", self.proxy.url + path, json=body, headers=auth("sk-user")) as answer:
            heard.status = answer.status_code
            heard.endpoint = answer.headers.get("x-apportion-endpoint", "")
            heard.id = answer.headers.get("x-apportion-decision-id", "")
            async for line in answer.aiter_lines():
                token = heard.take(line)
                if token and on_token is not None:
                    on_token(len(heard.tokens), heard.endpoint)
        return heard

    async def spent_usd(self) -> float:
        """What the books have taken from the purse of the user."""
        gateway = self.proxy.worker.gateway
        while gateway.running:
            await asyncio.sleep(0.001)
        gateway.settlements.flush()
        await gateway.runtime.ledger.durable()
        found = (await self.proxy.get("/apportion/budgets/purse")).json()
        return sum(float(account["spent"]) for account in found["accounts"])

    async def drain(self, endpoint: str) -> Json:
        url = f"{self.proxy.url}/apportion/endpoints/{endpoint}/drain"
        answer = await self.proxy.client.post(url, headers=auth("sk-boss"))
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def other(self, endpoint: str) -> Speaker:
        return self.speakers["b" if endpoint == "a" else "a"]


class Heard:
    """What a client got."""

    def __init__(self) -> None:
        self.status = 0
        self.endpoint = self.id = ""
        self.events: list[Json] = []
        self.tokens: list[str] = []
        self.remarks: list[Json] = []
        self.ended = False

    def take(self, line: str) -> str:
        if line.startswith(": apportion "):
            self.remarks.append(json.loads(line.removeprefix(": apportion ")))
        if not line.startswith("data: "):
            return ""
        assert not self.ended, "nothing follows the end mark"
        if line == "data: [DONE]":
            self.ended = True
            return ""
        event = json.loads(line.removeprefix("data: "))
        self.events.append(event)
        choice = (event.get("choices") or [{}])[0]
        token = choice.get("text") or choice.get("delta", {}).get("content") or ""
        if token:
            self.tokens.append(token)
        return token

    @property
    def finishes(self) -> list[str]:
        reasons = [
            choice.get("finish_reason") for event in self.events for choice in event.get("choices", ())
        ]
        return [reason for reason in reasons if reason]

    @property
    def usage(self) -> Json:
        return self.events[-1]["usage"]  # type: ignore[no-any-return]

    def is_one_whole_answer(self, text: str = TEXT, finish: str = "stop", *, chat: bool = True) -> None:
        assert "".join(self.tokens) == text
        assert self.ended
        assert self.finishes == [finish]
        assert len({event["id"] for event in self.events}) == 1
        assert len({event["model"] for event in self.events}) == 1
        roles = [c for e in self.events for c in e["choices"] if "role" in c.get("delta", {})]
        assert len(roles) == (1 if chat else 0)
        assert sum("cost_mark" in remark for remark in self.remarks) == 1
        assert self.remarks[-1]["decision_id"] == self.id


@asynccontextmanager
async def world(directory: Path, config: str = CONFIG, **options: str) -> AsyncIterator[World]:
    breaks: list[tuple[int, Fault]] = []
    async with AsyncExitStack() as stack:
        speakers = {name: await stack.enter_async_context(Speaker(breaks)) for name in "ab"}
        text = config
        for name in ("a", "b"):
            text = text.replace(f", OF_{name.upper()}", options.get(f"of_{name}", ""))
            text = text.replace(
                f"base_url: {name.upper()}/", f"base_url: http://127.0.0.1:{speakers[name].port}/"
            )
        proxy = await stack.enter_async_context(inprocess.proxy(directory, text, inprocess.Upstream()))
        yield World(proxy, speakers, breaks)


def cost_usd(*legs: tuple[int, int]) -> float:
    """The price of calls with so many input and output tokens."""
    return sum(tokens_in * 1e-6 + tokens_out * 3e-6 for tokens_in, tokens_out in legs)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "completions"])
async def test_a_broken_stream_goes_on_elsewhere(tmp_path: Path, fault: Fault, chat: bool) -> None:
    gap = ", timeouts: {gap_s: 1s}" if fault is silence else ""
    async with world(tmp_path, of_a=gap, of_b=gap) as here:
        for cut in (1, 5, 9, len(TOKENS) - 1):
            before = await here.spent_usd()
            here.breaks.append((cut, fault))
            heard = await here.stream(chat=chat)
            heard.is_one_whole_answer(chat=chat)
            rest = len(TOKENS) - cut
            assert heard.usage["prompt_tokens"] == PROMPT_TOKENS
            assert heard.usage["completion_tokens"] == len(TOKENS)
            assert heard.usage["total_tokens"] == PROMPT_TOKENS + len(TOKENS)
            paid = cost_usd((PROMPT_TOKENS, cut), (PROMPT_TOKENS + cut, rest))
            assert float(heard.remarks[-1]["cost_usd"]) == pytest.approx(paid)
            assert heard.remarks[-1]["cost_mark"] == "measured"
            assert await here.spent_usd() - before == pytest.approx(paid), "each part is booked, once"
            told = (await here.proxy.get(f"/apportion/decisions/{heard.id}")).json()
            assert [one["failure"] is None for one in told["attempts"]] == [False, True]
            assert told["attempts"][0]["endpoint"] != told["attempts"][1]["endpoint"]
            assert told["outcome"]["status"] == "ok"


async def test_it_may_break_again_and_again(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.breaks += [(2, reset), (3, error_inside), (1, early_end)]
        (await here.stream()).is_one_whole_answer()
        usage = cost_usd((7, 2), (9, 3), (12, 1), (13, len(TOKENS) - 6))
        assert await here.spent_usd() == pytest.approx(usage)


@pytest.mark.parametrize("cut", [3, 10])
async def test_a_cap_holds_for_both_parts_together(tmp_path: Path, cut: int) -> None:
    async with world(tmp_path) as here:
        here.breaks.append((cut, reset))
        heard = await here.stream(max_tokens=11)
        heard.is_one_whole_answer("".join(TOKENS[:11]), "length")
        asked = [body["max_tokens"] for speaker in here.speakers.values() for body in speaker.asked]
        assert sorted(asked) == [11 - cut, 11]


async def test_what_broke_behind_its_last_token_is_whole(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.breaks.append((11, reset))
        heard = await here.stream(max_tokens=11)
        assert "".join(heard.tokens) == "".join(TOKENS[:11])
        assert (heard.finishes, heard.ended) == (["length"], True)
        assert (heard.usage["prompt_tokens"], heard.usage["completion_tokens"]) == (PROMPT_TOKENS, 11)
        assert sum(len(speaker.asked) for speaker in here.speakers.values()) == 1


STAYING: list[Json] = [
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"response_format": {"type": "json_object"}},
    {"logprobs": True},
    {"n": 2},
    {"presence_penalty": 0.5},
    {"messages": [{"role": "user", "content": "Tell"}, {"role": "assistant", "content": "I'll"}]},
]


@pytest.mark.parametrize("fields", STAYING, ids=lambda fields: next(iter(fields)))
async def test_what_text_does_not_tell_is_not_continued(tmp_path: Path, fields: Json) -> None:
    async with world(tmp_path) as here:
        here.breaks.append((4, reset))
        heard = await here.stream(**fields)
        broken_after(heard, 4)
        assert sum(len(speaker.asked) for speaker in here.speakers.values()) == 1


def broken_after(heard: Heard, count: int) -> None:
    """It ended as a broken stream does: with the error, without the end mark."""
    assert "".join(heard.tokens) == "".join(TOKENS[:count])
    assert not heard.ended
    assert heard.events[-1]["error"]["code"] == "stream_broken"


@pytest.mark.parametrize(
    "changed",
    [
        ("resume: true", "resume: false"),
        ("continues: true", "continues: false"),
        ("continues: true, ", ""),
        ("b: {kind: openai, base_url: B/v1, model: tiny", "b: {kind: openai, base_url: B/v1, model: other"),
    ],
    ids=["off", "cannot", "not said", "another model"],
)
@pytest.mark.parametrize("fault", [reset, error_inside], ids=lambda fault: fault.__name__)
async def test_elsewhere_only_as_the_configuration_says(
    tmp_path: Path, changed: tuple[str, str], fault: Fault
) -> None:
    async with world(tmp_path, CONFIG.replace(*changed)) as here:
        here.breaks.append((4, fault))
        heard = await here.stream()
        assert "".join(heard.tokens) == "".join(TOKENS[:4])
        assert not heard.ended
        assert "error" in heard.events[-1]
        told = (await here.proxy.get(f"/apportion/decisions/{heard.id}")).json()
        assert len(told["attempts"]) == 1


async def test_where_nobody_takes_it_the_client_is_told(tmp_path: Path) -> None:
    async with world(tmp_path) as here:

        def refuse(_: int, endpoint: str) -> None:
            here.other(endpoint).refuses = True

        here.breaks.append((4, reset))
        broken_after(await here.stream(refuse), 4)
        assert await here.spent_usd() == pytest.approx(cost_usd((PROMPT_TOKENS, 4)))


async def test_a_drained_endpoint_is_left_without_a_gap_in_the_text(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        for speaker in here.speakers.values():
            speaker.steps = asyncio.Semaphore(0)

        async def drain(endpoint: str) -> None:
            other = here.other(endpoint)
            told = await here.drain(endpoint)
            assert (told["draining"], told["moving"], told["staying"]) == (True, 1, 0)
            while not other.asked:  # it reads first, while the stream goes on
                await asyncio.sleep(0.001)
            while any(job.live is not None and job.live.target is None for job in running()):
                await asyncio.sleep(0.001)
            assert other.asked[0]["max_tokens"] == 1
            assert other.asked[0]["messages"][-1]["content"] == "".join(TOKENS[:4])
            for speaker in here.speakers.values():
                for _ in TOKENS:
                    speaker.steps.release()  # type: ignore[union-attr]

        def running() -> list[Any]:
            return list(here.proxy.worker.gateway.running.values())

        drains: list[asyncio.Task[None]] = []

        def on_token(count: int, endpoint: str) -> None:
            if count == 4:
                drains.append(asyncio.ensure_future(drain(endpoint)))
            elif count < 4:
                here.speakers[endpoint].steps.release()  # type: ignore[union-attr]

        for speaker in here.speakers.values():
            speaker.steps.release()  # type: ignore[union-attr]
        heard = await here.stream(on_token)
        await drains[0]
        heard.is_one_whole_answer()
        left, taken = here.speakers[heard.endpoint], here.other(heard.endpoint)
        assert len(left.asked) == 1
        assert [body.get("stream", False) for body in taken.asked] == [False, True]
        assert taken.asked[1]["messages"][-1]["content"] == "".join(TOKENS[:5]), (
            "it is stopped behind a token"
        )
        await asyncio.wait_for(left.gone.wait(), 30)
        rest = len(TOKENS) - 5
        paid = cost_usd((PROMPT_TOKENS, 5), (PROMPT_TOKENS + 4, 1), (PROMPT_TOKENS + 5, rest))
        assert await here.spent_usd() == pytest.approx(paid), "reading ahead is booked, too"
        told = (await here.proxy.get(f"/apportion/decisions/{heard.id}")).json()
        assert [one["failure"] for one in told["attempts"]] == [None, "moved", None]
        lengths = here.proxy.worker.gateway.settlements.lengths.rows()
        assert [row["answers"] for row in lengths] == [1], "reading and the rest are no answers of their own"
        taken.steps = None
        assert (await here.stream()).endpoint != heard.endpoint, "no new requests"


async def test_white_space_is_no_place_to_leave_at(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        for speaker in here.speakers.values():
            speaker.steps = asyncio.Semaphore(12)  # up to the full stop

        async def drain(endpoint: str) -> None:
            await here.drain(endpoint)
            while not any(job.live is not None and job.live.target is not None for job in running()):
                await asyncio.sleep(0.001)
            for speaker in here.speakers.values():
                for _ in TOKENS:
                    speaker.steps.release()  # type: ignore[union-attr]

        def running() -> list[Any]:
            return list(here.proxy.worker.gateway.running.values())

        drains: list[asyncio.Task[None]] = []

        def on_token(count: int, endpoint: str) -> None:
            if count == 12:
                drains.append(asyncio.ensure_future(drain(endpoint)))

        heard = await here.stream(on_token)
        await drains[0]
        heard.is_one_whole_answer()
        assert here.other(heard.endpoint).asked[1]["messages"][-1]["content"] == "".join(TOKENS[:14])


async def test_a_drained_endpoint_comes_back(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.drain("a")
        assert {(await here.stream()).endpoint for _ in range(4)} == {"b"}
        shown = (await here.proxy.get("/apportion/endpoints")).json()["data"]
        assert [(one["name"], one["draining"]) for one in shown] == [("a", True), ("b", False)]
        await here.drain("b")
        assert (await here.stream()).status == 503
        url = f"{here.proxy.url}/apportion/endpoints/a/drain"
        answer = await here.proxy.client.delete(url, headers=auth("sk-boss"))
        assert answer.json()["draining"] is False
        assert (await here.stream()).endpoint == "a"
        lost = await here.proxy.client.post(url.replace("/a/", "/c/"), headers=auth("sk-boss"))
        assert lost.status_code == 404
        assert (await here.proxy.client.post(url, headers=auth("sk-user"))).status_code == 403


async def test_what_cannot_be_moved_ends_where_it_is(tmp_path: Path) -> None:
    async with world(tmp_path, CONFIG.replace("resume: true", "resume: false")) as here:
        told: list[Json] = []

        async def drain(endpoint: str) -> None:
            told.append(await here.drain(endpoint))
            for _ in TOKENS:
                here.speakers[endpoint].steps.release()  # type: ignore[union-attr]

        drains: list[asyncio.Task[None]] = []

        def on_token(count: int, endpoint: str) -> None:
            if count == 1:
                drains.append(asyncio.ensure_future(drain(endpoint)))

        for speaker in here.speakers.values():
            speaker.steps = asyncio.Semaphore(1)
        heard = await here.stream(on_token)
        await drains[0]
        heard.is_one_whole_answer()
        assert (told[0]["moving"], told[0]["staying"]) == (0, 1)
        assert not here.other(heard.endpoint).asked


async def test_a_removed_endpoint_is_left(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        for speaker in here.speakers.values():
            speaker.steps = asyncio.Semaphore(3)
        worker = here.proxy.worker
        config = worker.gateway.runtime.configured

        def on_token(count: int, endpoint: str) -> None:
            if count == 3:
                stays = {name: one for name, one in config.endpoints.items() if name != endpoint}
                model = config.models["m"]
                targets = [target for target in model.endpoints if target.endpoint != endpoint]
                models = {"m": msgspec.structs.replace(model, endpoints=targets)}
                changed = msgspec.structs.replace(config, endpoints=stays, models=models)
                worker.reload(changed, all_prices(changed), {})
                for speaker in here.speakers.values():
                    for _ in TOKENS:
                        speaker.steps.release()  # type: ignore[union-attr]

        heard = await here.stream(on_token)
        heard.is_one_whole_answer()


async def test_a_client_that_leaves_the_second_part_is_noticed(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        for speaker in here.speakers.values():
            speaker.steps = asyncio.Semaphore(4)
        here.breaks.append((2, reset))

        class Left(Exception):
            pass

        def on_token(count: int, _: str) -> None:
            if count == 4:
                raise Left

        with pytest.raises(Left):
            await here.stream(on_token)
        ran = [
            speaker
            for speaker in here.speakers.values()
            if any("continue_final_message" in b for b in speaker.asked)
        ]
        assert len(ran) == 1
        for _ in TOKENS:
            ran[0].steps.release()  # type: ignore[union-attr]
        await asyncio.wait_for(ran[0].gone.wait(), 30)
        spent = await here.spent_usd()
        assert cost_usd((7, 2), (9, 2)) <= spent <= cost_usd((7, 2), (9, len(TOKENS))) * 3


async def test_the_two_parts_are_cached_as_one_answer(tmp_path: Path) -> None:
    async with world(tmp_path, "cache: {enabled: true}\n" + CONFIG) as here:
        here.breaks.append((6, reset))
        (await here.stream(temperature=0)).is_one_whole_answer()
        asked = sum(len(speaker.asked) for speaker in here.speakers.values())
        again = await here.stream(temperature=0)
        assert "".join(again.tokens) == TEXT
        assert sum(len(speaker.asked) for speaker in here.speakers.values()) == asked
