"""Whether an endpoint can answer a request at all: what it lacks, how long its context is, where it stands.

Hard filters, not prices: an option that cannot do the work, or may not see the data, is not offered.
"""

from __future__ import annotations

from typing import Final

from apportion.serve.job import Job
from apportion.serve.runtime import Route

_IMAGES: Final = (b'"image_url"', b'"input_image"', b'"image"')


def unfit(job: Job, route: Route) -> str | None:
    """Why ``route`` cannot answer the request of ``job``, in a few words; None if it can."""
    call, endpoint = job.call, route.endpoint
    tags = endpoint.tags
    required = job.runtime.access(job.key).require
    if not required <= tags:
        return f"it has no tag {_listed(required - tags)}, which the key demands"
    asked = call.constraints.require
    if asked and not tags.issuperset(asked):
        return f"it has no tag {_listed(frozenset(asked) - tags)}"
    config = endpoint.config
    lacks = config.lacks
    if lacks:
        if "tools" in lacks and (call.has_tools or "functions" in call.fields):
            return "it has no tools"
        if "images" in lacks and any(mark in call.request.body for mark in _IMAGES):
            return "it reads no images"
        if "json_schema" in lacks and _wants_schema(job):
            return "it follows no JSON schema"
    longest = config.context_tokens
    if longest is not None:
        tokens = route.rates.quick_input_tokens(call.body_bytes)
        if tokens > longest:
            return f"about {tokens} tokens of input do not fit into its {longest}"
    return None


def _wants_schema(job: Job) -> bool:
    fields = job.call.fields
    return any(
        b'"json_schema"' in bytes(fields[name]) for name in ("response_format", "text") if name in fields
    )


def _listed(tags: frozenset[str]) -> str:
    return ", ".join(repr(tag) for tag in sorted(tags))
