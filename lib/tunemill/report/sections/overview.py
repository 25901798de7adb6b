"""The head of the page, the funnel over the stages, and the recipe at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from tunemill.report.folder import RunFolder

__all__ = ["funnel_section", "headline", "key_figures", "recipe_section"]

_DONE = {
    "generate": "answers",
    "clean": "answers cleaned",
    "embed": "texts embedded",
    "dedup": "rows checked for near-duplicates",
    "split": "rows split",
    "template": "rows in the chat template",
    "finetune": "rows trained on",
    "evaluate": "held-out rows scored",
}


def headline(run: RunFolder) -> str:
    """The run in one sentence."""
    return " ".join(part for part in (_rows_sentence(run), _result_sentence(run)) if part) or "No stage has finished yet."


def _rows_sentence(run: RunFolder) -> str:
    done = [name for name in run.expected if name in run.manifests]
    if not done:
        return ""
    first = run.manifests[done[0]]
    last_data = next((name for name in reversed(done) if name not in ("finetune", "evaluate")), None)
    if last_data is None or last_data == done[0]:
        return f"{first.rows_in:,} rows in, {first.rows_kept:,} {_DONE[done[0]]}."
    kept = run.manifests[last_data].rows_kept
    what = {"generate": "calls"}.get(done[0], "rows")
    ready = {"template": "training-ready rows", "split": "split rows", "dedup": "distinct rows"}.get(last_data, "rows")
    return f"{first.rows_in:,} {what} became {kept:,} {ready}."


def _result_sentence(run: RunFolder) -> str:
    found = run.details("evaluate")
    base, tuned, difference = found.get("base"), found.get("tuned"), found.get("difference") or {}
    if not base or not tuned:
        return ""
    if "accuracy" in base:
        gap = difference.get("accuracy") or {}
        interval = (
            ""
            if gap.get("low") is None
            else f" (difference {gap['value']:+.3f}, 95 % interval {gap['low']:+.3f} to {gap['high']:+.3f})"
        )
        verb = "rose" if tuned["accuracy"] > base["accuracy"] else "fell" if tuned["accuracy"] < base["accuracy"] else "stayed"
        return (
            f"On {base['n']:,} held-out rows, accuracy {verb} from {base['accuracy']:.3f} to {tuned['accuracy']:.3f}{interval}."
        )
    gap = difference.get("answer_loss") or {}
    interval = "" if gap.get("low") is None else f" (difference {gap['low']:+.3f} to {gap['high']:+.3f})"
    before, after = base["answer_loss"], tuned["answer_loss"]
    return f"On {base['n']:,} held-out rows, the loss went from {before:.3f} to {after:.3f} nats a token{interval}."


def key_figures(run: RunFolder) -> list[dict[str, str]]:
    """A few numbers to show large, each with what it is."""
    figures: list[dict[str, str]] = []
    models = run.details("generate").get("models") or {}
    if models:
        figures.append({"value": f"{sum(m.get('kept') or 0 for m in models.values()):,}", "name": "answers"})
        figures.append({"value": f"${sum(m.get('cost_usd') or 0 for m in models.values()):,.2f}", "name": "paid"})
    if "dedup" in run.manifests:
        figures.append({"value": f"{sum(run.manifests['dedup'].rows_dropped.values()):,}", "name": "duplicates removed"})
    if "template" in run.manifests:
        figures.append({"value": f"{run.manifests['template'].rows_kept:,}", "name": "training-ready rows"})
    scores = run.details("evaluate")
    for metric, name in (("accuracy", "accuracy"), ("answer_loss", "loss a token")):
        if all(metric in (scores.get(variant) or {}) for variant in ("base", "tuned")):
            figures.append(
                {"value": f"{scores['base'][metric]:.2f} → {scores['tuned'][metric]:.2f}", "name": f"{name}, before → after"}
            )
    seconds = sum(manifest.seconds for manifest in run.manifests.values())
    return [*figures, {"value": duration(seconds), "name": "in all stages"}] if seconds else figures


def funnel_section(run: RunFolder) -> dict[str, Any] | None:
    """Rows in, kept and dropped of each stage, with reasons."""
    if not run.expected:
        return None
    widest = max((manifest.rows_in for manifest in run.manifests.values()), default=1) or 1
    rows: list[dict[str, Any]] = []
    for name in run.expected:
        manifest = run.manifests.get(name)
        if manifest is None:
            rows.append({"name": name, "state": "started" if name in run.stores else "not begun"})
            continue
        rows.append(
            {
                "name": name,
                "state": "",
                "rows_in": manifest.rows_in,
                "kept": manifest.rows_kept,
                "dropped": sum(manifest.rows_dropped.values()),
                "reasons": sorted(manifest.rows_dropped.items(), key=lambda item: -item[1]),
                "kept_share": 100 * manifest.rows_kept / widest,
                "dropped_share": 100 * sum(manifest.rows_dropped.values()) / widest,
                "time": duration(manifest.seconds),
                "rate": f"{manifest.rows_in / manifest.seconds:,.1f}" if manifest.seconds else "",
            }
        )
    return {"stages": rows}


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def recipe_section(run: RunFolder) -> dict[str, Any] | None:
    """The configuration as YAML, and the versions of the libraries (those of the last stage)."""
    config: Mapping[str, Any] = run.config or {name: manifest.config for name, manifest in run.manifests.items()}
    last = max(run.manifests.values(), key=lambda manifest: manifest.created_at, default=None)
    if not config and last is None:
        return None
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=110)
    return {"config": text, "versions": dict(last.versions) if last else {}}
