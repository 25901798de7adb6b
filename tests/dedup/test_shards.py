"""Shards: the same pairs however the search is cut, and after any kill."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunemill.dedup.cells import Cells
from tunemill.dedup.engine import all_pairs
from tunemill.dedup.join import join
from tunemill.dedup.ledger import plan_bytes, read_plan, search_key
from tunemill.dedup.memory import MemoryPlan, check_corpus, check_disk, check_hot, shard_bytes
from tunemill.dedup.pairs import Pairs, Vectors
from tunemill.dedup.plan import plan_search
from tunemill.dedup.search import Found, search
from tunemill.dedup.spread import Spread
from tunemill.dedup.tasks import Here
from tunemill.errors import ConfigError
from tunemill.store import Location, StageStore

from .corpora import CORPUS, corpus

ROOT = Path(__file__).parents[2]
THRESHOLD = 0.9


class Recording(Here):
    """Calls in this process; remembers the shards that ran, and kills the process before one of them if told to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.ran: list[int] = []
        self.stop_after = stop_after

    def start(self, work: Any, *arguments: Any, returns: int = 1, device: str = "cpu") -> Any:
        """Shards are started like every other call."""
        if work.__name__ == "_compare":
            if len(self.ran) == self.stop_after:
                os.kill(os.getpid(), signal.SIGKILL)
            self.ran.append(arguments[1])
        return super().start(work, *arguments, returns=returns, device=device)


def searched(x: np.ndarray, folder: Path, *, threshold: float, shards: int | None, cells: int, tasks: Here, blocks: int) -> Found:
    """Search rows that lie in blocks."""
    vectors = Vectors.of(x)
    plan = plan_search(vectors, [threshold], cells=min(cells, len(x)))
    spread = dataclasses.replace(Spread.here(vectors, blocks), tasks=tasks)
    fixed = np.zeros(len(x), dtype=bool)
    return search(
        spread, [threshold], ledger=Location.of(folder), fixed=fixed, max_pairs=10**6, shards=shards, plan=plan, memory_gb=1
    )


def toy_search(
    folder: Path, shards: int, *, cells: int = 10, stop_after: int | None = None, blocks: int = 3
) -> tuple[Found, Pairs, list[int]]:
    """Search a fixed corpus: what was found, its pairs, and the numbers of the shards that ran. May kill this process."""
    x, tasks = corpus(rows=500, dims=12, centres=25, spread=0.25, copies=5, seed=1), Recording(stop_after)
    found = searched(x, folder, threshold=THRESHOLD, shards=shards, cells=cells, tasks=tasks, blocks=blocks)
    return found, found.pairs.pairs(len(x)), tasks.ran


def as_list(pairs: Pairs) -> list[tuple[int, int, float]]:
    """Pairs as plain values."""
    return list(zip(pairs.a.tolist(), pairs.b.tolist(), pairs.similarity.tolist(), strict=True))


def test_a_search_killed_in_the_middle_goes_on_with_the_missing_shards(tmp_path: Path) -> None:
    """After kill -9 only the shards that were not on file run, and the pairs are those of an undisturbed search."""
    call = f"toy_search(Path({str(tmp_path / 'a')!r}), 6, stop_after=3)"
    script = f"from pathlib import Path; from dedup.test_shards import toy_search; {call}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    found, pairs, ran = toy_search(tmp_path / "a", 6, blocks=5)
    assert ran == [*range(3, found.facts["shards"])]
    assert found.facts["shards_resumed"] == 3
    _, undisturbed, _ = toy_search(tmp_path / "b", 6)
    assert as_list(pairs) == as_list(undisturbed)


def test_the_command_killed_in_the_middle_of_the_search_goes_on(tmp_path: Path) -> None:
    """``kill -9`` of ``tunemill dedup`` and all its processes once a shard is on file: the rest runs, the pairs are all there."""
    vectors = corpus(rows=4000, dims=64, centres=400, spread=0.25, copies=5, seed=2)
    ids = [f"r{i:04d}" for i in range(len(vectors))]
    pq.write_table(pa.table({"id": ids, "embedding": list(vectors)}), tmp_path / "vectors.parquet")

    def dedup() -> subprocess.Popen[bytes]:
        command = [str(ROOT / "jobs/dedup.py"), "--input", "vectors.parquet", "--output", "out", "--threshold", "0.9"]
        return subprocess.Popen([sys.executable, *command, "--shards", "30"], cwd=tmp_path, start_new_session=True)

    killed = dedup()
    while not list((tmp_path / "out").glob("ledger/*/shard-*.parquet")):
        assert killed.poll() is None
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert dedup().wait(timeout=120) == 0
    store = StageStore(Location(str(tmp_path / "out")))
    manifest = store.read_manifest()
    assert manifest is not None
    assert manifest.details["engine"]["shards_resumed"] >= 1
    table = pa.concat_tables(pq.read_table(file.path) for file in store.committed("pairs"))
    expected = all_pairs(vectors, 0.88)
    assert table["id_a"].to_pylist() == [ids[i] for i in expected.a]
    assert table["id_b"].to_pylist() == [ids[i] for i in expected.b]
    assert table["similarity"].to_pylist() == expected.similarity.tolist()


@pytest.mark.parametrize("cells", [0, 10])
def test_a_search_goes_on_with_its_own_shards_on_a_cluster_of_another_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: int
) -> None:
    """What fits one cluster is on file: on another one the shards that are missing are those of the first."""
    monkeypatch.setattr("tunemill.dedup.search._ROWS_PER_SHARD", (20, 500))
    x = corpus(rows=500, dims=12, centres=25, spread=0.25, copies=5, seed=1)
    answers = []
    for slots in (4, 1, 8):
        tasks = Recording()
        tasks.slots = slots  # type: ignore[misc]
        found = searched(x, tmp_path, threshold=THRESHOLD, shards=None, cells=cells, tasks=tasks, blocks=3)
        answers.append((as_list(found.pairs.pairs(len(x))), found.facts["shards"]))
        for file in list(found.pairs.finished().values())[::2]:
            file.delete()
    assert answers[0][0] == as_list(all_pairs(x, THRESHOLD, threads=1))
    assert answers[0][1] > 1
    assert answers[1:] == answers[:1] * 2


@pytest.mark.parametrize("cells", [0, 10])
def test_any_number_of_shards_finds_the_same_pairs(tmp_path: Path, cells: int) -> None:
    """1, 2, 8 and more shards than cells agree bit for bit."""
    answers = [as_list(toy_search(tmp_path / str(shards), shards, cells=cells)[1]) for shards in (1, 2, 8, 30)]
    assert answers[0]
    assert all(answer == answers[0] for answer in answers)


def test_a_changed_corpus_does_not_resume_from_an_old_ledger(tmp_path: Path) -> None:
    """Files of another search are removed, not used."""
    toy_search(tmp_path, 4)
    again = toy_search(tmp_path, 4, blocks=2)[2]
    other = toy_search(tmp_path, 5)[2]
    assert again == []
    assert other
    assert len({file.url.rsplit("/", 2)[-2] for file in Location.of(tmp_path).files()}) == 1


def test_the_key_of_a_search_depends_on_rows_and_their_order_only() -> None:
    """Blocks change nothing; a changed bit, two rows that trade places, or another code do."""
    x = corpus(rows=50, dims=6, centres=5, spread=0.3, copies=0, seed=3)
    code = np.zeros(50, np.uint8)

    def key(rows: np.ndarray, blocks: int = 1, code: np.ndarray = code) -> str:
        return search_key(Spread.here(Vectors.of(rows), blocks), code, 0.9)

    changed, traded, other = x.copy(), x.copy(), code.copy()
    changed[7, 3] = np.nextafter(changed[7, 3], np.float32(2))
    traded[[3, 4]] = traded[[4, 3]]
    other[2] = 1
    assert key(x) == key(x, 4)
    assert len({key(x), key(changed), key(traded), key(x, 1, other)}) == 4


@settings(max_examples=25, deadline=None)
@given(
    shape=CORPUS,
    threshold=st.sampled_from([0.5, 0.9, 0.99]),
    shards=st.integers(1, 9),
    cells=st.sampled_from([0, 5]),
    blocks=st.integers(1, 6),
)
def test_shards_of_any_corpus_in_any_blocks_unite_to_the_whole(
    shape: dict, threshold: float, shards: int, cells: int, blocks: int
) -> None:
    """Each shard runs on pieces of blocks only, and together they give what one search gives."""
    x = corpus(**shape)
    if len(x) < 2:
        return
    with tempfile.TemporaryDirectory() as folder:
        options = {"threshold": threshold, "shards": shards, "cells": cells, "tasks": Here(), "blocks": blocks}
        book = searched(x, Path(folder), **options).pairs
        whole = as_list(all_pairs(x, threshold, threads=1))
        assert as_list(book.pairs(len(x))) == whole
        ranges = [as_list(book.pairs(len(x), *bounds)) for bounds in book.ranges(10)]
    assert [pair for part in ranges for pair in part] == whole


@settings(max_examples=15, deadline=None)
@given(shape=CORPUS, threshold=st.sampled_from([0.5, 0.9, 0.99]), precision=st.sampled_from(["fp32", "bf16"]))
def test_tiles_of_low_precision_find_the_same_pairs(shape: dict, threshold: float, precision: str) -> None:
    """The tile scan that GPUs run gives, in bf16 and fp32, the pairs of the sketch scan."""
    vectors = Vectors.of(corpus(**shape))
    plan = plan_search(vectors, [threshold], cells=0)
    layout = Cells.one(len(vectors))
    code = np.random.default_rng(0).integers(0, 3, len(vectors)).astype(np.uint8)
    expected = join(vectors, plan.sketch.of(vectors.rows), layout, [threshold], code=code)
    found = join(vectors, None, layout, [threshold], code=code, device="cpu", precision=precision)  # type: ignore[arg-type]
    assert as_list(found) == as_list(expected)


def test_a_plan_survives_its_file() -> None:
    """What is written for later runs is what is read."""
    plan = plan_search(Vectors.of(corpus(rows=100, dims=8, centres=4, spread=0.2, copies=0, seed=0)), [0.9], cells=4)
    again = read_plan(plan_bytes(plan))
    assert np.array_equal(again.sketch.basis, plan.sketch.basis)
    assert np.array_equal(again.centroids, plan.centroids)
    assert again.shown == plan.shown


def test_what_does_not_fit_is_refused_and_names_the_setting(tmp_path: Path) -> None:
    """A shard, the pairs, the ids or the vectors that are too large are refused before anything starts."""
    spread = Spread.here(Vectors.of(corpus(rows=100, dims=8, centres=4, spread=0.2, copies=0, seed=0)))
    rows, entries = np.array([60, 100]), np.array([90, 150])
    need_gb = float(shard_bytes(rows, entries, 8, 5, spread.tasks.threads).max()) / 1e9
    assert MemoryPlan.of(rows, entries, spread, 5, need_gb * 1.01).at_once == 1
    with pytest.raises(ConfigError, match=r"dedup\.shards: one shard of 100 rows"):
        MemoryPlan.of(rows, entries, spread, 5, need_gb * 0.99)
    with pytest.raises(ConfigError, match=r"dedup\.max_pairs"):
        check_disk(Location.of(tmp_path / "not" / "there"), 1e18)
    with pytest.raises(ConfigError, match=r"dedup\.memory_gb"):
        check_corpus(10**9, 384, 1.0, 1e15)
    with pytest.raises(ConfigError, match=r"dedup\.max_pairs: the 1,000,000,000 pairs"):
        check_hot(10**9, 1.0)
    with pytest.raises(ConfigError, match="object store"):
        check_corpus(10**9, 384, 10**6, 1e9)


def test_as_many_tasks_run_at_once_as_fit_on_the_nodes() -> None:
    """Memory for three tasks on each of two nodes lets six of eight slots work."""
    tasks = Recording()
    tasks.slots, tasks.nodes = 8, 2  # type: ignore[misc]
    vectors = Vectors.of(corpus(rows=100, dims=8, centres=4, spread=0.2, copies=0, seed=0))
    spread = dataclasses.replace(Spread.here(vectors), tasks=tasks)
    rows = np.full(20, 100)
    need_gb = float(shard_bytes(rows, rows, 8, 5, tasks.threads).max()) / 1e9
    assert MemoryPlan.of(rows, rows, spread, 5, 3.5 * need_gb).at_once == 6
    assert MemoryPlan.of(rows, rows, spread, 5, 100 * need_gb).at_once == 8
