"""An endpoint of the OpenAI kind that streams as many words as it is asked for, 20 ms apart, and counts tokens."""

from __future__ import annotations

import asyncio
import sys

import msgspec
import uvloop

from apportion.serve.http.server import Request, Responder, Server, ServerLimits

GAP_S = 0.02
MOST = 20


async def answer(request: Request, responder: Responder) -> None:
    """One answer of at most `MOST` pieces."""
    if not request.body:
        responder.send(200, b"content-type: application/json\r\n", b'{"object": "list", "data": []}')
        return
    body = msgspec.json.decode(request.body)
    responder.start(200, b"content-type: text/event-stream\r\n")
    for _ in range(min(body["max_tokens"], MOST)):
        await asyncio.sleep(GAP_S)
        responder.write(b'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n')
    words = sum(len(message["content"].split()) for message in body["messages"])
    usage = {
        "prompt_tokens": words,
        "completion_tokens": body["max_tokens"],
        "total_tokens": words + body["max_tokens"],
    }
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}], "usage": usage}
    responder.write(b"data: " + msgspec.json.encode(end) + b"\n\ndata: [DONE]\n\n")
    responder.finish()


async def main() -> None:
    server = Server(answer, ServerLimits())
    await server.listen("127.0.0.1", int(sys.argv[1]), reuse_port=False)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
