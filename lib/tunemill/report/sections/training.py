"""Chat template and token lengths, the training curve, and the metrics before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from tunemill.report import plots
from tunemill.report.folder import RunFolder
from tunemill.report.sections.overview import duration

__all__ = ["evaluation_section", "template_section", "training_section"]

_LENGTH_ROWS = 1_000_000
_CURVE_POINTS = 600
_METRICS = (
    ("accuracy", "Accuracy"),
    ("macro_f1", "Macro F1"),
    ("positive_f1", "F1 of {positive}"),
    ("roc_auc", "ROC-AUC"),
    ("log_loss", "Log-loss"),
    ("calibration_error", "Calibration error"),
    ("answer_loss", "Loss a token (nats)"),
    ("perplexity", "Perplexity"),
)
_VARIANTS = {
    "base": "base model",
    "base_few_shot": "base, few-shot",
    "embedding": "embedding + logistic regression",
    "tuned": "tuned",
}
_LOWER_IS_BETTER = ("log_loss", "calibration_error", "answer_loss", "perplexity")


def template_section(run: RunFolder) -> dict[str, Any] | None:
    """The proof, samples with the trained tokens marked, and histograms of token lengths."""
    details = run.details("template")
    if not details:
        return None
    tokenizer = details.get("tokenizer")
    facts = tokenizer if isinstance(tokenizer, dict) else {"tokenizer": tokenizer}
    return {
        "proof": details.get("proof") or [],
        "tokenizer": {key.replace("_", " "): value for key, value in facts.items() if not isinstance(value, (dict, list))},
        "samples": (details.get("samples") or [])[:3],
        "max_length": details.get("max_length"),
        "truncated": details.get("truncated_rows"),
        "too_long": run.manifests["template"].rows_dropped.get("too_long", 0),
        "chart": _lengths_chart(run, details.get("max_length")),
        "tokens": details.get("tokens") or {},
    }


def _lengths_chart(run: RunFolder, cut: float | None) -> Any:
    names = {"prompt_tokens": "prompt", "answer_tokens": "answer", "n_tokens": "together"}
    table = run.table("template", "lengths", list(names), most_rows=_LENGTH_ROWS)
    if table is None:
        return None
    series = {shown: _numbers(table, name) for name, shown in names.items() if name in table.column_names}
    series = {name: values for name, values in series.items() if len(values)}
    return plots.lengths(series, cut) if series else None


def _numbers(table: pa.Table, column: str) -> Any:
    return np.asarray(table[column].drop_null().to_pylist(), dtype=np.float64)


def training_section(run: RunFolder) -> dict[str, Any] | None:
    """The curve (also of a run that is still training) and the speed report."""
    lines = run.lines("finetune", "metrics.jsonl") or run.lines("finetune", "adapter/metrics.jsonl")
    details = run.details("finetune")
    if not lines and not details:
        return None
    losses = _series(lines, "loss") or [tuple(pair) for pair in details.get("losses") or []]
    checked = _series(lines, "eval_loss") or [tuple(pair) for pair in details.get("validation_losses") or []]
    steps, values = (np.array([pair[i] for pair in losses], dtype=np.float64) for i in (0, 1))
    chart = plots.curve(steps, values, checked, _thin(_series(lines, "learning_rate"))) if losses or checked else None
    return {
        "chart": chart,
        "running": "finetune" not in run.manifests,
        "last": lines[-1] if lines else {},
        "facts": _training_facts(run, details, losses, checked),
        "speed": _speed_facts(details.get("speed") or {}),
        "losses": {"first": losses[0][1], "last": losses[-1][1]} if losses else {},
    }


def _series(lines: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return _thin([(line["step"], line[name]) for line in lines if line.get(name) is not None and "step" in line])


def _thin(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    stride = max(1, -(-len(pairs) // _CURVE_POINTS))
    return pairs[::stride]


def _training_facts(run: RunFolder, details: dict[str, Any], losses: list[Any], checked: list[Any]) -> dict[str, str]:
    config = run.manifests["finetune"].config if "finetune" in run.manifests else run.config.get("finetune") or {}
    lora = config.get("lora") or {}
    facts: dict[str, str] = {"base model": str(details.get("base_model") or config.get("base_model") or "")}
    if lora:
        shown = {key: value for key, value in lora.items() if isinstance(value, (int, float)) and value}
        facts["LoRA"] = ", ".join(key if value is True else f"{key} {value}" for key, value in shown.items())
    for key in ("learning_rate", "epochs", "batch_size", "accumulation", "schedule"):
        if config.get(key) is not None:
            facts[key.replace("_", " ")] = str(config[key])
    for key in ("steps", "kept_step", "precision", "trainable_weights", "trained_tokens"):
        value = details.get(key)
        if value is not None:
            facts[key.replace("_", " ")] = f"{value:,}" if isinstance(value, int) else str(value)
    if losses:
        facts["loss, first to last step"] = f"{losses[0][1]:.4f} → {losses[-1][1]:.4f}"
    if checked:
        facts["best validation loss"] = f"{min(value for _, value in checked):.4f}"
    return {key: value for key, value in facts.items() if value}


def _speed_facts(speed: dict[str, Any]) -> dict[str, str]:
    facts = {}
    for key, name, form in (
        ("tokens_per_s", "tokens/s", "{:,.0f}"),
        ("padded_tokens_per_s", "padded tokens/s", "{:,.0f}"),
        ("padding_share", "padding", "{:.1f} %"),
        ("share_of_gemm_peak", "share of the measured peak", "{:.0f} %"),
        ("data_wait_share", "waiting for data", "{:.1f} %"),
    ):
        if isinstance(speed.get(key), (int, float)):
            facts[name] = form.format(100 * speed[key] if form.endswith("%") else speed[key])
    if isinstance(speed.get("peak_memory_bytes"), (int, float)):
        facts["peak memory"] = f"{speed['peak_memory_bytes'] / 2**30:.2f} GiB"
    for name, seconds in (speed.get("seconds") or {}).items():
        if isinstance(seconds, (int, float)):
            facts[f"{name.replace('_', ' ')} time"] = duration(seconds)
    return facts


def evaluation_section(run: RunFolder) -> dict[str, Any] | None:
    """Metrics of each variant with intervals, their differences, confusion matrices and ROC curves."""
    details = run.details("evaluate")
    variants = [name for name in _VARIANTS if isinstance(details.get(name), dict)]
    if not variants:
        return None
    labels = list(details.get("labels") or [])
    positive = str(details.get("positive_label") or "")
    matrices = {_VARIANTS[name]: details[name]["confusion"] for name in variants if details[name].get("confusion")}
    return {
        "variants": [_VARIANTS[name] for name in variants],
        "metrics": [
            _metric(details, variants, key, name.format(positive=positive))
            for key, name in _METRICS
            if _known(details, variants, key)
        ],
        "compared": "tuned" in variants and "base" in variants,
        "n": details[variants[0]].get("n"),
        "bootstrap": details.get("bootstrap"),
        "labels": labels,
        "positive": positive,
        "confusion": plots.confusion(matrices, labels) if matrices and len(labels) <= 40 else None,
        "roc": _roc_chart(run, variants, positive) if len(labels) == 2 else None,
        "per_class": [
            {"label": label, "found": [(details[name].get("per_class") or {}).get(label, {}) for name in variants]}
            for label in labels[:40]
        ],
    }


def _known(details: dict[str, Any], variants: list[str], key: str) -> bool:
    return any(details[name].get(key) is not None for name in variants)


def _metric(details: dict[str, Any], variants: list[str], key: str, name: str) -> dict[str, Any]:
    values = [
        {"value": details[variant].get(key), "interval": (details[variant].get("interval") or {}).get(key)}
        for variant in variants
    ]
    gap = (details.get("difference") or {}).get(key) or {}
    low, high = gap.get("low"), gap.get("high")
    sure = low is not None and high is not None and (low > 0 or high < 0)
    better = sure and high is not None and (high < 0) == (key in _LOWER_IS_BETTER)
    return {"name": name, "values": values, "gap": gap, "verdict": "better" if better else "worse" if sure else ""}


def _roc_chart(run: RunFolder, variants: list[str], positive: str) -> Any:
    from sklearn.metrics import roc_curve

    table = run.table("evaluate", "predictions", ["variant", "label", "scores"])
    if table is None or not {"variant", "label", "scores"} <= set(table.column_names):
        return None
    curves = {}
    rows = table.to_pylist()
    for name in variants:
        own = [row for row in rows if row["variant"] == name and row["scores"] is not None]
        truth = np.array([row["label"] == positive for row in own])
        if truth.any() and not truth.all():
            score = np.array([dict(row["scores"]).get(positive, 0.0) for row in own], dtype=np.float64)
            false_rate, true_rate, _ = roc_curve(truth, score, drop_intermediate=True)
            area = run.details("evaluate")[name].get("roc_auc")
            curves[_VARIANTS[name] + (f", area {area:.3f}" if area is not None else "")] = (false_rate, true_rate)
    return plots.roc(curves, f"ROC curves for {positive}") if curves else None
