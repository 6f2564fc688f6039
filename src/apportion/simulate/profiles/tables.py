"""Profiles fitted to published tables of measurements: whole passes, kernels, and serving points.

Rows are mappings from column to text, as `csv.DictReader` gives them; times are in milliseconds, as in the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from apportion.simulate.profile import Profile, ProfileError, linear
from apportion.simulate.profiles.fit import Law, Measurements, fit, robust
from apportion.simulate.profiles.machines import machine
from apportion.simulate.profiles.roofline import roofline
from apportion.simulate.profiles.shapes import shape

Row = Mapping[str, str]
_LAYER_OPS = (
    "input_layernorm_ms",
    "attn_pre_proj_ms",
    "attn_rope_ms",
    "attn_post_proj_ms",
    "post_attention_layernorm_ms",
    "mlp_up_proj_ms",
    "mlp_act_ms",
    "mlp_down_proj_ms",
    "add_ms",
)
_SPLITWISE_MACHINES = {"a100-80gb": "a100-sxm", "h100-80gb": "h100-sxm", "h100-80gb-pcap": "h100-sxm"}


def passes(rows: Iterable[Row], model: str, hardware: str, tp: int, *, name: str, source: str) -> Profile:
    """From whole passes (the table of Splitwise): ``prompt_time``, ``token_time`` by ``prompt_size``, ``batch_size``.

    Batches whose keys and values do not fit into memory are left out: what was measured there is waiting.
    """
    sheet = roofline(machine(_SPLITWISE_MACHINES[hardware]), shape(model), tp=tp)
    law = Law((1, 16, 64, 128, 512, 1024, 2048, 4096, 8192), ("decode_attention_s",), _pair_tokens(sheet))
    measured = Measurements(law)
    watts = machine(_SPLITWISE_MACHINES[hardware]).watts * tp
    average: dict[int, list[float]] = {}
    peak: list[float] = []
    for row in rows:
        if (row["model"], row["hardware"], int(row["tensor_parallel"])) != (model, hardware, tp):
            continue
        b, p, t = (int(row[column]) for column in ("batch_size", "prompt_size", "token_size"))
        if b * (p + 128) > sheet.kv_tokens:
            continue
        group = f"{b}x{p}"
        prompt = law.row([b * p], prefill_pairs=b * p * p / 2)
        measured.add("prompt_s", f"prompt {group}", float(row["prompt_time"]) / 1e3, prompt)
        token = law.row([b], decode_context=b * (p + t / 2), requests=b)
        measured.add("token_s", f"token {group} {t}", float(row["token_time"]) / 1e3, token)
        if float(row["average_power"]) > 0.3:
            average.setdefault(b, []).append(float(row["average_power"]))
            if b * p >= 1024:
                peak.append(float(row["peak_power"]))
    sizes = sorted(average)
    power: dict[str, Any] = {}
    if sizes and peak:
        power = {
            "decode_tokens": tuple(float(b) for b in sizes),
            "decode_w": tuple(round(watts * float(np.median(average[b])), 1) for b in sizes),
            "prefill_w": round(watts * min(1.0, float(np.median(peak))), 1),
            "idle_w": sheet.idle_w,
        }
    return fit(measured).profile(
        name,
        slots=256,
        batch_tokens=8192,
        kv_tokens=sheet.kv_tokens,
        kv_bytes_per_token=sheet.kv_bytes_per_token,
        weights_bytes=sheet.weights_bytes,
        load_s=sheet.load_s,
        devices=tp,
        source=source,
        facts={
            "machine": hardware,
            "model": model,
            "tp": tp,
            "rows": len(measured),
            "notes": "Memory, idle power and loading are of the data sheet.",
        },
        **power,
    )


def kernels(
    ops: Iterable[Row],
    collectives: Iterable[Row],
    context_attention: Iterable[Row],
    generation_attention: Iterable[Row],
    *,
    gpu: str,
    ops_model: str,
    model: str,
    tp: int,
    name: str,
    source: str,
) -> Profile:
    """From kernels: the layers without attention and all-reduces (the tables of Vidur), attention (of AIConfigurator).

    T is the sum of medians at some numbers of tokens; the numbers between are held out. What a serving engine adds on
    the processor is in none of the tables and not in the profile.
    """
    m, s = machine(gpu), shape(model)
    times: dict[int, list[float]] = {}
    for row in ops:
        if (row["gpu"], row["model"], int(row["num_tensor_parallel_workers"])) == (gpu, ops_model, tp):
            layer = sum(float(row[op] or 0.0) for op in _LAYER_OPS) / 1e3
            times.setdefault(int(row["num_tokens"]), []).append(layer)
    if len(times) < 4:
        raise ProfileError(f"The table has no {ops_model} on {tp} x {gpu}.", field="model")
    reduce = _all_reduce(collectives, gpu, tp)
    at = np.array(sorted(times), float)
    layers = s.layers * np.array([float(np.median(times[int(n)])) for n in at])
    layers = np.maximum.accumulate(layers + s.layers * 2.0 * np.array([reduce(n * s.hidden * 2) for n in at]))
    kept = _some(at, (1, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096))
    held = ~np.isin(np.arange(len(at)), kept)
    points, seconds = at[kept], layers[kept]
    error = (
        float(np.mean(np.abs(linear(at[held], points, seconds) / layers[held] - 1.0))) if held.any() else 0.0
    )
    a, a_error = _prefill_attention(context_attention, m.name, s.heads // tp, max(1, s.kv_heads // tp))
    base, d, d_error = _decode_attention(
        generation_attention, m.name, s.heads // tp, max(1, s.kv_heads // tp)
    )
    sheet = roofline(m, s, tp=tp)
    return Profile(
        name=name,
        tokens=tuple(float(n) for n in points),
        seconds=tuple(round(float(t + s.layers * base), 9) for t in seconds),
        prefill_attention_s=s.layers * a,
        decode_attention_s=s.layers * d,
        slots=256,
        batch_tokens=4096,
        kv_tokens=sheet.kv_tokens,
        kv_bytes_per_token=sheet.kv_bytes_per_token,
        weights_bytes=sheet.weights_bytes,
        load_s=sheet.load_s,
        idle_w=sheet.idle_w,
        prefill_w=sheet.prefill_w,
        decode_tokens=sheet.decode_tokens,
        decode_w=tuple(round(w, 1) for w in sheet.decode_w),
        devices=tp,
        error={
            "layers_s": round(error, 4),
            "prefill_attention_s": round(a_error, 4),
            "decode_attention_s": round(d_error, 4),
        },
        source=source,
        facts={
            "machine": m.name,
            "model": model,
            "tp": tp,
            "notes": "Kernels only: scheduling on the processor is not in it. Power and memory are of the data sheet.",
        },
    )


def serving(
    rows: Iterable[Row], *, gpu: str, model: str, tp: int, bits: int, name: str, source: str
) -> Profile:
    """From serving points (AIConfigurator's measurements): time per output token by prompt and answer length and by
    how many requests are kept under way.

    In a steady state each of C requests begins anew after its answer of ``osl`` tokens, so that an iteration has C
    tokens of answers and, C / osl of the time, a prompt. Time to the first token is not fitted: it depends on how the
    load was begun, which the table does not say.
    """
    sheet = roofline(machine(gpu), shape(model), tp=tp, weight_bits=bits)
    settings = [
        (
            int(row["concurrency"] or row["batch_size"]),
            int(row["isl"]),
            int(row["osl"]),
            row["silicon_tpot_ms"],
        )
        for row in rows
    ]
    settings = [each for each in settings if each[0] * (each[1] + each[2]) <= sheet.kv_tokens]
    # Nothing is known of fewer requests than were ever under way: T is constant before.
    least = min((each[0] for each in settings), default=1)
    law = Law(
        (least, *(n for n in (16, 64, 128) if n > least), 8192), ("decode_attention_s",), _pair_tokens(sheet)
    )
    measured = Measurements(law)
    for c, isl, osl, tpot_ms in settings:
        measured.add("tpot_s", f"{isl} {osl} {c}", float(tpot_ms) / 1e3, steady(law, c, isl, osl))
    return fit(measured).profile(
        name,
        batching="chunked",
        slots=256,
        batch_tokens=8192,
        kv_tokens=sheet.kv_tokens,
        kv_bytes_per_token=sheet.kv_bytes_per_token,
        weights_bytes=sheet.weights_bytes,
        load_s=sheet.load_s,
        idle_w=sheet.idle_w,
        prefill_w=sheet.prefill_w,
        decode_tokens=sheet.decode_tokens,
        decode_w=tuple(round(w, 1) for w in sheet.decode_w),
        devices=tp,
        source=source,
        facts={
            "machine": gpu,
            "model": model,
            "tp": tp,
            "bits": bits,
            "rows": len(measured),
            "notes": "Fitted to time per output token. Power and memory are of the data sheet.",
        },
    )


def steady(law: Law, requests: int, prompt: int, answer: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The mean iteration of ``requests`` kept under way, prompts taking part in one iteration each."""
    share = requests / answer
    chunk = prompt * max(1.0, share)
    p = min(1.0, share)
    context = requests * (prompt + answer / 2)
    plain = law.row([requests], decode_context=context, requests=requests)
    full = law.row(
        [requests + chunk],
        decode_context=context,
        requests=requests,
        prefill_pairs=max(1.0, share) * prompt * prompt / 2,
        mixed=1.0,
    )
    return np.asarray((1.0 - p) * plain + p * full)


def _pair_tokens(sheet: Profile) -> float:
    """What a pair of tokens takes in the attention of prompts, in tokens: of the data sheet."""
    slope = (sheet.seconds[-1] - sheet.seconds[-2]) / (sheet.tokens[-1] - sheet.tokens[-2])
    return sheet.prefill_attention_s / slope


def _all_reduce(rows: Iterable[Row], gpu: str, tp: int) -> Any:
    if tp == 1:
        return lambda size: 0.0
    found: dict[int, list[float]] = {}
    for row in rows:
        at = (row["system"], row["collective"], int(row["num_workers"]), int(row["devices_per_node"]))
        if at == (f"{gpu}_dgx", "all_reduce", tp, tp):
            found.setdefault(int(row["size_bytes"]), []).append(float(row["median_ms"]) / 1e3)
    if not found:
        raise ProfileError(f"The table has no all-reduce over {tp} x {gpu}.", field="tp")
    sizes = np.array(sorted(found), float)
    seconds = np.array([float(np.median(found[int(size)])) for size in sizes])
    return lambda size: float(linear(size, sizes, seconds))


def _some(at: np.ndarray[Any, np.dtype[np.float64]], wanted: Sequence[int]) -> list[int]:
    """Indices of the values nearest to ``wanted``."""
    return sorted({int(np.argmin(np.abs(at - n))) for n in wanted if n <= at[-1]})


def _prefill_attention(rows: Iterable[Row], system: str, heads: int, kv_heads: int) -> tuple[float, float]:
    """Seconds a pair of tokens, and the error of it on batches of 4096 tokens or more of context squared."""
    pairs, seconds = [], []
    for row in _attention(rows, system, heads, kv_heads):
        b, isl = int(row["batch_size"]), int(row["isl"])
        if 512 <= isl <= 16384 and b * isl <= 32768:
            pairs.append(b * isl * isl / 2)
            seconds.append(float(row["latency_ms"]) / 1e3)
    x = np.column_stack([np.ones(len(pairs)), pairs])
    constant, slope, error = _line(x, np.array(seconds))
    del constant
    return slope, error


def _decode_attention(
    rows: Iterable[Row], system: str, heads: int, kv_heads: int
) -> tuple[float, float, float]:
    """Seconds for each kernel and for each token of context, and the error."""
    context, seconds = [], []
    for row in _attention(rows, system, heads, kv_heads):
        b, at = int(row["batch_size"]), int(row["isl"]) + int(row["step"])
        if b <= 256 and 128 <= at <= 16384:
            context.append(b * at)
            seconds.append(float(row["latency_ms"]) / 1e3)
    return _line(np.column_stack([np.ones(len(context)), context]), np.array(seconds))


def _line(
    x: np.ndarray[Any, np.dtype[np.float64]], y: np.ndarray[Any, np.dtype[np.float64]]
) -> tuple[float, float, float]:
    """A constant and a slope, and the mean relative error where every fifth row is held out in turn."""
    if len(y) < 10:
        raise ProfileError("The table has no attention of this shape.", field="heads")
    even = np.ones(len(y))
    theta = robust(x, y, even)
    predicted = np.empty_like(y)
    for k in range(5):
        held = np.arange(len(y)) % 5 == k
        predicted[held] = x[held] @ robust(x[~held], y[~held], even[~held])
    return float(theta[0]), float(theta[1]), float(np.mean(np.abs(predicted / y - 1.0)))


def _attention(rows: Iterable[Row], system: str, heads: int, kv_heads: int) -> Iterable[Row]:
    wanted = (system.replace("-", "_"), str(heads), str(kv_heads))
    return (row for row in rows if (row["system"], row["num_heads"], row["num_key_value_heads"]) == wanted)
