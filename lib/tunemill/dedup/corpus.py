"""The rows as the search needs them: ids, text hashes and lengths in order of id, and checked unit vectors in blocks.

The order of id makes every later step independent of the order in which rows came and of how they lie in blocks.
Vectors and texts stay on the node that read or embedded them; what one number for each row can tell comes here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunemill.dedup.config import DedupConfig, parse_preference
from tunemill.dedup.exact import text_key
from tunemill.dedup.memory import check_corpus
from tunemill.dedup.spread import Block, Spread
from tunemill.dedup.tasks import Here, Tasks
from tunemill.errors import DataError

__all__ = ["Corpus", "collect", "text_columns_of"]

_EXCERPT_CHARS = 400
_UNIT_TOLERANCE = 1e-3
_NEVER_TOO_MANY = 100_000
_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """n rows sorted by id: ``ids`` str [n], ``keys`` hashes of the normalised texts, ``position`` in the input,
    ``lengths`` in characters, ``score`` of ``prefer: column NAME``, and the vectors and texts in ``spread``."""

    ids: np.ndarray
    keys: np.ndarray | None
    position: np.ndarray
    lengths: np.ndarray
    score: np.ndarray | None
    spread: Spread
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


def collect(source: Any, config: DedupConfig, tasks: Tasks, *, where: str, vectors: bool = True) -> Corpus:
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
        _check_memory(source, dataset, config, tasks)
    score_column = parse_preference(config.prefer)[1]
    narrow = _Narrow(texts, vector_columns, score_column)
    narrowed = dataset.map_batches(narrow, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
    blocks = _blocks(narrowed, tasks)
    told = tasks.all(_told, [(block, len(vector_columns), where) for block in blocks])
    blocks = [block for block, (rows, _) in zip(blocks, told, strict=True) if len(rows)]
    tables, shapes = [rows for rows, _ in told if len(rows)], [shape for rows, shape in told if len(rows)]
    if not tables:
        raise DataError(f"{where}: holds no rows")
    return _build(tables, blocks, _Shape.of_all(shapes, where), tasks, where)


def _blocks(narrowed: Any, tasks: Tasks) -> list[Any]:
    """Handles of the narrowed tables; in this process all rows are one block."""
    if not isinstance(tasks, Here):
        return list(narrowed.to_arrow_refs())
    tables = [table for table in narrowed.iter_batches(batch_size=None, batch_format="pyarrow") if len(table)]
    return [pa.concat_tables(tables, promote_options="permissive")] if tables else []


def _check_memory(source: Any, dataset: Any, config: DedupConfig, tasks: Tasks) -> None:
    rows = source.count()
    if rows < _NEVER_TOO_MANY and config.memory_gb is None:
        return
    first = dataset.select_columns(["embedding"]).limit(1).take_all()
    check_corpus(rows, len(first[0]["embedding"] or ()), config.memory_gb, tasks.room_bytes)


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


@dataclass(frozen=True)
class _Shape:
    """The dimensions of each column group, 0 where no row has a vector."""

    groups: tuple[int, ...]

    @classmethod
    def of_all(cls, shapes: Sequence[_Shape], where: str) -> _Shape:
        """The one shape that all blocks have; DataError where they differ."""
        groups = []
        for widths in zip(*(shape.groups for shape in shapes), strict=True):
            known = [width for width in widths if width]
            other = next((width for width in known if width != known[0]), 0)
            if other:
                raise _ragged(where, other, known[0])
            groups.append(known[0] if known else 0)
        return cls(tuple(groups))

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each group. With several groups a row can lack one text and so one vector: it gets a dimension of
        its own there, in which all such rows are equal. With one group such a row is left out, and any vector does."""
        return tuple(width + 1 if len(self.groups) > 1 else max(width, 1) for width in self.groups)


def _told(table: pa.Table, groups: int, where: str) -> tuple[pa.Table, _Shape]:
    """What a block's rows are but for vectors and texts, and its shape; DataError for a row without a vector."""
    if not len(table):
        return table, _Shape(())
    shape = _Shape(tuple(_width(table, i, where) for i in range(groups)))
    return table.drop_columns(["excerpt", *(f"vector{i}" for i in range(groups))]), shape


def _width(table: pa.Table, group: int, where: str) -> int:
    column = table[f"vector{group}"]
    missing = pc.is_null(column).to_numpy()
    lost = np.flatnonzero(missing & ~_blank(table, group))
    if len(lost):
        row = table["id"][int(lost[0])].as_py()
        raise DataError(f"{where}: row {row!r} has no embedding; embed every row or leave the column out")
    sizes = np.unique(pc.list_value_length(column.drop_null()).to_numpy())
    if len(sizes) and not sizes[0]:
        raise DataError(f"{where}: an embedding has no dimensions; embed the rows again")
    if len(sizes) > 1:
        raise _ragged(where, int(sizes[0]), int(sizes[1]))
    return int(sizes[0]) if len(sizes) else 0


def _ragged(where: str, one: int, other: int) -> DataError:
    return DataError(f"{where}: an embedding has {one} dimensions where others have {other}; all need the same")


def _blank(table: pa.Table, group: int) -> np.ndarray:
    name = f"blank{group}"
    return table[name].to_numpy() if name in table.column_names else np.zeros(len(table), dtype=bool)


def _build(tables: list[pa.Table], blocks: list[Any], shape: _Shape, tasks: Tasks, where: str) -> Corpus:
    ids = np.concatenate([table["id"].to_numpy() for table in tables]).astype(object)
    if any(value is None for value in ids):
        raise DataError(f"{where}: a row has no id; every row needs one")
    order = np.argsort(ids.astype(str), kind="stable")
    ids = ids[order].astype(str)
    doubled = np.flatnonzero(ids[1:] == ids[:-1])
    if len(doubled):
        raise DataError(
            f"{where}: id {str(ids[doubled[0]])!r} occurs more than once ({len(doubled)} such rows); ids must be unique"
        )
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    places = np.split(place, np.cumsum([len(table) for table in tables])[:-1])
    rows = [tasks.start(_unit_rows, block, shape, where, returns=2) for block in blocks]
    rescaled = sum(tasks.get([off for _, off in rows]))
    columns = tables[0].column_names
    blank = np.zeros(len(order), dtype=bool)
    names = [name for name in columns if name.startswith("blank")]
    if names:
        blank = np.concatenate([np.all([table[name].to_numpy() for name in names], axis=0) for table in tables])[order]
    return Corpus(
        ids=ids,
        keys=_column(tables, "key", order, lambda column: np.array(column.to_pylist(), dtype="S16")),
        position=order,
        lengths=np.concatenate([table["length"].to_numpy() for table in tables])[order],
        score=_column(tables, "score", order, lambda column: column.to_numpy()),
        spread=Spread(tasks=tasks, n=len(order), widths=shape.widths, blocks=[block for block, _ in rows], places=places),
        rescaled=rescaled,
        blank=blank,
    )


def _column(tables: list[pa.Table], name: str, order: np.ndarray, values: Any) -> np.ndarray | None:
    if name not in tables[0].column_names:
        return None
    return np.concatenate([values(table[name]) for table in tables])[order]


def _unit_rows(table: pa.Table, shape: _Shape, where: str) -> tuple[Block, int]:
    """A block's groups side by side, each row scaled to unit length, and how many rows were of another length."""
    rows = np.empty((len(table), sum(shape.widths)), np.float32)
    off = np.zeros(len(table), dtype=bool)
    start = 0
    for group, (given, width) in enumerate(zip(shape.groups, shape.widths, strict=True)):
        column = table[f"vector{group}"].combine_chunks()
        missing = pc.is_null(column).to_numpy(zero_copy_only=False)
        values = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, given) if given else None
        place = np.cumsum(~missing) - 1
        for first in range(0, len(table), _ROWS):
            part = slice(first, first + _ROWS)
            there = ~missing[part]
            block = np.zeros((len(there), width))
            if values is not None:
                block[there, :given] = values[place[part][there]]
            block[~there, -1] = 1.0
            norms = np.sqrt((block * block).sum(axis=1))
            _check_norms(norms, table["id"][first : first + _ROWS], where)
            off[part] |= np.abs(norms - 1) > _UNIT_TOLERANCE
            rows[part, start : start + width] = block / norms[:, None]
        start += width
    return Block(rows, table["excerpt"]), int(off.sum())


def _check_norms(norms: np.ndarray, ids: pa.ChunkedArray, where: str) -> None:
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        what = "is all zeros" if norms[bad[0]] == 0 else "holds NaN or infinity"
        raise DataError(
            f"{where}: the embedding of row {ids[int(bad[0])].as_py()!r} {what}; leave such rows out or embed them again"
        )
