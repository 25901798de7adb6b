"""``tunemill export --push-to-hub``, to a hub on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from export.test_export import make_run
from hub import Hub, serve


def push(run: Path, hub: Hub, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, as a process of its own: the hub's address is read when its library is imported."""
    code = "from tunemill.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "export", str(run), "--push-to-hub", "me/rows", "--overwrite"],
        env={**os.environ, **hub.environment(), "HF_HOME": str(run / "cache")} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with three rows to export."""
    make_run(tmp_path, ["train", "train", "test"], ["good", "bad", "good"])
    return tmp_path


def test_splits_and_card_are_pushed(run: Path) -> None:
    """The repository holds a file for each split, and a card with ours below the hub's own metadata."""
    with serve() as hub:
        done = push(run, hub)
        assert done.returncode == 0, done.stderr
        files = hub.repositories["datasets/me/rows"]
    assert {"data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "README.md"} <= files.keys()
    card = files["README.md"].decode()
    assert "data/train-*" in card
    assert "# rows" in card
    assert hub.strangers == []


def test_refusals_are_one_line(run: Path) -> None:
    """Without a token it is bad input; a hub that does not answer is a failed run, and the export stays on disk."""
    with serve() as hub:
        refused = push(run, hub, HF_TOKEN="")
        assert refused.returncode == 2
        assert "there is no Hugging Face token" in refused.stderr
        assert hub.repositories == {}
    away = push(run, hub)
    assert away.returncode == 1
    assert away.stderr.strip().splitlines()[-1].startswith("tunemill: failed: export.push_to_hub 'me/rows'")
    assert (run / "export" / "README.md").exists()
