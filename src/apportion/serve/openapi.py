"""The OpenAPI document of the proxy."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec


def document() -> dict[str, Any]:
    return {"openapi": "3.1.0", "info": {"title": "apportion", "version": "0"}, "paths": {}}


@cache
def document_bytes() -> bytes:
    """The document, encoded."""
    return msgspec.json.encode(document())
