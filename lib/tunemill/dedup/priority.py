"""The priority by which rows survive, from the ``prefer`` setting."""

from __future__ import annotations

import numpy as np

from tunemill.dedup.config import parse_preference
from tunemill.dedup.pairs import DECIMALS, Vectors
from tunemill.dedup.survivors import rank_of

__all__ = ["ranks"]


def ranks(
    prefer: str, *, ids: np.ndarray, lengths: np.ndarray, column: np.ndarray | None, position: np.ndarray, vectors: Vectors
) -> np.ndarray:
    """Ranks int64 [n], 0 for the row to prefer over all; ties go to the smaller id.

    ``lengths`` [n] are the texts' characters, ``column`` [n] the values of ``prefer: column NAME``
    and ``position`` [n] the places in the input.
    """
    kind, _ = parse_preference(prefer)
    if kind in ("longest", "shortest"):
        score = lengths.astype(np.float64)
        return rank_of(score if kind == "longest" else -score, ids)
    if kind in ("first", "last"):
        score = position.astype(np.float64)
        return rank_of(-score if kind == "first" else score, ids)
    if column is not None:
        return rank_of(np.nan_to_num(column.astype(np.float64), nan=-np.inf), ids)
    score = _to_centre(vectors, ids)
    return rank_of(score if kind == "closest_to_centre" else -score, ids)


def _to_centre(vectors: Vectors, ids: np.ndarray) -> np.ndarray:
    """The cosine of each row with the mean of all, summed in the order of the ids so that shuffling changes nothing."""
    order = np.argsort(ids)
    centre = np.zeros(vectors.rows.shape[1])
    for start in range(0, len(order), 4096):
        centre += vectors.rows[order[start : start + 4096]].astype(np.float64).sum(axis=0)
    norm = float(np.linalg.norm(centre)) or 1.0
    score = np.empty(len(order))
    for start in range(0, len(order), 4096):
        score[start : start + 4096] = (vectors.rows[start : start + 4096].astype(np.float64) * (centre / norm)).sum(axis=1)
    return np.round(score, DECIMALS)
