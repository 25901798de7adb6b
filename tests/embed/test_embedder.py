"""The embedder on real MiniLM: the model's own vectors, whatever the batch, the script or the order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tunemill.embed.config import EmbedConfig
from tunemill.embed.embedder import Embedder
from tunemill.embed.precision import cosines
from tunemill.embedded import minilm_folder
from tunemill.errors import ConfigError

TEXTS = [
    "A cat sat on the mat.",
    "הַחתול ישב על השטיח, ואז הלך הביתה.",
    "고양이가 매트 위에 앉았다.",
    "😀👍🏽 🇰🇷",
    "",
    "one",
    *(f"sentence number {i} " + "and so on " * (i % 17) for i in range(60)),
]


def test_vectors_are_those_of_sentence_transformers(minilm: Embedder) -> None:
    """fp32 vectors equal SentenceTransformer.encode to rounding, in any script, for empty and for cut texts."""
    from sentence_transformers import SentenceTransformer

    texts = [*TEXTS, "word " * 1000]
    peer = SentenceTransformer(str(minilm_folder()), device="cpu").encode(texts, normalize_embeddings=True)
    found = minilm.embed(texts)
    assert np.abs(found.vectors - peer).max() < 2e-6
    assert found.cut.tolist() == [False] * len(TEXTS) + [True]
    assert found.n_tokens[-1] == 256


def test_a_vector_does_not_depend_on_its_batch(minilm: Embedder) -> None:
    """On one thread of a CPU, as the stage runs it, a text gives the same bits alone, in any order and among others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        together = minilm.encode(TEXTS)
        backwards = minilm.encode(TEXTS[::-1])[::-1]
        alone = np.concatenate([minilm.encode([text]) for text in TEXTS[:12]])
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(together, backwards)
    assert np.array_equal(together[:12], alone)


def test_identical_texts_are_embedded_once(minilm: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand copies cost one row of a forward pass."""
    rows: list[int] = []
    forward = Embedder._forward
    monkeypatch.setattr(
        Embedder, "_forward", lambda self, batch, items: (rows.append(len(batch.rows)), forward(self, batch, items))[1]
    )
    vectors = minilm.encode(["same"] * 1000 + ["other"])
    assert sum(rows) == 2
    assert np.array_equal(vectors[0], vectors[999])


def test_many_texts_are_read_ahead_in_order(minilm: Embedder) -> None:
    """More texts than one chunk of the tokenising thread keep their places."""
    texts = [f"t {i}" for i in range(1100)]
    picked = [0, 511, 512, 1023, 1024, 1099]
    assert np.array_equal(minilm.encode(texts)[picked], minilm.encode([texts[i] for i in picked]))


def test_a_prefix_is_part_of_the_text(minilm: Embedder) -> None:
    """``prefix`` gives the vector of the prefixed text."""
    prefixed = Embedder(EmbedConfig(precision="fp32", device="cpu", prefix="query: "))
    assert np.array_equal(prefixed.encode(["a cat"]), minilm.encode(["query: a cat"]))


def test_half_precision_holds_on_a_sample() -> None:
    """bf16 is used only with its check on record: cosine to fp32 of at least 0.999."""
    embedder = Embedder(EmbedConfig(device="cpu"), sample=TEXTS)
    check = embedder.facts["precision_check"]
    assert check["texts"] > 10
    assert check["least_cosine"] >= 0.999
    assert embedder.precision in ("bf16", "fp32")


def test_auto_falls_back_to_fp32_where_half_precision_does_not_hold(minilm: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """When no fast data type reaches the bound, the vectors are fp32's, and the manifest says what was tried."""
    monkeypatch.setattr("tunemill.embed.embedder.candidates", lambda config, device: ["bf16", "fp32"])
    monkeypatch.setattr("tunemill.embed.embedder.LEAST_COSINE", 1.1)
    embedder = Embedder(EmbedConfig(device="cpu"), sample=TEXTS)
    assert embedder.precision == "fp32"
    assert list(embedder.facts["precision_check"]["tried"]) == ["bf16 unpadded", "bf16"]
    assert np.array_equal(embedder.encode(TEXTS[:5]), minilm.encode(TEXTS[:5]))


def test_cosines_of_zero_and_nan_are_zero() -> None:
    """A data type that yields nothing finite never passes the check."""
    one = np.array([[1.0, 0.0], [0.0, 0.0], [np.nan, 1.0]])
    assert cosines(one, np.ones((3, 2))).tolist() == [pytest.approx(0.5**0.5), 0.0, 0.0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EmbedConfig(model="/no/such/folder"), "'/no/such/folder': no such folder"),
        (EmbedConfig(model="nobody/nothing"), "'nobody/nothing': not on this machine and the hub cannot be reached"),
        (EmbedConfig(model="a b"), "neither a folder nor a hub name"),
        (EmbedConfig(max_length=4096), "max_length is 4096: all-MiniLM-L6-v2 takes at most 512 tokens"),
        (EmbedConfig(device="cuda"), "torch sees no GPU here"),
    ],
)
def test_what_cannot_work_is_one_line(config: EmbedConfig, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing model, a bad name, an impossible length or device: one line with the value."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=message) as caught:
        Embedder(config)
    assert "\n" not in str(caught.value)
