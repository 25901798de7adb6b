"""Which rows can meet: k-means cells with a halo, or all rows in one cell when cells do not pay.

Each row has one home cell. It also visits every cell B whose bisector with its home A is no farther
than half the largest distance r at which two rows are a pair. Of a pair in different cells one row
always visits the other's home: the signed distances of the two rows to the bisector differ by at most
r. So it is enough to compare the rows at home in a cell with each other and with the cell's visitors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tunemill.dedup.threads import faiss_gpus, side_by_side

__all__ = ["Cells", "Meeting", "assign", "grouped", "halo_radius", "k_means"]

_BLOCK_SCORES = 1 << 20
"""Scores of one block of rows with all centroids: they are passed over several times and should stay in the cache."""
_SCORE_SLACK = 1e-5
_RADIUS_SLACK = 5e-4


@dataclass(frozen=True)
class Cells:
    """``home_rows`` and ``visitor_rows`` grouped by cell, with K + 1 offsets each.

    Rows at home are compared with each other and with the visitors, but only with the visitors in cells
    that ``apart`` (bool [K], None: none) marks.
    """

    home_rows: np.ndarray
    home_offsets: np.ndarray
    visitor_rows: np.ndarray
    visitor_offsets: np.ndarray
    apart: np.ndarray | None = None

    @classmethod
    def one(cls, rows: int) -> Cells:
        """All rows at home in one cell: brute force."""
        none = np.zeros(2, np.int64)
        return cls(np.arange(rows, dtype=np.int32), np.array([0, rows]), np.zeros(0, np.int32), none)

    @property
    def count(self) -> int:
        """Number of cells."""
        return len(self.home_offsets) - 1

    def home(self, cell: int) -> np.ndarray:
        """Rows at home in the cell."""
        return self.home_rows[self.home_offsets[cell] : self.home_offsets[cell + 1]]

    def visitors(self, cell: int) -> np.ndarray:
        """Rows of other cells near the cell's borders."""
        return self.visitor_rows[self.visitor_offsets[cell] : self.visitor_offsets[cell + 1]]

    def parts(self, size: int, cells: Iterable[int] | None = None) -> Iterator[tuple[int, int]]:
        """Each cell in parts of up to ``size`` rows at home, as (cell, first row)."""
        for cell in range(self.count) if cells is None else cells:
            yield from ((cell, start) for start in range(0, len(self.home(cell)), size))

    def meeting(self, cell: int, start: int, size: int) -> Meeting:
        """What to compare for one part, so that each two rows of the cell are compared in one of its parts."""
        home, visitors = self.home(cell), self.visitors(cell)
        apart = self.apart is not None and bool(self.apart[cell])
        later = visitors if apart else np.concatenate([home[start + size :], visitors])
        return Meeting(home[start : start + size], later, apart)


class Meeting(NamedTuple):
    """Rows at home to compare with visitors and, unless they are ``apart``, with each other."""

    home: np.ndarray
    visitors: np.ndarray
    apart: bool


def halo_radius(threshold: float) -> float:
    """Half the distance of two unit vectors whose cosine is ``threshold``, with slack for float32."""
    return float(np.sqrt(max(2.0 * (1.0 - threshold), 0.0)) / 2 + _RADIUS_SLACK)


def k_means(sketches: np.ndarray, cells: int, *, iterations: int, seed: int) -> np.ndarray:
    """Centroids float32 [K, m + 1] by FAISS; fewer than ``cells`` when there are fewer rows."""
    import faiss

    cells = min(cells, len(sketches))
    clustering = faiss.Kmeans(
        sketches.shape[1],
        cells,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=max(1, len(sketches)),
        gpu=faiss_gpus() > 0,
    )
    clustering.train(np.ascontiguousarray(sketches))
    return np.asarray(clustering.centroids, dtype=np.float32).reshape(cells, sketches.shape[1])


def assign(
    sketches: np.ndarray, centroids: np.ndarray, threshold: float, threads: int = 1, *, homes: np.ndarray | None = None
) -> Cells:
    """Lay rows into cells with their halo for pairs at or above ``threshold``.

    ``homes`` gives the home cells found before: another processor may break a tie in the last bit another way.
    """
    half_norms = np.einsum("ij,ij->i", centroids, centroids) / 2
    squared = np.maximum(2 * (half_norms[:, None] + half_norms[None, :] - centroids @ centroids.T), 0)
    reach = (np.sqrt(squared) * halo_radius(threshold) + _SCORE_SLACK).astype(np.float32)
    np.fill_diagonal(reach, -np.inf)

    rows = max(64, _BLOCK_SCORES // len(centroids))

    def block(start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores = sketches[start : start + rows] @ centroids.T
        scores -= half_norms
        home = scores.argmax(axis=1) if homes is None else homes[start : start + rows]
        own = scores[np.arange(len(home)), home]
        # (own - score) / |c_A - c_B| is the row's distance to the bisector.
        scores += reach[home]
        row, cell = np.divmod(np.flatnonzero(scores >= own[:, None]), len(centroids))
        return home, row + start, cell

    found = side_by_side(block, range(0, len(sketches), rows), threads)
    home, visitors, visited = (np.concatenate(parts) for parts in zip(*found, strict=True)) if found else [np.zeros(0, int)] * 3
    everyone = np.arange(len(home))
    return Cells(*grouped(everyone, home, len(centroids)), *grouped(visitors, visited, len(centroids)))


def grouped(rows: np.ndarray, cell: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows int32 sorted by their cell, and the ``count`` + 1 offsets of the cells."""
    # Numbers of 16 bits are sorted by counting, three times as fast.
    order = np.argsort(cell.astype(np.uint16 if count <= 1 << 16 else np.int32), kind="stable")
    return rows[order].astype(np.int32), np.r_[0, np.cumsum(np.bincount(cell, minlength=count))]
