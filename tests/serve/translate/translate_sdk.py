"""The real SDKs as judges: what they build is translated, what comes back they must accept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pydantic
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

_SCHEMAS: dict[str, pydantic.TypeAdapter[Any]] = {}


def _force(value: Any) -> Any:
    """The SDKs' Iterable fields are validated when iterated."""
    if type(value).__name__ == "ValidatorIterator":
        return [_force(v) for v in value]
    if isinstance(value, dict):
        return {k: _force(v) for k, v in value.items()}
    return value


class Sdk:
    """Sends canned bytes through the real clients."""

    def check_request(self, dialect: str, body: dict[str, Any]) -> None:
        """``body`` as the SDK's own type of a request."""
        if dialect not in _SCHEMAS:
            kind = (
                CompletionCreateParamsNonStreaming if dialect == "chat" else MessageCreateParamsNonStreaming
            )
            _SCHEMAS[dialect] = pydantic.TypeAdapter(kind)
        _force(_SCHEMAS[dialect].validate_python({**body, "stream": False}))

    def openai(self, answer: bytes, pieces: int | None = None) -> openai.OpenAI:
        def handler(request: httpx.Request) -> httpx.Response:
            streaming = json.loads(request.content).get("stream")
            kind = "text/event-stream" if streaming else "application/json"
            content: Any = answer if pieces is None else self._pieces(answer, pieces)
            return httpx.Response(200, content=content, headers={"content-type": kind})

        client = httpx.Client(transport=httpx.MockTransport(handler))
        return openai.OpenAI(
            api_key="x",
            base_url="http://test",
            http_client=client,
            max_retries=0,
            _strict_response_validation=True,
        )

    def anthropic(self, answer: bytes) -> anthropic.Anthropic:
        def handler(request: httpx2.Request) -> httpx2.Response:
            streaming = json.loads(request.content).get("stream")
            kind = "text/event-stream" if streaming else "application/json"
            return httpx2.Response(200, content=answer, headers={"content-type": kind})

        client = httpx2.Client(transport=httpx2.MockTransport(handler))
        return anthropic.Anthropic(
            api_key="x",
            base_url="http://test",
            http_client=client,
            max_retries=0,
            _strict_response_validation=True,
        )

    @staticmethod
    def _pieces(answer: bytes, size: int) -> Iterator[bytes]:
        for start in range(0, len(answer), size):
            yield answer[start : start + size]

    def events(self, answer: bytes) -> list[tuple[bytes | None, bytes]]:
        """The (name, payload) of each server-sent event in ``answer``; comments left out."""
        found = []
        for block in answer.split(b"\n\n"):
            name, data = None, None
            for line in block.split(b"\n"):
                if line.startswith(b"event: "):
                    name = line[7:]
                elif line.startswith(b"data: "):
                    data = line[6:]
            if data is not None:
                found.append((name, data))
        return found

    def run(self, stream: Any, events: list[Any], *, done: bool = True) -> bytes:
        """All that ``stream`` writes for ``events`` (objects or bytes)."""
        out = b""
        for event in events:
            kind = event.get("type") if isinstance(event, dict) else None
            name = kind.encode() if isinstance(kind, str) else None
            out += stream.feed(name, event if isinstance(event, bytes) else json.dumps(event).encode())
        return out + (stream.finish() if done else b"")

    def chat(self, answer: bytes, **options: Any) -> Any:
        """The final completion that openai's own accumulator makes of a chat stream."""
        messages: Any = [{"role": "user", "content": "x"}]
        with self.openai(answer).chat.completions.stream(model="m", messages=messages, **options) as stream:
            for _ in stream:
                pass
            return stream.get_final_completion()

    def message(self, answer: bytes) -> Any:
        """The final message that anthropic's own accumulator makes of a messages stream."""
        messages: Any = [{"role": "user", "content": "x"}]
        with self.anthropic(answer).messages.stream(model="m", max_tokens=9, messages=messages) as stream:
            for _ in stream:
                pass
            return stream.get_final_message()

    def response(self, answer: bytes) -> Any:
        """The final response that openai's own accumulator makes of a responses stream."""
        with self.openai(answer).responses.stream(model="m", input="x") as stream:
            for _ in stream:
                pass
            return stream.get_final_response()
