"""A user's file into Arrow tables: parquet, JSONL (also .gz), JSON arrays and delimited text.

What cannot be parsed raises DataError with the file and the line.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunemill.errors import DataError
from tunemill.store import Location

__all__ = ["ENDINGS", "PARQUET", "read_file"]

_BATCH_ROWS = 2000
PARQUET = (".parquet", ".pq")
_JSON_LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".json.gz", ".json")
_DELIMITED = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
ENDINGS = (*PARQUET, *_JSON_LINES, *_DELIMITED)
_MAX_CELL_CHARS = 1 << 30


def read_file(file: Location, index: int) -> Iterator[pa.Table]:
    """Tables of at most 2,000 rows with a ``_position`` column: file index * 2^40 + row number.

    DataError names the file and the line of what cannot be parsed.
    """
    try:
        yield from (_positioned(table, index, start) for start, table in _numbered(_tables_of(file)))
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError, EOFError) as error:
        raise DataError(f"input {file.url}: cannot be read ({str(error).splitlines()[0]})") from error


def _numbered(tables: Iterator[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    start = 0
    for table in tables:
        yield start, table
        start += len(table)


def _positioned(table: pa.Table, index: int, start: int) -> pa.Table:
    first = (index << 40) + start
    plain = table.drop_columns(["_position"]) if "_position" in table.column_names else table
    return plain.append_column("_position", pa.array(np.arange(first, first + len(table)), pa.int64()))


def _tables_of(file: Location) -> Iterator[pa.Table]:
    if file.url.endswith(PARQUET):
        with file.fs.open_input_file(file.path) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(batch_size=_BATCH_ROWS):
                yield pa.Table.from_batches([batch])
        return
    with file.fs.open_input_stream(file.path, compression="gzip" if file.url.endswith(".gz") else None) as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        rows = _csv_rows(text, file) if file.url.endswith(_DELIMITED) else _json_rows(text, file)
        while chunk := list(itertools.islice(rows, _BATCH_ROWS)):
            yield _table(chunk)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column([row.get(name) for row in rows]) for name in names}
    return pa.table(columns)


def _column(values: list[Any]) -> pa.Array:
    """Values as an array; what has no single Arrow type becomes JSON text, an all-null column a string column."""
    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return pa.array(
            [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values], pa.string()
        )
    return array.cast(pa.string()) if pa.types.is_null(array.type) else array


def _json_rows(lines: io.TextIOWrapper, file: Location) -> Iterator[dict[str, Any]]:
    if file.url.endswith((".json", ".json.gz")):
        text = lines.read()
        if text.lstrip().startswith("["):
            yield from _json_array(text, file)
            return
        lines = io.StringIO(text)  # type: ignore[assignment]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"input {file.url} line {number}: not valid JSON ({error}): {line.strip()[:60]!r}") from error
        if not isinstance(row, dict):
            raise DataError(f"input {file.url} line {number}: holds a {type(row).__name__}, should hold an object like {{...}}")
        yield row


def _json_array(text: str, file: Location) -> Iterator[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise DataError(f"input {file.url}: not valid JSON ({error})") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"input {file.url} item {number}: holds a {type(row).__name__}, should hold an object like {{...}}")
        yield row


def _csv_rows(text: io.TextIOWrapper, file: Location) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(_MAX_CELL_CHARS)
    header = text.readline()
    delimiter = "\t" if "\t" in header else ";" if header.count(";") > header.count(",") else ","
    names = next(csv.reader([header], delimiter=delimiter), [])
    unnamed = [f"column_{i}" if not name.strip() else name.strip() for i, name in enumerate(names)]
    reader = csv.reader(text, delimiter=delimiter)
    for row in reader:
        if not row:
            continue
        if len(row) != len(unnamed):
            raise DataError(f"input {file.url} line {reader.line_num + 1}: has {len(row)} columns, the header has {len(unnamed)}")
        yield dict(zip(unnamed, row, strict=True))
