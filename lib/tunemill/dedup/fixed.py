"""Rows that stay whatever happens: those of an earlier run (``against``) and those of a test set (``protect``)."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunemill.dedup.config import DedupConfig
from tunemill.dedup.corpus import Corpus, collect
from tunemill.dedup.ledger import plan_bytes, read_plan
from tunemill.dedup.plan import SearchPlan
from tunemill.dedup.spread import Block, Spread, joined_spread
from tunemill.dedup.tasks import Tasks
from tunemill.errors import DataError
from tunemill.stage import StageContext
from tunemill.store import Location, StageStore
from tunemill.tables import FileSource, InputConfig

__all__ = [
    "Earlier",
    "FixedRows",
    "named_rows",
    "no_rows",
    "protected_rows",
    "protected_source",
    "side_by_side_rows",
    "write_index",
]

_ROWS_PER_FILE = 100_000


@dataclass(frozen=True, kw_only=True)
class FixedRows:
    """f rows: ``ids`` str [f], ``keys`` of their texts, the ``groups`` they were in, and unit vectors."""

    ids: np.ndarray
    keys: np.ndarray
    groups: np.ndarray
    spread: Spread

    def __len__(self) -> int:
        return len(self.ids)


def no_rows(spread: Spread) -> FixedRows:
    """No fixed rows, of the dimensions of a corpus."""
    empty, nothing = np.zeros(0, "U1"), dataclasses.replace(spread, n=0, blocks=[], places=[])
    return FixedRows(ids=empty, keys=np.zeros(0, "S16"), groups=empty, spread=nothing)


def protected_rows(config: DedupConfig, source: FileSource, tasks: Tasks) -> FixedRows:
    """The rows of a test set, with the columns of the input; embedded where the input is."""
    plain = dataclasses.replace(config, prefer="first")
    corpus = collect(source, plain, tasks, where=f"dedup.protect {config.protect}")
    return named_rows(corpus, corpus.ids)


def protected_source(config: DedupConfig) -> FileSource | None:
    """The file of rows to protect, if any."""
    return FileSource(InputConfig(path=config.protect)) if config.protect and not config.reuse_pairs else None


@dataclass(frozen=True)
class Earlier:
    """An earlier dedup run: files with its plan and with the rows that it kept."""

    plan_file: Location
    row_files: list[Location]

    @classmethod
    def find(cls, path: str) -> Earlier:
        """In the run's folder or in that of its dedup stage. Raises DataError."""
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
        plan = next(file for file in files if file.name.endswith(".npz"))
        return cls(plan, [file for file in files if file.name.endswith(".parquet")])

    def count(self) -> int:
        """Number of rows."""
        return sum(pq.read_metadata(file.path, filesystem=file.fs).num_rows for file in self.row_files)

    def plan(self) -> SearchPlan:
        """How it searched."""
        return read_plan(self.plan_file.read_bytes())

    def rows(self, tasks: Tasks) -> FixedRows:
        """The rows; each file is a block of vectors where a task reads it."""
        read = [tasks.start(_read_index, file, returns=2) for file in self.row_files]
        tables = tasks.get([table for table, _ in read])
        table = pa.concat_tables(tables).combine_chunks()
        widths = tuple(table.schema.metadata[b"widths"].decode().split(","))
        ends = np.cumsum([0, *(len(part) for part in tables)])
        spread = Spread(
            tasks=tasks,
            n=len(table),
            widths=tuple(int(width) for width in widths),
            blocks=[block for _, block in read],
            places=[np.arange(first, end) for first, end in itertools.pairwise(ends)],
        )
        return FixedRows(ids=_text(table["id"]), keys=_keys(table["key"]), groups=_text(table["group"]), spread=spread)


def named_rows(corpus: Corpus, groups: np.ndarray) -> FixedRows:
    """A corpus with its groups, as a later run will see it."""
    return FixedRows(ids=corpus.ids, keys=_keys_of(corpus), groups=groups, spread=corpus.spread)


def write_index(context: StageContext, kept: list[tuple[FixedRows, np.ndarray]], plan: SearchPlan) -> list[str]:
    """Store for later runs the plan and the rows to compare with: of some rows each those that a mask marks.

    Each block's rows are written where they lie. Returns the paths to list under ``files``.
    """
    folder, tasks = context.store.folder, kept[0][0].spread.tasks
    names = [f"index/{context.attempt}-plan.npz"]
    folder.join(names[0]).write_bytes(plan_bytes(plan))
    writes: list[tuple[Any, ...]] = []
    for rows, stays in kept:
        for block, places in zip(rows.spread.blocks, rows.spread.places, strict=True):
            mine = np.flatnonzero(stays[places])
            for start in range(0, len(mine), _ROWS_PER_FILE):
                part = mine[start : start + _ROWS_PER_FILE]
                names.append(f"index/{context.attempt}-rows-{len(writes):05d}.parquet")
                writes.append((block, part, _told(rows, places[part]), folder.join(names[-1])))
    tasks.all(_write_index, writes)
    return names


def side_by_side_rows(corpus: Corpus, others: list[FixedRows]) -> Spread:
    """The corpus's vectors, and after them fixed rows; DataError where the dimensions differ."""
    for other in others:
        if len(other) and other.spread.widths != corpus.spread.widths:
            have, want = ("+".join(map(str, spread.widths)) for spread in (other.spread, corpus.spread))
            raise DataError(f"dedup: fixed rows have {have} dimensions, the input has {want}; use the same embedding model")
    return joined_spread([corpus.spread, *(other.spread for other in others)])


def _keys_of(corpus: Corpus) -> np.ndarray:
    return corpus.keys if corpus.keys is not None else np.zeros(len(corpus), "S16")


def _read_index(file: Location) -> tuple[pa.Table, Block]:
    """What an index file tells of its rows, and their vectors."""
    table = pq.read_table(file.path, filesystem=file.fs).combine_chunks()
    vectors = table["vector"].combine_chunks()
    width = vectors.type.list_size
    metadata = {b"widths": str(width).encode(), **(table.schema.metadata or {})}
    rows = vectors.flatten().to_numpy().reshape(len(table), width)
    return table.drop_columns(["vector"]).replace_schema_metadata(metadata), Block(rows)


def _told(rows: FixedRows, at: np.ndarray) -> pa.Table:
    """An index file but for its vectors."""
    table = pa.table(
        {
            "id": pa.array(rows.ids[at], pa.string()),
            "key": pa.array([bytes(key).ljust(16, b"\0") for key in rows.keys[at]], pa.binary(16)),
            "group": pa.array(rows.groups[at], pa.string()),
        }
    )
    return table.replace_schema_metadata({"widths": ",".join(map(str, rows.spread.widths))})


def _write_index(block: Block, rows: np.ndarray, told: pa.Table, target: Location) -> None:
    values = pa.array(np.ascontiguousarray(block.rows[rows]).reshape(-1))
    table = told.append_column("vector", pa.FixedSizeListArray.from_arrays(values, block.rows.shape[1]))
    target.fs.create_dir(target.path.rsplit("/", 1)[0], recursive=True)
    pq.write_table(table, target.path, filesystem=target.fs, compression="none")


def _text(column: Any) -> np.ndarray:
    return np.array(column.to_pylist(), dtype=str)


def _keys(column: Any) -> np.ndarray:
    return np.array(column.to_pylist(), dtype="S16")
