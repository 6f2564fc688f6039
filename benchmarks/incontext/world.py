"""One stream through the proxy's own parts: examples, options, router; the small model's answers are real."""

from __future__ import annotations

import hashlib
import math
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from apportion.core import Cost, Option, Policy, State, catalogue
from apportion.core.predictor import LatencyPredictor
from apportion.serve.cache.incontext import Chosen, Examples
from apportion.serve.showing import MARK, shown_messages
from benchmarks.incontext.data import ERROR, SYSTEM, WARM, Stream
from benchmarks.incontext.fleet import Ended, Fleet, Hardware, arrivals
from benchmarks.incontext.small import Said, Small, right

LEARNING = 75
"""Requests at the beginning of a stream that are not counted: all of their answers are graded."""
GRADED = 0.25
"""Share of the answers that are graded afterwards."""
K = 3
TENANT = "bank"
NO_EXAMPLES = 0.0
"""What the configuration says of the small model alone; it is nearly always wrong without examples."""
_CAPACITY_BYTES = 32 * 2**20

Mode = Literal["large", "small", "ours"]


class Setting(NamedTuple):
    """What is chosen by cross-validation. A right answer is worth a dollar."""

    large_usd: float
    curiosity: float
    second_usd: float = 0.05


class Result(NamedTuple):
    """Of each request after the first `LEARNING`: whether the small model answered it, whether the answer was right,
    and its latency; ``sent`` is who was asked and the tokens of prompt and answer."""

    small: Any
    right: Any
    latency_s: Any
    sent: list[tuple[str, int, int]]

    @property
    def offload(self) -> float:
        """Share that the small model answered."""
        return float(self.small.mean())

    @property
    def quality(self) -> float:
        """Share of right answers."""
        return float(self.right.mean())


class World:
    """A stream on ``hardware`` with Poisson arrivals of ``rate`` a second.

    "large": the large model answers everything on all of the hardware; "small": the small one does, with the nearest
    examples, and nothing is learned; "ours": the router decides.
    """

    def __init__(
        self, stream: Stream, small: Small, setting: Setting, mode: Mode, hardware: Hardware, rate: float
    ) -> None:
        self.stream, self.small, self.setting, self.mode = stream, small, setting, mode
        alone = mode == "large"
        n_large, n_small = (hardware.alone, 0) if alone else (hardware.n_large, hardware.n_small)
        self.fleet = Fleet(hardware, n_large, n_small)
        self.examples = Examples(_CAPACITY_BYTES, curiosity=setting.curiosity)
        self.router = cast(Policy, catalogue.build("route/priced"))
        self.latency = cast(LatencyPredictor, catalogue.build("latency/load"))
        n = len(stream.texts) - WARM
        self.arrived_s = arrivals(n, rate, seed=7)
        self.ended_s = np.zeros(n)
        self.was_small = np.zeros(n, bool)
        self.was_right = np.zeros(n, bool)
        self._chosen: dict[int, Chosen] = {}
        self._sent: dict[int, tuple[str, float, int, int]] = {}
        self._all_sent: dict[int, tuple[str, int, int]] = {}
        for index in range(WARM):
            self._teach(index, index - WARM)
            if mode != "small" and _drawn(stream.texts[index], GRADED):
                self.examples.judged(f"dec_{index}", self._large_right(index))

    async def run(self) -> Result:
        """All requests, one after the other in virtual time."""
        for place, now in enumerate(self.arrived_s):
            for ended in self.fleet.until(now):
                self._ended(ended)
            await self._answer(place, float(now))
        for ended in self.fleet.until(math.inf):
            self._ended(ended)
        latency = self.ended_s - self.arrived_s
        sent = [self._all_sent[place] for place in range(LEARNING, len(latency))]
        return Result(self.was_small[LEARNING:], self.was_right[LEARNING:], latency[LEARNING:], sent)

    async def _answer(self, place: int, now: float) -> None:
        index = WARM + place
        chosen = self.examples.choose(TENANT, self.stream.vectors[index], K, now)
        if self.mode == "small" or (self.mode == "ours" and self._routed(index, chosen, now)):
            said = await self.say(index, chosen)
            self.was_small[place], self._chosen[place] = True, chosen
            self.was_right[place] = right(said.text, self.stream.right[index])
            self._send("small", place, now, said.tokens_in, said.tokens_out)
        else:
            self.was_right[place] = bool(self._large_right(index))
            self._send("large", place, now, *self._tokens(index))

    def _routed(self, index: int, chosen: Chosen, now: float) -> bool:
        """Whether the small model with examples is to answer: three options, as the proxy offers them."""
        if not chosen.ids:
            return False
        tokens_in, tokens_out = self._tokens(index)
        more = sum(len(question) + len(answer) for question, answer in chosen.pairs) // 4
        usd = self.setting.large_usd
        options = [
            self._option("small", NO_EXAMPLES, usd / 10.0, tokens_in, tokens_out),
            self._option("large", 1.0 - ERROR, usd, tokens_in, tokens_out),
            self._option(
                "small" + MARK,
                min(1.0, NO_EXAMPLES + max(0.0, chosen.utility)),
                usd / 10.0 * (1.0 + more / tokens_in),
                tokens_in + more,
                tokens_out,
            ),
        ]
        prices = {"usd": 1.0, "seconds": self.setting.second_usd}
        decision = self.router.decide(State(now, options, str(index), {}, prices))
        return decision.action == "small" + MARK

    def _option(self, action: str, quality: float, usd: float, tokens_in: int, tokens_out: int) -> Option:
        model = action.removesuffix(MARK)
        load = self.fleet.load(model)
        told = self.latency.predict(model, load, tokens_in, tokens_out)
        seconds = 0.0 if told is None else told[1].mean
        return Option(action, quality, Cost(usd=usd, seconds=seconds), load=load, quality=quality)

    async def say(self, index: int, chosen: Chosen) -> Said:
        """The small model's answer with these examples."""
        question = {"role": "user", "content": self.stream.texts[index]}
        return await self.small.say(shown_messages([{"role": "system", "content": SYSTEM}, question], chosen))

    def _send(self, model: str, place: int, now: float, tokens_in: int, tokens_out: int) -> None:
        self._sent[place] = (model, self.fleet.load(model), tokens_in, tokens_out)
        self._all_sent[place] = (model, tokens_in, tokens_out)
        self.fleet.submit(model, now, place, tokens_in, tokens_out)

    def _ended(self, ended: Ended) -> None:
        place = ended.request
        index, took_s = WARM + place, ended.at_s - self.arrived_s[place]
        self.ended_s[place] = ended.at_s
        model, load, tokens_in, tokens_out = self._sent.pop(place)
        self.latency.learn(model, load, tokens_in, tokens_out, first_token_s=None, total_s=took_s)
        if model == "large":
            self._teach(index, ended.at_s)
        graded = place < LEARNING or _drawn(self.stream.texts[index], GRADED)
        if self.mode == "small" or not graded:
            return
        if model == "small":
            self.examples.learn(self._chosen[place], float(self.was_right[place]), NO_EXAMPLES)
        else:
            self.examples.judged(f"dec_{index}", self._large_right(index))

    def _teach(self, index: int, now: float) -> None:
        stream = self.stream
        self.examples.add(
            TENANT,
            stream.texts[index],
            stream.vectors[index],
            stream.large[index],
            quality=1.0 - ERROR,
            usd=self.setting.large_usd,
            now=now,
            decision_id=f"dec_{index}",
        )

    def _large_right(self, index: int) -> float:
        return float(self.stream.large[index] == self.stream.right[index])

    def _tokens(self, index: int) -> tuple[int, int]:
        """Of the bare question and the large model's answer, at four characters a token and what a template adds."""
        said = len(SYSTEM) + len(self.stream.texts[index])
        return 20 + said // 4, 1 + math.ceil(len(self.stream.large[index]) / 4)


def _drawn(text: str, share: float) -> bool:
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=b"graded").digest()
    return int.from_bytes(digest) / 2.0**64 < share
