"""The rows as the search needs them: ids, text hashes and lengths, and checked unit vectors, in order of id.

The order of id makes every later step independent of the order in which rows came.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tunemill.dedup.config import DedupConfig, parse_preference
from tunemill.dedup.exact import text_key
from tunemill.dedup.pairs import Vectors
from tunemill.errors import DataError

__all__ = ["Corpus", "collect", "text_columns_of"]

_EXCERPT_CHARS = 400
_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """n rows sorted by id: ``ids`` str [n], ``keys`` hashes of the normalised texts, ``position`` in the input,
    ``lengths`` in characters, ``excerpts`` to show, ``score`` of ``prefer: column NAME``, and the vectors."""

    ids: np.ndarray
    keys: np.ndarray | None
    position: np.ndarray
    lengths: np.ndarray
    excerpts: pa.ChunkedArray
    score: np.ndarray | None
    vectors: Vectors
    rescaled: int
    """Rows whose vectors were not of unit length."""
    empty_texts: int

    def __len__(self) -> int:
        return len(self.ids)


def text_columns_of(columns: list[str], config: DedupConfig, where: str) -> tuple[str, ...]:
    """The text columns that the input has; empty when it brings only vectors. Raises DataError."""
    if "id" not in columns:
        raise DataError(f"{where}: column 'id' is missing; name the column that identifies a row with --id-column")
    missing = [name for name in config.text_columns if name not in columns]
    only_vectors = "embedding" in columns and config.text_columns == ("text",)
    if missing and not only_vectors:
        raise DataError(f"{where}: column {missing[0]!r} is missing (columns: {', '.join(columns)}); set dedup.text_columns")
    kind, name = parse_preference(config.prefer)
    if kind == "column" and name not in columns:
        raise DataError(f"{where}: column {name!r} of dedup.prefer is missing (columns: {', '.join(columns)})")
    return () if missing else config.text_columns


def collect(source: Any, config: DedupConfig, *, where: str) -> Corpus:
    """Read a source's rows, embedding those without vectors. Raises DataError for rows that cannot be compared."""
    columns = source.columns()
    texts = text_columns_of(columns, config, where)
    dataset, vector_columns = _with_vectors(source.dataset(), columns, texts, config)
    score_column = parse_preference(config.prefer)[1]
    narrow = _Narrow(texts, vector_columns, score_column)
    narrowed = dataset.map_batches(narrow, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
    tables = [table for table in narrowed.iter_batches(batch_size=None, batch_format="pyarrow") if len(table)]
    if not tables:
        raise DataError(f"{where}: holds no rows")
    return _build(tables, bool(texts), score_column is not None, len(vector_columns), where)


def _with_vectors(dataset: Any, columns: list[str], texts: tuple[str, ...], config: DedupConfig) -> tuple[Any, tuple[str, ...]]:
    if "embedding" in columns and len(texts) < 2:
        return dataset, ("embedding",)
    from tunemill.embed.stage import add_embeddings

    named = tuple(f"_embedding_{i}" for i in range(len(texts)))
    for text, vector in zip(texts, named, strict=True):
        dataset = add_embeddings(dataset, config.embed, text_column=text, output_column=vector)
    return dataset, named


@dataclass(frozen=True)
class _Narrow:
    """A block's rows without what the search does not need."""

    texts: tuple[str, ...]
    vectors: tuple[str, ...]
    score: str | None

    def __call__(self, table: pa.Table) -> pa.Table:
        if not len(table):
            return pa.table({})
        rows = list(zip(*(table[name].cast(pa.string()).to_pylist() for name in self.texts), strict=True))
        whole = [" | ".join(text or "" for text in row) for row in rows] or [""] * len(table)
        narrow = {
            "id": table["id"].cast(pa.string()),
            "excerpt": pa.array([text[:_EXCERPT_CHARS] for text in whole], pa.large_string()),
            "length": pa.array([sum(len(text or "") for text in row) for row in rows] or [0] * len(table), pa.int64()),
        }
        if rows:
            narrow["key"] = pa.array([text_key(row) for row in rows], pa.binary(16))
        if self.score is not None:
            narrow["score"] = table[self.score].cast(pa.float64())
        for i, name in enumerate(self.vectors):
            narrow[f"vector{i}"] = table[name].cast(pa.large_list(pa.float32()))
        return pa.table(narrow)


def _build(tables: list[pa.Table], has_texts: bool, has_score: bool, groups: int, where: str) -> Corpus:
    ids = np.concatenate([table["id"].to_numpy(zero_copy_only=False) for table in tables]).astype(object)
    if any(value is None for value in ids):
        raise DataError(f"{where}: a row has no id; every row needs one")
    order = np.argsort(ids.astype(str), kind="stable")
    ids = ids[order].astype(str)
    doubled = np.flatnonzero(ids[1:] == ids[:-1])
    if len(doubled):
        raise DataError(f"{where}: id {ids[doubled[0]]!r} occurs more than once ({len(doubled)} such rows); ids must be unique")
    parts = [_matrix(tables, f"vector{i}", where) for i in range(groups)]
    rows, rescaled = _unit_rows(parts, order, ids, where)
    place = np.empty(len(order), np.int64)
    place[:] = order
    lengths = np.concatenate([table["length"].to_numpy() for table in tables])[order]
    keys = None
    if has_texts:
        keys = np.concatenate([np.array(table["key"].to_pylist(), dtype="V16") for table in tables])[order].view("S16")
    score = np.concatenate([table["score"].to_numpy(zero_copy_only=False) for table in tables])[order] if has_score else None
    excerpts = pa.chunked_array([chunk for table in tables for chunk in table["excerpt"].chunks]).take(pa.array(order))
    return Corpus(
        ids=ids,
        keys=keys,
        position=place,
        lengths=lengths,
        excerpts=excerpts,
        score=score,
        vectors=Vectors.of(rows, [part.shape[1] for part in parts]),
        rescaled=rescaled,
        empty_texts=int((lengths == 0).sum()) if has_texts else 0,
    )


def _matrix(tables: list[pa.Table], name: str, where: str) -> np.ndarray:
    width, blocks = 0, []
    for table in tables:
        for chunk in table[name].chunks:
            lengths = chunk.value_lengths()
            if chunk.null_count:
                row = table["id"][int(np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False))[0])]
                raise DataError(f"{where}: row {row.as_py()!r} has no embedding; embed every row or leave the column out")
            sizes = lengths.to_numpy(zero_copy_only=False)
            width = width or (int(sizes[0]) if len(sizes) else 0)
            ragged = np.flatnonzero(sizes != width)
            if len(ragged) or (len(sizes) and not width):
                size = int(sizes[ragged[0]]) if len(ragged) else 0
                raise DataError(f"{where}: an embedding has {size} dimensions where others have {width}; all must have the same")
            values = chunk.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
            blocks.append(values.reshape(len(chunk), -1))
    return np.concatenate(blocks)


def _unit_rows(parts: list[np.ndarray], order: np.ndarray, ids: np.ndarray, where: str) -> tuple[np.ndarray, int]:
    """The groups side by side in order of id, each row scaled to unit length."""
    rows = np.empty((len(order), sum(part.shape[1] for part in parts)), np.float32)
    off_unit = np.zeros(len(order), dtype=bool)
    column = 0
    for part in parts:
        target = rows[:, column : column + part.shape[1]]
        for start in _steps(len(order)):
            block = part[order[start : start + 8192]].astype(np.float64)
            norms = np.sqrt((block * block).sum(axis=1))
            bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
            if len(bad):
                what = "is all zeros" if norms[bad[0]] == 0 else "holds NaN or infinity"
                raise DataError(
                    f"{where}: the embedding of row {ids[start + bad[0]]!r} {what}; leave such rows out or embed them again"
                )
            off = np.abs(norms - 1) > _UNIT_TOLERANCE
            off_unit[start : start + len(block)] |= off
            target[start : start + len(block)] = block / norms[:, None]
        column += part.shape[1]
    return rows, int(off_unit.sum())


def _steps(n: int) -> Iterator[int]:
    return iter(range(0, n, 8192))
