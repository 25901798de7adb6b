"""From pairs to a decision for every row, exact duplicates included. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tunemill.dedup.config import DedupConfig
from tunemill.dedup.pairs import Pairs, Vectors
from tunemill.dedup.survivors import Survivors, components, greedy, one_per_component, orphans

__all__ = ["Decision", "decide"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """For each row [n]: whether it stays, its ``reason`` (None when it stays), its survivor's position and their
    similarity, and its ``group`` (position of the group's smallest row). ``rules`` compares the two rules."""

    kept: np.ndarray
    reason: np.ndarray
    survivor: np.ndarray
    similarity: np.ndarray
    group: np.ndarray
    rules: dict[str, dict[str, int]]


def decide(config: DedupConfig, vectors: Vectors, pairs: Pairs, rank: np.ndarray, stands_for: np.ndarray) -> Decision:
    """Apply the rule at the threshold to rows of which only those that stand for themselves have pairs."""
    n = len(rank)
    close = pairs if config.text_thresholds else pairs.at_least(config.threshold)
    labels = components(n, close)
    by_rule = {"greedy": greedy(n, close, rank), "components": one_per_component(labels, close, rank)}
    copies = stands_for != np.arange(n)
    rules = {
        name: {
            "removed": int((~found.kept).sum() + copies.sum()),
            "orphans": len(orphans(found.kept, close)),
        }
        for name, found in by_rule.items()
    }
    chosen = _with_direct_similarity(by_rule[config.rule], vectors)
    kept = chosen.kept & ~copies
    leader = stands_for
    survivor = np.where(chosen.kept[leader], leader, chosen.survivor[leader])
    similarity = np.where(chosen.kept[leader], 1.0, chosen.similarity[leader])
    reason = np.full(n, None, dtype=object)
    reason[~chosen.kept] = "near_duplicate"
    reason[copies] = "exact_duplicate"
    group = labels[leader]
    return Decision(
        kept=kept,
        reason=reason,
        survivor=np.where(kept, -1, survivor),
        similarity=np.where(kept, np.nan, similarity),
        group=_smallest_member(group),
        rules=rules,
    )


def _with_direct_similarity(found: Survivors, vectors: Vectors) -> Survivors:
    """Survivors under ``components`` may lie below the floor: their similarity is computed."""
    unknown = np.flatnonzero(~found.kept)
    similarity = found.similarity.copy()
    similarity[unknown] = vectors.similarity(unknown, found.survivor[unknown])
    return Survivors(kept=found.kept, survivor=found.survivor, similarity=similarity)


def _smallest_member(group: np.ndarray) -> np.ndarray:
    n = len(group)
    smallest = np.full(n, n, np.int64)
    np.minimum.at(smallest, group, np.arange(n))
    return smallest[group]
