"""Encodes a text as the mean of MiniLM's token vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, final

from apportion.core.errors import ApportionError
from apportion.core.method import Constraint, Interval, Kind
from apportion.core.predictor import Encoder

_HALF_CHARS = 4096
"""Of a longer text only this many characters at each end are cut into tokens: more than a half-window holds."""
_PADDING = 1.25
"""Texts go through the graph together if the longest has at most so many times the tokens of the shortest."""
_TOGETHER = 16


class EncoderFilesError(ApportionError):
    """The encoder's packages or files are missing, or the files are not those of a sentence encoder."""

    code = "encoder_unavailable"


@final
class Minilm(Encoder):
    """Encodes a text as the mean of MiniLM's token vectors.

    MiniLM-L6 is BERT distilled to 6 layers of 384 numbers [1]_, tuned so that the mean over a sentence's tokens is
    near that of a sentence which means the same [2]_. The weights are stored in 8 bits; the arithmetic is in 32, so
    that every processor computes the same vectors to about 1e-6.

        h_1 .. h_n = MiniLM([CLS] tokens [SEP]),   vector = m / |m|  with  m = (h_1 + ... + h_n) / n

    Parameters
    ----------
    model_file
        Path of the ONNX graph with inputs ``input_ids`` and ``attention_mask``.
    tokenizer_file
        Path of the matching ``tokenizer.json``.
    window_tokens
        Most tokens that are read, 16 to 512. Of a longer text the first and the last half-window are read: a prompt
        says what it wants at its beginning or at its end. 256 is what the model was tuned with.
    threads
        Processor threads for one text, 1 to 64.

    Complexity
    ----------
    O(tokens) in a call of `encode`: about 5 ms for 16 tokens, 20 ms for 64, 80 ms for 256 on one core; 90 MB of
    memory once loaded, about 0.4 s to load.

    Notes
    -----
    The files are read at the first `encode`, the one place where a method does so: the constructor and its clones
    stay free. Texts of about the same length are computed together, which pays below 32 tokens only. The model was
    tuned on English; other languages in the same script come out usable, others poorly. It needs ``pip install
    'apportion[text]'``. `text/lexical` is what there is without.

    See Also
    --------
    text/lexical : counts and marks, in microseconds.

    References
    ----------
    .. [1] Wang, W., Wei, F., Dong, L., Bao, H., Yang, N., Zhou, M. "MiniLM: Deep Self-Attention Distillation for
       Task-Agnostic Compression of Pre-Trained Transformers." (2020) arXiv:2002.10957
    .. [2] Reimers, N., Gurevych, I. "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks." (2019)
       arXiv:1908.10084

    Examples
    --------
    >>> encoder = Minilm(model_file="model.onnx", tokenizer_file="tokenizer.json")
    >>> encoder.dimensions
    384
    >>> encoder.encode([])
    []
    """

    dimensions: ClassVar[int] = 384

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "model_file": Kind(str),
        "tokenizer_file": Kind(str),
        "window_tokens": Interval(int, 16, 512),
        "threads": Interval(int, 1, 64),
    }

    def __init__(
        self, *, model_file: str, tokenizer_file: str, window_tokens: int = 256, threads: int = 1
    ) -> None:
        self.model_file = model_file
        self.tokenizer_file = tokenizer_file
        self.window_tokens = window_tokens
        self.threads = threads
        self._graph: _Graph | None = None
        self.start()

    def encode(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """One vector for each text; an empty one has a vector, too. Raises `EncoderFilesError`."""
        if not texts:
            return []
        if self._graph is None:
            self._graph = _Graph(self.model_file, self.tokenizer_file, self.window_tokens, self.threads)
        return self._graph.encode(texts)

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        yield {"model_file": "model.onnx", "tokenizer_file": "tokenizer.json"}
        yield {
            "model_file": "model.onnx",
            "tokenizer_file": "tokenizer.json",
            "window_tokens": 128,
            "threads": 2,
        }

    def save(self) -> dict[str, Any]:
        """It learns nothing."""
        return {"method": type(self).__name__, "learned": {}}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Nothing to continue from, after the check that it is its own."""
        graph = self._graph
        del self._graph  # loaded, not learned
        try:
            super().load(saved)
        finally:
            self._graph = graph

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_graph": None}


class _Graph:
    """The loaded files."""

    def __init__(self, model_file: str, tokenizer_file: str, window_tokens: int, threads: int) -> None:
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            raise EncoderFilesError(
                f"text/minilm needs the package {error.name}.", fix="Run: pip install 'apportion[text]'"
            ) from error
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        # Threads that spin between two texts take the processor from everything else.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._cutter = Tokenizer.from_file(tokenizer_file)
            self._session = onnxruntime.InferenceSession(
                model_file, settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # both libraries raise bare exceptions of many kinds
            raise EncoderFilesError(
                f"The encoder's files {model_file!r} and {tokenizer_file!r} cannot be used: {error}",
                field="model_file",
                fix="Run: apportion models fetch minilm-l6-v2-int8",
            ) from error
        self._cutter.no_truncation()
        self._cutter.no_padding()
        self._inputs = {given.name for given in self._session.get_inputs()}
        self._half = window_tokens // 2
        self._window = window_tokens

    def encode(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        cut = self._cutter.encode_batch([_ends(text) for text in texts])
        tokens = [self._fitting(piece.ids) for piece in cut]
        found: list[tuple[float, ...]] = [()] * len(tokens)
        for together in _runs([len(ids) for ids in tokens]):
            for place, vector in zip(together, self._run([tokens[i] for i in together]), strict=True):
                found[place] = tuple(vector)
        return found

    def _fitting(self, ids: list[int]) -> list[int]:
        if len(ids) <= self._window:
            return ids
        return ids[: self._window - self._half] + ids[-self._half :]

    def _run(self, tokens: list[list[int]]) -> list[list[float]]:
        import numpy as np

        ids = np.zeros((len(tokens), max(map(len, tokens))), np.int64)
        mask = np.zeros_like(ids)
        for row, given in enumerate(tokens):
            ids[row, : len(given)] = given
            mask[row, : len(given)] = 1
        feed = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self._inputs:
            feed["token_type_ids"] = np.zeros_like(ids)
        hidden = self._session.run(None, feed)[0]
        means = np.einsum("btd,bt->bd", hidden, mask.astype(np.float32)) / mask.sum(axis=1, keepdims=True)
        lengths = np.linalg.norm(means, axis=1, keepdims=True)
        vectors: list[list[float]] = (means / np.maximum(lengths, 1e-12)).tolist()
        return vectors


def _ends(text: str) -> str:
    """``text``, or its two ends. Lone surrogates, which no tokenizer takes, become question marks."""
    if len(text) > 2 * _HALF_CHARS:
        text = f"{text[:_HALF_CHARS]} {text[-_HALF_CHARS:]}"
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _runs(lengths: list[int]) -> Iterator[list[int]]:
    """Places of texts that are computed together, shortest first."""
    run: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if run and (len(run) == _TOGETHER or lengths[place] > _PADDING * lengths[run[0]]):
            yield run
            run = []
        run.append(place)
    yield run
