"""The sentence encoder: pooling against its definition, meaning against chance, with the real files if stored."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest

from apportion.core.errors import ParameterError, SavedStateError
from apportion.predict.text.minilm import EncoderFilesError, Minilm, _runs
from apportion.serve import store

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def encoder() -> Minilm:
    known = {item.name: item for item in store.listing()}
    parts = [known[name] for name in ("minilm-l6-v2-int8", "minilm-l6-v2-tokenizer")]
    if any(part.state != "stored" for part in parts):
        pytest.skip("the encoder is not stored here: apportion models fetch minilm-l6-v2-int8")
    return Minilm(model_file=str(parts[0].path), tokenizer_file=str(parts[1].path))


def near(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


PARAPHRASES = [
    ("How do I reset my password?", "I forgot my password, how can I change it?"),
    ("What is the capital of France?", "Which city is France's capital?"),
    ("Write a function that sorts a list.", "Implement a routine for sorting an array."),
    ("The train was late again today.", "Today the train was delayed once more."),
]


def test_what_means_the_same_is_nearer_than_what_does_not(encoder: Minilm) -> None:
    left = encoder.encode([a for a, _ in PARAPHRASES])
    right = encoder.encode([b for _, b in PARAPHRASES])
    for i, one in enumerate(left):
        same = near(one, right[i])
        assert same > 0.6
        assert all(near(one, other) < same - 0.2 for j, other in enumerate(right) if j != i)


def test_vectors_are_of_unit_length_and_do_not_depend_on_company(encoder: Minilm) -> None:
    texts = [*(text for pair in PARAPHRASES for text in pair), "", "x", "äöü \ud800 🙂", "word " * 2000]
    together = encoder.encode(texts)
    for text, vector in zip(texts, together, strict=True):
        assert len(vector) == encoder.dimensions
        assert math.isclose(near(vector, vector), 1.0, abs_tol=1e-5)
        [alone] = encoder.encode([text])
        assert near(vector, alone) > 1 - 1e-5


def test_the_mean_is_over_the_tokens_of_the_text_alone(encoder: Minilm) -> None:
    """The definition, from the graph's own output: padding must not count."""
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    text = "Compute the sum of the first ten primes."
    cutter = Tokenizer.from_file(encoder.tokenizer_file)
    cutter.no_padding()
    ids = np.array([cutter.encode(text).ids])
    session = onnxruntime.InferenceSession(encoder.model_file, providers=["CPUExecutionProvider"])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    names = {given.name for given in session.get_inputs()}
    hidden = session.run(None, {name: value for name, value in feed.items() if name in names})[0][0]
    mean = hidden.mean(axis=0)
    expected = mean / np.linalg.norm(mean)
    found = encoder.encode([text, text + " And then say why.", "Short."])[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_of_a_long_text_both_ends_are_read(encoder: Minilm) -> None:
    filler = "The weather was fine and nothing happened on that day. " * 400
    wish = "Translate the following contract into Spanish."
    plain, first, last = encoder.encode([filler, f"{wish} {filler}", f"{filler} {wish}"])
    [wanted] = encoder.encode([wish])
    assert near(first, wanted) > near(plain, wanted) + 0.03
    assert near(last, wanted) > near(plain, wanted) + 0.03
    middle = filler + wish + filler
    assert near(encoder.encode([middle])[0], plain) > 0.99


def test_it_learns_nothing_and_travels(encoder: Minilm) -> None:
    [before] = encoder.encode(["hello"])
    encoder.load(encoder.save())
    encoder.reset()
    copied = pickle.loads(pickle.dumps(encoder))
    assert encoder.encode(["hello"])[0] == before == copied.encode(["hello"])[0]
    with pytest.raises(SavedStateError):
        encoder.load({"method": "Another", "learned": {}})
    assert encoder.encode(["hello"])[0] == before


def test_files_that_are_no_encoder_are_explained(tmp_path: Path) -> None:
    wrong = tmp_path / "model.onnx"
    wrong.write_bytes(b"not a graph")
    encoder = Minilm(model_file=str(wrong), tokenizer_file=str(wrong))
    with pytest.raises(EncoderFilesError, match="apportion models fetch"):
        encoder.encode(["a"])
    with pytest.raises(ParameterError, match="window_tokens"):
        Minilm(model_file="a", tokenizer_file="b", window_tokens=8)


def test_texts_go_together_only_with_their_like() -> None:
    lengths = [40, 10, 12, 11, 200, 9, *([10] * 30)]
    runs = list(_runs(lengths))
    assert sorted(place for run in runs for place in run) == list(range(len(lengths)))
    for run in runs:
        assert len(run) <= 16
        found = [lengths[place] for place in run]
        assert max(found) <= 1.25 * min(found)
