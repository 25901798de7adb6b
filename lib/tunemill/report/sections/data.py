"""What was asked and answered: plan and cost, labels and models, latency, cleaning, and a sample of rows."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunemill.config import build
from tunemill.errors import BadInput
from tunemill.generate.config import GenerateConfig
from tunemill.generate.plan import plain_plan, plan
from tunemill.report import plots
from tunemill.report.folder import RunFolder

__all__ = ["balance_section", "cleaning_section", "latency_section", "plan_section", "sample_section"]

_LATENCY_ROWS = 200_000
_POINTS = 3000
_SAMPLE_ROWS = 12
_READ_FOR_SAMPLE = 5000
_MOST_LABELS = 12
_SUMMED = ("calls", "kept", "dropped", "input_tokens", "output_tokens", "cost_usd")


def plan_section(run: RunFolder) -> dict[str, Any] | None:
    """What each model was asked, gave and cost, beside what `tunemill plan` says of the same configuration."""
    details = run.details("generate")
    models = details.get("models") or {}
    planned = details.get("foreseen") or _plan(run)
    if not models and planned is None:
        return None
    said = planned["models"] if planned else {}
    rows = []
    for name in dict.fromkeys([*models, *said]):
        found = models.get(name) or {}
        dropped = found.get("dropped")
        rows.append(
            {
                "name": name,
                **{
                    key: found.get(key)
                    for key in ("calls", "kept", "input_tokens", "output_tokens", "cost_usd", "cut_at_max_tokens")
                },
                "dropped": sum(dropped.values()) if isinstance(dropped, dict) else dropped,
                "planned": said.get(name),
            }
        )
    return {
        "models": rows,
        "total": {key: sum(row[key] or 0 for row in rows) for key in _SUMMED},
        "plan": planned,
        "made": bool(models),
        "budget": details.get("budget_usd"),
        "twice": details.get("maybe_paid_twice") or [],
        "any_cut": any(row["cut_at_max_tokens"] for row in rows),
    }


def _plan(run: RunFolder) -> dict[str, Any] | None:
    """The plan of a run that has not generated yet; None for a run that asks nobody, or whose topics file is not found."""
    section = run.config.get("generate")
    if not isinstance(section, dict):
        return None
    seed = int((run.config.get("run") or {}).get("seed") or 0)
    try:
        return plain_plan(plan(build(GenerateConfig, section, "run.yaml"), seed=seed))
    except BadInput:
        return None


def balance_section(run: RunFolder) -> dict[str, Any] | None:
    """Counts of labels after each stage, of labels by model, and of labels by split."""
    stages: list[str] = [name for name in ("generate", "clean", "dedup", "template") if name in run.manifests]
    tables = {name: run.table(name, "data", ["label", "model", "split"]) for name in stages}
    by_stage = {name: _count(table, "label") for name, table in tables.items() if _has(table, "label")}
    labels = sorted({label for counts in by_stage.values() for label in counts})
    if not labels:
        return None
    shown = (
        labels
        if len(labels) <= _MOST_LABELS
        else [label for label, _ in Counter(next(iter(by_stage.values()))).most_common(_MOST_LABELS)]
    )
    last = next((name for name in ("dedup", "clean", "generate") if _has(tables.get(name), "label", "model")), None)
    split_table = (
        tables.get("template") if _has(tables.get("template"), "split") else run.table("split", "data", ["label", "split"])
    )
    return {
        "chart": plots.stacked({f"after {name}": counts for name, counts in by_stage.items()}, shown),
        "labels": shown,
        "hidden": len(labels) - len(shown),
        "by_model": _cross(tables[last], "model") if last else {},
        "by_model_stage": last,
        "by_split": _cross(split_table, "split") if _has(split_table, "label", "split") else {},
    }


def _has(table: pa.Table | None, *columns: str) -> bool:
    return table is not None and all(name in table.column_names and table[name].null_count < len(table) for name in columns)


def _count(table: pa.Table | None, column: str) -> dict[str, int]:
    if table is None:
        return {}
    return {str(item["values"]): item["counts"] for item in pc.value_counts(table[column].drop_null()).to_pylist()}


def _cross(table: pa.Table | None, column: str) -> dict[str, dict[str, int]]:
    """For each value of ``column``, how often it has which label."""
    if table is None:
        return {}
    counted = table.group_by([column, "label"]).aggregate([([], "count_all")]).to_pylist()
    order = ["train", "validation", "test"]
    names = sorted({str(item[column]) for item in counted}, key=lambda name: (order.index(name) if name in order else 99, name))
    return {name: {str(i["label"]): i["count_all"] for i in counted if str(i[column]) == name} for name in names}


def latency_section(run: RunFolder) -> dict[str, Any] | None:
    """Seconds to an answer, for each model."""
    table = run.table("generate", "data", ["model", "latency_s"], most_rows=_LATENCY_ROWS)
    if table is None or not _has(table, "model", "latency_s"):
        return None
    names = np.array([str(name) for name in table["model"].to_pylist()])
    seconds = np.array([np.nan if value is None else value for value in table["latency_s"].to_pylist()], dtype=np.float64)
    samples = {name: seconds[(names == name) & ~np.isnan(seconds)] for name in sorted(set(names))}
    rows = [
        {
            "name": name,
            "n": len(values),
            **{f"p{q}": float(np.quantile(values, q / 100)) for q in (5, 50, 95, 99)},
            "most": float(values.max()),
        }
        for name, values in samples.items()
        if len(values)
    ]
    return (
        {"chart": plots.latencies(samples), "models": rows, "read": len(table), "of": run.manifests["generate"].rows_kept}
        if rows
        else None
    )


def cleaning_section(run: RunFolder) -> dict[str, Any] | None:
    """The clusters of segments, drawn and with sample texts."""
    details = run.details("clean")
    clusters = details.get("clusters") or []
    points = run.table("clean", "segments", ["cluster", "x", "y", "target", "segment", "kept"])
    target = next((entry.get("cluster") for entry in clusters if entry.get("target")), None)
    chart, drawn, of = None, 0, 0
    if points is not None and _has(points, "cluster", "x", "y"):
        points = points.filter(pc.is_valid(points["x"]))
        of = len(points)
        stride = max(1, -(-of // _POINTS))
        some = points.take(list(range(0, of, stride)))
        drawn = len(some)
        columns = [np.asarray(some[name].to_pylist(), dtype=np.float64) for name in ("x", "y")]
        chart = plots.scatter(columns[0], columns[1], np.asarray(some["cluster"].to_pylist(), dtype=np.int64), target)
    if not clusters and chart is None:
        return None
    variance = details.get("explained_variance")
    return {
        "chart": chart,
        "drawn": drawn,
        "of": of,
        "clusters": sorted(clusters, key=lambda entry: (not entry.get("target"), -(entry.get("size") or 0))),
        "variance": sum(variance) if isinstance(variance, list) else variance,
        "facts": {
            key.replace("_", " "): value
            for key, value in details.items()
            if isinstance(value, (int, float, str)) and not isinstance(value, bool)
        },
    }


def sample_section(run: RunFolder) -> dict[str, Any] | None:
    """A few rows as they go into training, the same at every report of the same run."""
    stage = next((name for name in ("template", "split", "dedup", "clean", "generate") if name in run.manifests), None)
    if stage is None:
        return None
    table = run.table(
        stage, "data", ["id", "request_id", "split", "label", "model", "messages", "text", "prompt"], most_rows=_READ_FOR_SAMPLE
    )
    if table is None or not len(table):
        return None
    rows = table.to_pylist()
    key = "id" if "id" in table.column_names else "request_id"
    chosen = sorted(rows, key=lambda row: hashlib.blake2b(str(row.get(key)).encode(), digest_size=8).digest())[:_SAMPLE_ROWS]
    return {"rows": [_shown(row, key) for row in chosen], "stage": stage, "of": run.manifests[stage].rows_kept}


def _shown(row: dict[str, Any], key: str) -> dict[str, Any]:
    turns = [(str(turn.get("role")), str(turn.get("content"))) for turn in row.get("messages") or []]
    if not turns:
        turns = [(name, str(row[name])) for name in ("prompt", "text") if row.get(name)]
    return {"id": row.get(key), "split": row.get("split"), "label": row.get("label"), "model": row.get("model"), "turns": turns}
