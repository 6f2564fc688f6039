"""The real clients, unmodified: `openai`, `anthropic`, `litellm`, `curl`, against both kinds of upstream."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import openai
import pydantic
import pytest

from .proxy import SECRETS, Gateway
from .shapes import SIGNATURE
from .upstream import Upstream, new_marker

WHOLE = "w0 w1 w2 w3 w4 w5 w6 w7"
KINDS = pytest.mark.parametrize("kind", ["openai", "anthropic"])
RESPONDERS = pytest.mark.parametrize("name", ["openai-one", "openai-chatonly", "anthropic-one"])
"""The Responses API straight through, and translated for endpoints that do not have it."""
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
ARGUMENTS = {"city": "Paris", "days": 3}
OPENAI_TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "Ask", "parameters": PARAMETERS}}
]
ANTHROPIC_TOOLS: Any = [{"name": "weather", "description": "Ask", "input_schema": PARAMETERS}]


class Trip(pydantic.BaseModel):
    city: str
    days: int


def say(marker: str) -> Any:
    return [{"role": "user", "content": marker}]


class TestOpenAI:
    @pytest.fixture(params=["/v1", ""], ids=["with v1", "without v1"])
    def client(self, gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
        with openai.OpenAI(
            base_url=gateway.url + request.param, api_key=SECRETS["KEY_ALICE"], max_retries=0
        ) as client:
            yield client

    @pytest.fixture
    async def aclient(self, gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
        async with openai.AsyncOpenAI(
            base_url=f"{gateway.url}/v1", api_key=SECRETS["KEY_ALICE"], max_retries=0
        ) as client:
            yield client

    @KINDS
    def test_chat(self, client: openai.OpenAI, upstream: Upstream, kind: str) -> None:
        marker = new_marker()
        raw = client.chat.completions.with_raw_response.create(model=f"{kind}-one", messages=say(marker))
        answer = raw.parse()
        assert answer.choices[0].message.content == WHOLE
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        seen = upstream.of(marker)[0]
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
            seen.tokens_in,
            seen.tokens_out,
        )
        assert raw.request_id == raw.headers["x-request-id"]

    @KINDS
    def test_stream(self, client: openai.OpenAI, kind: str) -> None:
        stream = client.chat.completions.create(
            model=f"{kind}-one", messages=say("x"), stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == WHOLE
        assert [c.usage is not None for c in chunks].count(True) == 1
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 8

    @KINDS
    def test_stream_helper(self, client: openai.OpenAI, kind: str) -> None:
        with client.chat.completions.stream(model=f"{kind}-one", messages=say("x")) as stream:
            text = "".join(e.delta for e in stream if e.type == "content.delta")
            final = stream.get_final_completion()
        assert text == final.choices[0].message.content == WHOLE

    @KINDS
    async def test_async(self, aclient: openai.AsyncOpenAI, kind: str) -> None:
        async def plain() -> str | None:
            answer = await aclient.chat.completions.create(model=f"{kind}-one", messages=say("x"))
            return answer.choices[0].message.content

        async def streamed() -> str:
            stream = await aclient.chat.completions.create(
                model=f"{kind}-one", messages=say("x"), stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

        assert (
            await asyncio.gather(*(plain() for _ in range(5)), *(streamed() for _ in range(5)))
            == [WHOLE] * 10
        )

    @KINDS
    @pytest.mark.parametrize("stream", [False, True])
    def test_tools_there_and_back(
        self, client: openai.OpenAI, upstream: Upstream, kind: str, stream: bool
    ) -> None:
        """Offered, called (in pieces when streamed), answered, and the history understood by the upstream."""
        marker = new_marker()
        messages = [{"role": "system", "content": "be brief"}, *say(marker)]
        if stream:
            with client.chat.completions.stream(
                model=f"{kind}-one", messages=messages, tools=OPENAI_TOOLS
            ) as s:
                choice: Any = s.get_final_completion().choices[0]
        else:
            choice = client.chat.completions.create(
                model=f"{kind}-one", messages=messages, tools=OPENAI_TOOLS
            ).choices[0]
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        assert call.function.name == "weather"
        assert json.loads(call.function.arguments) == ARGUMENTS
        assert call.id
        history = [
            *messages,
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": "weather", "arguments": call.function.arguments},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ]
        answer = client.chat.completions.create(model=f"{kind}-one", messages=history, tools=OPENAI_TOOLS)
        assert answer.choices[0].message.content == WHOLE
        sent = upstream.of(marker)[-1].json
        if kind == "anthropic":
            assert sent["tools"] == ANTHROPIC_TOOLS
            assert "be brief" in json.dumps(sent["system"])
            roles = [m["role"] for m in sent["messages"]]
            assert roles == ["user", "assistant", "user"]
            used = next(b for b in sent["messages"][1]["content"] if b["type"] == "tool_use")
            result = next(b for b in sent["messages"][2]["content"] if b["type"] == "tool_result")
            assert used["input"] == ARGUMENTS
            assert used["id"] == result["tool_use_id"] == call.id
            assert "sunny" in json.dumps(result["content"])
        else:
            assert sent["messages"] == history

    @pytest.mark.parametrize("choice", ["auto", "none", "required", "weather"])
    def test_tool_choice_is_translated(self, client: openai.OpenAI, upstream: Upstream, choice: str) -> None:
        marker = new_marker()
        given: Any = choice
        if choice == "weather":
            given = {"type": "function", "function": {"name": "weather"}}
        client.chat.completions.create(
            model="anthropic-one",
            messages=say(marker),
            tools=OPENAI_TOOLS,
            tool_choice=given,
            parallel_tool_calls=False,
        )
        sent = upstream.of(marker)[0].json
        kind = {"auto": "auto", "none": "none", "required": "any", "weather": "tool"}[choice]
        if choice == "none" and "tools" not in sent:
            return
        assert sent["tool_choice"]["type"] == kind
        if choice == "weather":
            assert sent["tool_choice"]["name"] == "weather"
        if choice != "none":
            assert sent["tool_choice"]["disable_parallel_tool_use"] is True

    def test_images_are_translated(self, client: openai.OpenAI, upstream: Upstream) -> None:
        marker = new_marker()
        pixel = "iVBORw0KGgo="
        content = [
            {"type": "text", "text": marker},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{pixel}"}},
            {"type": "image_url", "image_url": {"url": "https://pictures.test/cat.png"}},
        ]
        messages: Any = [{"role": "user", "content": content}]
        for kind in ("openai", "anthropic"):
            client.chat.completions.create(model=f"{kind}-one", messages=messages)
        straight, translated = (s.json["messages"][0]["content"] for s in upstream.of(marker))
        assert straight == content
        sources = [b["source"] for b in translated if b["type"] == "image"]
        assert sources == [
            {"type": "base64", "media_type": "image/png", "data": pixel},
            {"type": "url", "url": "https://pictures.test/cat.png"},
        ]

    def test_fields_are_translated(self, client: openai.OpenAI, upstream: Upstream) -> None:
        marker = new_marker()
        client.chat.completions.create(
            model="anthropic-one",
            messages=say(marker),
            max_completion_tokens=77,
            temperature=0.5,
            top_p=0.9,
            stop=["END", "STOP"],
        )
        sent = upstream.of(marker)[0].json
        assert sent["max_tokens"] == 77
        assert (sent["temperature"], sent["top_p"]) == (0.5, 0.9)
        assert sent["stop_sequences"] == ["END", "STOP"]
        assert "stop" not in sent
        assert "max_completion_tokens" not in sent

    @KINDS
    def test_structured_output(self, client: openai.OpenAI, upstream: Upstream, kind: str) -> None:
        """`parse` on both kinds: straight through, and in whatever way Anthropic is made to obey a schema."""
        marker = new_marker()
        answer = client.chat.completions.parse(
            model=f"{kind}-one", messages=say(marker), response_format=Trip
        )
        assert answer.choices[0].message.parsed == Trip(city="Paris", days=3)

    def test_logprobs_and_reasoning_survive(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(
            model="openai-one", messages=say("x"), logprobs=True, top_logprobs=1, reasoning_effort="low"
        )
        choice: Any = answer.choices[0]
        assert len(choice.logprobs.content) == 8
        assert choice.message.reasoning_content == "let me see"
        assert answer.usage is not None
        assert answer.usage.completion_tokens_details is not None
        assert answer.usage.completion_tokens_details.reasoning_tokens == 3
        chunks = list(
            client.chat.completions.create(
                model="openai-one", messages=say("x"), logprobs=True, reasoning_effort="low", stream=True
            )
        )
        deltas: list[Any] = [c.choices[0] for c in chunks if c.choices]
        assert sum(len(d.logprobs.content) for d in deltas if d.logprobs) == 8
        assert "".join(getattr(d.delta, "reasoning_content", None) or "" for d in deltas) == "let me see"

    @RESPONDERS
    def test_responses(self, client: openai.OpenAI, name: str) -> None:
        answer = client.responses.create(model=name, input="x", instructions="be brief")
        assert answer.output_text == WHOLE
        assert answer.status == "completed"
        assert answer.usage is not None
        assert answer.usage.output_tokens == 8
        events = list(client.responses.create(model=name, input="x", stream=True))
        kinds = [e.type for e in events]
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert [e.sequence_number for e in events] == sorted(e.sequence_number for e in events)
        with client.responses.stream(model=name, input="x") as stream:
            for _ in stream:
                pass
            assert stream.get_final_response().output_text == WHOLE

    @RESPONDERS
    def test_responses_tools_there_and_back(self, client: openai.OpenAI, name: str) -> None:
        tools: Any = [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}]
        answer = client.responses.create(model=name, input="x", tools=tools)
        call: Any = next(item for item in answer.output if item.type == "function_call")
        assert json.loads(call.arguments) == ARGUMENTS
        with client.responses.stream(model=name, input="x", tools=tools) as stream:
            for _ in stream:
                pass
            streamed: Any = stream.get_final_response().output
        same = next(item for item in streamed if item.type == "function_call")
        assert (same.name, json.loads(same.arguments)) == ("weather", ARGUMENTS)
        history: Any = [
            {"role": "user", "content": "x"},
            {
                "type": "function_call",
                "call_id": call.call_id,
                "name": "weather",
                "arguments": call.arguments,
            },
            {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
        ]
        final = client.responses.create(model=name, input=history, tools=tools)
        assert final.output_text == WHOLE

    @RESPONDERS
    def test_responses_parse(self, client: openai.OpenAI, name: str) -> None:
        parsed = client.responses.parse(model=name, input="x", text_format=Trip)
        assert parsed.output_parsed == Trip(city="Paris", days=3)

    def test_what_an_endpoint_cannot_do_is_said(self, client: openai.OpenAI) -> None:
        for name in ("anthropic-one", "openai-chatonly"):
            with pytest.raises(openai.BadRequestError) as refused:
                client.embeddings.create(model=name, input="x")
            assert refused.value.code == "unsupported_by_endpoint"

    def test_embeddings(self, client: openai.OpenAI) -> None:
        """The client asks for base64 by itself and must get it."""
        answer = client.embeddings.create(model="openai-one", input=["a", "b"])
        assert [d.embedding for d in answer.data] == [[0.5, -0.5, 0.25, 1.0]] * 2
        plain = client.embeddings.create(model="openai-one", input="a", encoding_format="float")
        assert plain.data[0].embedding == [0.5, -0.5, 0.25, 1.0]

    def test_completions(self, client: openai.OpenAI) -> None:
        assert client.completions.create(model="openai-one", prompt="x").choices[0].text == WHOLE
        stream = client.completions.create(model="openai-one", prompt="x", stream=True)
        assert "".join(c.choices[0].text for c in stream if c.choices) == WHOLE

    def test_models(self, client: openai.OpenAI) -> None:
        listed = client.models.list().data
        assert "openai-one" in [m.id for m in listed]
        assert client.models.retrieve("openai-one").id == "openai-one"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("no-such-model")

    def test_errors_are_the_sdks_own(
        self, client: openai.OpenAI, gateway: Gateway, upstream: Upstream
    ) -> None:
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="none", messages=say("x"))
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.AuthenticationError) as stranger:
            client.with_options(api_key="wrong").models.list()
        assert stranger.value.code == "invalid_api_key"
        with pytest.raises(openai.BadRequestError) as bad:
            client.chat.completions.create(model="openai-one", messages=say("x"), max_tokens=-1)
        assert bad.value.param == "max_tokens"
        marker = upstream.script(new_marker(), fault="status_429_retry_after", on="all")
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="openai-one", messages=say(marker))

    def test_a_hopeless_request_is_not_multiplied(self, gateway: Gateway, upstream: Upstream) -> None:
        """The SDK retries twice by default; `x-should-retry: false` stops it after our own attempts."""
        marker = upstream.script(new_marker(), fault="reset_before_head", on="all")
        with (
            openai.OpenAI(base_url=gateway.url, api_key=SECRETS["KEY_ALICE"]) as client,
            pytest.raises(openai.InternalServerError),
        ):
            client.chat.completions.create(model="openai-retry", messages=say(marker))
        assert len(upstream.of(marker)) in (3, 4)

    @KINDS
    def test_a_broken_stream_raises(self, client: openai.OpenAI, upstream: Upstream, kind: str) -> None:
        marker = upstream.script(new_marker(), fault="reset_mid", on="all")
        words = ""
        with pytest.raises(openai.APIError):  # noqa: PT012
            for chunk in client.chat.completions.create(
                model=f"{kind}-one", messages=say(marker), stream=True
            ):
                words += chunk.choices[0].delta.content or ""
        assert words.startswith("w0")

    def test_constraints_by_extra_body(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(
            model="openai-one",
            messages=say("x"),
            extra_body={"apportion": {"max_usd": 0.25, "tags": ["a"]}},
        )
        assert answer.choices[0].message.content
        with pytest.raises(openai.UnprocessableEntityError):
            client.chat.completions.create(
                model="openai-one", messages=say("x"), extra_headers={"x-apportion-max-usd": "0.0000001"}
            )


class TestAnthropic:
    @pytest.fixture(params=["api_key", "auth_token"])
    def client(self, gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[anthropic.Anthropic]:
        """Both ways of the SDK to send a key; the base URL has no `/v1`, as `ANTHROPIC_BASE_URL` has none."""
        kind = {"api_key": None, "auth_token": None, request.param: SECRETS["KEY_ALICE"]}
        with anthropic.Anthropic(base_url=gateway.url, max_retries=0, **kind) as client:
            yield client

    @KINDS
    def test_messages(self, client: anthropic.Anthropic, upstream: Upstream, kind: str) -> None:
        marker = new_marker()
        answer = client.messages.create(
            model=f"{kind}-one", max_tokens=100, messages=say(marker), system="be brief"
        )
        assert answer.content[0].type == "text"
        assert answer.content[0].text == WHOLE
        assert answer.stop_reason == "end_turn"
        assert answer.role == "assistant"
        seen = upstream.of(marker)[0]
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (seen.tokens_in, seen.tokens_out)
        assert answer._request_id
        assert "be brief" in seen.body.decode()

    @KINDS
    def test_stream(self, client: anthropic.Anthropic, kind: str) -> None:
        with client.messages.stream(model=f"{kind}-one", max_tokens=100, messages=say("x")) as stream:
            assert "".join(stream.text_stream) == WHOLE
            final = stream.get_final_message()
        assert final.stop_reason == "end_turn"
        assert final.usage.output_tokens == 8
        assert final.usage.input_tokens > 0

    @KINDS
    def test_event_order(self, client: anthropic.Anthropic, kind: str) -> None:
        events = list(
            client.messages.create(model=f"{kind}-one", max_tokens=9, messages=say("x"), stream=True)
        )
        kinds = [e.type for e in events]
        assert kinds[0] == "message_start"
        assert kinds[1] == "content_block_start"
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert set(kinds[2:-3]) == {"content_block_delta"}

    @KINDS
    @pytest.mark.parametrize("stream", [False, True])
    def test_tools_there_and_back(
        self, client: anthropic.Anthropic, upstream: Upstream, kind: str, stream: bool
    ) -> None:
        marker = new_marker()
        ask: Any = {
            "model": f"{kind}-one",
            "max_tokens": 100,
            "messages": say(marker),
            "tools": ANTHROPIC_TOOLS,
        }
        if stream:
            with client.messages.stream(**ask) as s:
                answer = s.get_final_message()
        else:
            answer = client.messages.create(**ask)
        assert answer.stop_reason == "tool_use"
        used = next(b for b in answer.content if b.type == "tool_use")
        assert used.name == "weather"
        assert used.input == ARGUMENTS
        history: Any = [
            *say(marker),
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": used.id, "name": "weather", "input": used.input}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": used.id, "content": "sunny"}],
            },
        ]
        final = client.messages.create(**{**ask, "messages": history})
        assert final.stop_reason == "end_turn"
        sent = upstream.of(marker)[-1].json
        if kind == "openai":
            roles = [m["role"] for m in sent["messages"]]
            assert roles == ["user", "assistant", "tool"]
            call = sent["messages"][1]["tool_calls"][0]
            assert json.loads(call["function"]["arguments"]) == ARGUMENTS
            assert call["id"] == sent["messages"][2]["tool_call_id"] == used.id
            assert "sunny" in json.dumps(sent["messages"][2]["content"])
            assert sent["tools"][0]["function"]["parameters"] == PARAMETERS
        else:
            assert sent["messages"] == history
            assert sent["tools"] == ANTHROPIC_TOOLS

    def test_thinking_and_cache_control_pass_byte_for_byte(
        self, client: anthropic.Anthropic, upstream: Upstream
    ) -> None:
        """Signatures of thinking blocks are checked by the provider: not one character may change."""
        marker = new_marker()
        content = [{"type": "text", "text": marker, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
        ask: Any = {
            "model": "anthropic-one",
            "max_tokens": 2000,
            "messages": [{"role": "user", "content": content}],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
        }
        plain = client.messages.create(**ask)
        with client.messages.stream(**ask) as stream:
            streamed = stream.get_final_message()
        for answer in (plain, streamed):
            block = answer.content[0]
            assert block.type == "thinking"
            assert block.signature == SIGNATURE
            assert block.thinking == "let me see"
        assert upstream.of(marker)[0].json["messages"][0]["content"] == content

    @KINDS
    def test_count_tokens(self, client: anthropic.Anthropic, upstream: Upstream, kind: str) -> None:
        """Asked of an Anthropic upstream; counted by the proxy where the upstream cannot (never a 404)."""
        marker = new_marker()
        counted = client.messages.count_tokens(model=f"{kind}-one", messages=say(f"{marker} one two three"))
        assert counted.input_tokens > 3
        assert len(upstream.of(marker)) == (1 if kind == "anthropic" else 0)

    def test_errors_are_the_sdks_own(self, client: anthropic.Anthropic, upstream: Upstream) -> None:
        with pytest.raises(anthropic.NotFoundError) as missing:
            client.messages.create(model="none", max_tokens=5, messages=say("x"))
        assert missing.value.type == "not_found_error"
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(model="openai-one", max_tokens=-5, messages=say("x"))
        marker = upstream.script(new_marker(), fault="status_429", on="all")
        for kind in ("openai", "anthropic"):
            with pytest.raises(anthropic.RateLimitError) as limited:
                client.messages.create(model=f"{kind}-one", max_tokens=5, messages=say(marker))
            assert limited.value.type == "rate_limit_error"

    @KINDS
    def test_a_broken_stream_raises(self, client: anthropic.Anthropic, upstream: Upstream, kind: str) -> None:
        marker = upstream.script(new_marker(), fault="reset_mid", on="all")
        with (
            pytest.raises(anthropic.APIError),
            client.messages.stream(model=f"{kind}-one", max_tokens=100, messages=say(marker)) as stream,
        ):
            "".join(stream.text_stream)

    def test_models(self, client: anthropic.Anthropic) -> None:
        assert "openai-one" in [m.id for m in client.models.list()]

    async def test_async(self, gateway: Gateway) -> None:
        async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=SECRETS["KEY_ALICE"]) as client:
            answer = await client.messages.create(model="openai-one", max_tokens=10, messages=say("x"))
            assert answer.stop_reason == "end_turn"
            async with client.messages.stream(model="openai-one", max_tokens=10, messages=say("x")) as stream:
                assert "".join([t async for t in stream.text_stream]) == WHOLE


LITELLM = """
import asyncio, json, sys
import litellm
litellm.suppress_debug_info = True
url, key = sys.argv[1:]
say = [{"role": "user", "content": "x"}]
found = {}
for name, model, base in [
    ("openai", "openai/openai-one", url + "/v1"),
    ("cross", "openai/anthropic-one", url + "/v1"),
    ("anthropic", "anthropic/anthropic-one", url),
    ("anthropic cross", "anthropic/openai-one", url),
]:
    args = {"model": model, "api_base": base, "api_key": key, "messages": say, "max_tokens": 50}
    plain = litellm.completion(**args)
    stream = litellm.completion(**args, stream=True, stream_options={"include_usage": True})
    text, usage = "", None
    for chunk in stream:
        usage = getattr(chunk, "usage", None) or usage
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
    said, spent = plain.choices[0].message.content, plain.usage.completion_tokens
    found[name] = [said, spent, text, usage.completion_tokens]
async def later():
    answer = await litellm.acompletion(
        model="openai/openai-one", api_base=url + "/v1", api_key=key, messages=say
    )
    return answer.choices[0].message.content
found["async"] = asyncio.run(later())
vectors = litellm.embedding(model="openai/openai-one", api_base=url + "/v1", api_key=key, input=["a"])
found["embedding"] = len(vectors.data)
try:
    litellm.completion(model="openai/none", api_base=url + "/v1", api_key=key, messages=say, num_retries=0)
except litellm.NotFoundError:
    found["error"] = "NotFoundError"
print(json.dumps(found))
"""


@pytest.mark.slow
def test_litellm_as_a_client(gateway: Gateway) -> None:
    """In a process of its own: importing it takes seconds and changes global state."""
    run = subprocess.run(
        [sys.executable, "-c", LITELLM, gateway.url, SECRETS["KEY_ALICE"]],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    for name in ("openai", "cross", "anthropic", "anthropic cross"):
        assert found[name] == [WHOLE, 8, WHOLE, 8], name
    assert found["async"] == WHOLE
    assert found["embedding"] == 1
    assert found["error"] == "NotFoundError"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
class TestCurl:
    def curl(self, gateway: Gateway, *args: str, path: str = "/v1/chat/completions") -> str:
        run = subprocess.run(
            ["curl", "-sS", "-N", "--max-time", "20", "--noproxy", "*", f"{gateway.url}{path}", *args],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    def headers(self) -> list[str]:
        return ["-H", f"Authorization: Bearer {SECRETS['KEY_ALICE']}", "-H", "Content-Type: application/json"]

    def test_plain(self, gateway: Gateway) -> None:
        body = json.dumps({"model": "openai-one", "messages": say("x")})
        answer = json.loads(self.curl(gateway, *self.headers(), "-d", body))
        assert answer["choices"][0]["message"]["content"] == WHOLE

    def test_stream(self, gateway: Gateway) -> None:
        body = json.dumps({"model": "anthropic-one", "messages": say("x"), "stream": True})
        out = self.curl(gateway, *self.headers(), "-d", body)
        assert out.startswith("data: ")
        assert out.endswith("data: [DONE]\n\n")

    def test_http_1_0(self, gateway: Gateway) -> None:
        body = json.dumps({"model": "openai-one", "messages": say("x"), "stream": True})
        assert self.curl(gateway, *self.headers(), "--http1.0", "-d", body).endswith("data: [DONE]\n\n")

    def test_large_body_with_expect(self, gateway: Gateway) -> None:
        """curl sends `Expect: 100-continue` by itself with bodies over a megabyte."""
        body = json.dumps({"model": "openai-one", "messages": say("x"), "padding": "x" * 2**21})
        run = subprocess.run(
            ["curl", "-sS", "--max-time", "20", "--noproxy", "*", f"{gateway.url}/v1/chat/completions"]  # noqa: RUF005
            + [*self.headers(), "-H", "Expect: 100-continue", "--data-binary", "@-"],
            input=body,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert json.loads(run.stdout)["choices"][0]["message"]["content"] == WHOLE

    def test_without_a_content_type(self, gateway: Gateway) -> None:
        """`curl -d` says form-urlencoded unless told otherwise: what is JSON is taken as JSON."""
        body = json.dumps({"model": "openai-one", "messages": say("x")})
        answer = json.loads(self.curl(gateway, *self.headers()[:2], "-d", body))
        assert answer["choices"][0]["message"]["content"] == WHOLE

    def test_head(self, gateway: Gateway) -> None:
        assert self.curl(gateway, "-I", path="/health/live").startswith("HTTP/1.1 200")
