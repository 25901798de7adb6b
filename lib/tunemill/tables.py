"""Tables at the edge: a user's files into rows with stable ids, and rows into committed parquet files.

Formats are recognised by the columns of the first row: ShareGPT, messages, alpaca, prompt/completion
or text. Files are parquet, JSONL (also .gz) or CSV, local or on an object store.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunemill.chat.config import ConversationRules, RowFormat
from tunemill.chat.conversations import has_known_columns, read_row
from tunemill.config import fingerprint
from tunemill.errors import DataError
from tunemill.files import ENDINGS, PARQUET, read_file
from tunemill.store import Location, content_fingerprint

__all__ = ["FileSource", "InputConfig", "Writer", "content_hashes", "nearest_column"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputConfig:
    """The user's own rows, in place of ``generate``."""

    path: str
    """One file, a folder or a glob; parquet, JSONL (also .gz) or CSV; local, s3:// or gs://."""
    format: RowFormat = "auto"
    """sharegpt, messages, alpaca, prompt_completion or text; auto looks at the columns."""
    id_column: str | None = None
    """Column that identifies a row; by default a hash of its content is made the id."""
    text_columns: tuple[str, ...] = ()
    """Columns that hold the text, in place of the column `text`."""
    label_column: str | None = None
    """Column that holds the label, in place of the column `label`."""
    limit: int | None = None
    """Take only the first rows."""


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Rows of the user's files in (file, row) order, with an ``id`` each."""

    config: InputConfig

    def files(self) -> list[Location]:
        """The input files, sorted; DataError when there are none or one has an unknown ending."""
        files = Location.of(self.config.path).expand()
        for file in files:
            if not file.url.endswith(ENDINGS):
                raise DataError(f"input {file.url}: unknown file type; should end in .parquet, .jsonl, .jsonl.gz, .csv or .tsv")
        return files

    @property
    def describe(self) -> dict[str, Any]:
        """Path, mapping of columns and a hash of the content."""
        content = content_fingerprint(self.files())
        facts = {**dataclasses.asdict(self.config), "content": content}
        return {**facts, "fingerprint": fingerprint(facts)}

    def columns(self) -> list[str]:
        """Columns of the rows, ``id`` among them; reads only the first rows. DataError when there is no row."""
        return list(self._first().schema.names)

    def count(self) -> int:
        """Number of rows; reads every file once unless they are parquet."""
        files = self.files()
        if all(f.url.endswith(PARQUET) for f in files):
            total = sum(pq.read_metadata(f.path, filesystem=f.fs).num_rows for f in files)
            return total if self.config.limit is None else min(total, self.config.limit)
        return int(self._dataset().count())

    def dataset(self) -> Any:
        """A lazy Dataset; raises DataError for an empty corpus, bad lines or doubled ids of the user's own."""
        self._first()
        rows = self._dataset()
        digests, positions = _keys(rows, self.config.id_column)
        order = np.argsort(positions, kind="stable")
        return rows.map_batches(
            _Identify(self.config.id_column, _occurrences(digests[order], positions[order])),
            batch_size=None,
            batch_format="pyarrow",
        )

    def _first(self) -> pa.Table:
        for file in self.files():
            for table in read_file(file, 0):
                mapped = self._mapped(table.drop_columns(["_position"]), file)
                own = self.config.id_column or ("id" if "id" in mapped.column_names else None)
                return mapped if own == "id" else mapped.append_column("id", pa.nulls(len(mapped), pa.string()))
        raise DataError(f"input {self.config.path}: holds no rows")

    def _mapped(self, table: pa.Table, file: Location) -> pa.Table:
        return _map_columns(table, self.config, file.url)

    def _dataset(self) -> Any:
        import ray.data

        config, files = self.config, self.files()
        sources = [{"url": f.url, "index": i} for i, f in enumerate(files)]

        def read(batch: dict[str, Any]) -> Iterator[pa.Table]:
            for url, index in zip(batch["url"], batch["index"], strict=True):
                seen = 0
                for table in read_file(Location(str(url)), int(index)):
                    head = table if config.limit is None else table.slice(0, max(config.limit - seen, 0))
                    seen += len(head)
                    if len(head):
                        yield _map_columns(head, config, str(url))
                    if config.limit is not None and seen >= config.limit:
                        break

        rows = ray.data.from_items(sources, override_num_blocks=len(sources)).map_batches(
            read, batch_size=1, batch_format="numpy"
        )
        return rows.limit(config.limit) if config.limit is not None else rows


def _map_columns(table: pa.Table, config: InputConfig, where: str) -> pa.Table:
    """Give the user's columns their names in the design; DataError for a column that is not there."""
    wanted = [config.id_column, config.label_column, *config.text_columns]
    for name in wanted:
        if name is not None and name not in table.column_names:
            raise DataError(f"input {where}: no column {name!r}{nearest_column(name, table.column_names)}")
    renames = {}
    if len(config.text_columns) == 1 and config.text_columns[0] != "text":
        renames[config.text_columns[0]] = "text"
    if config.label_column is not None and config.label_column != "label":
        renames[config.label_column] = "label"
    taken = set(renames.values())
    plain = table.drop_columns([name for name in taken if name in table.column_names])
    named = plain.rename_columns([renames.get(name, name) for name in plain.column_names])
    return named if "text" in named.column_names else _with_first_turns(named, config.format)


def _with_first_turns(table: pa.Table, row_format: RowFormat) -> pa.Table:
    """For conversations, ``prompt`` and ``text`` columns: the first question and its answer (empty when unreadable)."""
    if not has_known_columns(table.column_names):
        return table
    rules = ConversationRules(format=row_format, turns="first")
    prompts, texts = [], []
    for row in table.to_pylist():
        messages = read_row(row, rules).messages
        prompts.append(next((m["content"] for m in messages if m["role"] == "user"), ""))
        texts.append(next((m["content"] for m in messages if m["role"] == "assistant"), ""))
    if "prompt" not in table.column_names:
        table = table.append_column("prompt", pa.array(prompts, pa.string()))
    return table.append_column("text", pa.array(texts, pa.string()))


def nearest_column(name: str, columns: Sequence[str]) -> str:
    """The end of a message on a missing column: the nearest name, and all there are."""
    import difflib

    shown = ", ".join(c for c in columns if not c.startswith("_"))
    match = difflib.get_close_matches(name, list(columns), n=1)
    return f", did you mean {match[0]!r}? (columns: {shown})" if match else f" (columns: {shown})"


def content_hashes(table: pa.Table) -> np.ndarray:
    """16-byte content hash of each row as an array of shape [rows] of dtype S32 (hex)."""
    names = sorted(name for name in table.column_names if not name.startswith("_"))
    rows = table.select(names).to_pylist()
    texts = (json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode() for row in rows)
    return np.array([hashlib.blake2b(text, digest_size=16).hexdigest().encode() for text in texts], dtype="S32")


def _keys(rows: Any, id_column: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Hash (of the id where there is one, otherwise of the content) and position of every row, on the driver."""

    def key(table: pa.Table) -> pa.Table:
        own = _own_ids(table, id_column)
        digests = content_hashes(table) if own is None else content_hashes(pa.table({"id": own}))
        raw = pa.array([bytes.fromhex(d.decode()) for d in digests], pa.binary(16))
        return pa.table({"digest": raw, "position": table["_position"], "own": pa.array([own is not None] * len(table))})

    digests, positions = [], []
    for batch in rows.map_batches(key, batch_size=None, batch_format="pyarrow").iter_batches(
        batch_size=None, batch_format="pyarrow"
    ):
        digests.append(np.array(batch["digest"].to_pylist(), dtype="V16"))
        positions.append(batch["position"].to_numpy())
    if not digests:
        raise DataError("input: holds no rows")
    return np.concatenate(digests), np.concatenate(positions)


def _occurrences(digests: np.ndarray, positions: np.ndarray) -> dict[int, int]:
    """For rows that repeat an earlier one, position -> k (1 for the second identical row, and so on)."""
    order = np.argsort(digests, kind="stable")
    same = np.concatenate([[False], digests[order][1:] == digests[order][:-1]])
    counts: dict[int, int] = {}
    k = 0
    for place in np.flatnonzero(same):
        k = k + 1 if same[place - 1] else 1
        counts[int(positions[order[place]])] = k
    return counts


def _own_ids(table: pa.Table, id_column: str | None) -> pa.ChunkedArray | None:
    name = id_column or ("id" if "id" in table.column_names else None)
    return None if name is None else table[name].cast(pa.string())


@dataclasses.dataclass(frozen=True)
class _Identify:
    """Add the ``id`` column; a user's own id that is empty or doubled raises DataError."""

    id_column: str | None
    repeats: dict[int, int]

    def __call__(self, table: pa.Table) -> pa.Table:
        own = _own_ids(table, self.id_column)
        positions = table["_position"].to_pylist()
        if own is None:
            digests = [d.decode()[:24] for d in content_hashes(table)]
            ids = [f"{d}-{self.repeats[p]}" if p in self.repeats else d for d, p in zip(digests, positions, strict=True)]
        else:
            ids = own.to_pylist()
            self._check(ids, positions)
        plain = table.drop_columns([name for name in ("_position", "id") if name in table.column_names])
        return plain.add_column(0, "id", pa.array(ids, pa.string()))

    def _check(self, ids: list[str | None], positions: list[int]) -> None:
        for value, position in zip(ids, positions, strict=True):
            row = (position & ((1 << 40) - 1)) + 1
            if value is None or value == "":
                raise DataError(
                    f"input row {row}: the id column {self.id_column or 'id'!r} is empty; ids should be there and differ"
                )
            if position in self.repeats:
                raise DataError(
                    f"input row {row}: id {value!r} occurs twice; ids should differ (leave --id-column out to have ids made)"
                )


@dataclasses.dataclass(frozen=True)
class Writer:
    """Write one block's kept and dropped rows as parquet files; yields what was written.

    The input table has a ``reason`` column: null for rows to keep.
    """

    folder: Location
    attempt: str
    kept_columns: tuple[str, ...] | None
    dropped_columns: tuple[str, ...] | None
    dropped_only: tuple[str, ...]

    REPORT: ClassVar[pa.Schema] = pa.schema(
        [
            ("kind", pa.string()),
            ("file", pa.string()),
            ("rows", pa.int64()),
            ("reasons", pa.list_(pa.string())),
            ("counts", pa.list_(pa.int64())),
        ]
    )

    def __call__(self, table: pa.Table) -> pa.Table:
        if not len(table):
            return self.REPORT.empty_table()
        if "reason" not in table.column_names:
            kept, dropped = table, table.slice(0, 0)
        else:
            is_kept = pc.is_null(table["reason"])
            kept, dropped = table.filter(is_kept), table.filter(pc.invert(is_kept))
        shown = kept.drop_columns([name for name in self.dropped_only if name in kept.column_names])
        reports = [
            self._write("data", _select(shown, self.kept_columns), [], []),
            self._write("dropped", _select(dropped, self.dropped_columns), *_counts(dropped)),
        ]
        return pa.Table.from_pylist(reports, schema=self.REPORT)

    def _write(self, kind: str, table: pa.Table, reasons: list[str], counts: list[int]) -> dict[str, Any]:
        name = None
        if len(table):
            name = f"{kind}/{self.attempt}-{uuid.uuid4().hex[:12]}.parquet"
            target = self.folder.join(name)
            target.fs.create_dir(self.folder.join(kind).path, recursive=True)
            pq.write_table(table, target.path, filesystem=target.fs, compression="zstd")
        return {"kind": kind, "file": name, "rows": len(table), "reasons": reasons, "counts": counts}


def _select(table: pa.Table, columns: tuple[str, ...] | None) -> pa.Table:
    return table if columns is None else table.select([name for name in columns if name in table.column_names])


def _counts(dropped: pa.Table) -> tuple[list[str], list[int]]:
    if "reason" not in dropped.column_names or not len(dropped):
        return [], []
    found = pc.value_counts(dropped["reason"].combine_chunks()).to_pylist()
    return [str(item["values"]) for item in found], [int(item["counts"]) for item in found]
