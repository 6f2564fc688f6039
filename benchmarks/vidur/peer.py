"""Runs Vidur, in an interpreter that has it (`pip install vidur`), with kernel times that it is handed.

As published on PyPI it has no profiles and downloads predictions from a model hub; here they come from the same profile
that our engine uses, at its own granularity: `_load_predictions_from_hf` is the one method that is replaced.

    python peer.py JOB.json     prints one JSON line

The job holds the profile's law (`tokens`, `seconds`, `prefill_attention_s`, `decode_attention_s`, `layers`), the
granularity of contexts, the trace as columns, and the scheduler.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from vidur.config import SimulationConfig
from vidur.execution_time_predictor.linear_regression_execution_time_predictor import (
    LinearRegressionExecutionTimePredictor,
)
from vidur.execution_time_predictor.sklearn_execution_time_predictor import SklearnExecutionTimePredictor
from vidur.simulator import Simulator
from vidur.utils.random import set_seeds

MAX_TOKENS = 8192
MAX_BATCH = 128


def predictions(job: dict[str, Any]) -> dict[str, dict[tuple[int, ...], float]]:
    """Milliseconds of each operator of one layer: all of T in one, attention in its two."""
    layers, xs, ys = job["layers"], np.array(job["tokens"]), np.array(job["seconds"])
    slope = (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
    sizes = np.arange(1, MAX_TOKENS + 1)
    whole = np.interp(sizes, xs, ys) + slope * np.maximum(sizes - xs[-1], 0)
    zero = {(int(n),): 0.0 for n in sizes}
    names = [
        *("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj", "mlp_act", "attn_rope"),
        *("attn_kv_cache_save", "input_layernorm", "post_attention_layernorm", "add"),
    ]
    found: dict[str, dict[tuple[int, ...], float]] = dict.fromkeys(names, zero)
    found["mlp_up_proj"] = {(int(n),): float(s) * 1e3 / layers for n, s in zip(sizes, whole, strict=True)}
    contexts = range(0, MAX_TOKENS + 1, job["granularity"])
    a, d = job["prefill_attention_s"] * 1e3 / layers, job["decode_attention_s"] * 1e3 / layers
    chunks = range(32, 4096 + 1, 32)
    found["attn_prefill"] = {(kv, n): a * n * (kv + n / 2) for kv in contexts for n in chunks}
    found["attn_decode"] = {(b, kv): d * b * kv for b in range(1, MAX_BATCH + 1) for kv in contexts}
    return found


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    given = predictions(job)
    SklearnExecutionTimePredictor._load_predictions_from_hf = lambda self: given  # type: ignore[method-assign,assignment]
    # One method of it is abstract in the published package and never called without KV parallelism.
    LinearRegressionExecutionTimePredictor.__abstractmethods__ = frozenset()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.csv"
        pd.DataFrame(
            {
                "Time": job["arrival_s"],
                "PromptTokenCount": job["prompt_tokens"],
                "CompletionTokenCount": job["output_tokens"],
                "Date": "2023-08-21",
            }
        ).to_csv(trace, index=False)
        options = {
            "replica_config_model_name": "meta-llama/Llama-3-8B",
            "replica_config_tensor_parallel_size": 1,
            "replica_config_num_pipeline_stages": 1,
            "replica_config_device": "a100",
            "replica_config_network_device": "a100_dgx",
            "cache_config_num_blocks": job["kv_tokens"] // 16,
            "replica_scheduler_config_type": "sarathi",
            "sarathi_scheduler_config_chunk_size": job["chunk_tokens"],
            "sarathi_scheduler_config_batch_size_cap": MAX_BATCH,
            "request_generator_config_type": "trace_replay",
            "trace_request_generator_config_trace_file": trace,
            "trace_request_generator_config_prefill_scale_factor": 1,
            "trace_request_generator_config_time_scale_factor": 1,
            "trace_request_generator_config_max_tokens": MAX_TOKENS,
            "execution_time_predictor_config_type": "linear_regression",
            "linear_regression_execution_time_predictor_config_attention_decode_batching_overhead_fraction": 0.0,
            "linear_regression_execution_time_predictor_config_prediction_max_tokens_per_request": MAX_TOKENS,
            "linear_regression_execution_time_predictor_config_cache_dir": f"{folder}/cache",
            "linear_regression_execution_time_predictor_config_kv_cache_prediction_granularity": job[
                "granularity"
            ],
            "metrics_config_output_dir": f"{folder}/out",
        }
        sys.argv = ["vidur", *(str(x) for name, value in options.items() for x in (f"--{name}", value))]
        sys.argv += ["--no-metrics_config_store_plots", "--no-metrics_config_enable_chrome_trace"]
        config = SimulationConfig.create_from_cli_args()
        set_seeds(config.seed)
        simulator = Simulator(config)
        requests = [event._request for _, event in simulator._event_queue]
        simulator._write_output = lambda: None
        begun = time.process_time()
        simulator.run()
        spent = time.process_time() - begun
    rows = sorted(requests, key=lambda r: r.arrived_at)
    print(
        json.dumps(
            {
                "seconds": spent,
                "ttft_s": [r.prefill_completed_at - r.arrived_at for r in rows],
                "e2e_s": [r.completed_at - r.arrived_at for r in rows],
            }
        )
    )


if __name__ == "__main__":
    main()
