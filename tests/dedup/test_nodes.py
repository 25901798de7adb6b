"""The stage on a cluster of several nodes: where the work runs, the answer of the engine alone, and a lost node."""

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
from tunemill.dedup.engine import all_pairs
from tunemill.dedup.graph import PairGraph
from tunemill.dedup.pairs import Vectors
from tunemill.dedup.priority import ranks
from tunemill.dedup.spread import Spread
from tunemill.store import Location, Manifest, StageStore

from .corpora import corpus

ROOT = Path(__file__).parents[2]
SETTINGS = ("--threshold", "0.9", "--prefer", "closest_to_centre")
FLOOR = 0.88


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


def rows() -> tuple[list[str], np.ndarray]:
    """Ids in order, and vectors."""
    vectors = corpus(rows=3000, dims=32, centres=300, spread=0.25, copies=5, seed=2)
    return [f"r{i:04d}" for i in range(len(vectors))], vectors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows in six files, so that several tasks read them."""
    folder = tmp_path_factory.mktemp("nodes")
    ids, vectors = rows()
    for number, part in enumerate(np.array_split(np.arange(len(vectors)), 6)):
        table = pa.table({"id": [ids[i] for i in part], "embedding": list(vectors[part])})
        pq.write_table(table, folder / f"rows-{number}.parquet")
    return folder


def expected() -> tuple[list[tuple[str, str, float]], set[str]]:
    """Pairs down to the floor and kept ids, by the engine in this process."""
    ids, x = rows()
    pairs, names = all_pairs(x, FLOOR), np.array(ids)
    whole = {"lengths": np.zeros(len(x)), "column": None, "position": np.arange(len(x))}
    rank = ranks("closest_to_centre", ids=names, spread=Spread.here(Vectors.of(x)), **whole)
    kept = PairGraph.here(pairs.at_least(0.9), rank).greedy().kept
    listed = zip(names[pairs.a].tolist(), names[pairs.b].tolist(), pairs.similarity.tolist(), strict=True)
    return list(listed), set(names[kept].tolist())


def dedup(folder: Path, output: str, shards: int, cluster: Any) -> subprocess.Popen[bytes]:
    """Start the command on a cluster."""
    command = [sys.executable, str(ROOT / "jobs/dedup.py"), "--input", "rows-*.parquet", "--output", output, *SETTINGS]
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    return subprocess.Popen([*command, "--shards", str(shards)], cwd=folder, env=environment)


def answer(folder: Path, output: str) -> tuple[Manifest, list[tuple[str, str, float]], set[str]]:
    """The manifest, the pairs and the kept ids."""
    store = StageStore(Location(str(folder / output)))
    manifest = store.read_manifest()
    assert manifest is not None
    pairs, data = ([pq.read_table(file.path).to_pylist() for file in store.committed(kind)] for kind in ("pairs", "data"))
    listed = [(row["id_a"], row["id_b"], row["similarity"]) for part in pairs for row in part]
    return manifest, listed, {row["id"] for part in data for row in part}


def test_nodes_share_the_work_and_a_lost_one_changes_nothing(nodes: Any, folder: Path) -> None:
    """Shards run on both nodes; with one killed in the middle the other finishes; the answer is that of the engine alone."""
    pairs, kept = expected()
    assert pairs
    assert len(kept) < 3000

    assert dedup(folder, "shared", 24, nodes).wait(timeout=200) == 0
    manifest, *shared = answer(folder, "shared")
    assert shared == [pairs, kept]
    by_node = manifest.details["engine"]["shards_by_node"]
    assert len(by_node) == 2
    assert sum(by_node.values()) == manifest.details["engine"]["shards"]

    running = dedup(folder, "lost", 40, nodes)
    while not list((folder / "lost").glob("ledger/*/shard-*.parquet")):
        assert running.poll() is None
    nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)
    assert running.poll() is None
    assert running.wait(timeout=250) == 0
    assert [*answer(folder, "lost")[1:]] == [pairs, kept]
