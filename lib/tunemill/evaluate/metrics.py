"""What label probabilities are worth: plain functions on arrays, without files, models or Ray.

``gold`` is the index of the right label, int [n]; ``scores`` are probabilities, float [n, L], each row
summing to 1. The predicted label is the most probable one, the first on a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

__all__ = [
    "Floats",
    "Ints",
    "accuracy",
    "calibration_error",
    "class_f1",
    "class_ranks_auc",
    "confusion_matrix",
    "log_loss",
    "roc_auc",
    "summarise",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SMALLEST = 1e-15
_BINS = 10


def summarise(gold: Ints, scores: Floats, labels: Sequence[str], positive: int) -> dict[str, Any]:
    """All metrics of one variant as plain JSON values.

    ``positive`` is the index of the positive class. With two labels ROC-AUC is that of the positive
    class; with more it is the macro mean of one-against-rest, over the classes that occur.
    """
    predicted = scores.argmax(axis=1)
    confusion = confusion_matrix(gold, predicted, len(labels))
    f1 = class_f1(confusion)
    return {
        "n": len(gold),
        "accuracy": accuracy(confusion),
        "macro_f1": float(f1.mean()),
        "positive_f1": float(f1[positive]),
        "roc_auc": roc_auc(gold, scores, positive),
        "log_loss": log_loss(gold, scores),
        "calibration_error": calibration_error(gold, scores),
        "confusion": confusion.tolist(),
        "per_class": _per_class(confusion, f1, labels),
    }


def confusion_matrix(gold: Ints, predicted: Ints, n_labels: int) -> Ints:
    """Counts [L, L]: the row is the right label, the column the predicted one."""
    return np.bincount(gold * n_labels + predicted, minlength=n_labels * n_labels).reshape(n_labels, n_labels)


def accuracy(confusion: npt.NDArray[Any]) -> float:
    """The share of rows on the diagonal."""
    return float(np.trace(confusion) / confusion.sum())


def class_f1(confusion: npt.NDArray[Any]) -> Floats:
    """F1 of each class, [..., L] for confusion matrices [..., L, L]; 0 for a class never right, as scikit-learn has it."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    named = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    return np.divide(2 * hits, named, out=np.zeros_like(hits), where=named > 0)


def roc_auc(gold: Ints, scores: Floats, positive: int) -> float | None:
    """Area under the ROC curve, ties counted half; None when only one class occurs."""
    if scores.shape[1] == 2:
        return class_ranks_auc(gold == positive, scores[:, positive])
    areas = [class_ranks_auc(gold == label, scores[:, label]) for label in range(scores.shape[1])]
    known = [area for area in areas if area is not None]
    return float(np.mean(known)) if known else None


def class_ranks_auc(is_class: npt.NDArray[np.bool_], score: Floats) -> float | None:
    """The chance that a row of the class scores above a row outside it (Mann-Whitney); None without both."""
    inside = int(is_class.sum())
    outside = len(is_class) - inside
    if not inside or not outside:
        return None
    ranks = rankdata(score)
    return float((ranks[is_class].sum() - inside * (inside + 1) / 2) / (inside * outside))


def log_loss(gold: Ints, scores: Floats) -> float:
    """Mean negative log-probability of the right label, in nats."""
    return float(-np.log(np.maximum(scores[np.arange(len(gold)), gold], _SMALLEST)).mean())


def calibration_error(gold: Ints, scores: Floats) -> float:
    """Expected calibration error over 10 equal-width bins of the top probability (Guo et al. 2017), 0 is best."""
    top = scores.max(axis=1)
    right = scores.argmax(axis=1) == gold
    bins = np.minimum((top * _BINS).astype(np.int64), _BINS - 1)
    gaps = np.abs(np.bincount(bins, weights=right - top, minlength=_BINS))
    return float(gaps.sum() / len(gold))


def _per_class(confusion: Ints, f1: Floats, labels: Sequence[str]) -> dict[str, dict[str, float | int]]:
    told, meant = confusion.sum(axis=0), confusion.sum(axis=1)
    return {
        label: {
            "precision": float(confusion[i, i] / told[i]) if told[i] else 0.0,
            "recall": float(confusion[i, i] / meant[i]) if meant[i] else 0.0,
            "f1": float(f1[i]),
            "n": int(meant[i]),
        }
        for i, label in enumerate(labels)
    }
