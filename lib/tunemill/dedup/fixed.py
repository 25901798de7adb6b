"""Rows that stay whatever happens: those of an earlier run (``against``) and those of a test set (``protect``)."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunemill.dedup.config import DedupConfig
from tunemill.dedup.corpus import Corpus, collect
from tunemill.dedup.pairs import Vectors
from tunemill.dedup.plan import SearchPlan
from tunemill.dedup.scratch import gathered
from tunemill.dedup.shards import plan_bytes, read_plan
from tunemill.errors import DataError
from tunemill.stage import StageContext
from tunemill.store import Location, StageStore

__all__ = ["FixedRows", "earlier_run", "kept_rows", "no_rows", "protected_rows", "side_by_side_rows", "write_index"]

_ROWS_PER_FILE = 100_000


@dataclass(frozen=True, kw_only=True)
class FixedRows:
    """f rows: ``ids`` str [f], ``keys`` of their texts, unit vectors [f, d], and the ``groups`` they were in."""

    ids: np.ndarray
    keys: np.ndarray
    rows: np.ndarray
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def no_rows(dims: int) -> FixedRows:
    """No fixed rows, of ``dims`` dimensions."""
    empty = np.zeros(0, "U1")
    return FixedRows(ids=empty, keys=np.zeros(0, "S16"), rows=np.zeros((0, dims), np.float32), groups=empty)


def protected_rows(config: DedupConfig, path: str) -> FixedRows:
    """The rows of a test set, with the columns of the input; embedded where the input is."""
    from tunemill.tables import FileSource, InputConfig

    plain = dataclasses.replace(config, prefer="first")
    corpus = collect(FileSource(InputConfig(path=path)), plain, where=f"dedup.protect {path}")
    keys = corpus.keys if corpus.keys is not None else np.zeros(len(corpus), "S16")
    return FixedRows(ids=corpus.ids, keys=keys, rows=corpus.vectors.rows, groups=corpus.ids)


def earlier_run(path: str) -> tuple[FixedRows, SearchPlan]:
    """The kept rows and the search plan of an earlier dedup run (its folder, or the run's). Raises DataError."""
    folder = Location.of(path)
    for store in (StageStore(folder.join("dedup")), StageStore(folder)):
        manifest = store.read_manifest()
        if manifest is not None and manifest.stage == "dedup":
            break
    else:
        raise DataError(f"dedup.against {folder.url}: holds no finished dedup run; name its output folder")
    files = store.committed("index")
    if not files:
        raise DataError(f"dedup.against {folder.url}: kept no vectors; run it again with dedup.keep_index true")
    plan = read_plan(next(file for file in files if file.name.endswith(".npz")).read_bytes())
    tables = [pq.read_table(io.BytesIO(file.read_bytes())) for file in files if file.name.endswith(".parquet")]
    table = pa.concat_tables(tables).combine_chunks()
    rows = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    return FixedRows(ids=_text(table["id"]), keys=_keys(table["key"]), rows=rows, groups=_text(table["group"])), plan


def kept_rows(corpus: Corpus, kept: np.ndarray, groups: np.ndarray, earlier: FixedRows) -> FixedRows:
    """The rows that a later run is compared with: those of an earlier run and the ones kept now."""
    keys = corpus.keys if corpus.keys is not None else np.zeros(len(corpus), "S16")
    own = corpus.vectors.rows
    return FixedRows(
        ids=np.concatenate([earlier.ids, corpus.ids[kept]]),
        keys=np.concatenate([earlier.keys, keys[kept]]),
        rows=gathered([(earlier.rows, np.arange(len(earlier))), (own, np.flatnonzero(kept))], own.shape[1]),
        groups=np.concatenate([earlier.groups, groups[kept]]),
    )


def write_index(context: StageContext, every: FixedRows, plan: SearchPlan) -> list[str]:
    """Store rows and plan for later runs; returns the paths to list under ``files``."""
    names = [f"index/{context.attempt}-plan.npz"]
    context.store.folder.join(names[0]).write_bytes(plan_bytes(plan))
    for start in range(0, len(every), _ROWS_PER_FILE):
        part = slice(start, start + _ROWS_PER_FILE)
        sink = io.BytesIO()
        pq.write_table(_table(every, part), sink, compression="none")
        names.append(f"index/{context.attempt}-rows-{start // _ROWS_PER_FILE:05d}.parquet")
        context.store.folder.join(names[-1]).write_bytes(sink.getvalue())
    return names


def side_by_side_rows(corpus: Corpus, others: Sequence[FixedRows]) -> Vectors:
    """The corpus's vectors with fixed rows beneath; DataError where the dimensions differ."""
    dims = corpus.vectors.rows.shape[1]
    for other in others:
        if len(other) and other.rows.shape[1] != dims:
            raise DataError(
                f"dedup: fixed rows have {other.rows.shape[1]} dimensions, the input has {dims}; use the same embedding model"
            )
    if not any(len(other) for other in others):
        return corpus.vectors
    every = [corpus.vectors.rows, *(other.rows for other in others)]
    return Vectors.of(gathered([(rows, np.arange(len(rows))) for rows in every], dims), corpus.vectors.widths)


def _table(rows: FixedRows, part: slice) -> pa.Table:
    values = pa.array(np.ascontiguousarray(rows.rows[part]).reshape(-1))
    return pa.table(
        {
            "id": pa.array(rows.ids[part], pa.string()),
            "key": pa.array([bytes(key).ljust(16, b"\0") for key in rows.keys[part]], pa.binary(16)),
            "group": pa.array(rows.groups[part], pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(values, rows.rows.shape[1]),
        }
    )


def _text(column: Any) -> np.ndarray:
    return np.array(column.to_pylist(), dtype=str)


def _keys(column: Any) -> np.ndarray:
    return np.array(column.to_pylist(), dtype="S16")
