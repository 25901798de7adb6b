"""The rows as the search needs them: ids, text hashes and lengths, and checked unit vectors, in order of id.

The order of id makes every later step independent of the order in which rows came.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunemill.dedup.config import DedupConfig, parse_preference
from tunemill.dedup.exact import text_key
from tunemill.dedup.memory import check_corpus
from tunemill.dedup.pairs import Vectors
from tunemill.dedup.scratch import Spool
from tunemill.errors import DataError

__all__ = ["Corpus", "collect", "text_columns_of"]

_EXCERPT_CHARS = 400
_UNIT_TOLERANCE = 1e-3
_NEVER_TOO_MANY = 100_000
_BLOCK_ROWS = 8192


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
    blank: np.ndarray
    """Rows without any text, bool [n]."""

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


def collect(source: Any, config: DedupConfig, *, where: str, vectors: bool = True) -> Corpus:
    """Read a source's rows, embedding those without vectors. Raises DataError for rows that cannot be compared.

    Without ``vectors`` texts are not embedded, and the corpus has vectors of no dimensions where the input has none.
    """
    columns = source.columns()
    texts = text_columns_of(columns, config, where)
    dataset = source.dataset()
    vector_columns: tuple[str, ...] = ("embedding",)
    if "embedding" not in columns or len(texts) > 1:
        dataset, vector_columns = _embedded(dataset, texts, config) if vectors else (dataset, ())
    else:
        _check_memory(source, dataset, config)
    score_column = parse_preference(config.prefer)[1]
    narrow = _Narrow(texts, vector_columns, score_column)
    narrowed = dataset.map_batches(narrow, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
    groups = [_Group(i, len(vector_columns), where) for i in range(len(vector_columns))]
    tables = []
    for table in narrowed.iter_batches(batch_size=None, batch_format="pyarrow"):
        if len(table):
            for group in groups:
                group.add(table)
            tables.append(table.drop_columns([group.column for group in groups]))
    if not tables:
        raise DataError(f"{where}: holds no rows")
    return _build(tables, groups, bool(texts), score_column is not None, where)


def _check_memory(source: Any, dataset: Any, config: DedupConfig) -> None:
    rows = source.count()
    if rows < _NEVER_TOO_MANY and config.memory_gb is None:
        return
    first = dataset.select_columns(["embedding"]).limit(1).take_all()
    check_corpus(rows, len(first[0]["embedding"] or ()), config.memory_gb)


def _embedded(dataset: Any, texts: tuple[str, ...], config: DedupConfig) -> tuple[Any, tuple[str, ...]]:
    from tunemill.embed.stage import add_embeddings

    named = tuple(f"_embedding_{i}" for i in range(len(texts)))
    for text, vector in zip(texts, named, strict=True):
        # One pool of model copies at a time: each takes all cores, so two of them in one plan would wait for each other.
        dataset = add_embeddings(dataset, config.embed, text_column=text, output_column=vector).materialize()
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
        for i, text in enumerate(self.texts):
            narrow[f"blank{i}"] = pa.array([not (value or "").strip() for value in table[text].cast(pa.string()).to_pylist()])
        for i, name in enumerate(self.vectors):
            narrow[f"vector{i}"] = table[name].cast(pa.large_list(pa.float32()))
        return pa.table(narrow)


def _build(tables: list[pa.Table], groups: list[_Group], has_texts: bool, has_score: bool, where: str) -> Corpus:
    ids = np.concatenate([table["id"].to_numpy(zero_copy_only=False) for table in tables]).astype(object)
    if any(value is None for value in ids):
        raise DataError(f"{where}: a row has no id; every row needs one")
    order = np.argsort(ids.astype(str), kind="stable")
    ids = ids[order].astype(str)
    doubled = np.flatnonzero(ids[1:] == ids[:-1])
    if len(doubled):
        raise DataError(
            f"{where}: id {str(ids[doubled[0]])!r} occurs more than once ({len(doubled)} such rows); ids must be unique"
        )
    rows, rescaled = _unit_rows(groups, order, ids, where)
    lengths = np.concatenate([table["length"].to_numpy() for table in tables])[order]
    keys = None
    blank = np.zeros(len(order), dtype=bool)
    if has_texts:
        keys = np.concatenate([np.array(table["key"].to_pylist(), dtype="S16") for table in tables])[order]
        names = [name for name in tables[0].column_names if name.startswith("blank")]
        blank = np.concatenate([np.all([table[name].to_numpy() for name in names], axis=0) for table in tables])[order]
    score = np.concatenate([table["score"].to_numpy(zero_copy_only=False) for table in tables])[order] if has_score else None
    excerpts = pa.chunked_array([chunk for table in tables for chunk in table["excerpt"].chunks]).take(pa.array(order))
    return Corpus(
        ids=ids,
        keys=keys,
        position=order,
        lengths=lengths,
        excerpts=excerpts,
        score=score,
        vectors=Vectors.of(rows, [group.dims for group in groups]),
        rescaled=rescaled,
        blank=blank,
    )


class _Group:
    """The vectors of one text column, in the order of the input and on disk.

    A row without that text has no vector. With several groups it gets a dimension of its own, in which all such
    rows are equal; with one group the row is going to be left out, and any unit vector does.
    """

    def __init__(self, number: int, groups: int, where: str) -> None:
        self.column = f"vector{number}"
        self._blank, self._alone, self._where = f"blank{number}", groups == 1, where
        self._width = 0
        self._spool = Spool()
        self._missing: list[np.ndarray] = []

    def add(self, table: pa.Table) -> None:
        """Take a block's vectors; DataError for a row without one, or with another number of dimensions."""
        column = table[self.column].combine_chunks()
        missing = pc.is_null(column).to_numpy(zero_copy_only=False)
        blank = table[self._blank].to_numpy() if self._blank in table.column_names else np.zeros(len(table), dtype=bool)
        lost = np.flatnonzero(missing & ~blank)
        if len(lost):
            row = table["id"][int(lost[0])].as_py()
            raise DataError(f"{self._where}: row {row!r} has no embedding; embed every row or leave the column out")
        sizes = column.value_lengths().to_numpy(zero_copy_only=False)[~missing]
        if len(sizes) and not self._width:
            self._width = int(sizes[0])
            if not self._width:
                raise DataError(f"{self._where}: embeddings have no dimensions; embed the rows again")
        ragged = np.flatnonzero(sizes != self._width)
        if len(ragged):
            raise DataError(
                f"{self._where}: an embedding has {int(sizes[ragged[0]])} dimensions where others have {self._width}; "
                "all need the same"
            )
        if len(sizes):
            self._spool.append(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, self._width))
        self._missing.append(missing)

    @property
    def dims(self) -> int:
        """Columns that the group takes in the end."""
        return self._width + self._marks_missing

    @property
    def _marks_missing(self) -> bool:
        """True where rows without a vector need a dimension of their own."""
        return any(part.any() for part in self._missing) and not (self._alone and self._width)

    def blocks(self, order: np.ndarray) -> Iterator[np.ndarray]:
        """Float64 blocks [up to 8192, dims] of all rows in ``order``."""
        missing = np.concatenate(self._missing)
        place = np.cumsum(~missing) - 1
        rows, dims = self._spool.rows(self._width), self.dims
        for start in range(0, len(order), _BLOCK_ROWS):
            wanted = order[start : start + _BLOCK_ROWS]
            there = ~missing[wanted]
            block = np.zeros((len(wanted), dims))
            block[there, : self._width] = rows[place[wanted[there]]]
            block[~there, -1] = 1.0
            yield block


def _unit_rows(groups: list[_Group], order: np.ndarray, ids: np.ndarray, where: str) -> tuple[np.ndarray, int]:
    """The groups side by side in order of id, each row scaled to unit length."""
    spool = Spool()
    off_unit = 0
    start = 0
    for blocks in zip(*(group.blocks(order) for group in groups), strict=True):
        off = np.zeros(len(blocks[0]), dtype=bool)
        scaled = []
        for block in blocks:
            norms = np.sqrt((block * block).sum(axis=1))
            bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
            if len(bad):
                what = "is all zeros" if norms[bad[0]] == 0 else "holds NaN or infinity"
                raise DataError(
                    f"{where}: the embedding of row {str(ids[start + bad[0]])!r} {what}; leave such rows out or embed them again"
                )
            off |= np.abs(norms - 1) > _UNIT_TOLERANCE
            scaled.append(block / norms[:, None])
        spool.append(np.concatenate(scaled, axis=1))
        off_unit += int(off.sum())
        start += len(off)
    if not groups:
        return np.zeros((len(order), 0), np.float32), 0
    return spool.rows(sum(group.dims for group in groups)), off_unit
