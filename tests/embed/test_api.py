"""Embedding by API, against the strict mock over real HTTP: paid once, grouped by content, named when refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed.test_stage import embed, table
from mock_provider import MockConfig, MockHandle, start_mock
from tunemill.embed.api import _spans
from tunemill.embed.config import ApiConfig, EmbedConfig
from tunemill.embed.stage import STAGE
from tunemill.errors import ConfigError
from tunemill.llm.config import Price


@pytest.fixture(scope="module")
def mock() -> Iterator[MockHandle]:
    """A server that refuses texts of more than 3,000 tokens."""
    with start_mock(MockConfig(dimension=6, context_tokens=3000)) as handle:
        yield handle


@given(st.lists(st.sampled_from(["", "short", "some words " * 40, "x" * 9000]), max_size=60), st.integers(1, 9))
def test_groups_are_neighbours_and_long_texts_travel_alone(texts: list[str], size: int) -> None:
    """Spans cover every text once in order, within the size, and a long text shares its call with none."""
    spans = list(_spans(texts, size))
    assert [place for a, b in spans for place in range(a, b)] == list(range(len(texts)))
    for a, b in spans:
        assert 1 <= b - a <= size
        assert b - a == 1 or not any(len(text) == 9000 for text in texts[a:b])


def test_texts_are_paid_once_and_a_refused_one_is_named(
    ray_session: None, tmp_path: Path, mock: MockHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row gets a unit vector or a reason; the same command again pays nothing and gives the same vectors."""
    monkeypatch.setenv("MOCK_KEY", "mock-secret-key")
    rows = [{"id": f"r{i}", "text": f"text {i % 30} [[p{i % 30}]]"} for i in range(45)]
    rows[7]["text"], rows[9]["text"] = " ", "word " * 4000
    api = ApiConfig(base_url=f"{mock.url}/v1", api_key_env="MOCK_KEY", texts_per_call=16, price=Price(input=0.1), budget_usd=1)
    config = EmbedConfig(provider="openai", model="text-embedding-3-small", api=api)
    first = embed(tmp_path, rows, config)
    reasons = dict(first.rows_dropped)
    assert reasons.pop("empty_text") == 1
    assert sum(reasons.values()) == 1
    assert first.rows_kept == 43
    kept = table(tmp_path, first, "data").sort_by("id")
    vectors = np.stack(kept["embedding"].to_numpy(zero_copy_only=False))
    assert vectors.shape == (43, 6)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    by_text = {}
    for text, vector in zip(kept["text"].to_pylist(), vectors.tolist(), strict=True):
        assert by_text.setdefault(text, vector) == vector
    assert first.details["cost_usd"] > 0
    paid = mock.stats()["paid"]
    again = embed(tmp_path, rows, dataclasses.replace(config, output="float16"))
    assert mock.stats()["paid"] == paid
    half = table(tmp_path, again, "data").sort_by("id")
    assert str(half.schema.field("embedding").type) == "fixed_size_list<element: halffloat>[6]"
    assert np.abs(np.stack(half["embedding"].to_numpy(zero_copy_only=False)).astype(np.float32) - vectors).max() < 1e-3


def test_a_missing_key_stops_before_any_call() -> None:
    """Without the key the stage's check names the variable."""
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        STAGE.check(EmbedConfig(provider="openai", model="m", api=ApiConfig(api_key_env="NO_SUCH_KEY")))
