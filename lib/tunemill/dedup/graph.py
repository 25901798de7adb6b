"""The graph of near-duplicate pairs in parts that stay where they are. Decisions about rows are made over all of it.

What travels is one small state for each row: each part answers from its own pairs, and the answers are put together
here. The result does not depend on how pairs lie in parts, or on a pair lying in two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunemill.dedup.pairs import Pairs
from tunemill.dedup.survivors import (
    DROPPED,
    KEPT,
    Edges,
    Survivors,
    best_edges,
    covered,
    forest,
    greedy_mask,
    labels_of,
    leaders_of,
    oriented,
    settle,
    to_leaders,
)
from tunemill.dedup.tasks import Handle, Here, Tasks

__all__ = ["PairGraph"]

_FEW = 5_000_000
"""Edges that are settled faster by bringing them here than by another round."""


@dataclass(frozen=True, kw_only=True)
class PairGraph:
    """Pairs of n rows as edges from the row of higher priority; ``rank`` int64 [n], 0 first, also where the parts are."""

    tasks: Tasks
    rank: np.ndarray
    ranks: Handle
    parts: list[Handle]
    count: int

    @classmethod
    def of(cls, tasks: Tasks, parts: Sequence[Handle], rank: np.ndarray, threshold: float | None = None) -> PairGraph:
        """The pairs in ``parts`` (handles of :class:`Pairs`) at or above ``threshold``."""
        ranks = tasks.put(rank)
        found = [tasks.start(_edges, part, ranks, threshold, returns=2) for part in parts]
        count = sum(tasks.get([count for _, count in found]))
        return cls(tasks=tasks, rank=rank, ranks=ranks, parts=[edges for edges, _ in found], count=count)

    @classmethod
    def here(cls, pairs: Pairs, rank: np.ndarray) -> PairGraph:
        """Pairs of this process."""
        return cls.of(Here(), [pairs], rank)

    def components(self) -> np.ndarray:
        """The connected component of each row, int64 [n], numbered by each component's smallest position."""
        found = self._all(forest)
        none = np.zeros(0, np.int64)
        a, b = (np.concatenate([none, *ends]) for ends in (zip(*found, strict=True) if found else ((), ())))
        return labels_of(len(self.rank), a, b)

    def greedy(self, few: int = _FEW) -> Survivors:
        """Keep a row unless a kept row of higher priority is paired with it.

        A dropped row's survivor is the most similar kept row of higher priority (the higher priority on ties).
        Rounds over the parts go on until ``few`` edges are left to look at here, one after the other.
        """
        n, state, live, left = len(self.rank), np.zeros(len(self.rank), np.uint8), self.parts, self.count
        while left > few:
            shared = self.tasks.put(state)
            rounds = [self.tasks.start(settle, edges, shared, returns=2) for edges in live]
            live, told = [edges for edges, _ in rounds], self.tasks.get([told for _, told in rounds])
            waits, state = np.zeros(n, dtype=bool), state.copy()
            for dropped, waiting, _ in told:
                state[dropped], waits[waiting] = DROPPED, True
            state[(state == 0) & ~waits] = KEPT
            left = sum(count for _, _, count in told)
        rest = Edges.joined(self.tasks.get(live))
        rest = rest.where((state[rest.higher] != DROPPED) & (state[rest.lower] != DROPPED))
        kept = greedy_mask(n, rest, self.rank) & (state != DROPPED)
        return Survivors.of(kept, self.best(kept, ~kept))

    def best(self, sources: np.ndarray, targets: np.ndarray) -> Edges:
        """For each row of ``targets`` (bool [n]) the most similar row of ``sources`` above it, the higher priority on ties."""
        shared = (self.tasks.put(sources), self.tasks.put(targets), self.ranks)
        parts = self.tasks.all(best_edges, [(edges, *shared) for edges in self.parts])
        return best_edges(Edges.joined(parts), sources, targets, self.rank)

    def one_per_component(self, labels: np.ndarray, fixed: np.ndarray | None = None) -> Survivors:
        """Keep the row of highest priority in each component, and ``fixed`` rows.

        A dropped row's survivor is the one of highest priority; their similarity is nan where that pair is not listed.
        """
        leader = leaders_of(labels, self.rank)
        kept = leader == np.arange(len(leader))
        if fixed is not None:
            kept |= fixed
        direct = Edges.joined(self._all(to_leaders, leader))
        similarity = np.full(len(leader), np.nan)
        similarity[direct.lower] = direct.similarity
        similarity[kept] = np.nan
        return Survivors(kept=kept, survivor=np.where(kept, -1, leader), similarity=similarity)

    def orphans(self, kept: np.ndarray) -> np.ndarray:
        """Positions of dropped rows that have no kept row among their pairs."""
        lost = ~kept
        for rows in self._all(covered, kept):
            lost[rows] = False
        return np.flatnonzero(lost)

    def _all(self, work: Callable[..., Any], *shared: np.ndarray) -> list[Any]:
        handles = [self.tasks.put(values) for values in shared]
        return self.tasks.all(work, [(edges, *handles) for edges in self.parts])


def _edges(pairs: Pairs, rank: np.ndarray, threshold: float | None) -> tuple[Edges, int]:
    edges = oriented(pairs if threshold is None else pairs.at_least(threshold), rank)
    return edges, len(edges)
