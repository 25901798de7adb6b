"""What the search will need, checked before it starts: what cannot fit is refused with the setting to change."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from tunemill.dedup.spread import Spread
from tunemill.errors import ConfigError
from tunemill.store import Location

__all__ = ["MemoryPlan", "available_bytes", "check_corpus", "check_disk", "check_hot", "shard_bytes"]

_GB = 1e9
_PAIR_BYTES = 60
"""Of one pair on disk, before compression: two ids and a similarity."""
_SUMMARISED_BYTES = 100
"""Of one pair while pairs of several shards are sorted into one list."""
_ROW_BYTES = 1000
"""Of one row with the process that decides: id, hash, priority, decision, position in its block."""
_THREAD_BYTES = 32e6
_PROCESS_BYTES = 150e6
"""Of a worker before it has any rows: Python, numpy, Arrow, Ray."""


def available_bytes(memory_gb: float | None) -> float:
    """What the stage may plan with on this machine."""
    return memory_gb * _GB if memory_gb is not None else 0.9 * psutil.virtual_memory().available


def _shown(size_bytes: float) -> str:
    """As MB or GB."""
    return f"{size_bytes / _GB:,.2f} GB" if size_bytes >= 0.1 * _GB else f"{size_bytes / 1e6:.2f} MB"


def check_corpus(rows: int, dims: int, memory_gb: float | None, room_bytes: float) -> None:
    """Refuse a corpus for which the process that decides, or the place for vectors, is too small. Raises ConfigError.

    Vectors lie in the object store, as they came and scaled; ids, hashes and decisions are with the process.
    """
    have = available_bytes(memory_gb)
    if rows * _ROW_BYTES > have:
        raise ConfigError(
            f"dedup.memory_gb: ids and decisions of {rows:,} rows need about {_shown(rows * _ROW_BYTES)}, "
            f"{_shown(have)} are there; use a machine with more memory or fewer rows (--limit)"
        )
    vectors = rows * dims * 4.0 * 2
    if vectors > room_bytes:
        raise ConfigError(
            f"dedup: the vectors of {rows:,} rows need about {_shown(vectors)} of Ray's object store and the disk that it "
            f"spills to, {_shown(room_bytes)} are there; use more nodes, or a larger disk (ray start --temp-dir)"
        )


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What the search takes: bytes of its largest task, how many run at once, and for how many more pieces are made ahead."""

    task_bytes: float
    at_once: int
    ahead: int
    pieces_bytes: float

    @classmethod
    def of(cls, rows: np.ndarray, entries: np.ndarray, spread: Spread, width: int, memory_gb: float | None) -> MemoryPlan:
        """For shards of some ``rows`` and (row, cell) ``entries`` each. Raises ConfigError where one does not fit."""
        tasks, dims, budget = spread.tasks, sum(spread.widths), available_bytes(memory_gb)
        needed = shard_bytes(rows, entries, dims, width, tasks.threads)
        largest = int(needed.argmax())
        if needed[largest] > budget:
            raise ConfigError(
                f"dedup.shards: one shard of {rows[largest]:,} rows needs about {_shown(needed[largest])}, "
                f"{_shown(budget)} are there; use more shards (now {len(rows)})"
            )
        at_once = max(1, min(tasks.slots, tasks.nodes * int(budget // needed[largest])))
        # Cores hold tasks back that wait with their pieces; where memory is what is short nobody waits.
        ahead = at_once if 1 < tasks.slots == at_once else 0
        pieces = float(rows.max()) * dims * 4 * (at_once + ahead)
        corpus = float(len(spread)) * dims * 4
        if corpus + pieces > tasks.room_bytes:
            raise ConfigError(
                f"dedup.shards: {_shown(corpus + pieces)} of vectors are under way at once; Ray's object store and the "
                f"disk that it spills to hold {_shown(tasks.room_bytes)}; use more shards (now {len(rows)})"
            )
        return cls(task_bytes=float(needed[largest]), at_once=at_once, ahead=ahead, pieces_bytes=pieces)

    @property
    def shown(self) -> dict[str, Any]:
        """For manifests."""
        return {"task_gb": round(self.task_bytes / _GB, 4), "tasks_at_once": self.at_once}


def shard_bytes(rows: np.ndarray, entries: np.ndarray, dims: int, width: int, threads: int) -> np.ndarray:
    """Peak of the task of each shard: its rows, their pieces, sketches, the cells' lists, and each thread's score blocks."""
    return _PROCESS_BYTES + rows * (dims * 4.0 * 2 + width * 4 + 64) + 24.0 * entries + threads * _THREAD_BYTES


def check_hot(pairs: int, memory_gb: float | None) -> None:
    """Refuse more pairs than fit into the process that summarises hot groups. Raises ConfigError."""
    need, have = pairs * _SUMMARISED_BYTES, available_bytes(memory_gb)
    if need > have:
        raise ConfigError(
            f"dedup.max_pairs: the {pairs:,} pairs listed beside hot groups need about {_shown(need)} in the process that "
            f"summarises them, {_shown(have)} are there; lower dedup.max_pairs, or use a machine with more memory"
        )


def check_disk(folder: Location, pairs: float) -> None:
    """Refuse pairs that do not fit on the disk, where it is a local one. Raises ConfigError."""
    if folder.is_remote:
        return
    path = folder.path
    while path and not Location(path).exists():
        path = path.rsplit("/", 1)[0]
    free = shutil.disk_usage(path or "/").free
    if pairs * _PAIR_BYTES > free:
        need = f"about {pairs:,.0f} pairs need {_shown(pairs * _PAIR_BYTES)} of disk"
        raise ConfigError(
            f"dedup.max_pairs: {need} in {folder.url}, {_shown(free)} are free; "
            "raise dedup.pair_floor or dedup.threshold, or lower dedup.max_pairs"
        )
