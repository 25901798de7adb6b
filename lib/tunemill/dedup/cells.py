"""Which rows can meet: k-means cells with a halo, or plain chunks when cells do not pay.

Each row has one home cell. It also visits every cell B whose bisector with its home A is no farther
than half the largest distance r at which two rows are a pair. Of a pair in different cells one row
always visits the other's home: the signed distances of the two rows to the bisector differ by at most
r. So it is enough to compare the rows at home in a cell with each other and with the cell's visitors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tunemill.dedup.threads import faiss_gpus, side_by_side

__all__ = ["Cells", "Chunks", "Layout", "assign", "halo_radius", "k_means"]

_BLOCK = 4096
_SCORE_SLACK = 1e-5
_RADIUS_SLACK = 5e-4


class Layout(Protocol):
    """Cells of row positions: who is at home and who visits."""

    @property
    def count(self) -> int:
        """Number of cells."""

    def home(self, cell: int) -> np.ndarray:
        """Rows at home in the cell."""

    def visitors(self, cell: int) -> np.ndarray:
        """Rows of other cells that can pair with a row at home here."""


@dataclass(frozen=True)
class Cells:
    """K-means cells: ``home_rows`` and ``visitor_rows`` grouped by cell, with K + 1 offsets each."""

    home_rows: np.ndarray
    home_offsets: np.ndarray
    visitor_rows: np.ndarray
    visitor_offsets: np.ndarray

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


@dataclass(frozen=True)
class Chunks:
    """Brute force as cells: chunks of ``size`` consecutive rows, each visited by all rows after it."""

    rows: int
    size: int

    @property
    def count(self) -> int:
        """Number of chunks."""
        return -(-self.rows // self.size)

    def home(self, cell: int) -> np.ndarray:
        """The chunk's rows."""
        return np.arange(cell * self.size, min((cell + 1) * self.size, self.rows))

    def visitors(self, cell: int) -> np.ndarray:
        """All later rows."""
        return np.arange(min((cell + 1) * self.size, self.rows), self.rows)


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


def assign(sketches: np.ndarray, centroids: np.ndarray, threshold: float, threads: int = 1) -> Cells:
    """Lay rows into cells with their halo for pairs at or above ``threshold``."""
    half_norms = np.einsum("ij,ij->i", centroids, centroids) / 2
    squared = np.maximum(2 * (half_norms[:, None] + half_norms[None, :] - centroids @ centroids.T), 0)
    reach = (np.sqrt(squared) * halo_radius(threshold) + _SCORE_SLACK).astype(np.float32)
    np.fill_diagonal(reach, -np.inf)

    def block(start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores = sketches[start : start + _BLOCK] @ centroids.T
        scores -= half_norms
        home = scores.argmax(axis=1)
        own = scores[np.arange(len(home)), home]
        # (own - score) / |c_A - c_B| is the row's distance to the bisector.
        scores += reach[home]
        row, cell = np.nonzero(scores >= own[:, None])
        return home, row + start, cell

    found = side_by_side(block, range(0, len(sketches), _BLOCK), threads)
    home = np.concatenate([part[0] for part in found])
    visitors = np.concatenate([part[1] for part in found])
    visited = np.concatenate([part[2] for part in found])
    home_rows, home_offsets = _grouped(np.arange(len(home)), home, len(centroids))
    visitor_rows, visitor_offsets = _grouped(visitors, visited, len(centroids))
    return Cells(home_rows, home_offsets, visitor_rows, visitor_offsets)


def _grouped(rows: np.ndarray, cell: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(cell.astype(np.int32), kind="stable")
    return rows[order].astype(np.int32), np.searchsorted(cell[order], np.arange(count + 1))
