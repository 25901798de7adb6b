"""Vectors that need not fit into memory: nameless files on the local disk, paged in and out by the system."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from typing import IO

import numpy as np

__all__ = ["Spool", "gathered"]

_ROWS = 8192


class Spool:
    """Float32 rows [n, d], written one block after another and then read as one array."""

    def __init__(self) -> None:
        # Without a name from the start, so that nothing is left behind however the process ends.
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="tunemill-vectors-")  # noqa: SIM115
        self._rows = 0

    def append(self, block: np.ndarray) -> None:
        """Add rows."""
        self._file.write(np.ascontiguousarray(block, dtype=np.float32).data)
        self._rows += len(block)

    def rows(self, dims: int) -> np.ndarray:
        """All rows, read-only, and the end of writing; their pages count as the system's cache and are given back when
        memory is short. The file goes with the last array."""
        with self._file:
            self._file.flush()
            if not self._rows or not dims:
                return np.zeros((self._rows, dims), np.float32)
            pages = mmap.mmap(self._file.fileno(), 0, prot=mmap.PROT_READ)
        return np.frombuffer(pages, np.float32).reshape(self._rows, dims)


def gathered(parts: Iterable[tuple[np.ndarray, np.ndarray]], dims: int) -> np.ndarray:
    """The rows of several arrays at the given positions, one below the other: ``(rows [n, d], positions)`` each."""
    spool = Spool()
    for rows, positions in parts:
        for start in range(0, len(positions), _ROWS):
            spool.append(rows[positions[start : start + _ROWS]])
    return spool.rows(dims)
