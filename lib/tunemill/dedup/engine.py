"""All pairs of rows whose cosine is at or above a threshold, found exactly. Numpy only, no Ray, no files."""

from __future__ import annotations

import numpy as np

from tunemill.dedup.pairs import Pairs, Vectors, unique_pairs

__all__ = ["SLACK", "all_pairs"]

SLACK = 1e-5
"""More than float32 rounding can take from a score, so that no pair is lost before it is verified in float64."""
_BLOCK = 2048


def all_pairs(vectors: Vectors, threshold: float) -> Pairs:
    """Every pair with similarity >= ``threshold``; unit-length float32 rows are expected."""
    found = list(_blocked(vectors, threshold))
    a = np.concatenate([pair[0] for pair in found]) if found else np.zeros(0, np.int64)
    b = np.concatenate([pair[1] for pair in found]) if found else np.zeros(0, np.int64)
    similarity = vectors.similarity(a, b)
    keep = similarity >= threshold
    return unique_pairs(a[keep], b[keep], similarity[keep], len(vectors))


def _blocked(vectors: Vectors, threshold: float) -> list[tuple[np.ndarray, np.ndarray]]:
    rows, found = vectors.rows / np.sqrt(len(vectors.widths)), []
    for i in range(0, len(rows), _BLOCK):
        for j in range(i, len(rows), _BLOCK):
            close = rows[i : i + _BLOCK] @ rows[j : j + _BLOCK].T >= threshold - SLACK
            a, b = np.nonzero(np.triu(close, 1) if i == j else close)
            found.append((a + i, b + j))
    return found
