"""The dedup stage on files: what stays, what leaves with which reason, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunemill.config import build
from tunemill.dedup.config import DedupConfig
from tunemill.errors import BadInput, ConfigError, DataError

from .corpora import corpus
from .runs import dedup, dedup_file, table

pytestmark = pytest.mark.usefixtures("ray_session")


def toy(rows: int = 200, seed: int = 1) -> np.ndarray:
    """Clustered unit vectors with many pairs around 0.9."""
    return corpus(rows=rows, dims=12, centres=25, spread=0.25, copies=5, seed=seed)


def cosine(x: np.ndarray, a: str, b: str) -> float:
    """The cosine of two rows named by id."""
    one, two = x[int(a[1:])].astype(float), x[int(b[1:])].astype(float)
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


def test_each_dropped_row_names_a_kept_row_at_or_above_the_threshold(tmp_path: Path) -> None:
    """Nothing is lost without a survivor that close, and kept rows are no near-duplicates of each other."""
    x = toy()
    result = dedup(table(x), tmp_path, threshold=0.9)
    assert len(result.kept) + len(result.dropped) == 200
    assert result.dropped
    for row in result.dropped:
        assert row["kept_id"] in result.kept_ids
        assert row["similarity"] == pytest.approx(cosine(x, row["id"], row["kept_id"]), abs=1e-6)
        assert row["similarity"] >= 0.9
    for pair in result.pairs:
        assert not (pair["similarity"] >= 0.9 and {pair["id_a"], pair["id_b"]} <= result.kept_ids)
    assert result.manifest.details["rules"]["greedy"] == {"removed": len(result.dropped), "orphans": 0}


def test_shards_order_and_device_change_nothing(tmp_path: Path) -> None:
    """1, 2 and 8 shards and a shuffled input give the same pairs, survivors and reasons."""
    x, texts = toy(), [f"{i % 190} words" for i in range(200)]
    answers = []
    for name, shards, order in (
        ("one", 1, None),
        ("two", 2, None),
        ("eight", 8, None),
        ("shuffled", 2, np.random.default_rng(0)),
    ):
        folder = tmp_path / name
        folder.mkdir()
        rows = table(x, texts)
        rows = rows if order is None else rows.take(order.permutation(200))
        result = dedup(rows, folder, threshold=0.9, shards=shards, prefer="longest")
        dropped = sorted((row["id"], row["reason"], row["kept_id"], row["similarity"]) for row in result.dropped)
        groups = sorted((row["id"], row["group"]) for row in result.kept)
        answers.append((dropped, groups, sorted(tuple(pair.values()) for pair in result.pairs)))
    assert answers[0][0]
    assert all(answer == answers[0] for answer in answers[1:])


def test_exact_duplicates_point_at_the_row_that_stays_in_the_end(tmp_path: Path) -> None:
    """Texts equal but for case and spaces are one; if their best row is dropped, its survivor is named."""
    x = np.eye(6, dtype=np.float32)[[0, 0, 0, 1, 2]]
    x[0, 5] = 0.1
    texts = ["a longer text", "Same  text", "same text", "alone", "apart"]
    result = dedup(table(x, texts), tmp_path, threshold=0.9, prefer="longest")
    dropped = {row["id"]: row for row in result.dropped}
    assert {name: row["reason"] for name, row in dropped.items()} == {"r0001": "near_duplicate", "r0002": "exact_duplicate"}
    assert dropped["r0002"]["kept_id"] == dropped["r0001"]["kept_id"] == "r0000"
    assert dropped["r0002"]["similarity"] >= 0.9
    assert result.kept_ids == {"r0000", "r0003", "r0004"}


@pytest.mark.parametrize(
    ("prefer", "kept"),
    [("longest", "r0001"), ("shortest", "r0002"), ("first", "r0000"), ("last", "r0003"), ("column score", "r0003")],
)
def test_the_preferred_row_stays(tmp_path: Path, prefer: str, kept: str) -> None:
    """Of four rows alike the one that ``prefer`` names survives."""
    x = np.ones((4, 3), np.float32) + np.eye(4, 3, dtype=np.float32) * 1e-3
    rows = table(x, ["bbb", "cccc", "d", "eee"], score=[1, 2, 3, 4])
    assert dedup(rows, tmp_path, threshold=0.9, prefer=prefer).kept_ids == {kept}


def test_groups_are_components_and_named_after_their_smallest_id(tmp_path: Path) -> None:
    """Rows connected by a chain of pairs share a group, although the ends of the chain are apart."""
    angles = np.array([0.0, 0.25, 0.5, 2.0])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    result = dedup(table(x), tmp_path, threshold=0.95)
    assert {row["id"]: row["group"] for row in result.kept} == {"r0000": "r0000", "r0002": "r0000", "r0003": "r0003"}
    assert result.manifest.details["rules"]["components"] == {"removed": 2, "orphans": 1}


def test_stored_pairs_answer_for_another_threshold(tmp_path: Path) -> None:
    """--reuse-pairs gives what a fresh search at that threshold gives, and refuses one below the floor."""
    x = toy()
    dedup(table(x), tmp_path, threshold=0.95, pair_floor=0.85)
    again = dedup_file(tmp_path / "rows.parquet", tmp_path / "out", threshold=0.88, pair_floor=0.85, reuse_pairs=True)
    fresh = dedup_file(tmp_path / "rows.parquet", tmp_path / "fresh", threshold=0.88)
    assert again.kept_ids == fresh.kept_ids
    assert again.manifest.details["engine"]["method"] == "stored pairs"
    with pytest.raises(ConfigError, match=r"reach down to 0\.85"):
        dedup_file(tmp_path / "rows.parquet", tmp_path / "out", threshold=0.8, reuse_pairs=True)


def test_new_rows_are_compared_with_an_earlier_run(tmp_path: Path) -> None:
    """Rows near one that an earlier run kept are dropped; groups keep their names; runs can be chained."""
    x = toy(150)
    pq.write_table(table(x[:80]), tmp_path / "old.parquet")
    pq.write_table(table(x[80:120], ids=[f"r{i:04d}" for i in range(80, 120)]), tmp_path / "new.parquet")
    pq.write_table(table(x[120:], ids=[f"r{i:04d}" for i in range(120, 150)]), tmp_path / "newest.parquet")
    old = dedup_file(tmp_path / "old.parquet", tmp_path / "old", threshold=0.9, prefer="first")
    new = dedup_file(tmp_path / "new.parquet", tmp_path / "new", threshold=0.9, prefer="first", against=str(tmp_path / "old"))
    newest = dedup_file(
        tmp_path / "newest.parquet", tmp_path / "newest", threshold=0.9, prefer="first", against=str(tmp_path / "new")
    )
    (tmp_path / "whole").mkdir()
    whole = dedup(table(x), tmp_path / "whole", threshold=0.9, prefer="first")
    assert old.kept_ids | new.kept_ids | newest.kept_ids == whole.kept_ids
    assert {row["kept_id"] for row in new.dropped} <= old.kept_ids | new.kept_ids
    assert {row["kept_id"] for row in new.dropped} & old.kept_ids


def test_rows_near_a_protected_row_are_dropped_and_name_it(tmp_path: Path) -> None:
    """Decontamination: the test set is never removed, and its row is the survivor."""
    x = toy()
    pq.write_table(table(x[:20], ids=[f"p{i}" for i in range(20)]), tmp_path / "test.parquet")
    result = dedup(table(x), tmp_path, threshold=0.9, protect=str(tmp_path / "test.parquet"))
    near = {f"r{i:04d}" for i in range(200) if (x[:20].astype(float) @ x[i].astype(float)).max() >= 0.9}
    leaked = {row["id"]: row for row in result.dropped if row["reason"] == "near_protected"}
    assert set(leaked) == near
    assert all(row["kept_id"].startswith("p") and row["similarity"] >= 0.9 for row in leaked.values())


def test_hot_groups_give_the_same_survivors(tmp_path: Path) -> None:
    """With most pairs summarised the kept rows, groups and counts are those of the full list."""
    x = corpus(rows=600, dims=10, centres=3, spread=0.2, copies=0, seed=2)
    answers = []
    for name, most in (("full", 50_000_000), ("short", 1000)):
        (tmp_path / name).mkdir()
        result = dedup(table(x), tmp_path / name, threshold=0.9, max_pairs=most)
        answers.append((result.kept_ids, {row["id"]: row["group"] for row in result.kept}, result.manifest.details["rules"]))
        pairs, hot = len(result.pairs), result.manifest.details["engine"]["hot_rows"]
    assert answers[0] == answers[1]
    assert hot > 0
    assert pairs < 20_000
    with pytest.raises(ConfigError, match="summarised"):
        dedup_file(
            tmp_path / "short" / "rows.parquet", tmp_path / "short" / "out", threshold=0.95, max_pairs=1000, reuse_pairs=True
        )


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_approximate_mode_reports_its_recall(tmp_path: Path, index: str) -> None:
    """Pairs found are true ones, and the sampled recall comes with its interval."""
    x = toy()
    exact = dedup(table(x), tmp_path, threshold=0.9)
    rough = dedup_file(tmp_path / "rows.parquet", tmp_path / "rough", threshold=0.9, mode="approximate", index=index, nprobe=2)
    assert {tuple(pair.values()) for pair in rough.pairs} <= {tuple(pair.values()) for pair in exact.pairs}
    recall = rough.manifest.details["engine"]["recall"]
    assert 0 <= recall["low"] <= recall["recall"] <= recall["high"] <= 1
    assert recall["recall"] == pytest.approx(len(rough.pairs) / len(exact.pairs))


def test_vectors_of_other_lengths_are_normalised_and_counted(tmp_path: Path) -> None:
    """Scaling rows changes no answer, and the manifest says how many were scaled."""
    x = toy()
    plain = dedup(table(x), tmp_path, threshold=0.9)
    (tmp_path / "scaled").mkdir()
    scaled = dedup(table(x * np.linspace(0.5, 3, 200, dtype=np.float32)[:, None]), tmp_path / "scaled", threshold=0.9)
    assert plain.kept_ids == scaled.kept_ids
    assert plain.manifest.details["not_unit_length"] == 0
    assert scaled.manifest.details["not_unit_length"] > 190


def test_rows_without_text_leave_with_a_reason(tmp_path: Path) -> None:
    """An empty text is no duplicate of another; such rows are dropped as empty_text."""
    x = np.eye(5, dtype=np.float32)
    result = dedup(table(x, ["a", "", None, "b", " \n"]), tmp_path, threshold=1.0)
    assert {row["id"] for row in result.dropped} == {"r0001", "r0002", "r0004"}
    assert {(row["reason"], row["kept_id"], row["similarity"]) for row in result.dropped} == {("empty_text", None, None)}


def angles_as_vectors(dataset: Any, config: Any, *, text_column: str, output_column: str) -> Any:
    """Stands in for a model: a text is an angle, its vector points there; an empty text has none."""

    def add(block: pa.Table) -> pa.Table:
        texts = block[text_column].to_pylist()
        vectors = [[float(np.cos(float(t))), float(np.sin(float(t)))] if t else None for t in texts]
        return block.append_column(output_column, pa.array(vectors, pa.list_(pa.float32(), 2)))

    return dataset.map_batches(add, batch_format="pyarrow")


def test_with_several_text_columns_a_pair_needs_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows alike in one column only both stay; a missing text is like another missing text and like nothing else."""
    monkeypatch.setattr("tunemill.embed.stage.add_embeddings", angles_as_vectors)
    rows = pa.table(
        {
            "id": ["a", "b", "c", "d", "e", "f"],
            "prompt": ["0.0", "0.1", "0.1", "2.0", "2.1", ""],
            "answer": ["1.0", "1.1", "3.0", "", "", ""],
        }
    )
    result = dedup(rows, tmp_path, threshold=0.99, text_columns=("prompt", "answer"), prefer="first")
    assert {row["id"]: (row["reason"], row["kept_id"]) for row in result.dropped} == {
        "b": ("near_duplicate", "a"),
        "e": ("near_duplicate", "d"),
        "f": ("empty_text", None),
    }
    assert result.dropped[0]["similarity"] == pytest.approx(np.cos(0.1), abs=1e-6)


def test_several_text_columns_can_be_compared_with_an_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index keeps both columns' vectors: a new row is dropped only if both are near one that an earlier run kept."""
    monkeypatch.setattr("tunemill.embed.stage.add_embeddings", angles_as_vectors)
    old = pa.table({"id": ["a", "b"], "prompt": ["0.0", "2.0"], "answer": ["1.0", "3.0"]})
    new = pa.table({"id": ["c", "d", "e"], "prompt": ["0.1", "0.1", "2.1"], "answer": ["1.1", "2.0", ""]})
    (tmp_path / "first").mkdir()
    both = {"threshold": 0.99, "text_columns": ("prompt", "answer")}
    dedup(old, tmp_path / "first", **both)
    result = dedup(new, tmp_path, **both, against=str(tmp_path / "first" / "out"))
    assert {row["id"]: row["kept_id"] for row in result.dropped} == {"c": "a"}


def test_one_row_and_identical_rows_have_the_obvious_result(tmp_path: Path) -> None:
    """One row stays; of identical rows one stays."""
    (tmp_path / "one").mkdir()
    assert dedup(table(toy(1)), tmp_path / "one").kept_ids == {"r0000"}
    (tmp_path / "same").mkdir()
    same = dedup(table(np.tile(toy(1), (30, 1))), tmp_path / "same", threshold=1.0)
    assert same.kept_ids == {"r0000"}
    assert {row["similarity"] for row in same.dropped} == {1.0}


def broken(name: str) -> pa.Table:
    """A table with one thing wrong."""
    x = toy(5)
    if name in ("nan", "zero"):
        x[2] = np.nan if name == "nan" else 0
    if name == "ragged":
        return pa.table({"id": ["a", "b"], "embedding": [[1.0, 0.0], [1.0]]})
    if name == "null":
        return pa.table({"id": ["a", "b"], "embedding": pa.array([[1.0, 0.0], None], pa.list_(pa.float32()))})
    if name == "no column":
        return pa.table({"id": ["a", "b"], "words": ["x", "y"]})
    return table(x, ids=list("abcde"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", "row 'c' holds NaN"),
        ("zero", "row 'c' is all zeros"),
        ("ragged", "1 dimensions where others have 2"),
        ("null", "row 'b' has no embedding"),
        ("no column", "column 'text' is missing"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused_with_one_line(tmp_path: Path, name: str, message: str) -> None:
    """Bad input names the row or column and leaves nothing behind."""
    with pytest.raises(DataError) as caught:
        dedup(broken(name), tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 0.0},
        {"threshold": 1.5},
        {"pair_floor": 0.99},
        {"prefer": "best"},
        {"prefer": "column"},
        {"text_columns": ["a", "a"]},
        {"text_columns": ["a", "b"], "text_thresholds": [0.9]},
        {"against": "x", "reuse_pairs": True},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    """Each is one line that names the field."""
    with pytest.raises(BadInput) as caught:
        build(DedupConfig, settings, "flags")
    assert [*settings][-1] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused_before_it_starts(tmp_path: Path) -> None:
    """The message names the setting to change."""
    with pytest.raises(ConfigError, match=r"dedup\.memory_gb"):
        dedup(table(toy()), tmp_path, memory_gb=0.0001)
