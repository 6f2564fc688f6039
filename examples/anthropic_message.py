"""The same proxy with the Anthropic SDK, whatever API the endpoint behind it speaks.

    pip install anthropic
    python examples/anthropic_message.py "What is two and two?"

``APPORTION_URL`` says where the proxy is (default http://127.0.0.1:8080), ``APPORTION_MODEL`` which model to
ask (default: the first that the proxy lists).
"""

from __future__ import annotations

import os
import sys

from anthropic import Anthropic

URL = os.environ.get("APPORTION_URL", "http://127.0.0.1:8080")


def main(question: str) -> None:
    """Ask ``question``; show the answer and what it cost."""
    client = Anthropic(base_url=URL, api_key=os.environ.get("APPORTION_API_KEY", "any"))
    model = os.environ.get("APPORTION_MODEL") or client.models.list().data[0].id
    raw = client.messages.with_raw_response.create(
        model=model,
        max_tokens=100,
        messages=[{"role": "user", "content": question}],
        extra_headers={"x-apportion-max-usd": "0.01"},
    )
    message = raw.parse()
    for block in message.content:
        if block.type == "text":
            print(block.text)
    cost, mark = raw.headers.get("x-apportion-cost-usd"), raw.headers["x-apportion-cost-mark"]
    print(f"cost: {'' if cost is None else f'${cost} '}({mark})")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "What is two and two?")
