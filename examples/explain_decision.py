"""Why a request went where it went: asks a short and a long question and prints both decisions.

Standard library only:

    python examples/explain_decision.py

``APPORTION_URL`` says where the proxy is (default http://127.0.0.1:8080), ``APPORTION_MODEL`` which model to
ask (default: the first that the proxy lists).
"""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any

URL = os.environ.get("APPORTION_URL", "http://127.0.0.1:8080")


def call(path: str, body: object = None) -> tuple[Any, Any]:
    """The answer of the proxy, decoded, and its headers."""
    headers = {
        "content-type": "application/json",
        "authorization": f"Bearer {os.environ.get('APPORTION_API_KEY', 'any')}",
    }
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(URL + path, data, headers)) as response:
        return json.load(response), response.headers


def main() -> None:
    """Ask for at most 20 and at most 800 output tokens, and print how each was decided."""
    model = os.environ.get("APPORTION_MODEL") or call("/v1/models")[0]["data"][0]["id"]
    for max_tokens in (20, 800):
        question = {"role": "user", "content": "What is two and two?"}
        _, headers = call(
            "/v1/chat/completions", {"model": model, "messages": [question], "max_tokens": max_tokens}
        )
        decision, _ = call(f"/apportion/decisions/{headers['x-apportion-decision-id']}")
        print(f"At most {max_tokens} output tokens. {decision['explanation']}")


if __name__ == "__main__":
    main()
