"""Search through a FAISS index for those who want it, with the share of pairs it finds measured against exact search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tunemill.dedup.config import DedupConfig
from tunemill.dedup.pairs import Pairs, Vectors, unique_pairs
from tunemill.dedup.sketch import SLACK
from tunemill.dedup.threads import cores, faiss_gpus

__all__ = ["approximate_pairs", "wilson"]

_SAMPLE = 1000
_BLOCK = 4096
_Z = 1.959964
"""Two-sided 95 %."""


def approximate_pairs(
    vectors: Vectors, thresholds: Sequence[float], config: DedupConfig, *, fixed: np.ndarray, seed: int
) -> tuple[Pairs, dict[str, Any]]:
    """The pairs that the index finds, each verified in float64, and its recall on a sample of rows."""
    n = len(vectors)
    lowest = float(np.mean(thresholds))
    search = np.ascontiguousarray(vectors.rows / np.float32(np.sqrt(len(vectors.widths))))
    index, facts = _index(search, config)
    near: list[np.ndarray] = []
    for start in range(0, n, _BLOCK):
        scores, neighbours = index.search(search[start : start + _BLOCK], min(config.neighbours + 1, n))
        row, column = np.nonzero((scores >= lowest - SLACK) & (neighbours >= 0))
        near.append(np.stack([row + start, neighbours[row, column]]))
    a, b = np.concatenate(near, axis=1)
    use = (a != b) & ~(fixed[a] & fixed[b])
    pairs = unique_pairs(*vectors.accepted(a[use], b[use], thresholds), n)
    return pairs, {**facts, "method": f"approximate ({config.index})", "recall": _recall(vectors, thresholds, pairs, fixed, seed)}


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share (Wilson 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = share + _Z**2 / (2 * trials)
    spread = _Z * float(np.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2)))
    scale = 1 + _Z**2 / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _index(rows: np.ndarray, config: DedupConfig) -> tuple[Any, dict[str, Any]]:
    import faiss

    faiss.omp_set_num_threads(cores())
    n, d = rows.shape
    index: Any
    if config.index == "hnsw":
        index = faiss.IndexHNSWFlat(d, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = 8 * config.nprobe
        index.add(rows)
        return index, {"ef_search": 8 * config.nprobe}
    cells = max(1, min(int(4 * np.sqrt(n)), n // 40))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1
    index.train(rows)
    index.add(rows)
    index.nprobe = min(config.nprobe, cells)
    if faiss_gpus():
        index = faiss.index_cpu_to_all_gpus(index)
    return index, {"cells": cells, "nprobe": min(config.nprobe, cells), "gpus": faiss_gpus()}


def _recall(vectors: Vectors, thresholds: Sequence[float], pairs: Pairs, fixed: np.ndarray, seed: int) -> dict[str, Any]:
    """Of all pairs of sampled rows, the share that was found, with its 95 % interval (pairs counted as independent)."""
    n, lowest = len(vectors), float(np.mean(thresholds))
    sampled = np.sort(np.random.default_rng(seed).choice(n, min(n, _SAMPLE), replace=False))
    a, b = [], []
    for start in range(0, n, _BLOCK):
        scores = vectors.rows[sampled] @ vectors.rows[start : start + _BLOCK].T
        row, column = np.nonzero(scores >= (lowest - SLACK) * len(vectors.widths))
        a.append(sampled[row])
        b.append(column + start)
    first, second = np.concatenate(a), np.concatenate(b)
    use = (first != second) & ~(fixed[first] & fixed[second])
    true = unique_pairs(*vectors.accepted(first[use], second[use], thresholds), n)
    found = int(np.isin(true.a * n + true.b, pairs.a * n + pairs.b).sum())
    low, high = wilson(found, len(true))
    share = found / len(true) if len(true) else None
    return {"sampled_rows": len(sampled), "true_pairs": len(true), "found": found, "recall": share, "low": low, "high": high}
