"""From pairs to a decision for every row: copies, near-duplicates and rows near fixed ones. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tunemill.dedup.config import DedupConfig
from tunemill.dedup.pairs import Pairs, Vectors
from tunemill.dedup.survivors import Survivors, components, greedy, one_per_component, orphans

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


def decide(config: DedupConfig, vectors: Vectors, pairs: Pairs, rows: Rows) -> Decision:
    """Apply the rule at the threshold; only rows that stand for themselves have pairs."""
    n = len(rows.rank)
    close = pairs if config.text_thresholds else pairs.at_least(config.threshold)
    labels = components(n, close)
    by_rule = {"greedy": greedy(n, close, rows.rank), "components": one_per_component(labels, close, rows.rank, rows.fixed)}
    copies = rows.stands_for != np.arange(n)
    rules = {
        name: {"removed": int((~found.kept | copies).sum()), "orphans": len(orphans(found.kept, close))}
        for name, found in by_rule.items()
    }
    chosen = _near_protected_first(_with_direct_similarity(by_rule[config.rule], vectors), close, rows.protected)
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


def _near_protected_first(found: Survivors, close: Pairs, protected: np.ndarray) -> Survivors:
    """A row near a protected row points at the most similar one of them, whoever else is near."""
    if not protected.any():
        return found
    survivor, similarity = found.survivor.copy(), found.similarity.copy()
    order = np.argsort(close.similarity, kind="stable")
    for ends, others in ((close.a[order], close.b[order]), (close.b[order], close.a[order])):
        hit = protected[ends] & ~found.kept[others]
        better = hit & ~(protected[survivor[others]] & (similarity[others] >= close.similarity[order]))
        survivor[others[better]] = ends[better]
        similarity[others[better]] = close.similarity[order][better]
    return Survivors(kept=found.kept, survivor=survivor, similarity=similarity)


def _with_direct_similarity(found: Survivors, vectors: Vectors) -> Survivors:
    """Survivors under ``components`` may lie below the floor: their similarity is computed."""
    unknown = np.flatnonzero(~found.kept & np.isnan(found.similarity))
    similarity = found.similarity.copy()
    if len(unknown) and vectors.rows.shape[1]:
        similarity[unknown] = vectors.similarity(unknown, found.survivor[unknown])
    return Survivors(kept=found.kept, survivor=found.survivor, similarity=similarity)


def _smallest_member(group: np.ndarray) -> np.ndarray:
    smallest = np.full(len(group), len(group), np.int64)
    np.minimum.at(smallest, group, np.arange(len(group)))
    return smallest[group]
