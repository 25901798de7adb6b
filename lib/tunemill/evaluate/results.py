"""From summed log-probabilities to the predictions table and the metrics of the design. Plain functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tunemill.evaluate.bootstrap import METRICS, intervals, mean_intervals
from tunemill.evaluate.labels import LabelSet
from tunemill.evaluate.metrics import Floats, summarise
from tunemill.evaluate.prompts import Row

__all__ = ["answer_results", "label_results", "softmax"]

_SCORES = pa.map_(pa.string(), pa.float64())


def softmax(logits: Floats) -> Floats:
    """Probabilities over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float64)


def label_results(
    rows: Sequence[Row], scores: Mapping[str, Floats], labels: LabelSet, *, resamples: int, seed: int
) -> tuple[pa.Table, dict[str, Any]]:
    """Predictions (id, variant, label, predicted, scores) and metrics, from probabilities [n, L] of each variant.

    ``difference`` is tuned - base; ``difference_<variant>`` is tuned minus any further variant.
    """
    gold = np.array([labels.names.index(row.answer) for row in rows], dtype=np.int64)
    metrics: dict[str, Any] = {name: summarise(gold, found, labels.names, labels.positive) for name, found in scores.items()}
    single, pairs = intervals(gold, scores, labels.positive, resamples=resamples, seed=seed)
    for name, ranges in single.items():
        metrics[name]["interval"] = ranges
    for name in scores:
        if "tuned" in scores and name != "tuned":
            key = "difference" if name == "base" else f"difference_{name}"
            metrics[key] = {metric: _difference(metrics, name, metric, pairs["tuned", name][metric]) for metric in METRICS}
    metrics |= {
        "labels": list(labels.names),
        "positive_label": labels.names[labels.positive],
        "n": len(rows),
        "bootstrap": resamples,
    }
    return pa.concat_tables([_predictions(rows, name, found, labels) for name, found in scores.items()]), metrics


def answer_results(
    rows: Sequence[Row], sums: Mapping[str, Floats], tokens: Floats, *, resamples: int, seed: int
) -> tuple[pa.Table, dict[str, Any]]:
    """The same for answers that are no labels: ``answer_loss`` in nats for each trained token, and its perplexity.

    ``sums`` are log-probabilities of whole answers [n], ``tokens`` their weights in tokens [n].
    """
    losses = {name: -found for name, found in sums.items()}
    single, pairs = mean_intervals(losses, tokens, resamples=resamples, seed=seed)
    metrics: dict[str, Any] = {}
    for name, found in losses.items():
        loss = float(found.sum() / tokens.sum())
        metrics[name] = {
            "n": len(rows),
            "answer_loss": loss,
            "perplexity": float(np.exp(loss)),
            "interval": {"answer_loss": single[name]},
        }
    for name in losses:
        if "tuned" in losses and name != "tuned":
            key = "difference" if name == "base" else f"difference_{name}"
            metrics[key] = {"answer_loss": _difference(metrics, name, "answer_loss", pairs["tuned", name])}
    metrics |= {"labels": [], "n": len(rows), "answer_tokens": float(tokens.sum()), "bootstrap": resamples}
    tables = []
    for name, found in losses.items():
        tables.append(
            pa.table(
                {
                    "id": [row.id for row in rows],
                    "variant": [name] * len(rows),
                    "label": pa.nulls(len(rows), pa.string()),
                    "predicted": pa.nulls(len(rows), pa.string()),
                    "scores": pa.nulls(len(rows), _SCORES),
                    "answer_loss": found / tokens,
                    "answer_tokens": tokens,
                }
            )
        )
    return pa.concat_tables(tables), metrics


def _predictions(rows: Sequence[Row], variant: str, scores: Floats, labels: LabelSet) -> pa.Table:
    return pa.table(
        {
            "id": [row.id for row in rows],
            "variant": [variant] * len(rows),
            "label": [row.answer for row in rows],
            "predicted": [labels.names[i] for i in scores.argmax(axis=1)],
            "scores": pa.array([list(zip(labels.names, row, strict=True)) for row in scores.tolist()], _SCORES),
        }
    )


def _difference(metrics: Mapping[str, Any], other: str, metric: str, found: list[float] | None) -> dict[str, float | None]:
    tuned, base = metrics["tuned"][metric], metrics[other][metric]
    value = None if tuned is None or base is None else tuned - base
    return {"value": value, "low": found[0] if found else None, "high": found[1] if found else None}
