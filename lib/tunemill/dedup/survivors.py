"""Which rows stay, given the pairs at or above the threshold and a priority. Pure functions on arrays.

Greedy by priority: rows are looked at in order of priority, and a row stays unless a row that stayed
is its near-duplicate. That is the one maximal independent set of the pair graph which the priority
decides, so each dropped row has a kept near-duplicate (no orphan), whatever order pairs come in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tunemill.dedup.pairs import Pairs

__all__ = ["Survivors", "components", "greedy", "greedy_mask", "one_per_component", "oriented", "orphans", "rank_of"]

_ROUNDS = 50


@dataclass(frozen=True, kw_only=True)
class Survivors:
    """``kept`` bool [n]; for a dropped row its survivor's position and their similarity (-1, nan for kept rows)."""

    kept: np.ndarray
    survivor: np.ndarray
    similarity: np.ndarray


def rank_of(score: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Ranks int64 [n], 0 for the highest priority: a larger ``score`` first, then the smaller id."""
    rank = np.empty(len(score), np.int64)
    rank[np.lexsort((ids, -score))] = np.arange(len(score))
    return rank


def greedy(n: int, pairs: Pairs, rank: np.ndarray) -> Survivors:
    """Keep a row unless a kept row of higher priority is paired with it.

    A dropped row's survivor is the most similar kept row of higher priority (the higher priority on ties).
    """
    higher, lower = oriented(pairs, rank)
    kept = greedy_mask(n, higher, lower, rank)
    return _with_survivors(kept, higher, lower, pairs.similarity, rank)


def components(n: int, pairs: Pairs) -> np.ndarray:
    """The connected component of each row, int64 [n], numbered by each component's smallest position."""
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs.a, pairs.b)), shape=(n, n))
    _, labels = connected_components(graph, directed=False)
    smallest = np.full(labels.max(initial=-1) + 1, n, np.int64)
    np.minimum.at(smallest, labels, np.arange(n))
    return smallest[labels]


def one_per_component(labels: np.ndarray, pairs: Pairs, rank: np.ndarray, fixed: np.ndarray | None = None) -> Survivors:
    """Keep the row of highest priority in each component, and ``fixed`` rows.

    A dropped row's survivor is the one of highest priority; their similarity is nan where that pair is not stored.
    """
    n = len(labels)
    best = np.full(n, n, np.int64)
    np.minimum.at(best, labels, rank)
    by_rank = np.empty(n, np.int64)
    by_rank[rank] = np.arange(n)
    leader = by_rank[best[labels]]
    kept = leader == np.arange(n)
    if fixed is not None:
        kept |= fixed
    similarity = np.full(n, np.nan)
    for ends, others in ((pairs.a, pairs.b), (pairs.b, pairs.a)):
        direct = leader[others] == ends
        similarity[others[direct]] = pairs.similarity[direct]
    similarity[kept] = np.nan
    return Survivors(kept=kept, survivor=np.where(kept, -1, leader), similarity=similarity)


def orphans(kept: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Positions of dropped rows that have no kept row among their pairs."""
    covered = kept.copy()
    covered[pairs.a[kept[pairs.b]]] = True
    covered[pairs.b[kept[pairs.a]]] = True
    return np.flatnonzero(~covered)


def oriented(pairs: Pairs, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The end of higher priority of each pair, and the other one."""
    a_first = rank[pairs.a] < rank[pairs.b]
    return np.where(a_first, pairs.a, pairs.b), np.where(a_first, pairs.b, pairs.a)


def greedy_mask(n: int, higher: np.ndarray, lower: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Kept rows, bool [n], from edges. Rows with no undecided row above them are decided at once, long chains by a plain loop."""
    dropped = np.zeros(n, dtype=bool)
    for _ in range(_ROUNDS):
        if len(higher) == 0:
            break
        waiting = np.zeros(n, dtype=bool)
        waiting[lower] = True
        dropped[lower[~waiting[higher]]] = True
        live = ~dropped[higher] & ~dropped[lower]
        higher, lower = higher[live], lower[live]
    order = np.argsort(rank[higher], kind="stable")
    # In this order every row's fate is settled before its own pairs are looked at.
    for above, below in zip(higher[order].tolist(), lower[order].tolist(), strict=True):
        if not dropped[above]:
            dropped[below] = True
    return ~dropped


def _with_survivors(
    kept: np.ndarray, higher: np.ndarray, lower: np.ndarray, similarity: np.ndarray, rank: np.ndarray
) -> Survivors:
    n = len(kept)
    survivor = np.full(n, -1, np.int64)
    best = np.full(n, np.nan)
    use = kept[higher] & ~kept[lower]
    above, below, value = higher[use], lower[use], similarity[use]
    # The last assignment wins, so the best pair of each dropped row stands last.
    order = np.lexsort((-rank[above], value))
    survivor[below[order]] = above[order]
    best[below[order]] = value[order]
    return Survivors(kept=kept, survivor=survivor, similarity=best)
