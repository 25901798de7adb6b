"""Pairs of rows and the one definition of their similarity, on which every decision rests.

The similarity of two rows is the float64 dot product of their float32 vectors over their float64
norms, rounded to 9 decimals. It is computed pair by pair, so it does not depend on how rows were
blocked, sharded or on which device a filter ran.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from tunemill.dedup.scratch import gathered
from tunemill.dedup.threads import side_by_side

__all__ = ["DECIMALS", "Pairs", "Vectors", "unique_pairs"]

DECIMALS = 9
_NEAR_ROWS = 512
"""Larger float64 blocks come fresh from the system each time, and its page faults then cost more than the products."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of row positions, ``a < b`` int64 [p], sorted by (a, b), with ``similarity`` float64 [p]."""

    a: np.ndarray
    b: np.ndarray
    similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.a)

    @classmethod
    def empty(cls) -> Pairs:
        """No pairs."""
        return cls(a=np.zeros(0, np.int64), b=np.zeros(0, np.int64), similarity=np.zeros(0))

    def at_least(self, threshold: float) -> Pairs:
        """The pairs at or above ``threshold``."""
        keep = self.similarity >= threshold
        return Pairs(a=self.a[keep], b=self.b[keep], similarity=self.similarity[keep])


@dataclass(frozen=True)
class Vectors:
    """Float32 rows [n, d] with their float64 norms, compared column group by column group.

    ``widths`` are the widths of the column groups (one for each text column, adding up to d). The
    similarity of two rows is the smallest over the groups.
    """

    rows: np.ndarray
    widths: tuple[int, ...]
    norms: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, rows: np.ndarray, widths: Sequence[int] | None = None, *, threads: int = 1) -> Vectors:
        """Take float32 [n, d] as it is; ``widths`` default to one group."""
        groups = tuple(widths) if widths is not None else (rows.shape[1],)
        norms = np.empty((len(rows), len(groups)))

        def measure(start: int) -> None:
            block = rows[start : start + _NEAR_ROWS].astype(np.float64)
            for g, part in enumerate(_slices(groups)):
                norms[start : start + _NEAR_ROWS, g] = np.sqrt(np.vecdot(block[:, part], block[:, part]))

        side_by_side(measure, range(0, len(rows), _NEAR_ROWS), threads)
        return cls(rows, groups, norms)

    def __len__(self) -> int:
        return len(self.rows)

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """Float32 [p, d]: the rows at ``positions``."""
        return self.rows[positions]

    def take(self, positions: np.ndarray) -> Vectors:
        """The rows at ``positions`` (all different, ascending)."""
        if len(positions) == len(self):
            return self
        return Vectors(gathered([(self.rows, positions)], self.rows.shape[1]), self.widths, self.norms[positions])

    def near(self, a: np.ndarray, b: np.ndarray, lowest: float) -> tuple[np.ndarray, np.ndarray]:
        """The pairs whose mean cosine over the groups reaches ``lowest`` in float32: a cheap filter before the decision."""
        keep = np.empty(len(a), dtype=bool)
        scale = np.float32(1.0 / len(self.widths))
        for start in range(0, len(a), _NEAR_ROWS):
            part = slice(start, start + _NEAR_ROWS)
            keep[part] = np.vecdot(self.rows[a[part]], self.rows[b[part]]) * scale >= lowest
        return a[keep], b[keep]

    def accepted(self, a: np.ndarray, b: np.ndarray, thresholds: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pairs that reach every group's threshold, with their similarity."""
        keep, similarity = np.empty(len(a), dtype=bool), np.empty(len(a))
        for part, groups in self._by_group(a, b):
            keep[part] = (groups >= np.asarray(thresholds)).all(axis=1)
            similarity[part] = groups.min(axis=1)
        return a[keep], b[keep], similarity[keep]

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Float64 [p]: the similarity of row ``a[i]`` with row ``b[i]``."""
        similarity = np.empty(len(a))
        for part, groups in self._by_group(a, b):
            similarity[part] = groups.min(axis=1)
        return similarity

    def _by_group(self, a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        for start in range(0, len(a), _NEAR_ROWS):
            part = slice(start, start + _NEAR_ROWS)
            left, right = self.rows[a[part]].astype(np.float64), self.rows[b[part]].astype(np.float64)
            dots = np.stack([np.vecdot(left[:, group], right[:, group]) for group in _slices(self.widths)], axis=1)
            yield part, np.clip(np.round(dots / (self.norms[a[part]] * self.norms[b[part]]), DECIMALS), -1.0, 1.0)


def unique_pairs(a: np.ndarray, b: np.ndarray, similarity: np.ndarray, n: int) -> Pairs:
    """Sorted unique pairs with ``a < b`` out of pairs in any order, met any number of times."""
    low, high = np.minimum(a, b).astype(np.int64), np.maximum(a, b).astype(np.int64)
    key = low * n + high
    order = np.argsort(key, kind="stable")
    first = order[np.r_[True, key[order][1:] != key[order][:-1]]] if len(order) else order
    return Pairs(a=low[first], b=high[first], similarity=similarity[first])


def _slices(widths: Sequence[int]) -> list[slice]:
    ends = np.cumsum(widths)
    return [slice(int(end - width), int(end)) for end, width in zip(ends, widths, strict=True)]
