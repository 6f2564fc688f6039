"""What one answer used, in tokens, whatever shape the provider reported it in."""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct, gc=False):
    """Token counts of one answer. Conventions are OpenAI's: the parts are inside the totals.

    ``input_tokens`` includes cached and cache-writing tokens, images, audio and what server-side tools read;
    ``output_tokens`` includes reasoning and rejected prediction tokens. ``estimated`` says that the proxy counted,
    not the provider.
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
    image_input_tokens: int = 0
    image_output_tokens: int = 0
    web_searches: int = 0
    """Searches that the provider ran and bills by the call."""
    file_searches: int = 0
    """Searches of stored files, likewise."""
    service: str = ""
    """The class of service it was served with, in the provider's word ("priority", "flex", "fast"); "" is the usual."""
    billed_units: int | None = None
    """Pico-dollars that the provider says it charged for the answer; None where it says nothing."""
