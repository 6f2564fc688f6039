"""The same bill in the words of every provider: where each says its usage, whole and streamed.

Written from the providers' documents and from recorded answers, not from the proxy's code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from . import shapes

Json = dict[str, Any]


@dataclass(frozen=True)
class Prices:
    """Dollars per million tokens, as a provider's price list says them."""

    input: float
    output: float
    cached: float
    write_5m: float
    write_1h: float

    def config(self) -> Json:
        """The same as a table of the configuration."""
        return {
            "input_usd_per_mtok": self.input,
            "output_usd_per_mtok": self.output,
            "cached_input_usd_per_mtok": self.cached,
            "cache_write_usd_per_mtok": self.write_5m,
            "cache_write_1h_usd_per_mtok": self.write_1h,
        }


@dataclass(frozen=True)
class Bill:
    """What the provider charges for: each token once, under the one heading it belongs to."""

    fresh: int = 0
    """Input neither read from a cache nor written to one."""
    cached: int = 0
    write_5m: int = 0
    write_1h: int = 0
    said: int = 0
    """Output that the client gets to see."""
    thought: int = 0
    """Reasoning, billed as output."""
    rejected: int = 0
    """Predicted by the client and not kept: billed as output."""

    @property
    def input(self) -> int:
        return self.fresh + self.cached + self.write_5m + self.write_1h

    @property
    def output(self) -> int:
        return self.said + self.thought + self.rejected

    def units(self, prices: Prices) -> int:
        """The amount of the invoice in pico-dollars."""
        lines = (
            (self.fresh, prices.input),
            (self.cached, prices.cached),
            (self.write_5m, prices.write_5m),
            (self.write_1h, prices.write_1h),
            (self.output, prices.output),
        )
        return int(sum(tokens * Decimal(str(price)) * 10**6 for tokens, price in lines))


Chunks = list[Json]
Place = Callable[[Chunks, Json], Chunks]
"""Puts a usage object into the chunks of a chat stream (all but ``[DONE]``, without any usage)."""


@dataclass(frozen=True)
class Provider:
    """One way to say what an answer used."""

    name: str
    apis: tuple[str, ...]
    bill: Bill
    usage: Callable[[Bill], Json]
    place: Place | None = None
    whole: Callable[[Json, Json], Json] = lambda body, usage: {**body, "usage": usage}
    """The unstreamed body, from the body without usage and the usage."""


# ------------------------------------------------------------------------------------------ usage objects


def plain(b: Bill) -> Json:
    return {"prompt_tokens": b.input, "completion_tokens": b.output, "total_tokens": b.input + b.output}


def openai(b: Bill) -> Json:
    prompt = {"cached_tokens": b.cached, "audio_tokens": 0}
    if b.write_5m:
        prompt["cache_write_tokens"] = b.write_5m
    completion = {
        "reasoning_tokens": b.thought,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 2 if b.rejected else 0,
        "rejected_prediction_tokens": b.rejected,
    }
    return {**plain(b), "prompt_tokens_details": prompt, "completion_tokens_details": completion}


def openrouter(b: Bill) -> Json:
    return {**openai(b), "cost": 0.00123, "is_byok": False, "cost_details": {"upstream_inference_cost": None}}


def vllm(b: Bill) -> Json:
    details = {"cached_tokens": b.cached} if b.cached else None
    return {**plain(b), "prompt_tokens_details": details}


def deepseek(b: Bill) -> Json:
    return {
        **plain(b),
        "prompt_cache_hit_tokens": b.cached,
        "prompt_cache_miss_tokens": b.fresh,
        "completion_tokens_details": {"reasoning_tokens": b.thought},
    }


def groq(b: Bill) -> Json:
    times = {"queue_time": 0.01, "prompt_time": 0.001, "completion_time": 0.02, "total_time": 0.021}
    return {**plain(b), **times, "prompt_tokens_details": {"cached_tokens": b.cached}}


def gemini(b: Bill) -> Json:
    """Google's OpenAI-compatible endpoint: thoughts are only in the total."""
    out = b.output - b.thought
    return {"prompt_tokens": b.input, "completion_tokens": out, "total_tokens": b.input + b.output}


def xai(b: Bill) -> Json:
    """Reasoning is in the details and in the total, not in the completion."""
    return {
        **gemini(b),
        "prompt_tokens_details": {"text_tokens": b.input, "cached_tokens": b.cached, "image_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": b.thought, "rejected_prediction_tokens": 0},
        "num_sources_used": 0,
        "cost_in_usd_ticks": 12345,
    }


def anthropic(b: Bill) -> Json:
    return {
        "input_tokens": b.fresh,
        "cache_creation_input_tokens": b.write_5m + b.write_1h,
        "cache_read_input_tokens": b.cached,
        "cache_creation": {
            "ephemeral_5m_input_tokens": b.write_5m,
            "ephemeral_1h_input_tokens": b.write_1h,
        },
        "output_tokens": b.output,
        "service_tier": "standard",
        "server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 0},
        **({"output_tokens_details": {"thinking_tokens": b.thought}} if b.thought else {}),
    }


def responses(b: Bill) -> Json:
    return {
        "input_tokens": b.input,
        "input_tokens_details": {"cached_tokens": b.cached},
        "output_tokens": b.output,
        "output_tokens_details": {"reasoning_tokens": b.thought},
        "total_tokens": b.input + b.output,
    }


def embeddings(b: Bill) -> Json:
    return {"prompt_tokens": b.input, "total_tokens": b.input}


# --------------------------------------------------------------------------------------- places in streams


def extra_chunk(chunks: Chunks, usage: Json) -> Chunks:
    """OpenAI with ``include_usage``: null everywhere, then a chunk without choices."""
    return [{**c, "usage": None} for c in chunks] + [{**chunks[0], "choices": [], "usage": usage}]


def azure(chunks: Chunks, usage: Json) -> Chunks:
    """Azure: content filter results first, in a chunk that is otherwise empty."""
    first = {"id": "", "object": "", "created": 0, "model": "", "choices": []}
    filtered = [{"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False}}}]
    return [{**first, "prompt_filter_results": filtered}, *extra_chunk(chunks, usage)]


def with_choice(chunks: Chunks, usage: Json) -> Chunks:
    """OpenRouter: in a last chunk that also has a choice, with an empty delta and the finish reason again."""
    finish = chunks[-1]["choices"][0].get("finish_reason")
    empty = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": finish}
    return [*chunks, {**chunks[-1], "choices": [empty], "usage": usage}]


def on_finish(chunks: Chunks, usage: Json) -> Chunks:
    """Mistral, DeepSeek, Together: in the chunk with the finish reason."""
    return [*chunks[:-1], {**chunks[-1], "usage": usage}]


def in_x_groq(chunks: Chunks, usage: Json) -> Chunks:
    first = {**chunks[0], "x_groq": {"id": "req_1"}}
    return [first, *chunks[1:-1], {**chunks[-1], "x_groq": {"id": "req_1", "usage": usage}}]


def growing(chunks: Chunks, usage: Json) -> Chunks:
    """vLLM's ``continuous_usage_stats``, Gemini, xAI: so far, in every chunk."""
    out = usage["completion_tokens"]
    rest = usage["total_tokens"] - out
    told = []
    for i, chunk in enumerate(chunks):
        so_far = out if i == len(chunks) - 1 else min(i, out)
        told.append({**chunk, "usage": {**usage, "completion_tokens": so_far, "total_tokens": rest + so_far}})
    return told


def twice(chunks: Chunks, usage: Json) -> Chunks:
    """On the finish chunk, again in a chunk of its own, and that one sent twice."""
    return [*extra_chunk(on_finish(chunks, usage), usage), {**chunks[0], "choices": [], "usage": usage}]


def only_timings(chunks: Chunks, usage: Json) -> Chunks:
    """llama.cpp's own field, beside no usage."""
    return [*chunks[:-1], {**chunks[-1], "timings": timings(usage)}]


def timings(usage: Json) -> Json:
    cached = ((usage.get("prompt_tokens_details") or {}).get("cached_tokens")) or 0
    return {
        "cache_n": cached,
        "prompt_n": usage["prompt_tokens"] - cached,
        "prompt_ms": 12.5,
        "predicted_n": usage["completion_tokens"],
        "predicted_per_second": 71.3,
    }


def usage_and_timings(chunks: Chunks, usage: Json) -> Chunks:
    return extra_chunk(only_timings(chunks, usage), usage)


FULL = Bill(fresh=311, cached=512, write_5m=256, said=61, thought=36)
CACHED = Bill(fresh=311, cached=512, said=97)
PROVIDERS = [
    Provider("openai", ("chat",), FULL, openai, extra_chunk),
    Provider("openai-predictions", ("chat",), replace(CACHED, rejected=29), openai, extra_chunk),
    Provider("openai-completions", ("completions",), CACHED, openai, extra_chunk),
    Provider("openai-embeddings", ("embeddings",), Bill(fresh=823), embeddings),
    Provider("openai-responses", ("responses",), Bill(fresh=311, cached=512, said=61, thought=36), responses),
    Provider("azure", ("chat",), FULL, openai, azure),
    Provider("openrouter", ("chat",), FULL, openrouter, with_choice),
    Provider("vllm", ("chat",), CACHED, vllm, extra_chunk),
    Provider("vllm-continuous", ("chat", "completions"), CACHED, vllm, growing),
    Provider("vllm-embeddings", ("embeddings",), Bill(fresh=823), plain),
    Provider("llama.cpp", ("chat",), CACHED, vllm, usage_and_timings),
    Provider(
        "llama.cpp-timings",
        ("chat", "completions"),
        CACHED,
        vllm,
        only_timings,
        whole=lambda body, usage: {**body, "timings": timings(usage)},
    ),
    Provider("ollama", ("chat", "completions"), Bill(fresh=311, said=97), plain, extra_chunk),
    Provider("mistral", ("chat",), Bill(fresh=311, said=97), plain, on_finish),
    Provider("deepseek", ("chat",), replace(CACHED, thought=36), deepseek, on_finish),
    Provider(
        "groq",
        ("chat",),
        CACHED,
        groq,
        in_x_groq,
        whole=lambda b, u: {**b, "usage": u, "x_groq": {"id": "r"}},
    ),
    Provider("gemini", ("chat",), Bill(fresh=311, said=61, thought=36), gemini, growing),
    Provider("xai", ("chat",), replace(CACHED, thought=36), xai, growing),
    Provider("duplicates", ("chat",), FULL, openai, twice),
    Provider(
        "anthropic",
        ("messages",),
        Bill(fresh=311, cached=512, write_5m=256, write_1h=128, said=61, thought=36),
        anthropic,
    ),
    Provider("anthropic-server-tools", ("messages",), replace(FULL, cached=4096), anthropic),
    Provider("anthropic-plain", ("messages",), Bill(fresh=311, said=97), anthropic),
]
BY_NAME = {provider.name: provider for provider in PROVIDERS}


# ----------------------------------------------------------------------------------------------- an answer


def server_tools(events: list[shapes.Event], bill: Bill) -> list[shapes.Event]:
    """Anthropic with tools that it runs itself: the start knows only the first prompt, the end all that was read."""
    small = {**anthropic(replace(bill, fresh=10, cached=0, write_5m=bill.write_5m // 4)), "output_tokens": 1}
    out: list[shapes.Event] = []
    for name, data in _anthropic_events(events, bill):
        event = json.loads(data)
        if name == "message_start":
            event["message"]["usage"] = small
        out.append((name, json.dumps(event)))
    return out


def told(reply: shapes.Reply, api: str, provider: Provider) -> shapes.Reply:
    """``reply``, whose shape says no usage, with the provider's bill in it."""
    usage = provider.usage(provider.bill)
    body = provider.whole({k: v for k, v in reply.body.items() if k != "usage"}, usage)
    if api in ("chat", "completions") and provider.place is not None:
        marks = [e for e in reply.events if e[1] == "[DONE]"]
        chunks = [json.loads(data) for _, data in reply.events if data != "[DONE]"]
        events = [(None, json.dumps(c)) for c in provider.place(chunks, usage)]
        shift = len(events) - len(chunks) if provider.place is azure else 0
        content = {i + (1 if shift else 0) for i in reply.content}
        return replace(reply, body=body, events=[*events, *marks], content=content)
    if api == "messages":
        place = server_tools if provider.name == "anthropic-server-tools" else _anthropic_events
        return replace(reply, body=body, events=place(reply.events, provider.bill))
    if api == "responses":
        return replace(reply, body=body, events=[_response_event(e, usage) for e in reply.events])
    return replace(reply, body=body)


def _anthropic_events(events: list[shapes.Event], bill: Bill) -> list[shapes.Event]:
    """The input at the start with a first output token; all of it, cumulative, at the end."""
    usage = anthropic(bill)
    early = {**usage, "output_tokens": 1}
    last = {k: v for k, v in usage.items() if k not in ("cache_creation", "service_tier")}
    out: list[shapes.Event] = []
    for name, data in events:
        event = json.loads(data)
        if name == "message_start":
            event["message"]["usage"] = early
        elif name == "message_delta":
            half = {**event, "delta": {"stop_reason": None}, "usage": {"output_tokens": bill.output // 2}}
            out.append((name, json.dumps(half)))
            event["usage"] = last
        out.append((name, json.dumps(event)))
    return out


def _response_event(event: shapes.Event, usage: Json) -> shapes.Event:
    name, data = event
    if name not in ("response.completed", "response.incomplete"):
        return event
    whole = json.loads(data)
    whole["response"]["usage"] = usage
    return name, json.dumps(whole)
