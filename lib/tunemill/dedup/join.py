"""Compare the rows that meet in cells: sketches first, then float32, then the decision in float64."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tunemill.dedup.cells import Layout
from tunemill.dedup.pairs import Pairs, Vectors, unique_pairs
from tunemill.dedup.sketch import SLACK
from tunemill.dedup.threads import side_by_side

__all__ = ["join"]

_HOME_ROWS = 256
_MET_ROWS = 2048


def join(
    vectors: Vectors,
    sketches: np.ndarray,
    layout: Layout,
    thresholds: Sequence[float],
    *,
    code: np.ndarray | None = None,
    cells: Iterable[int] | None = None,
    threads: int = 1,
) -> Pairs:
    """Every pair that meets in ``cells`` (all by default) and reaches its ``thresholds``, one for each column group.

    ``code`` uint8 [n]: two rows that share a bit are not compared. A pair may meet in two cells; it comes back once.
    """
    wanted = range(layout.count) if cells is None else cells
    lowest = float(np.mean(thresholds))
    scan = _Scan(sketches, code, lowest - SLACK)

    def work(cell: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a, b = scan.cell(layout.home(cell), layout.visitors(cell))
        a, b = vectors.near(a, b, lowest - SLACK)
        return vectors.accepted(a, b, thresholds)

    found = side_by_side(work, wanted, threads)
    if not found:
        return Pairs.empty()
    a, b, similarity = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return unique_pairs(a, b, similarity, len(vectors))


class _Scan:
    """Finds the pairs of a cell whose sketches reach ``lowest``; score blocks live in buffers that each thread reuses."""

    def __init__(self, sketches: np.ndarray, code: np.ndarray | None, lowest: float) -> None:
        self._sketches, self._code, self._lowest = sketches, code, np.float32(lowest)
        self._buffers = threading.local()

    def cell(self, home: np.ndarray, visitors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row positions int64 of both ends."""
        first, second = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        if len(home) and len(home) + len(visitors) > 1:
            for rows, met, among in _classes(home, visitors, self._code):
                for a, b in self._above(rows, met, among):
                    first.append(a)
                    second.append(b)
        return np.concatenate(first), np.concatenate(second)

    def _above(self, rows: np.ndarray, met: np.ndarray, among: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        left, right = self._sketches[rows], self._sketches[met]
        for i in range(0, len(rows), _HOME_ROWS):
            block = left[i : i + _HOME_ROWS]
            for j in range(i if among else 0, len(met), _MET_ROWS):
                others = right[j : j + _MET_ROWS]
                hits, width = self._hits(block, others), len(others)
                if len(hits):
                    row, column = hits // width + i, hits % width + j
                    if among and j < len(rows):
                        later = column > row
                        row, column = row[later], column[later]
                    yield rows[row].astype(np.int64), met[column].astype(np.int64)

    def _hits(self, block: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Flat positions in the score block."""
        mine = self._buffers
        if not hasattr(mine, "scores"):
            mine.scores = np.empty(_HOME_ROWS * _MET_ROWS, np.float32)
            mine.mask = np.empty(_HOME_ROWS * _MET_ROWS, np.bool_)
        size = len(block) * len(others)
        np.matmul(block, others.T, out=mine.scores[:size].reshape(len(block), len(others)))
        np.greater_equal(mine.scores[:size], self._lowest, out=mine.mask[:size])
        return np.flatnonzero(mine.mask[:size])


def _classes(home: np.ndarray, visitors: np.ndarray, code: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Rows at home, the rows they are compared with, and whether these begin with the same rows (then only later ones count)."""
    if code is None or not (code[home].any() or code[visitors].any()):
        yield home, np.concatenate([home, visitors]), True
        return
    ordered = home[np.argsort(code[home], kind="stable")]
    own = code[ordered]
    starts = np.flatnonzero(np.r_[True, own[1:] != own[:-1]])
    for start, end in zip(starts, [*starts[1:], len(own)], strict=True):
        met = np.concatenate([ordered[start:], visitors])
        yield ordered[start:end], met[(code[met] & own[start]) == 0], bool(own[start] == 0)
