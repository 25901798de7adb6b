"""Run the search of a stage: plan, shards as Ray tasks under a ledger, hot groups set aside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunemill.dedup.cells import Chunks, Layout, assign
from tunemill.dedup.hot import find_hot
from tunemill.dedup.memory import check_disk, check_shard, tasks_at_once
from tunemill.dedup.pairs import Pairs, Vectors
from tunemill.dedup.plan import SearchPlan, plan_search
from tunemill.dedup.shards import Ledger, Shard, Work, cut, search_key
from tunemill.dedup.threads import cores
from tunemill.store import Location

__all__ = ["FIXED", "HOT", "Found", "Runner", "in_process", "lay_out_shards", "on_ray", "search"]

FIXED, HOT = 1, 2
"""Bits of the code: rows that stay whatever happens, and rows whose pairs among each other are not listed."""
_ROWS_PER_SHARD = 50_000

Runner = Callable[[list[Shard], Callable[[Shard], Work], Callable[[int, Pairs], None]], None]
"""Runs shards in any order: ``(shards, gather, record)``; each result is recorded as soon as it is there."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the search yields: ``pairs`` without those between two ``hot`` rows, the plan, and facts to show."""

    pairs: Pairs
    hot: np.ndarray
    plan: SearchPlan
    facts: dict[str, Any]


def search(
    vectors: Vectors,
    thresholds: Sequence[float],
    *,
    ledger: Location,
    runner: Runner,
    fixed: np.ndarray,
    max_pairs: int,
    shards: int | None = None,
    seed: int = 0,
    plan: SearchPlan | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Found:
    """Every pair that reaches ``thresholds`` but those of two ``fixed`` or two hot rows, going on from what the ledger holds."""
    n = len(vectors)
    if n < 2:
        empty = np.zeros(0, np.int64)
        plan = plan or plan_search(vectors, thresholds, cells=0)
        return Found(pairs=Pairs.empty(), hot=empty, plan=plan, facts={"method": "none", "shards": 0})
    shards = shards or max(1, -(-n // _ROWS_PER_SHARD))
    code = np.where(fixed, FIXED, 0).astype(np.uint8)
    key = search_key(vectors, code, thresholds, shards, [seed, max_pairs, plan is not None])
    for stale in {file.url.rsplit("/", 2)[-2] for file in ledger.files()} - {key}:
        ledger.join(stale).delete()
    book = Ledger(ledger.join(key))
    plan = book.plan(lambda: plan or plan_search(vectors, thresholds, seed=seed))
    hot = _hot_rows(vectors, thresholds, plan, max_pairs, seed)
    code[hot] |= HOT
    check_disk(ledger, min(plan.estimate.get("expected_pairs", 0.0), float(max_pairs)))
    layout = lay_out_shards(plan, vectors, thresholds, shards)
    todo = cut(layout, shards, plan.centroids)
    done = book.finished()
    note(_announcement(plan, len(todo), len(done), len(hot)))
    missing = [shard for shard in todo if shard.number not in done]
    runner(missing, lambda shard: shard.work(vectors, code, plan, thresholds), book.record)
    facts = {**plan.shown, "shards": len(todo), "shards_resumed": len(done), "hot_rows": len(hot)}
    return Found(pairs=book.pairs(n), hot=hot, plan=plan, facts=facts)


def in_process(shards: list[Shard], gather: Callable[[Shard], Work], record: Callable[[int, Pairs], None]) -> None:
    """Run shards one after another here, on all cores."""
    for shard in shards:
        record(shard.number, _threaded(gather(shard), cores()).run())


def on_ray(threads: int, device: str, budget_bytes: float | None) -> Runner:
    """Run shards as Ray tasks, as many at once as the cluster's cores and the memory budget allow."""

    def run(shards: list[Shard], gather: Callable[[Shard], Work], record: Callable[[int, Pairs], None]) -> None:
        import ray

        if not shards:
            return
        gpus = float(ray.cluster_resources().get("GPU", 0))
        use_gpu = device == "cuda" or (device == "auto" and gpus >= 1)
        task = ray.remote(_run).options(num_cpus=threads, num_gpus=1 if use_gpu else 0, max_retries=3)
        slots = int(gpus) if use_gpu else max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
        waiting = list(reversed(shards))
        running: dict[Any, int] = {}
        while waiting or running:
            while waiting and len(running) < slots:
                work = _threaded(gather(waiting[-1]), threads, "cuda" if use_gpu else "cpu")
                check_shard(work, budget_bytes)
                slots = min(slots, tasks_at_once(work, budget_bytes))
                if len(running) >= slots:
                    break
                running[task.remote(work)] = waiting.pop().number
            [first], _ = ray.wait(list(running), num_returns=1)
            record(running.pop(first), ray.get(first))

    return run


def _run(work: Work) -> Pairs:
    return work.run()


def _threaded(work: Work, threads: int, device: str = "cpu") -> Work:
    import dataclasses

    return dataclasses.replace(work, threads=threads, device=device)


def _hot_rows(vectors: Vectors, thresholds: Sequence[float], plan: SearchPlan, max_pairs: int, seed: int) -> np.ndarray:
    """None unless the pairs expected are too many to list; different thresholds for columns cannot be summarised."""
    if plan.estimate.get("expected_pairs", 0) <= max_pairs or len(set(thresholds)) > 1:
        return np.zeros(0, np.int64)
    return find_hot(vectors, float(np.mean(thresholds)), max_pairs, seed=seed)


def lay_out_shards(plan: SearchPlan, vectors: Vectors, thresholds: Sequence[float], shards: int) -> Layout:
    """The cells of a plan filled with rows; brute force in chunks small enough for every shard to get several."""
    if plan.centroids is None:
        return Chunks(len(vectors), max(256, min(8192, len(vectors) // (8 * shards))))
    sketches = plan.sketch.of(vectors.rows, cores())
    return assign(sketches, plan.centroids, float(np.mean(thresholds)), cores())


def _announcement(plan: SearchPlan, shards: int, done: int, hot: int) -> str:
    parts = [f"{plan.method}, sketch width {plan.sketch.width - 1}"]
    if plan.cells:
        parts.append(f"{plan.cells} cells")
    if "expected_core_s" in plan.estimate:
        parts.append(f"about {plan.estimate['expected_core_s']:.1f} s of one core")
    parts.append(f"{shards} shards" + (f", {done} of them done before" if done else ""))
    if hot:
        parts.append(f"pairs among {hot:,} rows of hot groups are summarised")
    return "search: " + ", ".join(parts)
