"""The priority by which rows survive, from the ``prefer`` setting."""

from __future__ import annotations

import numpy as np

from tunemill.dedup.config import parse_preference
from tunemill.dedup.pairs import DECIMALS
from tunemill.dedup.spread import Block, Spread
from tunemill.dedup.survivors import rank_of

__all__ = ["ranks"]

_ROWS = 4096


def ranks(
    prefer: str, *, ids: np.ndarray, lengths: np.ndarray, column: np.ndarray | None, position: np.ndarray, spread: Spread
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
    score = _to_centre(spread)
    return rank_of(score if kind == "closest_to_centre" else -score, ids)


def _to_centre(spread: Spread) -> np.ndarray:
    """The cosine of each row with the mean of all."""
    centre = np.sum(spread.all(_total), axis=0, dtype=np.int64).astype(np.float64)
    centre /= float(np.linalg.norm(centre)) or 1.0
    score = np.empty(len(spread))
    for places, found in spread.all(_scores, centre):
        score[places] = found
    return score


def _total(block: Block, places: np.ndarray) -> np.ndarray:
    """The sum of a block's rows, int64 in units of 2**-30: whole numbers add up to the same in any order and any blocks."""
    total = np.zeros(block.rows.shape[1], np.int64)
    for start in range(0, len(places), _ROWS):
        rows = block.rows[start : start + _ROWS][places[start : start + _ROWS] >= 0]
        total += np.round(rows.astype(np.float64) * 2.0**30).astype(np.int64).sum(axis=0)
    return total


def _scores(block: Block, places: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    score = np.empty(len(places))
    for start in range(0, len(places), _ROWS):
        score[start : start + _ROWS] = (block.rows[start : start + _ROWS].astype(np.float64) * centre).sum(axis=1)
    return places[places >= 0], np.round(score[places >= 0], DECIMALS)
