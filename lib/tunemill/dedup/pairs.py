"""Pairs of rows and the one definition of their similarity, on which every decision rests.

The similarity of two rows is the float64 dot product of their float32 vectors over their float64
norms, rounded to 9 decimals. It is computed pair by pair, so it does not depend on how rows were
blocked, sharded or on which device a filter ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["DECIMALS", "Pairs", "Vectors", "unique_pairs"]

DECIMALS = 9
_VERIFY_BYTES = 8 << 20


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
    def of(cls, rows: np.ndarray, widths: Sequence[int] | None = None) -> Vectors:
        """Take float32 [n, d] as it is; ``widths`` default to one group."""
        groups = tuple(widths) if widths is not None else (rows.shape[1],)
        norms = np.empty((len(rows), len(groups)))
        for g, part in enumerate(_slices(groups)):
            for start in range(0, len(rows), 8192):
                block = rows[start : start + 8192, part].astype(np.float64)
                norms[start : start + 8192, g] = np.sqrt((block * block).sum(axis=1))
        return cls(rows, groups, norms)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: np.ndarray) -> Vectors:
        """The rows at ``positions``."""
        return Vectors(self.rows[positions], self.widths, self.norms[positions])

    def similarity(self, a: np.ndarray, b: np.ndarray, other: Vectors | None = None) -> np.ndarray:
        """Float64 [p]: the similarity of row ``a[i]`` with row ``b[i]`` (of ``other`` where given)."""
        second = other if other is not None else self
        result = np.empty(len(a))
        step = max(1, _VERIFY_BYTES // (8 * self.rows.shape[1]))
        for start in range(0, len(a), step):
            i, j = a[start : start + step], b[start : start + step]
            left, right = self.rows[i].astype(np.float64), second.rows[j].astype(np.float64)
            scale = self.norms[i] * second.norms[j]
            lowest = np.full(len(i), np.inf)
            for g, part in enumerate(_slices(self.widths)):
                np.minimum(lowest, np.vecdot(left[:, part], right[:, part]) / scale[:, g], out=lowest)
            result[start : start + step] = lowest
        return np.clip(np.round(result, DECIMALS), -1.0, 1.0)


def unique_pairs(a: np.ndarray, b: np.ndarray, similarity: np.ndarray, n: int) -> Pairs:
    """Sorted unique pairs with ``a < b`` out of pairs in any order, met any number of times."""
    low, high = np.minimum(a, b).astype(np.int64), np.maximum(a, b).astype(np.int64)
    _, first = np.unique(low * n + high, return_index=True)
    return Pairs(a=low[first], b=high[first], similarity=similarity[first])


def _slices(widths: Sequence[int]) -> list[slice]:
    ends = np.cumsum(widths)
    return [slice(int(end - width), int(end)) for end, width in zip(ends, widths, strict=True)]
