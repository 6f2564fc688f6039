"""The main path with the real embedded model: a child process runs it, clients talk to it, and it is stopped.

The weights are those of `make up`; they are fetched once into the user's own store and checked by hash.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import anthropic
import openai
import pytest

from .conftest import KEYS
from .dialects import CHAT, COMPLETIONS, DIALECTS, MESSAGES, own_error
from .proxy import SECRETS, Gateway
from .wire import Wire

pytestmark = pytest.mark.slow
START_S = 300.0
"""The first start fetches about 90 MB and loads them."""
ENDLESS = {"max_tokens": 4000, "ignore_eos": True}
"""An answer that the model itself does not end: it takes seconds on the fastest machine."""
PATIENCE_S = 120.0
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    pytest.importorskip("xllamacpp", reason="the extra `local` is not installed")
    config = {
        "listen": {"drain_s": 5},
        "keys": [k for k in KEYS if k["name"] != "bob"],
        "endpoints": {
            "local": {
                "kind": "local",
                "weights": "smollm2-135m-instruct",
                "slots": 2,
                "context_tokens": 4096,
                "threads": 1,
            }
        },
        "models": {"smollm": {"endpoints": ["local"]}},
    }
    kept = {k: v for k, v in os.environ.items() if k in ("HOME", "APPORTION_HOME", "XDG_CACHE_HOME")}
    running = Gateway(tmp_path_factory.mktemp("local"), config, env=kept)
    running.start(START_S)
    yield running
    running.stop()


def client(gateway: Gateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=SECRETS["KEY_ALICE"], max_retries=0)


def test_an_answer_that_makes_sense(gateway: Gateway) -> None:
    with client(gateway) as c:
        raw = c.chat.completions.with_raw_response.create(
            model="smollm",
            messages=QUESTION,
            max_tokens=40,
            temperature=0,
            seed=1,  # type: ignore[arg-type]
        )
    answer = raw.parse()
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.model
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 10
    assert 1 < answer.usage.completion_tokens <= 40
    assert raw.headers["x-apportion-endpoint"] == "local"
    assert raw.headers["x-apportion-cost-mark"] in ("measured", "estimated")


def test_stream_is_the_same_answer(gateway: Gateway) -> None:
    """Token by token, with the usage of the engine itself."""
    ask = {"model": "smollm", "messages": QUESTION, "max_tokens": 30, "temperature": 0, "seed": 1}
    with client(gateway) as c:
        whole = c.chat.completions.create(**ask)  # type: ignore[call-overload]
        chunks = list(
            c.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
        )
    texts = [x.choices[0].delta.content for x in chunks if x.choices and x.choices[0].delta.content]
    assert "".join(texts) == whole.choices[0].message.content
    assert len(texts) > 3
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_anthropic_client(gateway: Gateway) -> None:
    with anthropic.Anthropic(base_url=gateway.url, api_key=SECRETS["KEY_ALICE"], max_retries=0) as c:
        answer = c.messages.create(
            model="smollm", max_tokens=30, messages=QUESTION, extra_body={"temperature": 0}
        )  # type: ignore[arg-type]
        assert "Paris" in answer.content[0].text  # type: ignore[union-attr]
        with c.messages.stream(model="smollm", max_tokens=10, messages=QUESTION) as stream:  # type: ignore[arg-type]
            assert "".join(stream.text_stream)
            assert stream.get_final_message().usage.output_tokens <= 10
        assert c.messages.count_tokens(model="smollm", messages=QUESTION).input_tokens > 5  # type: ignore[arg-type]


async def test_more_requests_than_slots(gateway: Gateway) -> None:
    """They wait their turn; each is answered, whatever API it came by."""
    bodies = [
        (d, d.request("smollm", f"Count to {i}.", max_tokens=8, stream=bool(i % 2)))
        for i in range(3)
        for d in (CHAT, MESSAGES, COMPLETIONS)
    ]
    answers = await asyncio.gather(*(gateway.post(d, b) for d, b in bodies))
    assert [a.status for a in answers] == [200] * 9
    assert all(a.complete for a in answers)


async def test_deadline_cuts_a_real_answer(gateway: Gateway) -> None:
    """What there is by then. A slow machine has nothing yet and says so; it is given twice the time."""
    deadline_s = 0.25
    while True:
        body = CHAT.request("smollm", "Tell a story.", **ENDLESS, apportion={"deadline_s": deadline_s})
        response = await gateway.post(CHAT, body)
        if response.status == 200:
            break
        own_error(CHAT, response, 504, "deadline_exceeded")
        deadline_s *= 2
        assert deadline_s < PATIENCE_S
    assert CHAT.text(response.json)
    assert CHAT.finish(response.json) == "length"
    assert response.json["usage"]["completion_tokens"] < ENDLESS["max_tokens"]
    assert response.header("x-apportion-deadline") == "exceeded"


async def test_a_client_that_leaves_frees_the_slot(gateway: Gateway) -> None:
    """Each of them asks for so much that the answers to all would take minutes."""
    for _ in range(4):
        wire = await Wire.open(gateway.port)
        await wire.send(
            gateway.bytes_of(CHAT, CHAT.request("smollm", "Tell a story.", **ENDLESS, stream=True))
        )
        response = await wire.head()
        assert response.status == 200
        wire.abort()
        decision = response.header("x-apportion-decision-id")

        async def cancelled(decision: str | None = decision) -> bool:
            found = (await gateway.get(f"/apportion/decisions/{decision}")).json
            return bool(found["outcome"]["status"] == "cancelled")

        async with asyncio.timeout(PATIENCE_S):
            while not await cancelled():
                await asyncio.sleep(0.02)
    body = CHAT.request("smollm", "Hi", max_tokens=4)
    response = await asyncio.wait_for(gateway.post(CHAT, body), PATIENCE_S)
    assert response.status == 200


async def test_bad_requests_do_not_hurt_the_engine(gateway: Gateway) -> None:
    for body in (
        CHAT.request("smollm", "x" * 50_000, max_tokens=5),
        CHAT.request("smollm", "x", max_tokens=5, temperature=-5),
        CHAT.request("smollm", "x", max_tokens=5, response_format={"type": "nonsense"}),
        {**CHAT.request("smollm", "x"), "messages": []},
    ):
        response = await gateway.post(CHAT, body)
        assert response.status in (200, 400, 413, 422), response.body
    embeddings = DIALECTS["embeddings"]
    refused = await gateway.post(embeddings, embeddings.request("smollm", "x"))
    assert 400 <= refused.status < 502
    response = await gateway.post(CHAT, CHAT.request("smollm", "Hi", max_tokens=4))
    assert response.status == 200


async def test_the_engine_is_restarted_after_a_crash(gateway: Gateway) -> None:
    """While it comes back clients get an honest 502 or 503; then it answers again."""
    engine = [p for p in gateway.processes() if is_engine(p)]
    assert len(engine) == 1, "one engine, whatever the number of workers"
    os.kill(engine[0], signal.SIGKILL)
    statuses = []
    for _ in range(1200):
        response = await gateway.post(CHAT, CHAT.request("smollm", "Hi", max_tokens=4))
        statuses.append(response.status)
        if response.status == 200 and engine[0] not in gateway.processes():
            break
        await asyncio.sleep(0.1)
    assert statuses[-1] == 200, statuses[-10:]
    assert set(statuses) <= {200, 502, 503}


def is_engine(pid: int) -> bool:
    """The process that runs the native library."""
    try:
        return "xllamacpp" in Path(f"/proc/{pid}/maps").read_text()
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return False
