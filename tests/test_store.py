"""The store: only what the manifest lists exists, and nothing that differs is overwritten silently."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunemill.errors import ConfigError, DataError, ResumeRefused, RunFailed
from tunemill.store import Location, Manifest, StageStore, content_fingerprint


def _manifest(**changes: object) -> Manifest:
    values: dict[str, object] = {
        "stage": "toy",
        "config": {"threshold": 0.5},
        "config_fingerprint": "f",
        "input": {"fingerprint": "i"},
        "rows_in": 3,
        "rows_kept": 2,
        "rows_dropped": {"too_long": 1},
        "files": {"data": ["data/a.parquet"]},
        "seconds": 1.0,
    }
    return Manifest(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    """A stage folder with one committed and one stray file."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").write_bytes(b"a")
    (tmp_path / "data" / "stray.parquet").write_bytes(b"b")
    return StageStore(Location(str(tmp_path)))


def test_commit_writes_the_manifest_and_removes_what_it_does_not_list(store: StageStore) -> None:
    """After a commit the data folder holds exactly the committed files."""
    store.commit(_manifest())
    assert [f.name for f in store.folder.join("data").files()] == ["a.parquet"]
    found = store.read_manifest()
    assert found is not None
    assert found.rows_dropped == {"too_long": 1}
    assert "pyarrow" in found.versions


def test_counts_that_do_not_add_up_are_never_committed(store: StageStore) -> None:
    """A lost row fails the run, and no manifest appears."""
    with pytest.raises(RunFailed, match="3 rows in, but 1 kept and 1 dropped"):
        store.commit(_manifest(rows_kept=1))
    assert store.read_manifest() is None


def test_a_mismatch_is_refused_with_the_difference(store: StageStore) -> None:
    """Another config or input is refused, naming each value; the same one is not."""
    store.commit(_manifest())
    store.refuse_mismatch({"threshold": 0.5}, {"fingerprint": "i"})
    with pytest.raises(ResumeRefused, match=r"threshold: 0.5 -> 0.9.*--overwrite"):
        store.refuse_mismatch({"threshold": 0.9}, {"fingerprint": "i"})
    with pytest.raises(ResumeRefused, match="input.fingerprint"):
        store.refuse_mismatch({"threshold": 0.5}, {"fingerprint": "other"})


def test_a_broken_manifest_is_told(store: StageStore) -> None:
    """A manifest that is no JSON is bad input, not a crash."""
    store.folder.join("manifest.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        store.read_manifest()


def test_inputs_expand_to_files_in_order(tmp_path: Path) -> None:
    """A file, a folder and a glob name files in sorted order; nothing is an error."""
    for name in ("b.csv", "a.csv", "c.txt", ".hidden"):
        (tmp_path / name).write_text("x")
    assert [f.name for f in Location(str(tmp_path)).expand()] == ["a.csv", "b.csv", "c.txt"]
    assert [f.name for f in Location(f"{tmp_path}/*.csv").expand()] == ["a.csv", "b.csv"]
    with pytest.raises(DataError, match="no such file"):
        Location(f"{tmp_path}/none.csv").expand()


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A path beneath a file is a ConfigError before any work."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be written"):
        Location(str(tmp_path / "file" / "out")).make_folder()


def test_content_decides_the_fingerprint_of_an_input(tmp_path: Path) -> None:
    """A copy has the same fingerprint, a changed byte another one."""
    (tmp_path / "x").mkdir()
    (tmp_path / "a.csv").write_text("1")
    (tmp_path / "x" / "a.csv").write_text("1")
    first = content_fingerprint([Location(str(tmp_path / "a.csv"))])
    assert first == content_fingerprint([Location(str(tmp_path / "x" / "a.csv"))])
    (tmp_path / "a.csv").write_text("2")
    assert first != content_fingerprint([Location(str(tmp_path / "a.csv"))])


def test_relative_paths_start_where_the_command_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TUNEMILL_CWD carries the folder into a submitted job."""
    monkeypatch.setenv("TUNEMILL_CWD", "/somewhere")
    assert Location.of("runs/x").url == "/somewhere/runs/x"
    assert Location.of("s3://bucket/x/").url == "s3://bucket/x"
