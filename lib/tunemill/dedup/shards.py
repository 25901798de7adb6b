"""The search in parts: a shard is some cells with the rows that meet in them, a task that can run anywhere and twice.

Rows are laid into cells block by block, where they lie. Each block gives a shard the piece it holds of it, and the
shard's task puts the pieces together: vectors go from the node that has them to the node that compares them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tunemill.dedup.cells import Cells, assign, grouped
from tunemill.dedup.join import join
from tunemill.dedup.pairs import Pairs, Vectors
from tunemill.dedup.plan import SearchPlan
from tunemill.dedup.sketch import Sketch
from tunemill.dedup.spread import Block

__all__ = [
    "Grid",
    "Layout",
    "LayoutRule",
    "Piece",
    "Work",
    "cut",
    "lay_out",
    "loads",
    "piece",
    "pieces",
    "sizes",
    "tiles",
    "work_of",
]


class Layout(Protocol):
    """A block's rows by cell. Cell numbers mean the same in every block."""

    def home(self, cell: int) -> np.ndarray:
        """Rows at home in the cell."""

    def visitors(self, cell: int) -> np.ndarray:
        """Rows to compare with those at home."""


@dataclass(frozen=True)
class Grid:
    """Brute force in tiles: rows in groups by position, and a cell for each two groups (``first <= second``)."""

    groups: Cells
    first: np.ndarray
    second: np.ndarray

    @classmethod
    def of(cls, places: np.ndarray, n: int, groups: int) -> Grid:
        """Rows by position in 0..n-1, -1 for rows left out."""
        rows = np.flatnonzero(places >= 0)
        return cls(
            Cells(*grouped(rows, places[rows] * groups // n, groups), *grouped(rows[:0], rows[:0], groups)), *tiles(groups)
        )

    def home(self, cell: int) -> np.ndarray:
        """The rows of the cell's first group."""
        return self.groups.home(int(self.first[cell]))

    def visitors(self, cell: int) -> np.ndarray:
        """The rows of its second group, where that is another one."""
        none = self.first[cell] == self.second[cell]
        return self.groups.visitors(0) if none else self.groups.home(int(self.second[cell]))


def tiles(groups: int) -> tuple[np.ndarray, np.ndarray]:
    """The two groups of each tile."""
    return np.triu_indices(groups)


@dataclass(frozen=True, kw_only=True)
class LayoutRule:
    """Where the ``n`` rows of a corpus belong: into the plan's cells for pairs at or above ``lowest``, or into ``groups``
    by position. ``homes`` [n] are the home cells that were found before."""

    plan: SearchPlan
    lowest: float
    n: int
    groups: int
    homes: np.ndarray | None
    threads: int

    @property
    def cells(self) -> int:
        """Number of cells."""
        return self.plan.cells or len(tiles(self.groups)[0])


def lay_out(block: Block, places: np.ndarray, rule: LayoutRule) -> tuple[Layout, np.ndarray]:
    """A block's rows by cell, and the home cell of each (-1 for rows left out)."""
    homes = np.full(len(places), -1, np.int32)
    rows = np.flatnonzero(places >= 0)
    if rule.plan.centroids is None:
        return Grid.of(places, rule.n, rule.groups), homes
    sketches = rule.plan.sketch.of(block.rows[rows], rule.threads)
    known = None if rule.homes is None else rule.homes[places[rows]]
    cells = assign(sketches, rule.plan.centroids, rule.lowest, rule.threads, homes=known)
    homes[rows[cells.home_rows]] = np.repeat(np.arange(cells.count), np.diff(cells.home_offsets))
    return Cells(rows[cells.home_rows], cells.home_offsets, rows[cells.visitor_rows], cells.visitor_offsets), homes


def loads(layout: Layout, cells: int) -> np.ndarray:
    """Rows at home and visitors of each cell, int64 [2, cells]."""
    return np.array([[len(of(cell)) for cell in range(cells)] for of in (layout.home, layout.visitors)], np.int64)


def sizes(layout: Layout, shards: Sequence[np.ndarray]) -> np.ndarray:
    """Rows, and (row, cell) entries, that a block holds of each shard, int64 [2, shards]."""
    found = []
    for cells in shards:
        entries = np.concatenate([of(cell) for cell in cells.tolist() for of in (layout.home, layout.visitors)])
        found.append((len(np.unique(entries)), len(entries)))
    return np.array(found, np.int64).reshape(-1, 2).T


def cut(load: np.ndarray, shards: int, centroids: np.ndarray | None) -> np.ndarray:
    """The shard of each cell, int64 [K], by similar work; cells near each other go together, so that they share visitors."""
    at_home, visitors = load.astype(np.float64)
    work = at_home * (at_home / 2 + visitors) + 1.0
    cells = np.arange(len(work))
    parts = [cells[i::shards] for i in range(shards)] if centroids is None else list(_halved(cells, centroids, work, shards))
    shard = np.empty(len(work), np.int64)
    for number, part in enumerate(part for part in parts if len(part)):
        shard[part] = number
    return shard


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one block holds of a shard: rows [p, d] with their positions and code, and (row, cell) of each one's homes
    and visits, cells numbered within the shard."""

    rows: np.ndarray
    positions: np.ndarray
    code: np.ndarray
    home: tuple[np.ndarray, np.ndarray]
    visits: tuple[np.ndarray, np.ndarray]


def pieces(block: Block, places: np.ndarray, layout: Layout, code: np.ndarray, shards: Sequence[np.ndarray]) -> Iterator[Piece]:
    """A block's pieces of several shards, each given by its cells; one is sent off before the next is made."""
    return (piece(block, places, layout, code, cells) for cells in shards)


def piece(block: Block, places: np.ndarray, layout: Layout, code: np.ndarray, cells: np.ndarray) -> Piece:
    """What a block holds of the shard with these cells."""
    home, visits = (_entries([of(cell) for cell in cells.tolist()]) for of in (layout.home, layout.visitors))
    rows = np.unique(np.concatenate([home[0], visits[0]]))
    positions = places[rows]
    return Piece(
        rows=block.rows[rows],
        positions=positions,
        code=code[positions],
        home=(np.searchsorted(rows, home[0]), home[1]),
        visits=(np.searchsorted(rows, visits[0]), visits[1]),
    )


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that a shard needs, with its own row numbers, in order of ``positions`` in the whole corpus."""

    rows: np.ndarray
    positions: np.ndarray
    widths: tuple[int, ...]
    code: np.ndarray
    cells: Cells
    sketch: Sketch
    thresholds: tuple[float, ...]
    threads: int = 1
    device: str = "cpu"

    def run(self) -> Pairs:
        """The shard's pairs, in places of the whole corpus."""
        vectors = Vectors.of(self.rows, self.widths, threads=self.threads)
        sketches = None if self.device == "cuda" else self.sketch.of(self.rows, self.threads)
        found = join(vectors, sketches, self.cells, self.thresholds, code=self.code, threads=self.threads, device=self.device)
        return Pairs(a=self.positions[found.a], b=self.positions[found.b], similarity=found.similarity)


def work_of(
    parts: Sequence[Piece],
    cells: int,
    apart: np.ndarray | None,
    *,
    widths: tuple[int, ...],
    sketch: Sketch,
    thresholds: Sequence[float],
) -> Work:
    """Put the pieces of a shard of some ``cells`` together; ``apart`` as in :class:`Cells`."""
    positions = np.concatenate([part.positions for part in parts])
    order = np.argsort(positions)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    mine = np.split(place, np.cumsum([len(part.positions) for part in parts])[:-1])
    rows, code = np.empty((len(order), sum(widths)), np.float32), np.empty(len(order), np.uint8)
    for part, at in zip(parts, mine, strict=True):
        rows[at], code[at] = part.rows, part.code
    entries = [
        (
            np.concatenate([at[of(part)[0]] for part, at in zip(parts, mine, strict=True)]),
            np.concatenate([of(p)[1] for p in parts]),
        )
        for of in (lambda part: part.home, lambda part: part.visits)
    ]
    (home, visits) = (grouped(row, cell, cells) for row, cell in entries)
    return Work(
        rows=rows,
        positions=positions[order],
        widths=widths,
        code=code,
        cells=Cells(*home, *visits, apart),
        sketch=sketch,
        thresholds=tuple(thresholds),
    )


def _entries(groups: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of several cells one after the other, and the number of each one's cell."""
    rows = np.concatenate(groups) if groups else np.zeros(0, np.int64)
    return rows, np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])


def _halved(cells: np.ndarray, centroids: np.ndarray, work: np.ndarray, shards: int) -> Iterator[np.ndarray]:
    """Split along the direction in which the centroids spread most, in proportion to the shards on each side."""
    if shards <= 1 or len(cells) <= 1:
        yield cells
        return
    axis = int(centroids[cells].var(axis=0).argmax())
    order = cells[np.argsort(centroids[cells, axis], kind="stable")]
    left = shards // 2
    done = np.cumsum(work[order])
    middle = int(np.clip(np.searchsorted(done, done[-1] * left / shards) + 1, 1, len(order) - 1))
    yield from _halved(order[:middle], centroids, work, left)
    yield from _halved(order[middle:], centroids, work, shards - left)
