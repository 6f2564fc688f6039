"""What is sent and what is answered: one chat completion of 600 bytes each way, and one chunk of a stream."""

from __future__ import annotations

import json

MODEL = "bench-model"
API_KEY = "sk-bench-0123456789abcdef0123456789abcdef"
BODY_BYTES = 600
CHUNK_BYTES = 200
TOKENS_PER_S = 50

_SYSTEM = "You are a careful assistant. Answer in one short paragraph, name your assumptions, and give units."
_QUESTION = (
    "A pump moves 12 litres of water each second from a well 30 metres deep into a tank on the surface. "
    "The pump is driven by a motor whose efficiency is 82 percent. How much electrical power does the motor "
    "draw, and what does a day of pumping cost at 0.24 dollars for a kilowatt-hour? "
)
_ANSWER = (
    "Lifting 12 kg of water a second by 30 m takes 12 x 9.81 x 30 = 3.53 kW; at 82 percent efficiency the "
    "motor draws 4.31 kW. A day is 103 kWh, or 24.8 dollars. "
)


def request_body() -> bytes:
    """A chat completion request of exactly BODY_BYTES bytes."""

    def build(padding: str) -> bytes:
        return _compact(
            {
                "model": MODEL,
                "messages": [
                    {"role": "system", "content": _SYSTEM},
                    {"role": "user", "content": _QUESTION + padding},
                ],
                "max_tokens": 128,
                "temperature": 0.2,
            }
        )

    return build("." * (BODY_BYTES - len(build(""))))


def answer_body() -> bytes:
    """A chat completion, usage included, of exactly BODY_BYTES bytes."""

    def build(padding: str) -> bytes:
        return _compact(
            {
                "id": "chatcmpl-0123456789abcdef",
                "object": "chat.completion",
                "created": 1767225600,
                "model": MODEL,
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": _ANSWER + padding},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": 113, "completion_tokens": 74, "total_tokens": 187},
                "system_fingerprint": None,
            }
        )

    return build("." * (BODY_BYTES - len(build(""))))


def stream_body(tokens: int) -> bytes:
    """A request for a stream of so many chunks."""
    return _compact(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": _QUESTION}],
            "max_tokens": tokens,
            "stream": True,
        }
    )


def chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    """One event of a chat completion stream as its server sends it."""
    return _event(
        {
            "id": "chatcmpl-0123456789abcdef",
            "object": "chat.completion.chunk",
            "created": 1767225600,
            "model": MODEL,
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
        }
    )


def usage_chunk(prompt_tokens: int, completion_tokens: int) -> bytes:
    """The event after the last choice that reports the usage."""
    return _event(
        {
            "id": "chatcmpl-0123456789abcdef",
            "object": "chat.completion.chunk",
            "created": 1767225600,
            "model": MODEL,
            "choices": [],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }
    )


def http_request(body: bytes, port: int) -> bytes:
    """The whole HTTP/1.1 request for a chat completion."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: Bearer {API_KEY}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _event(value: object) -> bytes:
    return b"data: " + _compact(value) + b"\n\n"


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
