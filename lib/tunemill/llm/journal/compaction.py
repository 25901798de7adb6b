"""Merging the many small objects of an object-store journal into few, so that opening it stays quick.

A merged object is whole before any of its parts is deleted, and readers count a call once however often
they meet it. So a kill, a reader or a second merge at any moment loses nothing and counts nothing twice;
parts that a kill left behind are merged again.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pyarrow.fs as pafs

from tunemill.store import Location

__all__ = ["LEAST_OBJECTS", "compact", "read_if_there"]

LEAST_OBJECTS = 64
"""Fewer small objects of a kind are left as they are."""
MERGED_BYTES = 1 << 23
"""A merged object is not filled beyond this: a reader that wants one record fetches all of it."""
_SMALL_BYTES = MERGED_BYTES // 2
_MOST_OBJECTS = 20_000
"""Merged in one go; what is left is for the next time."""
_KINDS = ("intents", "outcomes")
_REQUESTS = 16


def compact(folder: Location) -> int:
    """Merge the small objects of each kind; returns how many were deleted. Raises OSError where the store does."""
    deleted = 0
    with ThreadPoolExecutor(_REQUESTS) as pool:
        for kind in _KINDS:
            small = _small_objects(folder, f"-{kind}.jsonl")
            if len(small) < LEAST_OBJECTS:
                continue
            for batch in _batches(small[:_MOST_OBJECTS]):
                deleted += _merge(folder, [name for name, _ in batch], kind, pool)
    return deleted


def read_if_there(file: Location) -> bytes | None:
    """The whole object, or None where it was merged away since it was listed."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _small_objects(folder: Location, ending: str) -> list[tuple[str, int]]:
    """(name, bytes) in the order of their names, which is the order in which each caller wrote."""
    listed = folder.fs.get_file_info(pafs.FileSelector(folder.path, allow_not_found=True))
    return sorted((info.base_name, info.size) for info in listed if info.base_name.endswith(ending) and info.size < _SMALL_BYTES)


def _batches(objects: list[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """Neighbours that fit into one merged object; never a single one."""
    batch: list[tuple[str, int]] = []
    for item in objects:
        if batch and sum(size for _, size in batch) + item[1] > MERGED_BYTES:
            if len(batch) > 1:
                yield batch
            batch = []
        batch.append(item)
    if len(batch) > 1:
        yield batch


def _merge(folder: Location, names: list[str], kind: str, pool: Executor) -> int:
    parts = [part for part in pool.map(read_if_there, map(folder.join, names)) if part is not None]
    # a merge that was cut short left its lines in two objects; of equal lines one is enough
    lines = dict.fromkeys(line for part in parts for line in part.split(b"\n") if line)
    folder.join(f"merged-{uuid.uuid4().hex}-{kind}.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    list(pool.map(_delete, map(folder.join, names)))
    return len(names)


def _delete(file: Location) -> None:
    with contextlib.suppress(FileNotFoundError):
        file.fs.delete_file(file.path)
