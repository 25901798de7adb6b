"""The embed stage on real MiniLM: rows in, vectors or a reason out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tunemill.embed.config import EmbedConfig
from tunemill.embed.embedder import Embedder
from tunemill.embed.stage import STAGE
from tunemill.errors import DataError
from tunemill.progress import Progress
from tunemill.stage import new_context, run_stage
from tunemill.store import Location, Manifest, StageStore
from tunemill.tables import FileSource, InputConfig

TEXTS = ["A cat sat on the mat.", "", "A cat sat on the mat.", "   ", "הַחתול ישב על השטיח", "고양이가 앉았다", "😀", None]


def embed(folder: Path, rows: list[dict[str, Any]], config: EmbedConfig) -> Manifest:
    """Run the stage on rows, alone."""
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    context = new_context(StageStore(Location.of(folder / "out")), seed=0, progress=Progress(quiet=True))
    return run_stage(STAGE, FileSource(InputConfig(path=str(source))), config, context, overwrite=True)


def table(folder: Path, manifest: Manifest, kind: str) -> Any:
    """One committed table."""
    return pq.read_table([str(folder / "out" / name) for name in manifest.files[kind]])


def test_every_row_gets_a_vector_or_a_reason(ray_session: None, tmp_path: Path) -> None:
    """Texts in any script get the vector that the embedder gives; rows without text are dropped as empty_text."""
    manifest = embed(tmp_path, [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)], EmbedConfig())
    assert (manifest.rows_in, manifest.rows_kept, manifest.rows_dropped) == (8, 5, {"empty_text": 3})
    kept = table(tmp_path, manifest, "data")
    vectors = np.stack(kept["embedding"].to_numpy(zero_copy_only=False))
    assert str(kept.schema.field("embedding").type) == "fixed_size_list<element: float>[384]"
    assert kept["id"].to_pylist() == ["0", "2", "4", "5", "6"]
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    assert (vectors @ Embedder(EmbedConfig(precision="fp32")).encode(kept["text"].to_pylist()).T).diagonal().min() > 0.999
    assert sorted(table(tmp_path, manifest, "dropped")["id"].to_pylist()) == ["1", "3", "7"]
    assert manifest.details["dimension"] == 384
    assert manifest.details["precision_check"]["least_cosine"] >= 0.999


def test_a_missing_text_column_is_named_with_the_nearest(ray_session: None, tmp_path: Path) -> None:
    """A wrong text column stops before any work, with the column that was probably meant."""
    with pytest.raises(DataError, match="no column 'txt', did you mean 'text'"):
        embed(tmp_path, [{"id": "a", "text": "x"}], EmbedConfig(text_column="txt"))
