"""Paired bootstrap: how far a metric, or the difference of two variants, may move with another sample.

Rows are drawn with replacement, the same draw for every variant, so that what the variants share
cancels out of the difference. Intervals are percentile intervals (Efron and Tibshirani 1993, ch. 13).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import sparse

from tunemill.evaluate.metrics import Floats, Ints, class_f1

__all__ = ["METRICS", "intervals", "mean_intervals", "resampled"]

METRICS = ("accuracy", "macro_f1", "positive_f1", "roc_auc", "log_loss")

_LEVEL = 0.95
_CELLS_AT_ONCE = 4_000_000


def intervals(
    gold: Ints, scores: Mapping[str, Floats], positive: int, *, resamples: int, seed: int
) -> tuple[dict[str, Any], dict[tuple[str, str], Any]]:
    """95 % intervals of each variant, ``{variant: {metric: [low, high]}}``, and of each difference.

    ``scores`` maps a variant to its probabilities [n, L] over the same rows; the second mapping has
    ``(a, b): {metric: [low, high]}`` of a - b for every ordered pair. A range is None where the metric is
    defined in no resample.
    """
    draws = {name: {metric: np.empty(resamples) for metric in METRICS} for name in scores}
    random = np.random.default_rng(seed)
    n = len(gold)
    n_labels = next(iter(scores.values())).shape[1]
    step = max(1, _CELLS_AT_ONCE // max(n, n_labels * n_labels))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        weights = random.multinomial(n, np.full(n, 1 / n), size=count).astype(np.float64)
        for name, probabilities in scores.items():
            for metric, values in resampled(weights, gold, probabilities, positive).items():
                draws[name][metric][start : start + count] = values
    singles = {name: {metric: _range(values) for metric, values in found.items()} for name, found in draws.items()}
    pairs = {
        (a, b): {metric: _range(draws[a][metric] - draws[b][metric]) for metric in METRICS}
        for a in scores
        for b in scores
        if a != b
    }
    return singles, pairs


def resampled(weights: Floats, gold: Ints, scores: Floats, positive: int) -> dict[str, Floats]:
    """Each metric under row weights [B, n] (how often a row was drawn), as arrays [B]; NaN where undefined."""
    n_labels = scores.shape[1]
    predicted = scores.argmax(axis=1)
    n = len(gold)
    cells = sparse.csr_array((np.ones(n), (gold * n_labels + predicted, np.arange(n))), shape=(n_labels * n_labels, n))
    confusion = (cells @ weights.T).T.reshape(-1, n_labels, n_labels)
    total = weights.sum(axis=1)
    f1 = class_f1(confusion)
    losses = -np.log(np.maximum(scores[np.arange(n), gold], 1e-15))
    return {
        "accuracy": np.trace(confusion, axis1=1, axis2=2) / total,
        "macro_f1": f1.mean(axis=1),
        "positive_f1": f1[:, positive],
        "roc_auc": _auc(weights, gold, scores, positive),
        "log_loss": weights @ losses / total,
    }


def _auc(weights: Floats, gold: Ints, scores: Floats, positive: int) -> Floats:
    classes = [positive] if scores.shape[1] == 2 else range(scores.shape[1])
    areas = np.stack([_weighted_auc(weights, gold == label, scores[:, label]) for label in classes])
    known = ~np.isnan(areas)
    return np.divide(
        np.where(known, areas, 0).sum(axis=0), known.sum(axis=0), out=np.full(len(weights), np.nan), where=known.any(axis=0)
    )


def _weighted_auc(weights: Floats, is_class: np.ndarray[Any, Any], score: Floats) -> Floats:
    order = np.argsort(score, kind="stable")
    _, starts = np.unique(score[order], return_index=True)
    inside = np.add.reduceat(weights[:, order] * is_class[order], starts, axis=1)
    outside = np.add.reduceat(weights[:, order] * ~is_class[order], starts, axis=1)
    below = np.cumsum(outside, axis=1) - outside
    pairs = inside.sum(axis=1) * outside.sum(axis=1)
    won = (inside * (below + outside / 2)).sum(axis=1)
    return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def _range(values: Floats) -> list[float] | None:
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return [float(low), float(high)]


def mean_intervals(
    values: Mapping[str, Floats], weights: Floats, *, resamples: int, seed: int
) -> tuple[dict[str, list[float] | None], dict[tuple[str, str], list[float] | None]]:
    """The same for weighted means: ``values`` [n] are sums over a row, ``weights`` [n] what they are divided by."""
    n = len(weights)
    random = np.random.default_rng(seed)
    means = {name: np.empty(resamples) for name in values}
    step = max(1, _CELLS_AT_ONCE // max(n, 1))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        draws = random.multinomial(n, np.full(n, 1 / n), size=count).astype(np.float64)
        for name, found in values.items():
            means[name][start : start + count] = draws @ found / (draws @ weights)
    pairs = {(a, b): _range(means[a] - means[b]) for a in values for b in values if a != b}
    return {name: _range(found) for name, found in means.items()}, pairs
