"""Workloads: read from files of many forms, cut and mixed, fitted and generated, sent to a live endpoint."""

from __future__ import annotations

from apportion.simulate.workload.fitting import fit
from apportion.simulate.workload.generate import generate, generated_pieces
from apportion.simulate.workload.model import Model, load, plain, save
from apportion.simulate.workload.reading import DisorderError, open_trace, pieces
from apportion.simulate.workload.store import write

__all__ = [
    "DisorderError",
    "Model",
    "fit",
    "generate",
    "generated_pieces",
    "load",
    "open_trace",
    "pieces",
    "plain",
    "save",
    "write",
]
