"""The profiles that come with the package: which, from which table, and under which name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from apportion.simulate.profile import Profile, ProfileError
from apportion.simulate.profiles.machines import machine
from apportion.simulate.profiles.shapes import shape
from apportion.simulate.profiles.tables import kernels, passes, serving
from benchmarks.profiles.data import Rows, table

SPLITWISE = "Fitted to the measurements of Splitwise (github.com/Mutinifni/splitwise-sim, MIT)."
VIDUR = (
    "Layers and collectives fitted to the profiles of Vidur (github.com/microsoft/vidur, MIT); attention to "
    "those of AIConfigurator (github.com/ai-dynamo/aiconfigurator, Apache-2.0)."
)
AICONFIGURATOR = (
    "Fitted to serving points that AIConfigurator publishes (github.com/ai-dynamo/aiconfigurator, "
    "Apache-2.0)."
)
_KERNELS = (
    ("a100", "meta-llama/Meta-Llama-3-8B", "llama3.1-8b", (1, 2, 4)),
    ("a100", "meta-llama/Meta-Llama-3-70B", "llama3.1-70b", (4, 8)),
    ("a100", "codellama/CodeLlama-34b-Instruct-hf", "codellama-34b", (2, 4)),
    ("h100", "codellama/CodeLlama-34b-Instruct-hf", "codellama-34b", (2, 4)),
    ("h100", "meta-llama/Llama-2-70b-hf", "llama2-70b", (4, 8)),
    ("a100", "meta-llama/Llama-2-70b-hf", "llama2-70b", (4, 8)),
)
SERVED = {
    "meta-llama/Llama-3.1-8B-Instruct": "llama3.1-8b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama3.1-8b",
    "meta-llama/Llama-3.1-70B": "llama3.1-70b",
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3-235b-a22b",
}
_BITS = {"fp8": 8, "fp4": 4, "bf16": 16, "": 16}
_LEAST_POINTS = 10
_MOST_ERROR = 0.10
_DRAWS = 12


def all_profiles() -> Iterator[tuple[Profile, str | None]]:
    """Every fitted profile, in the order of their names, with why it is not for the package (None: it is)."""
    for profile in sorted([*_splitwise(), *_vidur(), *_aiconfigurator()], key=lambda p: p.name):
        yield replace(profile, draws=profile.draws[:_DRAWS]), _objection(profile)


def _objection(profile: Profile) -> str | None:
    if profile.error.get("tpot_s", 0.0) > _MOST_ERROR:
        return "error"
    if "bits" in profile.facts:
        weights = shape(profile.facts["model"]).touched(1) * profile.facts["bits"] / 8
        if float(profile.seconds_of(1)) < weights / (
            profile.devices * machine(profile.facts["machine"]).bytes_per_s
        ):
            return "faster than the memory"
    return None


def _splitwise() -> Iterator[Profile]:
    rows = table("splitwise_perf_model/perf_model")
    for model, hardware, tp in sorted({(r["model"], r["hardware"], int(r["tensor_parallel"])) for r in rows}):
        short = hardware.replace("-80gb", "").replace("-pcap", "-capped")
        yield passes(rows, model, hardware, tp, name=f"{short}-{model}-tp{tp}", source=SPLITWISE)


def _vidur() -> Iterator[Profile]:
    for gpu, ops_model, model, degrees in _KERNELS:
        for tp in degrees:
            try:
                yield kernels(
                    table("vidur_profiles/mlp_ops"),
                    table("vidur_profiles/collectives"),
                    table("aiconfigurator_ops/context_attention"),
                    table("aiconfigurator_ops/generation_attention"),
                    gpu=gpu,
                    ops_model=ops_model,
                    model=model,
                    tp=tp,
                    name=f"{gpu}-{model}-tp{tp}-kernels",
                    source=VIDUR,
                )
            except ProfileError as error:
                print(f"left out: {gpu} {model} tp{tp}: {error}")


def served_points() -> dict[tuple[str, str, str, str, int], Rows]:
    """Serving points by GPU, model, backend, precision and degree: one engine for prompts and answers, one stage."""
    found: dict[tuple[str, str, str, str, int], Rows] = defaultdict(list)
    for row in table("aiconfigurator_measured/serving_points"):
        one = row["mode"] == "agg" and row["pp_size"] in ("", "1") and row["attention_dp_size"] in ("", "1")
        if one and row["model_path"] in SERVED and row["tp_size"] and float(row["silicon_tpot_ms"] or 0) > 0:
            gpu = row["system"].replace("_", "-")
            model = SERVED[row["model_path"]]
            precision = "fp8" if "fp8" in row["model_path"].lower() else row["precision"]
            found[gpu, model, row["backend"], precision, int(row["tp_size"])].append(row)
    return found


def bits(precision: str) -> int:
    """Bits of a weight."""
    return _BITS[precision]


def _aiconfigurator() -> Iterator[Profile]:
    for (gpu, model, backend, precision, tp), rows in sorted(served_points().items()):
        if len({(r["isl"], r["osl"], r["concurrency"]) for r in rows}) < _LEAST_POINTS:
            continue
        name = f"{gpu.replace('-sxm', '')}-{model}-{precision or 'bf16'}-tp{tp}-{backend}"
        try:
            yield serving(
                rows, gpu=gpu, model=model, tp=tp, bits=bits(precision), name=name, source=AICONFIGURATOR
            )
        except ProfileError as error:
            print(f"left out: {name}: {error}")
