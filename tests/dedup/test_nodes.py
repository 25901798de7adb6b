"""The stage on a cluster of several nodes: where the work runs, the same answer as in one process, and a lost node."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simulated_cluster import shut_down
from tunemill.store import Location, Manifest, StageStore

from .corpora import corpus

ROOT = Path(__file__).parents[2]
SETTINGS = ("--threshold", "0.9", "--prefer", "closest_to_centre")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head without CPUs and two worker nodes."""
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    for _ in range(2):
        cluster.add_node(num_cpus=1, **small)
    cluster.wait_for_nodes()
    yield cluster
    shut_down(cluster)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows in six files, so that several tasks read them."""
    folder = tmp_path_factory.mktemp("nodes")
    vectors = corpus(rows=3000, dims=32, centres=300, spread=0.25, copies=5, seed=2)
    for number, part in enumerate(np.array_split(np.arange(len(vectors)), 6)):
        table = pa.table({"id": [f"r{i}" for i in part], "text": [f"text {i}" for i in part], "embedding": list(vectors[part])})
        pq.write_table(table, folder / f"rows-{number}.parquet")
    return folder


def dedup(folder: Path, output: str, *more: str, cluster: Any = None) -> subprocess.Popen[bytes]:
    """Start the command, on a cluster or with a Ray of its own."""
    command = [sys.executable, str(ROOT / "jobs/dedup.py"), "--input", "rows-*.parquet", "--output", output, *SETTINGS, *more]
    environment = os.environ | ({"RAY_ADDRESS": cluster.address} if cluster is not None else {})
    return subprocess.Popen(command, cwd=folder, env=environment)


def answer(folder: Path, output: str) -> tuple[Manifest, dict[str, list[dict[str, Any]]]]:
    """The manifest, and pairs and tables in order of id."""
    store = StageStore(Location(str(folder / output)))
    manifest = store.read_manifest()
    assert manifest is not None
    tables = {}
    for kind, key in (("pairs", ("id_a", "id_b")), ("data", ("id",)), ("dropped", ("id",))):
        rows = [row for file in store.committed(kind) for row in pq.read_table(file.path).to_pylist()]
        tables[kind] = sorted(rows, key=lambda row: tuple(row[name] for name in key))
    return manifest, tables


def test_nodes_share_the_work_and_a_lost_one_changes_nothing(nodes: Any, folder: Path) -> None:
    """Shards run on both nodes; with one killed in the middle the other finishes; the answer is that of one process."""
    assert dedup(folder, "alone").wait(timeout=120) == 0
    _, alone = answer(folder, "alone")
    assert alone["pairs"]
    assert alone["dropped"]

    assert dedup(folder, "shared", "--shards", "12", cluster=nodes).wait(timeout=200) == 0
    manifest, shared = answer(folder, "shared")
    assert shared == alone
    by_node = manifest.details["engine"]["shards_by_node"]
    assert len(by_node) == 2
    assert sum(by_node.values()) == manifest.details["engine"]["shards"]

    running = dedup(folder, "lost", "--shards", "60", cluster=nodes)
    while not list((folder / "lost").glob("ledger/*/shard-*.parquet")):
        assert running.poll() is None
    nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)
    assert running.poll() is None
    assert running.wait(timeout=250) == 0
    assert answer(folder, "lost")[1] == alone
