"""The small model: SmolLM2-135M on this machine, asked the way the proxy asks it; what it said is kept on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx

from apportion.serve.local.engine import LocalEngine

MODEL = "smollm2-135m-instruct"
_MOST_TOKENS = 12

Message = dict[str, str]


class Said(NamedTuple):
    """An answer, its tokens, and the milliseconds of those that were computed (not found in the prompt cache)."""

    text: str
    tokens_in: int
    tokens_out: int
    computed: int
    prompt_ms: float
    output_ms: float


class Small:
    """Asks the model, once for each prompt; ``folder`` is where answers are kept. The engine starts when needed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{MODEL}.jsonl"
        self._kept: dict[str, Said] = {}
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                digest, *said = json.loads(line)
                self._kept[digest] = Said(*said)
        self._engine: LocalEngine | None = None
        self._client: httpx.AsyncClient | None = None
        self.asked = 0
        """Prompts that were new."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.aclose()
        if self._engine is not None:
            await self._engine.stop()

    async def say(self, messages: list[Message]) -> Said:
        """What the model answers, at temperature 0."""
        digest = hashlib.blake2b(json.dumps(messages).encode(), digest_size=16).hexdigest()
        found = self._kept.get(digest)
        if found is None:
            found = self._kept[digest] = await self._ask(messages)
            with self._path.open("a") as file:
                file.write(json.dumps([digest, *found]) + "\n")
        return found

    def rates(self) -> tuple[float, float, int]:
        """Prompt and output tokens a second over all that was kept, and how many answers that were."""
        said = [one for one in self._kept.values() if one.prompt_ms > 0.0]
        prompts = sum(one.computed for one in said) / sum(one.prompt_ms for one in said) * 1000.0
        outputs = sum(one.tokens_out for one in said) / sum(one.output_ms for one in said) * 1000.0
        return prompts, outputs, len(said)

    async def _ask(self, messages: list[Message]) -> Said:
        self.asked += 1
        if self._client is None:
            self._engine = LocalEngine(MODEL, slots=1, context_tokens=2048)
            await self._engine.start()
            self._client = httpx.AsyncClient(
                base_url=self._engine.address or "",
                headers={"authorization": f"Bearer {self._engine.api_key}"},
                timeout=120.0,
            )
        body = {"messages": messages, "temperature": 0, "max_tokens": _MOST_TOKENS}
        reply = await self._client.post("/v1/chat/completions", json=body)
        reply.raise_for_status()
        answer: dict[str, Any] = reply.json()
        usage, times = answer["usage"], answer["timings"]
        return Said(
            answer["choices"][0]["message"]["content"],
            usage["prompt_tokens"],
            usage["completion_tokens"],
            times["prompt_n"],
            times["prompt_ms"],
            times["predicted_ms"],
        )


def right(said: str, intent: str) -> bool:
    """Whether an answer names the intent: spelled so, whatever its case, spaces and full stop."""
    return " ".join(said.split()).casefold().rstrip(".") == intent.casefold()
