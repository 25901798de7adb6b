"""What the report shows of a dedup run: counts, rules compared, groups with texts, pairs around the threshold."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tunemill.dedup.config import DedupConfig
from tunemill.dedup.corpus import Corpus
from tunemill.dedup.decide import Decision
from tunemill.dedup.pairs import Pairs

__all__ = ["details_of"]

_LARGEST = 10
_TEXTS = 5
_EXAMPLES = 8
_BINS = 20


def details_of(
    config: DedupConfig, corpus: Corpus, pairs: Pairs, decision: Decision, *, floor: float, engine: dict[str, Any]
) -> dict[str, Any]:
    """The manifest's details, plain and small. Positions from ``len(corpus)`` on are fixed rows; they are not counted."""
    n = len(corpus)
    decision = _of_corpus(decision, n)
    reasons = decision.reason[~decision.kept]
    among = (pairs.a < n) & (pairs.b < n)
    pairs = Pairs(a=pairs.a[among], b=pairs.b[among], similarity=pairs.similarity[among])
    return {
        "threshold": config.threshold,
        "pair_floor": floor,
        "pairs": len(pairs),
        "exact_duplicates": int((reasons == "exact_duplicate").sum()),
        "near_duplicates": int((reasons == "near_duplicate").sum()),
        "near_protected": int((reasons == "near_protected").sum()),
        "empty_texts": int((reasons == "empty_text").sum()),
        "not_unit_length": corpus.rescaled,
        "engine": engine,
        "rules": decision.rules,
        "groups": _group_sizes(decision),
        "largest_groups": _largest_groups(corpus, decision),
        "near_threshold": _near_threshold(corpus, pairs, config.threshold),
        "similarity_histogram": _histogram(pairs, floor),
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


def _largest_groups(corpus: Corpus, decision: Decision) -> list[dict[str, Any]]:
    names, counts = np.unique(decision.group, return_counts=True)
    largest = [i for i in np.lexsort((names, -counts))[:_LARGEST] if counts[i] > 1]
    shown = []
    for i in largest:
        members = np.flatnonzero(decision.group == names[i])
        some = np.concatenate([members[decision.kept[members]], members[~decision.kept[members]]])[:_TEXTS]
        shown.append(
            {
                "group": str(corpus.ids[names[i]]),
                "size": int(counts[i]),
                "kept": int(decision.kept[members].sum()),
                "texts": [
                    {"id": str(corpus.ids[row]), "text": corpus.excerpts[int(row)].as_py(), "kept": bool(decision.kept[row])}
                    for row in some
                ],
            }
        )
    return shown


def _near_threshold(corpus: Corpus, pairs: Pairs, threshold: float) -> list[dict[str, Any]]:
    """The pairs just above and just below the threshold, to judge it by eye."""
    order = np.argsort(np.abs(pairs.similarity - threshold), kind="stable")
    above = [i for i in order if pairs.similarity[i] >= threshold][:_EXAMPLES]
    below = [i for i in order if pairs.similarity[i] < threshold][:_EXAMPLES]
    chosen = sorted([*above, *below], key=lambda i: -pairs.similarity[i])
    return [
        {
            "a": corpus.excerpts[int(pairs.a[i])].as_py(),
            "b": corpus.excerpts[int(pairs.b[i])].as_py(),
            "id_a": str(corpus.ids[pairs.a[i]]),
            "id_b": str(corpus.ids[pairs.b[i]]),
            "similarity": float(pairs.similarity[i]),
        }
        for i in chosen
    ]


def _histogram(pairs: Pairs, floor: float) -> dict[str, list[float]]:
    counts, edges = np.histogram(pairs.similarity, bins=_BINS, range=(min(floor, 0.999), 1.0))
    return {"edges": [round(float(edge), 6) for edge in edges], "counts": [int(count) for count in counts]}
