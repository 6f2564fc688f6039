"""All that is measured: settings chosen on one stream and reported on the other, against what stands beside it."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from apportion.serve.showing import NONE
from benchmarks.incontext import data, fleet
from benchmarks.incontext.data import Stream
from benchmarks.incontext.fleet import Hardware, timed
from benchmarks.incontext.small import Small, right
from benchmarks.incontext.world import GRADED, LEARNING, K, Result, Setting, World

SETTINGS = tuple(Setting(large_usd, curiosity=1.0) for large_usd in (0.01, 0.05, 0.1))
WITHIN = 0.01
"""A setting may lose so much of the large model's quality on the stream it is chosen on."""
LOAD = 0.7
"""Of what the hardware can answer with the large model alone."""
LARGER = 12.6
"""A model of 1.7 billion parameters against one of 135 million."""
ALONE = 10
"""Requests that the small model is asked without examples."""
DRAWS = 20


async def measured(small: Small) -> dict[str, Any] | None:
    """Everything, as JSON has it; None without data."""
    found_streams = [data.stream(name) for name in data.LENGTHS]
    streams = {stream.name: stream for stream in found_streams if stream is not None}
    if len(streams) < len(data.LENGTHS):
        return None
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "warm": data.WARM,
        "learning": LEARNING,
        "graded": GRADED,
        "error": data.ERROR,
        "k": K,
        "load": LOAD,
        "streams": [],
    }
    gpus = fleet.gpus()
    larges, runs = {}, {}
    for name, stream in streams.items():
        larges[name], rate = await _alone(stream, small, gpus)
        runs[name] = [await World(stream, small, setting, "ours", gpus, rate).run() for setting in SETTINGS]
        shown = await World(stream, small, SETTINGS[0], "small", gpus, rate).run()
        bare = await _bare(stream, small, gpus)
        found["streams"].append(_stream(stream, larges[name], shown) | {"bare": bare})
        print(f"{name}: done, {small.asked} new answers", flush=True)
    prompt, output, n = small.rates()
    found["rates"] = {"prompt_tokens_per_s": prompt, "output_tokens_per_s": output, "answers": n}
    kinds = (gpus, fleet.cores(prompt, output, LARGER))
    found["hardware"] = [hardware.name for hardware in kinds]
    for told, other in zip(found["streams"], reversed(list(streams)), strict=True):
        name = told["name"]
        chosen = _chosen(larges[other], runs[other])
        told["settings"] = [
            _row(ours, larges[name])
            | {
                "large_usd": setting.large_usd,
                "chosen": place == chosen,
                "speeds": [_speeds(hardware, larges[name], ours) for hardware in kinds],
            }
            for place, (setting, ours) in enumerate(zip(SETTINGS, runs[name], strict=True))
        ]
    return found


def _chosen(large: Result, runs: Sequence[Result]) -> int:
    """The place of the setting with the most offload of those that lose no more than `WITHIN`; else of the one that
    loses least."""
    lost = [large.quality - ours.quality for ours in runs]
    rated = [
        (less <= WITHIN, ours.offload if less <= WITHIN else -less)
        for less, ours in zip(lost, runs, strict=True)
    ]
    return rated.index(max(rated))


async def _alone(stream: Stream, small: Small, hardware: Hardware) -> tuple[Result, float]:
    """The large model alone, and the requests a second that are `LOAD` of what it can answer."""
    large = await World(stream, small, SETTINGS[0], "large", hardware, 1.0).run()
    return large, LOAD * _capacity(hardware, large)


def _capacity(hardware: Hardware, large: Result) -> float:
    """Requests a second that the hardware answers with the large model alone, all there at once."""
    return len(large.sent) / timed(hardware, large.sent, math.inf, alone=True)[1]


def _stream(stream: Stream, large: Result, shown: Result) -> dict[str, Any]:
    """What stands beside the router; ``shown`` is the small model with examples always."""
    return {
        "name": stream.name,
        "n": len(large.right),
        "similar": stream.similar,
        "large": _row(large, large),
        "small": _row(shown, large),
        "best": {
            "offload": float((shown.right | ~large.right).mean()),
            "quality": float((shown.right | large.right).mean()),
        },
    }


def _row(found: Result, large: Result) -> dict[str, Any]:
    """Offload and quality, and the difference to the large model with its paired 95% interval."""
    apart = found.right.astype(float) - large.right
    half = 1.96 * float(apart.std(ddof=1)) / math.sqrt(len(apart))
    mean = float(apart.mean())
    return {
        "offload": found.offload,
        "quality": found.quality,
        "apart": mean,
        "low": mean - half,
        "high": mean + half,
    }


async def _bare(stream: Stream, small: Small, hardware: Hardware) -> dict[str, Any]:
    """The small model without examples, of the first `ALONE` requests that count."""
    world = World(stream, small, SETTINGS[0], "small", hardware, 1.0)
    first = data.WARM + LEARNING
    good = [
        right((await world.say(index, NONE)).text, stream.right[index])
        for index in range(first, min(first + ALONE, len(stream.texts)))
    ]
    return {"offload": 1.0, "quality": float(np.mean(good)), "of": len(good)}


def _speeds(hardware: Hardware, large: Result, ours: Result) -> dict[str, Any]:
    """Mean latency at equal load, over `DRAWS` draws of the arrivals, and throughput when all requests are there at
    once; who answers which stays."""
    capacity = _capacity(hardware, large)
    rate = LOAD * capacity
    latency = {
        name: float(np.mean([timed(hardware, sent, rate, alone=alone, seed=s)[0] for s in range(DRAWS)]))
        for name, sent, alone in (("large", large.sent, True), ("ours", ours.sent, False))
    }
    throughput = len(ours.sent) / timed(hardware, ours.sent, math.inf, alone=False)[1]
    return {"latency_s": latency, "faster": throughput / capacity}
