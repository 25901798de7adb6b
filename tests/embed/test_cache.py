"""The cache: earlier runs' vectors come back bit by bit, and only new texts meet the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tunemill.embed.cache import VectorCache, text_keys
from tunemill.embed.config import EmbedConfig
from tunemill.embed.remember import RememberingEmbedder
from tunemill.store import Location

OLD = [f"old text {i}" for i in range(30)]


def test_rows_come_back_in_any_order(tmp_path: Path) -> None:
    """Two segments answer for their own keys; unknown keys are not found."""
    cache = VectorCache(Location.of(tmp_path), "space")
    keys = text_keys([*"abcdef"])
    vectors = np.arange(18, dtype=np.float32).reshape(6, 3)
    tokens, cut = np.arange(6), np.arange(6) % 2 == 1
    cache.put(keys[:4], vectors[:4], tokens[:4], cut[:4])
    cache.put(keys[4:], vectors[4:], tokens[4:], cut[4:])
    wanted = text_keys([*"fxbad"])
    known, found, n_tokens, marks = VectorCache(Location.of(tmp_path), "space").get(wanted, 3)
    assert known.tolist() == [0, 2, 3, 4]
    assert np.array_equal(found, vectors[[5, 1, 0, 3]])
    assert n_tokens.tolist() == [5, 1, 0, 3]
    assert marks.tolist() == [True, True, False, True]


def test_a_half_written_segment_is_not_read(tmp_path: Path) -> None:
    """Vectors without their keys (a killed writer) do not count."""
    cache = VectorCache(Location.of(tmp_path), "space")
    cache.put(text_keys(["a"]), np.ones((1, 2), np.float32), np.ones(1), np.zeros(1, bool))
    next(tmp_path.glob("space/*.keys.npy")).unlink()
    assert len(VectorCache(Location.of(tmp_path), "space").get(text_keys(["a"]), 2)[0]) == 0


def test_what_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    """A NaN vector is computed again next time."""
    cache = VectorCache(Location.of(tmp_path), "space")
    cache.put(text_keys(["a"]), np.full((1, 2), np.nan, np.float32), np.ones(1), np.zeros(1, bool))
    assert not list(tmp_path.glob("space/*.npy"))


def test_a_grown_corpus_embeds_only_its_new_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run loads no model for known texts, gives the same bits, and computes only what was added."""
    config = EmbedConfig(cache=str(tmp_path), device="cpu")
    first = RememberingEmbedder(config)
    before = first.embed([*OLD, OLD[0]])
    assert first.computed == 30
    first.embed(OLD)
    assert first.computed == 30

    with monkeypatch.context() as patch:
        patch.setattr("tunemill.embed.remember.Embedder", None)
        again = RememberingEmbedder(config)
        assert np.array_equal(again.embed([*OLD, OLD[0]]).vectors, before.vectors)
        assert again.facts == first.facts

    grown = RememberingEmbedder(config)
    found = grown.embed(["new text", *OLD])
    assert grown.computed == 1
    assert np.array_equal(found.vectors[1:], before.vectors[:30])
    assert (
        RememberingEmbedder(EmbedConfig(cache=str(tmp_path), device="cpu", prefix="q: ")).embed(OLD[:1]).n_tokens[0]
        > found.n_tokens[1]
    )
