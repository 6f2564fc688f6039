"""How right a roofline of data sheets is: its constants fitted to serving points, each machine and model left out in
turn; then power and time per token against a table that had no part in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from apportion.simulate.profile import Profile, ProfileError
from apportion.simulate.profiles.machines import machine
from apportion.simulate.profiles.roofline import Efficiency, roofline
from apportion.simulate.profiles.shapes import shape
from benchmarks.profiles.build import bits, served_points
from benchmarks.profiles.data import table

FITTED = ("flops", "bandwidth", "kv", "link", "layer_s", "iteration_s", "request_s")
_LOW = (0.1, 0.2, 0.1, 0.05, 1e-7, 1e-5, 1e-7)
_HIGH = (1.0, 1.0, 1.0, 1.0, 5e-5, 1e-2, 5e-4)
Key = tuple[str, str, str, str, int]

_MODELS = {
    "meta-llama/Llama-3.1-8B-Instruct": "llama3.1-8b",
    "meta-llama/Llama-3.1-70B-Instruct": "llama3.1-70b",
    "meta-llama/Llama-3.1-405B-Instruct": "llama3.1-405b",
    "meta-llama/Llama-3.1-405B-Instruct-FP8": "llama3.1-405b",
    "Qwen/Qwen3-8B": "qwen3-8b",
    "Qwen/Qwen3-14B": "qwen3-14b",
    "Qwen/Qwen3-32B": "qwen3-32b",
}
_PROMPT_TOKENS = 150
"""Of a chat message: the table does not say."""


def serving_points() -> list[tuple[Key, list[tuple[int, int, int, float]]]]:
    """Settings (requests under way, prompt, answer) with seconds per output token, by machine and model."""
    found = []
    for key, rows in sorted(served_points().items()):
        try:
            sheet = _sheet(key, Efficiency())
        except ProfileError:
            continue
        points = [
            (
                int(r["concurrency"] or r["batch_size"]),
                int(r["isl"]),
                int(r["osl"]),
                float(r["silicon_tpot_ms"]) / 1e3,
            )
            for r in rows
        ]
        found.append((key, [p for p in points if p[0] * (p[1] + p[2]) <= sheet.kv_tokens]))
    return found


def tpot_s(profile: Profile, requests: int, prompt: int, answer: int) -> float:
    """Seconds of the mean iteration with ``requests`` kept under way."""
    share = requests / answer
    p, times = min(1.0, share), max(1.0, share)
    context = requests * (prompt + answer / 2)
    plain = profile.seconds_of(requests, decode_context=context, requests=requests)
    full = profile.seconds_of(
        requests + prompt * times,
        decode_context=context,
        requests=requests,
        prefill_pairs=times * prompt * prompt / 2,
    )
    return float((1 - p) * plain + p * full)


def evaluate() -> dict[str, Any]:
    """Constants fitted to all points, and the error of each group by constants fitted to the others."""
    groups = serving_points()
    rows = []
    for gpu, model in sorted({(k[0], k[1]) for k, _ in groups}):
        inside = [g for g in groups if (g[0][0], g[0][1]) == (gpu, model)]
        outside = [g for g in groups if (g[0][0], g[0][1]) != (gpu, model)]
        errors = _errors(inside, _fit(outside))
        rows.append({"machine": gpu, "model": model, "points": len(errors), "mape": float(np.mean(errors))})
    best = _fit(groups)
    return {
        "efficiency": {name: float(f"{getattr(best, name):.3g}") for name in FITTED},
        "mape_fitted": float(np.mean(_errors(groups, best))),
        "mape_left_out": float(np.average([r["mape"] for r in rows], weights=[r["points"] for r in rows])),
        "left_out": rows,
    }


def against_mlenergy() -> list[dict[str, Any]]:
    """Time between tokens and power of the default roofline against ML.ENERGY's table (evaluation only)."""
    rows = []
    for gpu in ("H100", "B200"):
        itl, watts = [], []
        for row in table("mlenergy_v3/llm"):
            if row["gpu_model"] != gpu or row["model_id"] not in _MODELS or row["task"] != "lm-arena-chat":
                continue
            weight = {"bfloat16": 16, "fp8": 8}[row["weight_precision"]]
            try:
                p = roofline(
                    machine(gpu.lower()),
                    shape(_MODELS[row["model_id"]]),
                    tp=int(row["tensor_parallel"]),
                    weight_bits=weight,
                )
            except ProfileError:
                continue
            batch = float(row["avg_batch_size"])
            context = batch * (_PROMPT_TOKENS + float(row["avg_output_len"]) / 2)
            seconds = float(p.seconds_of(batch, decode_context=context, requests=batch))
            itl.append((seconds, float(row["median_itl_ms"]) / 1e3))
            watts.append((float(p.decode_watts(batch)), float(row["avg_power_watts"])))
        for name, pairs in (("time between tokens", itl), ("power", watts)):
            ratio = np.array([a / b for a, b in pairs])
            rows.append(
                {
                    "machine": gpu,
                    "quantity": name,
                    "points": len(pairs),
                    "mape": float(np.mean(np.abs(ratio - 1))),
                    "median_ratio": float(np.median(ratio)),
                }
            )
    return rows


def _fit(groups: list[tuple[Key, list[tuple[int, int, int, float]]]]) -> Efficiency:
    start = Efficiency()

    def residuals(theta: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        e = replace(start, **dict(zip(FITTED, (float(t) for t in np.exp(theta)), strict=True)))
        out = []
        for key, points in groups:
            sheet = _sheet(key, e)
            out += [np.log(tpot_s(sheet, c, p, a) / y) for c, p, a, y in points]
        return np.array(out)

    x0 = np.log([getattr(start, name) for name in FITTED])
    done = least_squares(
        residuals, x0, bounds=(np.log(_LOW), np.log(_HIGH)), loss="soft_l1", f_scale=0.1, max_nfev=40
    )
    return replace(start, **dict(zip(FITTED, (float(t) for t in np.exp(done.x)), strict=True)))


def _errors(groups: list[tuple[Key, list[tuple[int, int, int, float]]]], e: Efficiency) -> list[float]:
    return [abs(tpot_s(_sheet(key, e), c, p, a) / y - 1) for key, points in groups for c, p, a, y in points]


def _sheet(key: Key, e: Efficiency) -> Profile:
    gpu, model, _, precision, tp = key
    return roofline(machine(gpu), shape(model), tp=tp, weight_bits=bits(precision), efficiency=e)
