"""What one answer used, in tokens, whatever shape the provider reported it in."""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct, gc=False):
    """Token counts of one answer. Conventions are OpenAI's: the parts are inside the totals.

    ``input_tokens`` includes cached and cache-writing tokens; ``output_tokens`` includes reasoning and
    rejected prediction tokens. ``estimated`` says that the proxy counted, not the provider.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    """Written to a cache kept five minutes (Anthropic's default)."""
    cache_write_1h_tokens: int = 0
    """Written to a cache kept one hour."""
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    estimated: bool = False
