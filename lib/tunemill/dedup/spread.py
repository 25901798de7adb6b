"""Vectors of a corpus in blocks that stay where they were made. Only what is asked for by position comes here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tunemill.dedup.pairs import Vectors
from tunemill.dedup.scratch import Spool
from tunemill.dedup.tasks import Handle, Here, Tasks

__all__ = ["Block", "Spread", "joined_spread"]


@dataclass(frozen=True)
class Block:
    """Some rows: unit vectors float32 [r, d] and what to show of their texts (None where that is not needed)."""

    rows: np.ndarray
    excerpts: pa.ChunkedArray | None = None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """``n`` rows in ``blocks``. ``places[i]`` int64 has the position of each row of block i, -1 for rows left out.

    ``widths`` are those of the column groups, as in :class:`Vectors`.
    """

    tasks: Tasks
    n: int
    widths: tuple[int, ...]
    blocks: list[Handle]
    places: list[np.ndarray]

    @classmethod
    def here(cls, vectors: Vectors, blocks: int = 1) -> Spread:
        """Vectors of this process, in blocks of similar size."""
        places = np.array_split(np.arange(len(vectors)), blocks)
        rows = [Block(vectors.rows[part]) for part in places]
        return cls(tasks=Here(), n=len(vectors), widths=vectors.widths, blocks=rows, places=places)

    def __len__(self) -> int:
        return self.n

    def all(self, work: Callable[..., Any], *shared: Any) -> list[Any]:
        """``work(block, places, *shared)`` for each block, results in the order of the blocks."""
        return self.tasks.all(work, self.arguments(*shared))

    def arguments(self, *shared: Any) -> list[tuple[Any, ...]]:
        """The arguments of one call for each block; ``shared`` values may be handles."""
        return [(block, places, *shared) for block, places in zip(self.blocks, self.places, strict=True)]

    def take(self, positions: np.ndarray) -> Spread:
        """The rows at ``positions`` (ascending), renumbered; nothing moves."""
        if len(positions) == self.n:
            return self
        number = np.full(self.n + 1, -1, np.int64)
        number[positions] = np.arange(len(positions))
        return dataclasses.replace(self, n=len(positions), places=[number[places] for places in self.places])

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """Float32 [p, d]: the rows at ``positions`` (ascending), brought here and onto scratch disk."""
        spool, order = Spool(), []
        for start in range(0, len(self.blocks), self.tasks.slots):
            some = slice(start, start + self.tasks.slots)
            wanted = [(block, places, positions) for block, places in zip(self.blocks[some], self.places[some], strict=True)]
            for rows, found in self.tasks.all(_rows_at, wanted):
                spool.append(rows)
                order.append(found)
        rows = spool.rows(sum(self.widths))
        there = np.concatenate(order) if order else np.zeros(0, np.int64)
        return rows if np.array_equal(there, np.arange(len(there))) else rows[np.argsort(there)]

    def vectors_at(self, positions: np.ndarray) -> Vectors:
        """The rows at ``positions`` (ascending) to compare with each other."""
        return Vectors.of(self.rows_at(positions), self.widths, threads=self.tasks.threads)

    def excerpts_at(self, positions: Sequence[int]) -> dict[int, str]:
        """What to show of the rows at ``positions``."""
        shown: dict[int, str] = {}
        for part in self.all(_excerpts_at, np.unique(np.array(positions, np.int64))):
            shown |= part
        return shown


def joined_spread(parts: Sequence[Spread]) -> Spread:
    """The rows of several spreads, numbered one after the other."""
    first, places, n = parts[0], [], 0
    for part in parts:
        places += [np.where(own < 0, -1, own + n) for own in part.places]
        n += len(part)
    return dataclasses.replace(first, n=n, blocks=[block for part in parts for block in part.blocks], places=places)


def _rows_at(block: Block, places: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a block that stand at ``positions``, and where among them."""
    mine = np.flatnonzero(np.isin(places, positions))
    return block.rows[mine], np.searchsorted(positions, places[mine])


def _excerpts_at(block: Block, places: np.ndarray, positions: np.ndarray) -> dict[int, str]:
    mine = np.flatnonzero(np.isin(places, positions))
    if block.excerpts is None or not len(mine):
        return {}
    return dict(zip(places[mine].tolist(), block.excerpts.take(pa.array(mine)).to_pylist(), strict=True))
