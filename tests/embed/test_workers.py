"""The workers: the same vectors for any cut of the rows, nulls where there is no text, and pools that fit."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunemill.embed.config import EmbedConfig
from tunemill.embed.embedder import Embedder
from tunemill.embed.workers import Task, VectorColumn, pool_for, vector_array
from tunemill.errors import ConfigError, DataError

TEXTS = [f"number {i} " + "אבג 가나다 😀 word " * (i % 9) for i in range(40)]


def column(config: EmbedConfig) -> VectorColumn:
    """A worker outside Ray."""
    return VectorColumn(Task(config=config, text_column="text", output_column="embedding", sample=tuple(TEXTS)), 1, None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_vectors_are_the_same_for_any_blocks(precision: str) -> None:
    """On a CPU, blocks of 1, 7 or 40 rows on one worker or two give the same bits, in half precision too."""
    config = EmbedConfig(device="cpu", precision=precision)  # type: ignore[arg-type]
    table = pa.table({"text": TEXTS})
    whole = column(config)(table)["embedding"].combine_chunks()
    other = column(config)
    sizes = [1] * 5 + [7] * 5
    starts = np.cumsum([0, *sizes])
    parts = [other(table.slice(int(a), n))["embedding"].combine_chunks() for a, n in zip(starts, sizes, strict=False)]
    assert pa.concat_arrays(parts).equals(whole)


def test_rows_without_text_get_null(minilm: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty and missing texts become null vectors; an all-null column too; a column of numbers is refused by name."""
    worker = column(EmbedConfig(device="cpu", precision="fp32"))
    found = worker(pa.table({"text": ["a", "", None, " \n"]}))["embedding"]
    assert found.is_null().to_pylist() == [False, True, True, True]
    assert worker(pa.table({"text": pa.nulls(2)}))["embedding"].null_count == 2
    with pytest.raises(DataError, match="column 'text' holds int64, should hold text"):
        worker(pa.table({"text": [1, 2]}))


def test_what_is_not_finite_is_null() -> None:
    """A NaN row never reaches a file as a vector."""
    array = vector_array(np.array([[1.0, 0.0], [np.nan, 0.0]], np.float32), "float16")
    assert array.is_null().to_pylist() == [False, True]
    assert array.type == pa.list_(pa.float16(), 2)


@given(st.integers(1, 256), st.integers(0, 16), st.one_of(st.none(), st.integers(1, 10**7)))
def test_pools_leave_room_for_reading_and_writing(cpus: int, gpus: int, rows: int | None) -> None:
    """Workers never ask for all CPUs, never for more GPUs than there are, and small inputs get few."""
    pool = pool_for(EmbedConfig(), cpus=cpus, gpus=gpus, rows=rows)
    assert pool.workers >= 1
    if gpus:
        assert pool.workers <= gpus
    else:
        assert pool.workers * pool.threads <= cpus
        assert pool.workers * pool.threads * 0.5 < cpus or cpus == 1
    if rows is not None:
        assert pool.workers <= -(-rows // 1000)


def test_config_errors_are_one_line() -> None:
    """What contradicts itself is refused before anything is loaded."""
    with pytest.raises(ConfigError, match=r"embed\.cache: only for provider local"):
        EmbedConfig(provider="openai", model="m", cache="c")
    with pytest.raises(ConfigError, match=r"embed\.precision is bf16: only provider local"):
        EmbedConfig(provider="openai", model="m", precision="bf16")
    with pytest.raises(ConfigError, match="only the embed stage calls APIs"):
        Embedder(EmbedConfig(provider="openai", model="m"))
