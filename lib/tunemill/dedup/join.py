"""Compare the rows that meet in cells: a cheap bound first, then float32, then the decision in float64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tunemill.dedup.cells import Cells
from tunemill.dedup.pairs import Pairs, Vectors, unique_pairs
from tunemill.dedup.scan import Precision, SketchScan, TileScan
from tunemill.dedup.sketch import SLACK
from tunemill.dedup.threads import side_by_side

__all__ = ["join"]

_LOT = 1 << 16


def join(
    vectors: Vectors,
    sketches: np.ndarray | None,
    layout: Cells,
    thresholds: Sequence[float],
    *,
    code: np.ndarray | None = None,
    cells: Iterable[int] | None = None,
    threads: int = 1,
    device: str = "cpu",
    precision: Precision = "bf16",
) -> Pairs:
    """Every pair that meets in ``cells`` (all by default) and reaches its ``thresholds``, one for each column group.

    ``code`` uint8 [n]: two rows that share a bit are not compared. A pair may meet in two cells; it comes back once.
    Without ``sketches`` whole rows are multiplied on ``device`` in ``precision``.
    """
    lowest = float(np.mean(thresholds))
    scan: SketchScan | TileScan
    if sketches is not None:
        scan = SketchScan(sketches, code, lowest)
    else:
        scan = TileScan(vectors.rows, code, lowest, groups=len(vectors.widths), device=device, precision=precision)

    # A sketch of full width already is the float32 score.
    narrow = sketches is None or sketches.shape[1] <= vectors.rows.shape[1]

    def work(part: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        accepted = []
        for a, b in _some_at_a_time(scan.pairs(layout.meeting(*part, scan.size))):
            accepted.append(vectors.accepted(*(vectors.near(a, b, lowest - SLACK) if narrow else (a, b)), thresholds))
        return _joined(accepted)

    found = side_by_side(work, layout.parts(scan.size, cells), threads)
    return unique_pairs(*_joined(found), len(vectors))


def _some_at_a_time(candidates: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Candidates in lots: enough to be checked fast, few enough that a bound that lets much through takes no memory."""
    first, second, count = list[np.ndarray](), list[np.ndarray](), 0
    for a, b in candidates:
        first.append(a)
        second.append(b)
        count += len(a)
        if count >= _LOT:
            yield np.concatenate(first), np.concatenate(second)
            first, second, count = [], [], 0
    if first:
        yield np.concatenate(first), np.concatenate(second)


def _joined(found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    none = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    a, b, similarity = (np.concatenate(parts) for parts in zip(none, *found, strict=True))
    return a, b, similarity
