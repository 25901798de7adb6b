"""What the search will need, checked before it starts: what cannot fit is refused with the setting to change."""

from __future__ import annotations

import shutil
import tempfile

import psutil

from tunemill.dedup.shards import Work
from tunemill.errors import ConfigError
from tunemill.store import Location

__all__ = ["available_bytes", "check_corpus", "check_disk", "check_shard", "shard_bytes", "tasks_at_once"]

_GB = 1e9
_PAIR_BYTES = 60
"""Of one pair on disk, before compression: two ids and a similarity."""
_ROW_OVERHEAD = 1000
"""Of one row beyond its vector: id, hash, excerpt of the text, positions in cells."""


def available_bytes(memory_gb: float | None) -> float:
    """What the stage may plan with on this machine."""
    return memory_gb * _GB if memory_gb is not None else 0.9 * psutil.virtual_memory().available


def check_corpus(rows: int, dims: int, memory_gb: float | None) -> None:
    """Refuse a corpus for which the process that plans lacks memory or scratch disk. Raises ConfigError.

    Vectors lie on disk (as they came, in order of id, and those that stand for themselves); sketches are in memory.
    """
    sketches, vectors = rows * (min(dims, 128) * 4.0 + _ROW_OVERHEAD), rows * dims * 4.0 * 3
    have = available_bytes(memory_gb)
    if sketches > have:
        raise ConfigError(
            f"dedup.memory_gb: {rows:,} rows of {dims} dimensions need about {sketches / _GB:.1f} GB, {have / _GB:.1f} GB are "
            "there; use a machine with more memory or fewer rows (--limit)"
        )
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if vectors > free:
        raise ConfigError(
            f"dedup: the vectors of {rows:,} rows need about {vectors / _GB:.1f} GB of scratch disk, {free / _GB:.1f} GB "
            f"are free in {tempfile.gettempdir()}; set TMPDIR to a folder with more room"
        )


def shard_bytes(work: Work) -> float:
    """Peak of one task: its rows as sent and as float64 blocks, sketches, visitors, score blocks."""
    rows, dims = work.rows.shape
    return float(rows) * (dims * 4 * 2 + work.sketch.width * 4 + 64) + 8.0 * len(work.cells.visitor_rows) + work.threads * 32e6


def check_shard(work: Work, budget_bytes: float | None) -> None:
    """Refuse a shard that does not fit by itself. Raises ConfigError."""
    if budget_bytes is not None and shard_bytes(work) > budget_bytes:
        raise ConfigError(
            f"dedup.shards: one shard of {len(work.rows):,} rows needs about {shard_bytes(work) / _GB:.2f} GB, "
            f"{budget_bytes / _GB:.2f} GB are there; use more shards"
        )


def tasks_at_once(work: Work, budget_bytes: float | None) -> int:
    """How many such tasks fit side by side, at least one."""
    return 10**6 if budget_bytes is None else max(1, int(budget_bytes // shard_bytes(work)))


def check_disk(folder: Location, pairs: float) -> None:
    """Refuse pairs that do not fit on the disk, where it is a local one. Raises ConfigError."""
    if folder.is_remote:
        return
    path = folder.path
    while path and not Location(path).exists():
        path = path.rsplit("/", 1)[0]
    free = shutil.disk_usage(path or "/").free
    if pairs * _PAIR_BYTES > free:
        need = f"about {pairs:,.0f} pairs need {pairs * _PAIR_BYTES / _GB:.1f} GB of disk"
        raise ConfigError(
            f"dedup.max_pairs: {need} in {folder.url}, {free / _GB:.1f} GB are free; "
            "raise dedup.pair_floor or dedup.threshold, or lower dedup.max_pairs"
        )
