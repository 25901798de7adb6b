"""Users' files: every format, stable ids, and one line for what is broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunemill.errors import DataError, root_cause
from tunemill.files import read_file
from tunemill.store import Location
from tunemill.tables import FileSource, InputConfig, Writer

ROWS = [{"text": "one", "label": "a"}, {"text": "שלום 👋", "label": "b"}, {"text": "one", "label": "a"}]


def _write(folder: Path, name: str) -> Path:
    path = folder / name
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif name.endswith(".csv"):
        path.write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in ROWS))
    elif name.endswith(".json"):
        path.write_text(json.dumps(ROWS))
    else:
        path.write_text(lines)
    return path


def _rows(path: Path | str, **options: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = FileSource(InputConfig(path=str(path), **options)).dataset().take_all()
    return rows


@pytest.mark.parametrize("name", ["r.parquet", "r.jsonl", "r.jsonl.gz", "r.csv", "r.json"])
def test_every_format_gives_the_same_rows_and_ids(ray_session: None, tmp_path: Path, name: str) -> None:
    """Ids are content hashes, the second identical row ends in -1, whatever the file type."""
    source = FileSource(InputConfig(path=str(_write(tmp_path, name))))
    rows = source.dataset().take_all()
    assert [row["text"] for row in rows] == [row["text"] for row in ROWS]
    assert source.count() == 3
    first, second, third = (row["id"] for row in rows)
    assert third == f"{first}-1"
    assert len({first, second, third}) == 3


def test_ids_do_not_depend_on_how_rows_lie_in_files(ray_session: None, tmp_path: Path) -> None:
    """The same rows in one file or in two have the same ids."""
    (tmp_path / "two").mkdir()
    lines = [json.dumps(row) + "\n" for row in ROWS]
    (tmp_path / "two" / "a.jsonl").write_text(lines[0])
    (tmp_path / "two" / "b.jsonl").write_text("".join(lines[1:]))
    assert [r["id"] for r in _rows(tmp_path / "two")] == [r["id"] for r in _rows(_write(tmp_path, "r.jsonl"))]


def test_a_users_ids_are_kept_and_doubled_ones_refused(ray_session: None, tmp_path: Path) -> None:
    """--id-column becomes id; a value that occurs twice is bad input."""
    path = tmp_path / "r.jsonl"
    path.write_text('{"key": 7, "text": "a"}\n{"key": 8, "text": "b"}\n')
    assert [row["id"] for row in _rows(path, id_column="key")] == ["7", "8"]
    path.write_text('{"key": 7, "text": "a"}\n{"key": 7, "text": "b"}\n')
    with pytest.raises(Exception, match="occurs twice") as caught:
        _rows(path, id_column="key")
    assert isinstance(root_cause(caught.value), DataError)


def test_columns_are_mapped_and_limits_kept(ray_session: None, tmp_path: Path) -> None:
    """A user's text and label columns take the names of the design; --limit takes the first rows."""
    path = tmp_path / "r.csv"
    path.write_text("comment;hate\nhi;1\nho;0\n")
    rows = _rows(path, text_columns=("comment",), label_column="hate", limit=1)
    assert [(row["text"], row["label"]) for row in rows] == [("hi", "1")]


def test_conversations_get_prompt_and_text(ray_session: None, tmp_path: Path) -> None:
    """The first question and its answer stand as columns, so that dedup can compare them."""
    path = tmp_path / "r.jsonl"
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}, {"from": "human", "value": "?"}]
    path.write_text(json.dumps({"conversations": turns}) + "\n")
    row = _rows(path)[0]
    assert (row["prompt"], row["text"]) == ("Hi", "Yo")
    assert [turn["value"] for turn in row["conversations"]] == ["Hi", "Yo", "?"]


def test_a_missing_column_names_the_nearest(tmp_path: Path) -> None:
    """A wrong column is told before any work, with the columns there are."""
    source = FileSource(InputConfig(path=str(_write(tmp_path, "r.jsonl")), text_columns=("txt",)))
    with pytest.raises(DataError, match=r"no column 'txt', did you mean 'text'\? \(columns: text, label\)"):
        source.columns()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', r"a\.jsonl line 2: not valid JSON"),
        ("a.jsonl", "[1]\n", r"line 1: holds a list"),
        ("a.csv", "a,b\n1,2\n3\n", r"a\.csv line 3: has 1 columns, the header has 2"),
        ("a.parquet", "no parquet", r"a\.parquet: cannot be read"),
        ("a.jsonl.gz", "no gzip", r"a\.jsonl\.gz: cannot be read"),
        ("a.json", "[{", r"a\.json: not valid JSON"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    """What cannot be parsed is told with file and line."""
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        list(read_file(Location(str(tmp_path / name)), 0))


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_corpus_is_told(tmp_path: Path, content: str) -> None:
    """No rows at all is bad input."""
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match="holds no rows"):
        FileSource(InputConfig(path=str(tmp_path / "a.jsonl"))).columns()


def test_an_unknown_file_type_is_told(tmp_path: Path) -> None:
    """Only parquet, JSONL and CSV are read."""
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(DataError, match="unknown file type"):
        FileSource(InputConfig(path=str(tmp_path / "a.xlsx"))).files()


def test_mixed_types_in_a_json_column_become_text(tmp_path: Path) -> None:
    """A column that is sometimes a list and sometimes a text does not break the file."""
    (tmp_path / "a.jsonl").write_text('{"x": [1], "text": "a"}\n{"x": "b", "text": null}\n')
    table = next(read_file(Location(str(tmp_path / "a.jsonl")), 0))
    assert table["x"].to_pylist() == ["[1]", "b"]


def test_the_writer_parts_kept_from_dropped(tmp_path: Path) -> None:
    """Rows without a reason go to data without that column, the others to dropped with it."""
    writer = Writer(
        folder=Location(str(tmp_path)),
        attempt="a1",
        kept_columns=None,
        dropped_columns=("id", "reason"),
        dropped_only=("reason",),
    )
    report = writer(pa.table({"id": ["1", "2", "3"], "text": ["a", "b", "c"], "reason": [None, "empty", "empty"]})).to_pylist()
    assert [r["rows"] for r in report] == [1, 2]
    assert dict(zip(report[1]["reasons"], report[1]["counts"], strict=True)) == {"empty": 2}
    assert pq.read_table(tmp_path / report[0]["file"]).column_names == ["id", "text"]
    assert pq.read_table(tmp_path / report[1]["file"]).column_names == ["id", "reason"]
