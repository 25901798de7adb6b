"""Run the search of a stage: plan, lay rows into cells where they lie, send shards their pieces, put pairs on file."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunemill.dedup.hot import find_hot
from tunemill.dedup.ledger import Ledger, search_key
from tunemill.dedup.memory import MemoryPlan, check_disk
from tunemill.dedup.plan import SearchPlan, plan_search
from tunemill.dedup.shards import LayoutRule, Piece, cut, lay_out, loads, piece, pieces, sizes, tiles, work_of
from tunemill.dedup.spread import Spread
from tunemill.dedup.tasks import Handle, Tasks, node_name
from tunemill.store import Location

__all__ = ["FIXED", "HOT", "Found", "search"]

FIXED, HOT = 1, 2
"""Bits of the code: rows that stay whatever happens, and rows whose pairs among each other are not listed."""
_ROWS_PER_SHARD = (50_000, 200_000)
_SHARDS_PER_SLOT = 4
_ROWS_PER_TILE = {"cpu": 100_000, "cuda": 2_000_000}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the search yields: ``pairs`` on file without those between two ``hot`` rows, how many (those met in several
    shards count more than once), the plan, and facts to show."""

    pairs: Ledger
    count: int
    hot: np.ndarray
    plan: SearchPlan
    facts: dict[str, Any]


def search(
    spread: Spread,
    thresholds: Sequence[float],
    *,
    ledger: Location,
    fixed: np.ndarray,
    max_pairs: int,
    shards: int | None = None,
    memory_gb: float | None = None,
    seed: int = 0,
    plan: SearchPlan | None = None,
    note: Callable[[str], None] = lambda text: None,
    advanced: Callable[[int, int, int], None] = lambda done, shards, pairs: None,
) -> Found:
    """Every pair that reaches ``thresholds`` but those of two ``fixed`` or two hot rows, going on from what the ledger holds.

    ``note`` is told the plan, ``advanced`` the shards that are done, all shards, and the pairs found.
    """
    code = np.where(fixed, FIXED, 0).astype(np.uint8)
    key = search_key(spread, code, list(thresholds), shards, seed, max_pairs, plan is not None)
    for stale in {file.url.rsplit("/", 2)[-2] for file in ledger.files()} - {key}:
        ledger.join(stale).delete()
    book = Ledger(ledger.join(key))
    if len(spread) < 2:
        plan = plan or plan_search(spread, thresholds, cells=0)
        return Found(pairs=book, count=0, hot=np.zeros(0, np.int64), plan=plan, facts={"method": "none", "shards": 0})
    plan = book.plan(lambda: plan or plan_search(spread, thresholds, seed=seed))
    hot = book.array("hot", lambda: _hot_rows(spread, thresholds, plan, max_pairs, seed))
    code[hot] |= HOT
    check_disk(ledger, min(plan.estimate.get("expected_pairs", 0.0), float(max_pairs)))
    layout = _Laid.out(spread, plan, float(np.mean(thresholds)), shards, book)
    done = book.finished()
    missing = [number for number in range(layout.shards) if number not in done]
    memory = MemoryPlan.of(layout.rows, layout.entries, spread, plan.sketch.width, memory_gb)
    note(_announcement(plan, layout.shards, len(done), len(hot)))
    tasks = spread.tasks
    compare = _Compare(
        plan=plan, widths=spread.widths, thresholds=tuple(thresholds), book=book, threads=tasks.threads, device=tasks.device
    )
    told: list[tuple[int, str]] = []
    for found in _run(layout, missing, tasks.put(code), tasks.put(compare), memory):
        told.append(found)
        advanced(len(done) + len(told), layout.shards, sum(count for count, _ in told))
    facts = {
        **plan.shown,
        "shards": layout.shards,
        "shards_resumed": len(done),
        "shards_by_node": dict(collections.Counter(node for _, node in told)),
        "hot_rows": len(hot),
        **memory.shown,
    }
    return Found(pairs=book, count=book.count(), hot=hot, plan=plan, facts=facts)


@dataclass(frozen=True, kw_only=True)
class _Laid:
    """Every block's rows by cell, the cells of each shard, and the rows and (row, cell) entries of each shard."""

    spread: Spread
    blocks: list[Handle]
    cells: list[np.ndarray]
    apart: np.ndarray | None
    rows: np.ndarray
    entries: np.ndarray

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.cells)

    @classmethod
    def out(cls, spread: Spread, plan: SearchPlan, lowest: float, shards: int | None, book: Ledger) -> _Laid:
        """Lay rows into the plan's cells, or into tiles of a brute force, and cells into shards."""
        tasks, n = spread.tasks, len(spread)
        groups = int(book.array("groups", lambda: np.array(_groups(n, shards, tasks))))
        first, second = tiles(groups)
        known = book.find("homes")
        rule = LayoutRule(plan=plan, lowest=lowest, n=n, groups=groups, homes=known, threads=tasks.threads)
        laid = [tasks.start(lay_out, *arguments, returns=2) for arguments in spread.arguments(tasks.put(rule))]
        blocks = [layout for layout, _ in laid]

        def homes() -> np.ndarray:
            found = np.empty(n, np.int32)
            for places, home in zip(spread.places, tasks.get([home for _, home in laid]), strict=True):
                found[places[places >= 0]] = home[places >= 0]
            return found

        def shard_of_cell() -> np.ndarray:
            if plan.centroids is None:
                return np.arange(rule.cells)
            load = sum(tasks.all(loads, [(block, rule.cells) for block in blocks]))
            return cut(load, shards or _fitting(n, tasks.slots), plan.centroids)

        if plan.centroids is not None:
            book.array("homes", homes)
        shard = book.array("shard_of_cell", shard_of_cell)
        cells = [np.flatnonzero(shard == number) for number in range(int(shard.max()) + 1)]
        rows, entries = sum(tasks.all(sizes, [(block, cells) for block in blocks]))
        apart = None if plan.centroids is not None else first != second
        return cls(spread=spread, blocks=blocks, cells=cells, apart=apart, rows=rows, entries=entries)

    def pieces(self, shards: Sequence[int], code: Handle) -> list[list[Handle]]:
        """Handles of the pieces of each of some shards."""
        cells, start = [self.cells[shard] for shard in shards], self.spread.tasks.start
        each = [(*arguments, layout, code) for arguments, layout in zip(self.spread.arguments(), self.blocks, strict=True)]
        if len(cells) == 1:
            return [[start(piece, *arguments, cells[0]) for arguments in each]]
        by_block = [start(pieces, *arguments, cells, returns=len(cells)) for arguments in each]
        return [list(parts) for parts in zip(*by_block, strict=True)]


@dataclass(frozen=True, kw_only=True)
class _Compare:
    """What the task of every shard is told."""

    plan: SearchPlan
    widths: tuple[int, ...]
    thresholds: tuple[float, ...]
    book: Ledger
    threads: int
    device: str


def _run(laid: _Laid, missing: Sequence[int], code: Handle, compare: Handle, memory: MemoryPlan) -> Iterator[tuple[int, str]]:
    """Search shards, as many at once as fit, and tell of each that is done; the next ones' pieces are made while they run."""
    tasks = laid.spread.tasks
    waiting, running = collections.deque(missing), list[Handle]()
    while waiting or running:
        room = memory.at_once + memory.ahead - len(running)
        if waiting and room > memory.at_once // 2:
            wave = [waiting.popleft() for _ in range(min(room, len(waiting)))]
            for number, parts in zip(wave, laid.pieces(wave, code), strict=True):
                cells = laid.cells[number]
                apart = None if laid.apart is None else laid.apart[cells]
                running.append(tasks.start(_compare, compare, number, len(cells), apart, *parts, device=tasks.device))
            continue
        done = tasks.first(running)
        running.remove(done)
        yield from tasks.get([done])


def _compare(told: _Compare, number: int, cells: int, apart: np.ndarray | None, *parts: Piece) -> tuple[int, str]:
    """Find a shard's pairs and put them on file; how many they are, and the node that found them."""
    plan, thresholds = told.plan, told.thresholds
    work = work_of(parts, cells, apart, widths=told.widths, sketch=plan.sketch, thresholds=thresholds)
    found = dataclasses.replace(work, threads=told.threads, device=told.device).run()
    told.book.record(number, found)
    return len(found), node_name()


def _fitting(n: int, slots: int) -> int:
    """A few shards for each slot, so that all end together; larger ones share more visitors, smaller ones need less memory."""
    worth, needed = -(-n // _ROWS_PER_SHARD[0]), -(-n // _ROWS_PER_SHARD[1])
    return max(1, needed, min(worth, _SHARDS_PER_SLOT * slots if slots > 1 else 1))


def _groups(n: int, shards: int | None, tasks: Tasks) -> int:
    """Groups of a brute force, so that their tiles are about as many as ``shards``, or of a size that fits."""
    groups = int(np.ceil((np.sqrt(8.0 * (shards or _fitting(n, tasks.slots)) + 1) - 1) / 2))
    return groups if shards else max(groups, -(-2 * n // _ROWS_PER_TILE[tasks.device]))


def _hot_rows(spread: Spread, thresholds: Sequence[float], plan: SearchPlan, max_pairs: int, seed: int) -> np.ndarray:
    """None unless the pairs expected are too many to list; different thresholds for columns cannot be summarised."""
    if plan.estimate.get("expected_pairs", 0) <= max_pairs or len(set(thresholds)) > 1:
        return np.zeros(0, np.int64)
    return find_hot(spread, float(np.mean(thresholds)), max_pairs, seed=seed)


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
