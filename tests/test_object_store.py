"""A stage reads from and commits to an object store exactly as it does on a disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from tunemill.embed.cache import VectorCache, text_keys
from tunemill.store import Location, StageStore

JOBS = Path(__file__).parents[1] / "jobs"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on an S3 emulator of this test's own, named in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_REGION": "us-east-1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", region_name="us-east-1", endpoint_url=values["AWS_ENDPOINT_URL"]).create_bucket(Bucket="corpus")
    yield "s3://corpus"
    server.stop()


def _split(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOBS / "split.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=240)


def test_a_stage_runs_from_bucket_to_bucket(bucket: str) -> None:
    """Rows come from s3://, files and manifest go to s3://, and the second run finds the stage done."""
    lines = "".join(json.dumps({"text": f"row {i}", "label": "ab"[i % 2]}) + "\n" for i in range(20))
    Location(f"{bucket}/in/a.jsonl").write_text(lines)
    flags = ("--input", f"{bucket}/in/*.jsonl", "--output", f"{bucket}/out", "--test-fraction", "0.2")
    first = _split(*flags)
    assert first.returncode == 0, first.stderr
    store = StageStore(Location(f"{bucket}/out"))
    manifest = store.read_manifest()
    assert manifest is not None
    assert manifest.rows_kept == 20
    assert sum(len(_read(file)) for file in store.committed("data")) == 20
    assert "already done" in _split(*flags).stderr
    refused = _split(*flags[:-1], "0.3")
    assert refused.returncode == 2
    assert "test_fraction: 0.2 -> 0.3" in refused.stderr


def test_vectors_are_remembered_in_a_bucket(bucket: str) -> None:
    """A later process finds the vectors of an earlier one, and nothing of a segment without its keys."""
    folder = Location(f"{bucket}/vectors")
    keys, vectors = text_keys(["a", "b", "c"]), np.arange(6, dtype=np.float32).reshape(3, 2)
    cache = VectorCache(folder, "space")
    cache.put(keys[:2], vectors[:2], np.array([3, 4]), np.array([False, True]))
    cache.put(keys[2:], vectors[2:], np.array([5]), np.array([False]))
    known, found, n_tokens, cut = VectorCache(folder, "space").get(text_keys(["c", "x", "b"]), 2)
    assert (known.tolist(), found.tolist(), n_tokens.tolist(), cut.tolist()) == ([0, 2], [[4, 5], [2, 3]], [5, 4], [False, True])
    for file in folder.files():
        if file.name.endswith(".keys.npy"):
            file.delete()
    assert len(VectorCache(folder, "space").get(keys, 2)[0]) == 0


def _read(file: Location) -> list[object]:
    import pyarrow.parquet as pq

    rows: list[object] = pq.read_table(file.path, filesystem=file.fs).to_pylist()
    return rows
