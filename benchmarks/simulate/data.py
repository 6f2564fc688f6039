"""The workloads and the machine of the benchmark."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from apportion.simulate.profile import Profile
from apportion.simulate.profiles import load
from apportion.simulate.trace import Trace
from apportion.simulate.workload import burstgpt
from apportion.simulate.workload.generate import generated_pieces

ROOT = Path(os.environ.get("APPORTION_DATA", "../shared/data"))
MACHINE = "h100-llama2-70b-tp8"


class DataAbsent(Exception):
    """A data set is not there."""


@cache
def machine() -> Profile:
    """A 70B model on eight H100, as measured; iterations of at most 2,048 tokens."""
    return replace(load(MACHINE), batch_tokens=2048)


def azure(times: int, rate: float) -> Trace:
    """The Azure conversation trace ``times`` times after one another, at ``rate`` requests a second."""
    path = ROOT / "azure_llm_2023" / "azure_conv.csv.gz"
    if not path.exists():
        raise DataAbsent(f"{path} is not there; set APPORTION_DATA to the folder of the data sets.")
    with gzip.open(path, "rt") as file:
        rows = [
            (float(r["t_s"]), int(r["prompt_tokens"]), int(r["output_tokens"])) for r in csv.DictReader(file)
        ]
    at, prompts, outputs = (np.array(column) for column in zip(*rows, strict=True))
    span = at[-1] * len(at) / (len(at) - 1)
    at = (at[None, :] + span * np.arange(times)[:, None]).ravel() * (len(at) / span / rate)
    return Trace(
        np.maximum.accumulate(at),
        np.tile(prompts, times).astype(np.int32),
        np.tile(outputs, times).astype(np.int32),
    )


def burst(requests: int, rate: float, seed: int) -> Iterator[Trace]:
    """A BurstGPT-like workload of so many requests, piece by piece, at ``rate`` times its own rate."""
    folder = ROOT / "burstgpt_aggregates"
    if not folder.exists():
        raise DataAbsent(f"{folder} is not there; set APPORTION_DATA to the folder of the data sets.")
    model = burstgpt.model(folder)
    return generated_pieces(model, seed, requests=requests, rate=rate)
