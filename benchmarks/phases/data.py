"""Lengths of requests from the shared traces and from reported laws."""

from __future__ import annotations

import csv
import gzip
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apportion.simulate.profile import Profile
from apportion.simulate.profiles import load

Pairs = tuple[NDArray[np.int32], NDArray[np.int32]]


class DataAbsent(Exception):
    """The shared data are not where they were looked for."""


def rows(name: str) -> list[dict[str, str]]:
    """All rows of ``folder/file`` under ``$APPORTION_DATA``, else ``../shared/data`` beside the repository."""
    folder = Path(os.environ.get("APPORTION_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")
    path = folder / f"{name}.csv.gz"
    if not path.is_file():
        raise DataAbsent(f"{path} is absent: set APPORTION_DATA to the folder of the data sets")
    with gzip.open(path, "rt", newline="") as lines:
        return list(csv.DictReader(lines))


def lengths(name: str) -> Pairs:
    """Prompt and output tokens of a trace."""
    found = rows(name)
    return (
        np.array([int(row["prompt_tokens"]) for row in found], np.int32),
        np.maximum(np.array([int(row["output_tokens"]) for row in found], np.int32), 1),
    )


def batches(name: str, tokens: int = 2048) -> Profile:
    """A shipped profile whose iterations take prompts of at most ``tokens`` together, beyond which they gain
    nothing."""
    return replace(load(name), batch_tokens=tokens)


def stages(profile: Profile, count: int) -> Profile:
    """The same parallelism within a stage, in a pipeline of ``count``: the weights are held once, what is
    left is memory."""
    if count == 1:
        return profile
    spare = int((count - 1) * profile.weights_bytes / profile.kv_bytes_per_token)
    return replace(profile, name=f"{profile.name}-pp{count}", kv_tokens=count * profile.kv_tokens + spare)


APPLICATIONS = {  # mean and standard deviation of prompt and of output tokens, as DistServe reports them
    "ShareGPT": ((755.5, 660.0), (200.3, 180.0)),
    "HumanEval": ((171.3, 80.0), (98.2, 70.0)),
    "LongBench": ((1738.3, 950.0), (90.7, 85.0)),
}


def law(name: str, n: int = 4000, seed: int = 0) -> Pairs:
    """Lengths of an application: log-normal with the reported means, at most 4,096 and at least 4 tokens."""
    random = np.random.default_rng((seed, len(name)))
    found = []
    for mean, deviation in APPLICATIONS[name]:
        sigma = np.sqrt(np.log1p((deviation / mean) ** 2))
        drawn = random.lognormal(np.log(mean) - sigma**2 / 2, sigma, n)
        found.append(np.clip(drawn, 4, 4096).astype(np.int32))
    return found[0], found[1]
