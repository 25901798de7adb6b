"""What the report shows of a dedup run: counts, rules compared, groups with texts, pairs around the threshold."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tunemill.dedup.config import DedupConfig
from tunemill.dedup.corpus import Corpus
from tunemill.dedup.decide import Decision
from tunemill.dedup.listing import Listing

__all__ = ["details_of"]

_LARGEST = 10
_TEXTS = 5


def details_of(
    config: DedupConfig, corpus: Corpus, listing: Listing, decision: Decision, *, floor: float, engine: dict[str, Any]
) -> dict[str, Any]:
    """The manifest's details, plain and small. Positions from ``len(corpus)`` on are fixed rows; they are not counted."""
    decision = _of_corpus(decision, len(corpus))
    reasons = decision.reason[~decision.kept]
    groups = _largest_groups(decision)
    shown = [row for _, members in groups for row in members.tolist()]
    close = [end for pairs in (listing.above, listing.below) for ends in (pairs.a, pairs.b) for end in ends.tolist()]
    texts = corpus.spread.excerpts_at([*shown, *close])
    return {
        "threshold": config.threshold,
        "pair_floor": floor,
        "pairs": listing.count,
        "exact_duplicates": int((reasons == "exact_duplicate").sum()),
        "near_duplicates": int((reasons == "near_duplicate").sum()),
        "near_protected": int((reasons == "near_protected").sum()),
        "empty_texts": int((reasons == "empty_text").sum()),
        "not_unit_length": corpus.rescaled,
        "engine": engine,
        "rules": decision.rules,
        "groups": _group_sizes(decision),
        "largest_groups": [_group(corpus, decision, name, members, texts) for name, members in groups],
        "near_threshold": _near_threshold(corpus, listing, texts),
        "similarity_histogram": {
            "edges": [round(float(edge), 6) for edge in listing.edges],
            "counts": [int(count) for count in listing.counts],
        },
    }


def _of_corpus(decision: Decision, n: int) -> Decision:
    return dataclasses.replace(
        decision,
        kept=decision.kept[:n],
        reason=decision.reason[:n],
        survivor=decision.survivor[:n],
        group=_renumbered(decision.group[:n]),
    )


def _renumbered(group: np.ndarray) -> np.ndarray:
    """Groups by their smallest row of the corpus."""
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    return first[inverse]


def _group_sizes(decision: Decision) -> dict[str, int]:
    """How many groups there are of each size."""
    _, counts = np.unique(decision.group, return_counts=True)
    sizes, times = np.unique(counts, return_counts=True)
    return {str(size): int(count) for size, count in zip(sizes, times, strict=True)}


def _largest_groups(decision: Decision) -> list[tuple[int, np.ndarray]]:
    """Name and a few rows, kept ones first, of the largest groups."""
    names, counts = np.unique(decision.group, return_counts=True)
    found = []
    for i in np.lexsort((names, -counts))[:_LARGEST]:
        if counts[i] > 1:
            members = np.flatnonzero(decision.group == names[i])
            kept = decision.kept[members]
            found.append((int(names[i]), np.concatenate([members[kept], members[~kept]])[:_TEXTS]))
    return found


def _group(corpus: Corpus, decision: Decision, name: int, some: np.ndarray, texts: dict[int, str]) -> dict[str, Any]:
    members = decision.group == name
    return {
        "group": str(corpus.ids[name]),
        "size": int(members.sum()),
        "kept": int(decision.kept[members].sum()),
        "texts": [{"id": str(corpus.ids[row]), "text": texts[row], "kept": bool(decision.kept[row])} for row in some.tolist()],
    }


def _near_threshold(corpus: Corpus, listing: Listing, texts: dict[int, str]) -> list[dict[str, Any]]:
    """The pairs just above and just below the threshold, to judge it by eye."""
    shown = [
        {
            "a": texts[a],
            "b": texts[b],
            "id_a": str(corpus.ids[a]),
            "id_b": str(corpus.ids[b]),
            "similarity": similarity,
        }
        for pairs in (listing.above, listing.below)
        for a, b, similarity in zip(pairs.a.tolist(), pairs.b.tolist(), pairs.similarity.tolist(), strict=True)
    ]
    return sorted(shown, key=lambda pair: -float(pair["similarity"]))
