"""A streamed answer through the proxy with the OpenAI SDK, and a limit on what it may cost.

    pip install openai
    python examples/openai_stream.py "What is two and two?"

``APPORTION_URL`` says where the proxy is (default http://127.0.0.1:8080), ``APPORTION_MODEL`` which model to
ask (default: the first that the proxy lists).
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI

URL = os.environ.get("APPORTION_URL", "http://127.0.0.1:8080")


def main(question: str) -> None:
    """Ask ``question`` and show the answer as it comes."""
    client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("APPORTION_API_KEY", "any"))
    model = os.environ.get("APPORTION_MODEL") or client.models.list().data[0].id
    raw = client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=100,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"apportion": {"max_usd": 0.01, "deadline_s": 30}},
    )
    print(f"[{raw.headers['x-apportion-endpoint']}] ", end="")
    for chunk in raw.parse():
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        elif chunk.usage is not None:
            print(f"\n{chunk.usage.completion_tokens} output tokens")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "What is two and two?")
