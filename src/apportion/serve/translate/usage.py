"""Token counts written the way each dialect's clients read them; the reverse of reading in ``serve.wire``."""

from __future__ import annotations

from apportion.measure.usage import Usage
from apportion.serve.translate.common import JSON


def chat_usage(usage: Usage) -> JSON:
    """``usage`` of a chat completion (``CompletionUsage``): cached and reasoning tokens inside the totals."""
    prompt: JSON = {"cached_tokens": usage.cached_input_tokens, "audio_tokens": usage.audio_input_tokens}
    written = usage.cache_write_tokens + usage.cache_write_1h_tokens
    if written:
        prompt["cache_write_tokens"] = written
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": prompt,
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": usage.audio_output_tokens,
        },
    }


def messages_usage(usage: Usage) -> JSON:
    """``usage`` of an Anthropic message: ``input_tokens`` leaves out cache reads and writes."""
    written = usage.cache_write_tokens + usage.cache_write_1h_tokens
    out: JSON = {
        "input_tokens": max(usage.input_tokens - usage.cached_input_tokens - written, 0),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "output_tokens": usage.output_tokens,
    }
    if written:
        out["cache_creation"] = {
            "ephemeral_5m_input_tokens": usage.cache_write_tokens,
            "ephemeral_1h_input_tokens": usage.cache_write_1h_tokens,
        }
    if usage.reasoning_tokens:
        out["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return out


def responses_usage(usage: Usage) -> JSON:
    """``usage`` of a response (``ResponseUsage``)."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens + usage.cache_write_1h_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
