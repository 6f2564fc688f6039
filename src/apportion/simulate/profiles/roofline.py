"""A profile from data sheets alone: the work and the bytes of an iteration over what the machine can do (roofline).

An iteration takes max(operations / rate, bytes / bandwidth), plus two all-reduces a layer where several accelerators
share it, plus an overhead for each layer and iteration. How much of the data sheet is reached is a handful of fitted
constants (`Efficiency`).

References:
    Williams, Waterman, Patterson. Roofline: an insightful visual performance model for multicore architectures.
    Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from apportion.simulate.profile import Profile, ProfileError
from apportion.simulate.profiles.machines import Machine
from apportion.simulate.profiles.shapes import Shape

POINTS: Final = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Shares of the data sheet that serving engines reach, and what they add. The defaults are fitted to measured
    serving points (`benchmarks/profiles`, which also tells the error on machines and models left out).
    """

    flops: float = 0.836
    bandwidth: float = 0.734
    attention: float = 0.35
    """Share of the rate in the attention of prompts."""
    kv: float = 1.0
    """Share of the bandwidth in reading keys and values."""
    link: float = 0.64
    layer_s: float = 2.03e-5
    """For each layer and all-reduce: launches and latency."""
    iteration_s: float = 1e-5
    """For each iteration: the scheduler, sampling, Python."""
    request_s: float = 2.66e-5
    """For each request of an iteration."""
    memory: float = 0.90
    """Share of the memory that weights, keys and values may take."""
    idle: float = 0.12
    decode: float = 0.55
    """Share of the board's power while one request decodes; it grows to ``prefill`` with the work."""
    prefill: float = 0.95


def roofline(
    machine: Machine,
    shape: Shape,
    *,
    tp: int = 1,
    weight_bits: int = 16,
    kv_bits: int = 16,
    efficiency: Efficiency | None = None,
    slots: int = 256,
    batch_tokens: int = 8192,
    name: str | None = None,
) -> Profile:
    """The profile of ``shape`` on ``tp`` accelerators ``machine``.

    Raises:
        ProfileError: when the weights do not fit, or the attention heads cannot be split so.
    """
    e = efficiency or Efficiency()
    if tp < 1 or shape.heads % tp:
        raise ProfileError(
            f"{shape.name} has {shape.heads} attention heads, which {tp} accelerators cannot share.",
            field="tp",
            fix="Take a number that divides them.",
        )
    weights = shape.parameters * weight_bits / 8
    room = tp * machine.memory_bytes * e.memory - weights
    kv_bytes = shape.kv_bytes(kv_bits) * max(1.0, tp / shape.kv_heads)
    if room < kv_bytes:
        needed = int(weights / (machine.memory_bytes * e.memory)) + 1
        raise ProfileError(
            f"The weights of {shape.name} ({weights / 1e9:.0f} GB) do not fit on {tp} x {machine.name}.",
            field="tp",
            fix=f"It takes {needed} or more, or fewer bits a weight.",
        )
    rate = tp * machine.rate(weight_bits) * e.flops
    bandwidth = tp * machine.bytes_per_s
    seconds = []
    for n in POINTS:
        work = 2.0 * shape.active_parameters * n / rate
        read = shape.touched(n) * weight_bits / 8 / (bandwidth * e.bandwidth)
        seconds.append(
            max(work, read) + _reduced(machine, shape, tp, n, e) + shape.layers * e.layer_s + e.iteration_s
        )
    per_pair = 4.0 * shape.heads * shape.head * shape.layers
    decode_w = [tp * machine.watts * _power(n, seconds[i], shape, rate, e) for i, n in enumerate(POINTS)]
    return Profile(
        name=name or f"roofline:{machine.name}/{shape.name}/tp{tp}",
        tokens=tuple(float(n) for n in POINTS),
        seconds=tuple(seconds),
        prefill_attention_s=per_pair / (tp * machine.rate(16) * e.attention),
        decode_attention_s=kv_bytes / (bandwidth * e.kv),
        request_s=e.request_s,
        batching="chunked",
        slots=slots,
        batch_tokens=batch_tokens,
        kv_tokens=int(room / kv_bytes),
        kv_bytes_per_token=kv_bytes,
        weights_bytes=weights,
        load_s=weights / 2e9,
        idle_w=tp * machine.watts * e.idle,
        prefill_w=tp * machine.watts * e.prefill,
        decode_tokens=tuple(float(n) for n in POINTS),
        decode_w=tuple(decode_w),
        devices=tp,
        source="Roofline of public data sheets with fitted efficiency; not measured on this machine.",
        facts={"machine": machine.name, "model": shape.name, "tp": tp, "efficiency": asdict(e)},
    )


def _reduced(machine: Machine, shape: Shape, tp: int, tokens: float, e: Efficiency) -> float:
    """Two all-reduces a layer of 16-bit activations, on a ring."""
    if tp == 1:
        return 0.0
    size = tokens * shape.hidden * 2.0 * 2.0 * (tp - 1) / tp
    return 2.0 * shape.layers * (size / (machine.link_bytes_per_s * e.link) + e.layer_s)


def _power(tokens: float, seconds: float, shape: Shape, rate: float, e: Efficiency) -> float:
    """From ``decode`` to ``prefill`` as the arithmetic becomes what limits."""
    busy = min(1.0, 2.0 * shape.active_parameters * tokens / rate / seconds)
    return e.decode + (e.prefill - e.decode) * busy
