"""A short sketch of each vector whose inner product is an upper bound of the cosine.

Rotate by the SVD of a sample, keep m coordinates, append the norm of the rest. By Cauchy-Schwarz
``z(x).z(y) >= x.y``, and since the map is a contraction, two rows are never farther apart in the
sketch than in full. So a filter on sketches has no false negatives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tunemill.dedup.threads import side_by_side

__all__ = ["SLACK", "Sketch", "fit"]

SLACK = 1e-5
"""More than float32 rounding can take from a score, so that no pair is lost before it is verified in float64."""
_TAIL_SLACK = 2e-6
_BLOCK = 8192


@dataclass(frozen=True)
class Sketch:
    """``basis`` [d, m] with orthogonal columns; for rows made of several unit vectors it carries their scale."""

    basis: np.ndarray

    @property
    def width(self) -> int:
        """Columns of a sketch: m and the tail."""
        return int(self.basis.shape[1]) + 1

    def narrowed(self, m: int) -> Sketch:
        """The sketch of the first m coordinates."""
        return Sketch(np.ascontiguousarray(self.basis[:, :m]))

    def of(self, rows: np.ndarray, threads: int = 1) -> np.ndarray:
        """Sketches float32 [n, m + 1] of rows [n, d]; the tail is rounded up, never down."""
        sketches = np.empty((len(rows), self.width), np.float32)

        def fill(start: int) -> None:
            block = sketches[start : start + _BLOCK]
            block[:, :-1] = rows[start : start + _BLOCK] @ self.basis
            rest = 1.0 - np.einsum("ij,ij->i", block[:, :-1], block[:, :-1])
            block[:, -1] = np.sqrt(np.maximum(rest, 0.0) + _TAIL_SLACK)

        side_by_side(fill, range(0, len(rows), _BLOCK), threads)
        return sketches

    def bounds(self, left: np.ndarray, right: np.ndarray, widths: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """The scores [l, r] of sketches of some rows with others for each of ascending ``widths``, each built on the one
        before; the array is the same each time."""
        ends = [rows @ self.basis for rows in (left, right)]
        dots, rest, done = np.zeros((len(left), len(right)), np.float32), [np.ones(len(rows), np.float32) for rows in ends], 0
        bound = np.empty_like(dots)
        for m in widths:
            parts = [rows[:, done:m] for rows in ends]
            dots += parts[0] @ parts[1].T
            rest = [left_over - np.einsum("ij,ij->i", part, part) for left_over, part in zip(rest, parts, strict=True)]
            tails = [np.sqrt(np.maximum(left_over, 0.0) + _TAIL_SLACK) for left_over in rest]
            np.multiply(tails[0][:, None], tails[1], out=bound)
            bound += dots
            done = m
            yield m, bound


def fit(sample: np.ndarray, groups: int = 1) -> Sketch:
    """The full rotation, strongest directions first, from sample rows [s, d] made of ``groups`` unit vectors each."""
    scale = 1.0 / np.sqrt(groups)
    moments = (sample.T @ sample).astype(np.float64)
    _, directions = np.linalg.eigh(moments)
    return Sketch(np.ascontiguousarray(directions[:, ::-1] * scale, dtype=np.float32))
