"""Run the dedup stage on toy tables and read back what it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunemill.dedup.config import DedupConfig
from tunemill.dedup.stage import STAGE
from tunemill.progress import Progress
from tunemill.stage import new_context, run_stage
from tunemill.store import Location, Manifest, StageStore
from tunemill.tables import FileSource, InputConfig


@dataclass(frozen=True)
class Result:
    """The manifest and the rows of each table."""

    manifest: Manifest
    kept: list[dict[str, Any]]
    dropped: list[dict[str, Any]]
    pairs: list[dict[str, Any]]

    @property
    def kept_ids(self) -> set[str]:
        """Ids of the rows that stay."""
        return {row["id"] for row in self.kept}


def table(
    vectors: np.ndarray, texts: Sequence[str | None] | None = None, ids: Sequence[str] | None = None, **more: Any
) -> pa.Table:
    """A table with ids r0000, r0001, ..., vectors and, where given, texts."""
    columns: dict[str, Any] = {"id": list(ids) if ids is not None else [f"r{i:04d}" for i in range(len(vectors))]}
    if texts is not None:
        columns["text"] = list(texts)
    columns |= more
    values = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
    return pa.table(columns)


def dedup(rows: pa.Table, folder: Path, *, overwrite: bool = False, **settings: Any) -> Result:
    """Run the stage on ``rows`` into ``folder/out``."""
    pq.write_table(rows, folder / "rows.parquet")
    return dedup_file(folder / "rows.parquet", folder / "out", overwrite=overwrite, **settings)


def dedup_file(path: Path, output: Path, *, overwrite: bool = False, **settings: Any) -> Result:
    """Run the stage on a file."""
    store = StageStore(Location.of(output))
    context = new_context(store, seed=0, progress=Progress(quiet=True))
    source = FileSource(InputConfig(path=str(path)))
    manifest = run_stage(STAGE, source, DedupConfig(**settings), context, overwrite=overwrite)
    return Result(manifest, *(_rows(store, kind) for kind in ("data", "dropped", "pairs")))


def _rows(store: StageStore, kind: str) -> list[dict[str, Any]]:
    return [row for file in store.committed(kind) for row in pq.read_table(file.path).to_pylist()]
