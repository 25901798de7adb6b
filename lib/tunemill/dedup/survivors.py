"""Which rows stay, given the pairs at or above the threshold and a priority. Pure functions on the pairs of one part.

Greedy by priority: rows are looked at in order of priority, and a row stays unless a row that stayed
is its near-duplicate. That is the one maximal independent set of the pair graph which the priority
decides, so each dropped row has a kept near-duplicate (no orphan), whatever order or parts pairs come in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tunemill.dedup.pairs import Pairs

__all__ = [
    "DROPPED",
    "KEPT",
    "Edges",
    "Survivors",
    "best_edges",
    "covered",
    "forest",
    "greedy_mask",
    "labels_of",
    "leaders_of",
    "oriented",
    "rank_of",
    "settle",
    "to_leaders",
]

KEPT, DROPPED = 1, 2
"""States of a row; 0 while it is undecided."""
_ROUNDS = 50


@dataclass(frozen=True, kw_only=True)
class Edges:
    """Pairs by priority: ``higher`` and ``lower`` int64 [p], with ``similarity`` float64 [p]."""

    higher: np.ndarray
    lower: np.ndarray
    similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.higher)

    def where(self, use: np.ndarray) -> Edges:
        """Some of the edges."""
        return Edges(higher=self.higher[use], lower=self.lower[use], similarity=self.similarity[use])

    @classmethod
    def joined(cls, parts: Sequence[Edges]) -> Edges:
        """The edges of several parts."""
        none = np.zeros(0, np.int64)
        return cls(
            higher=np.concatenate([none, *(part.higher for part in parts)]),
            lower=np.concatenate([none, *(part.lower for part in parts)]),
            similarity=np.concatenate([np.zeros(0), *(part.similarity for part in parts)]),
        )


@dataclass(frozen=True, kw_only=True)
class Survivors:
    """``kept`` bool [n]; for a dropped row its survivor's position and their similarity (-1, nan for kept rows)."""

    kept: np.ndarray
    survivor: np.ndarray
    similarity: np.ndarray

    @classmethod
    def of(cls, kept: np.ndarray, best: Edges) -> Survivors:
        """Survivors named by one edge for each dropped row."""
        survivor, similarity = np.full(len(kept), -1, np.int64), np.full(len(kept), np.nan)
        survivor[best.lower], similarity[best.lower] = best.higher, best.similarity
        return cls(kept=kept, survivor=survivor, similarity=similarity)


def rank_of(score: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Ranks int64 [n], 0 for the highest priority: a larger ``score`` first, then the smaller id."""
    rank = np.empty(len(score), np.int64)
    rank[np.lexsort((ids, -score))] = np.arange(len(score))
    return rank


def oriented(pairs: Pairs, rank: np.ndarray) -> Edges:
    """Pairs with the end of higher priority first."""
    a_first = rank[pairs.a] < rank[pairs.b]
    return Edges(
        higher=np.where(a_first, pairs.a, pairs.b), lower=np.where(a_first, pairs.b, pairs.a), similarity=pairs.similarity
    )


def settle(edges: Edges, state: np.ndarray) -> tuple[Edges, tuple[np.ndarray, np.ndarray, int]]:
    """One round of the greedy rule: the edges that still matter, and of them the rows to drop now (a kept row is near), the
    rows that have to wait for an undecided one, and the number.

    ``state`` uint8 [n] holds KEPT and DROPPED rows, or 0. A row that has to wait in no part, and is dropped by none, stays.
    """
    above, open_ = state[edges.higher], state[edges.lower] == 0
    dropped = np.unique(edges.lower[open_ & (above == KEPT)])
    live = edges.where(open_ & (above == 0) & ~np.isin(edges.lower, dropped))
    return live, (dropped, np.unique(live.lower), len(live))


def greedy_mask(n: int, edges: Edges, rank: np.ndarray) -> np.ndarray:
    """Kept rows, bool [n]. Rows with no undecided row above them are decided at once, long chains by a plain loop."""
    higher, lower = edges.higher, edges.lower
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


def best_edges(edges: Edges, sources: np.ndarray, targets: np.ndarray, rank: np.ndarray) -> Edges:
    """For each row of ``targets`` (bool [n]) the most similar row of ``sources`` above it, the higher priority on ties."""
    some = edges.where(sources[edges.higher] & targets[edges.lower])
    order = np.lexsort((rank[some.higher], -some.similarity, some.lower))
    lower = some.lower[order]
    return some.where(order[np.r_[True, lower[1:] != lower[:-1]]] if len(order) else order)


def forest(edges: Edges) -> tuple[np.ndarray, np.ndarray]:
    """Fewer edges that connect the same rows: from each row to one of its component."""
    rows, ends = np.unique(np.concatenate([edges.higher, edges.lower]), return_inverse=True)
    labels = labels_of(len(rows), ends[: len(edges)], ends[len(edges) :])
    return rows, rows[labels]


def labels_of(n: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The connected component of each row, int64 [n], numbered by each component's smallest position."""
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(n, n))
    _, labels = connected_components(graph, directed=False)
    smallest = np.full(labels.max(initial=-1) + 1, n, np.int64)
    np.minimum.at(smallest, labels, np.arange(n))
    return smallest[labels]


def leaders_of(labels: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """The row of highest priority in each row's component, int64 [n]."""
    n = len(labels)
    best = np.full(n, n, np.int64)
    np.minimum.at(best, labels, rank)
    by_rank = np.empty(n, np.int64)
    by_rank[rank] = np.arange(n)
    return by_rank[best[labels]]


def to_leaders(edges: Edges, leader: np.ndarray) -> Edges:
    """The edges from a row to the leader of its component."""
    return edges.where(leader[edges.lower] == edges.higher)


def covered(edges: Edges, kept: np.ndarray) -> np.ndarray:
    """Positions of dropped rows that have a kept row among their pairs."""
    ends = [edges.lower[kept[edges.higher]], edges.higher[kept[edges.lower]]]
    rows = np.unique(np.concatenate(ends))
    return rows[~kept[rows]]
