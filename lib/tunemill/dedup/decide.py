"""From pairs to a decision for every row: copies, near-duplicates and rows near fixed ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from tunemill.dedup.config import DedupConfig
from tunemill.dedup.graph import PairGraph
from tunemill.dedup.spread import Spread
from tunemill.dedup.survivors import Survivors

__all__ = ["Decision", "Rows", "decide"]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What is known of n rows: their ``rank`` (0 first), which row each ``stands_for`` (of equal texts the best one),
    and which are ``protected`` or kept from an ``earlier`` run. Those two outrank all others."""

    rank: np.ndarray
    stands_for: np.ndarray
    protected: np.ndarray
    earlier: np.ndarray

    @property
    def fixed(self) -> np.ndarray:
        """Rows that stay whatever they are near to."""
        return self.protected | self.earlier


@dataclass(frozen=True, kw_only=True)
class Decision:
    """For each row [n]: whether it stays, its ``reason`` (None when it stays), its survivor's position and their
    similarity, and the smallest row of its ``group``. ``rules`` compares the two rules."""

    kept: np.ndarray
    reason: np.ndarray
    survivor: np.ndarray
    similarity: np.ndarray
    group: np.ndarray
    rules: dict[str, dict[str, int]]


def decide(config: DedupConfig, spread: Spread, graph: PairGraph, rows: Rows) -> Decision:
    """Apply the rule to the pairs at the threshold; only rows that stand for themselves have pairs."""
    n = len(rows.rank)
    labels = graph.components()
    by_rule = {"greedy": graph.greedy(), "components": graph.one_per_component(labels, rows.fixed)}
    copies = rows.stands_for != np.arange(n)
    rules = {
        name: {"removed": int((~found.kept | copies).sum()), "orphans": len(graph.orphans(found.kept))}
        for name, found in by_rule.items()
    }
    chosen = _near_protected_first(_with_direct_similarity(by_rule[config.rule], spread), graph, rows.protected)
    leader = rows.stands_for
    stays = chosen.kept[leader]
    kept = chosen.kept & ~copies
    reason = np.full(n, None, dtype=object)
    reason[~chosen.kept] = "near_duplicate"
    reason[copies] = "exact_duplicate"
    survivor = np.where(kept, -1, np.where(stays, leader, chosen.survivor[leader]))
    reason[~kept & rows.protected[survivor]] = "near_protected"
    return Decision(
        kept=kept,
        reason=reason,
        survivor=survivor,
        similarity=np.where(kept, np.nan, np.where(stays, 1.0, chosen.similarity[leader])),
        group=_smallest_member(labels[leader]),
        rules=rules,
    )


def _near_protected_first(found: Survivors, graph: PairGraph, protected: np.ndarray) -> Survivors:
    """A row near a protected row points at the most similar one of them, whoever else is near."""
    if not protected.any():
        return found
    best = graph.best(protected, ~found.kept)
    survivor, similarity = found.survivor.copy(), found.similarity.copy()
    survivor[best.lower], similarity[best.lower] = best.higher, best.similarity
    return dataclasses.replace(found, survivor=survivor, similarity=similarity)


def _with_direct_similarity(found: Survivors, spread: Spread) -> Survivors:
    """Survivors under ``components`` may lie below the floor: their similarity is computed."""
    unknown = np.flatnonzero(~found.kept & np.isnan(found.similarity))
    if not len(unknown) or not sum(spread.widths):
        return found
    rows, at = np.unique(np.concatenate([unknown, found.survivor[unknown]]), return_inverse=True)
    similarity = found.similarity.copy()
    similarity[unknown] = spread.vectors_at(rows).similarity(at[: len(unknown)], at[len(unknown) :])
    return dataclasses.replace(found, similarity=similarity)


def _smallest_member(group: np.ndarray) -> np.ndarray:
    smallest = np.full(len(group), len(group), np.int64)
    np.minimum.at(smallest, group, np.arange(len(group)))
    return smallest[group]
