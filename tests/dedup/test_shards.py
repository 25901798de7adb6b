"""Shards: the same pairs however the search is cut, and after any kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunemill.dedup.engine import all_pairs
from tunemill.dedup.join import join
from tunemill.dedup.memory import check_disk, check_shard, shard_bytes
from tunemill.dedup.pairs import Pairs, Vectors
from tunemill.dedup.plan import SearchPlan, plan_search
from tunemill.dedup.search import Found, in_process, search
from tunemill.dedup.shards import Shard, cut, plan_bytes, read_plan
from tunemill.errors import ConfigError
from tunemill.store import Location, StageStore

from .corpora import CORPUS, corpus

ROOT = Path(__file__).parents[2]
THRESHOLD = 0.9


def toy_search(folder: Path, shards: int, *, cells: int = 10, stop_after: int | None = None) -> tuple[Found, list[int]]:
    """Search a fixed corpus; returns what was found and the numbers of the shards that ran. May kill this process."""
    vectors = Vectors.of(corpus(rows=500, dims=12, centres=25, spread=0.25, copies=5, seed=1))
    ran: list[int] = []

    def runner(todo: list[Shard], gather: object, record: object) -> None:
        for shard in todo:
            if stop_after is not None and len(ran) == stop_after:
                os.kill(os.getpid(), signal.SIGKILL)
            in_process([shard], gather, record)  # type: ignore[arg-type]
            ran.append(shard.number)

    plan = plan_search(vectors, [THRESHOLD], cells=cells)
    fixed = np.zeros(len(vectors), dtype=bool)
    found = search(
        vectors, [THRESHOLD], ledger=Location.of(folder), runner=runner, fixed=fixed, max_pairs=10**6, shards=shards, plan=plan
    )
    return found, ran


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
    found, ran = toy_search(tmp_path / "a", 6)
    assert ran == [*range(3, found.facts["shards"])]
    assert found.facts["shards_resumed"] == 3
    undisturbed, _ = toy_search(tmp_path / "b", 6)
    assert as_list(found.pairs) == as_list(undisturbed.pairs)


def test_the_command_killed_in_the_middle_of_the_search_goes_on(tmp_path: Path) -> None:
    """``kill -9`` of ``tunemill dedup`` and all its processes once a shard is on file: the rest runs, the pairs are the same."""
    vectors = corpus(rows=4000, dims=64, centres=400, spread=0.25, copies=5, seed=2)
    ids = [f"r{i}" for i in range(len(vectors))]
    pq.write_table(pa.table({"id": ids, "embedding": list(vectors)}), tmp_path / "vectors.parquet")

    def dedup(output: str) -> subprocess.Popen[bytes]:
        command = [str(ROOT / "jobs/dedup.py"), "--input", "vectors.parquet", "--output", output, "--threshold", "0.9"]
        return subprocess.Popen([sys.executable, *command, "--shards", "40"], cwd=tmp_path, start_new_session=True)

    killed = dedup("killed")
    while not list((tmp_path / "killed").glob("ledger/*/shard-*.parquet")):
        assert killed.poll() is None
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    shown = {}
    for output in ("killed", "undisturbed"):
        assert dedup(output).wait(timeout=120) == 0
        store = StageStore(Location(str(tmp_path / output)))
        manifest = store.read_manifest()
        assert manifest is not None
        shown[output] = pa.concat_tables(pq.read_table(file.path) for file in store.committed("pairs")), manifest.details
    assert shown["killed"][0].equals(shown["undisturbed"][0])
    assert shown["killed"][1]["engine"]["shards_resumed"] >= 1


@pytest.mark.parametrize("cells", [0, 10])
def test_any_number_of_shards_finds_the_same_pairs(tmp_path: Path, cells: int) -> None:
    """1, 2, 8 and more shards than cells agree bit for bit."""
    answers = [as_list(toy_search(tmp_path / str(shards), shards, cells=cells)[0].pairs) for shards in (1, 2, 8, 30)]
    assert answers[0]
    assert all(answer == answers[0] for answer in answers)


def test_a_changed_corpus_does_not_resume_from_an_old_ledger(tmp_path: Path) -> None:
    """Files of another search are removed, not used."""
    toy_search(tmp_path, 4)
    _, again = toy_search(tmp_path, 4)
    _, other = toy_search(tmp_path, 5)
    assert again == []
    assert other
    assert len({file.url.rsplit("/", 2)[-2] for file in Location.of(tmp_path).files()}) == 1


@settings(max_examples=20, deadline=None)
@given(shape=CORPUS, threshold=st.sampled_from([0.5, 0.9, 0.99]), shards=st.integers(1, 9), cells=st.sampled_from([0, 5]))
def test_shards_of_any_corpus_unite_to_the_whole(shape: dict, threshold: float, shards: int, cells: int) -> None:
    """Each shard runs on its own rows only, and together they give what one search gives."""
    vectors = Vectors.of(corpus(**shape))
    if len(vectors) < 2:
        return
    plan = plan_search(vectors, [threshold], cells=min(cells, len(vectors)))
    code = np.zeros(len(vectors), np.uint8)
    layout = search_layout(plan, vectors, threshold, shards)
    seen: set[tuple[int, int, float]] = set()
    for shard in cut(layout, shards, plan.centroids):
        seen |= set(as_list(shard.work(vectors, code, plan, [threshold]).run()))
    assert sorted(seen) == as_list(all_pairs(vectors, threshold, plan=plan, threads=1))


def search_layout(plan: SearchPlan, vectors: Vectors, threshold: float, shards: int) -> object:
    """The layout that the stage's search would use."""
    from tunemill.dedup.search import lay_out_shards

    return lay_out_shards(plan, vectors, [threshold], shards)


@settings(max_examples=15, deadline=None)
@given(shape=CORPUS, threshold=st.sampled_from([0.5, 0.9, 0.99]), precision=st.sampled_from(["fp32", "bf16"]))
def test_tiles_of_low_precision_find_the_same_pairs(shape: dict, threshold: float, precision: str) -> None:
    """The tile scan that GPUs run gives, in bf16 and fp32, the pairs of the sketch scan."""
    vectors = Vectors.of(corpus(**shape))
    plan = plan_search(vectors, [threshold], cells=0)
    layout = search_layout(plan, vectors, threshold, 2)
    code = np.random.default_rng(0).integers(0, 3, len(vectors)).astype(np.uint8)
    expected = join(vectors, plan.sketch.of(vectors.rows), layout, [threshold], code=code)  # type: ignore[arg-type]
    found = join(vectors, None, layout, [threshold], code=code, device="cpu", precision=precision)  # type: ignore[arg-type]
    assert as_list(found) == as_list(expected)


def test_a_plan_survives_its_file() -> None:
    """What is written for later runs is what is read."""
    plan = plan_search(Vectors.of(corpus(rows=100, dims=8, centres=4, spread=0.2, copies=0, seed=0)), [0.9], cells=4)
    again = read_plan(plan_bytes(plan))
    assert np.array_equal(again.sketch.basis, plan.sketch.basis)
    assert np.array_equal(again.centroids, plan.centroids)
    assert again.shown == plan.shown


def test_a_shard_or_disk_that_is_too_small_is_refused(tmp_path: Path) -> None:
    """The message names the setting to change."""
    vectors = Vectors.of(corpus(rows=100, dims=8, centres=4, spread=0.2, copies=0, seed=0))
    plan = plan_search(vectors, [0.9], cells=0)
    [shard] = cut(search_layout(plan, vectors, 0.9, 1), 1, None)  # type: ignore[arg-type]
    work = shard.work(vectors, np.zeros(100, np.uint8), plan, [0.9])
    check_shard(work, shard_bytes(work))
    with pytest.raises(ConfigError, match=r"dedup\.shards"):
        check_shard(work, shard_bytes(work) / 2)
    with pytest.raises(ConfigError, match=r"dedup\.max_pairs"):
        check_disk(Location.of(tmp_path / "not" / "there"), 1e18)
