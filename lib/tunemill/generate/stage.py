"""The generate stage: prompts, called through `tunemill.llm.caller`, committed in plan order."""

from __future__ import annotations

import dataclasses
from typing import Any

from tunemill.config import to_plain
from tunemill.generate.config import GenerateConfig
from tunemill.generate.rows import PlanSource, expand, file_prompts
from tunemill.generate.summary import summarise
from tunemill.stage import Outcome, Stage, StageContext, commit_rows
from tunemill.store import Manifest

__all__ = ["STAGE", "execute", "journal_url"]

_KEPT = (
    "request_id", "prompt_id", "provider", "model", "prompt", "label", "variables", "sample", "text", "finish_reason",
    "input_tokens", "output_tokens", "cost_usd", "latency_s", "attempts", "created_at",
)  # fmt: skip
_DROPPED = (*_KEPT, "reason", "status", "error")
_PENDING = "over_budget"


def execute(context: StageContext, source: Any, config: GenerateConfig) -> Outcome:
    """Call every model with every prompt. ConfigError or DataError before any call for what can be known.

    ``source`` is a `PlanSource`, or the rows of a user's file whose columns fill the template.
    """
    from tunemill.llm.caller import call_rows

    config.check_models()
    planned = isinstance(source, PlanSource)
    prompts = source.dataset() if planned else file_prompts(source, config)
    carried = () if planned else _carried(source)
    rows_in = source.count() * len(config.models) * config.samples
    journal = journal_url(context, config)
    answered = call_rows(
        expand(prompts, config),
        models=config.models,
        journal=journal,
        budget_usd=config.budget_usd,
        workers=config.workers,
        replay_failed=config.replay_failed,
        schema=None if config.response_schema is None else to_plain(config.response_schema),
        job=context.store.folder.url,
        progress=context.progress,
    )
    outcome = commit_rows(
        context,
        answered.sort("order"),
        rows_in=rows_in,
        kept_columns=(*_KEPT, *carried),
        dropped_columns=(*_DROPPED, *carried),
        dropped_only=("status", "error", "order", "system"),
    )
    details = {
        "models": summarise(context.store.folder, outcome, [model.name for model in config.models]),
        "plan": {"prompts": source.count(), "samples": config.samples, "models": len(config.models), **source.describe},
        "budget_usd": config.budget_usd,
        "maybe_paid_twice": maybe_paid_twice(journal),
        "journal": journal,
    }
    return dataclasses.replace(outcome, details=details)


def journal_url(context: StageContext, config: GenerateConfig) -> str:
    """Where the journal of this stage lies."""
    return config.journal or context.store.folder.join("journal").url


def maybe_paid_twice(journal: str) -> list[dict[str, Any]]:
    """Calls that were in flight when an earlier attempt was killed and were then made again."""
    return []


def _carried(source: Any) -> tuple[str, ...]:
    """The user's own columns that go along; ``id`` does so as ``source_id``, since one row gives many answers."""
    return ("source_id", *(name for name in source.columns() if name not in {*_DROPPED, "id", "order", "repeat", "system"}))


def _grows(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """More rows, more samples or further models; everything else as it was."""
    same = {key: value for key, value in old.items() if key not in ("rows", "samples", "models")}
    if any(new.get(key) != value for key, value in same.items()) or new.keys() != old.keys():
        return False
    more = all(new[key] >= old[key] for key in ("rows", "samples"))
    return more and all(model in new["models"] for model in old["models"])


def _unfinished(manifest: Manifest, config: GenerateConfig) -> bool:
    """Rows are pending and the cap allows more, or failed rows are to be tried again."""
    if config.replay_failed and any(reason != _PENDING for reason in manifest.rows_dropped):
        return True
    if not manifest.rows_dropped.get(_PENDING):
        return False
    before = manifest.details.get("budget_usd")
    return config.budget_usd is None or before is None or config.budget_usd > before


STAGE = Stage(name="generate", config_type=GenerateConfig, execute=execute, grows=_grows, unfinished=_unfinished)
