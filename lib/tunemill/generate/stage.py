"""The generate stage: prompts, called through `tunemill.llm.caller`, committed in plan order."""

from __future__ import annotations

import dataclasses
from typing import Any

from tunemill.config import to_plain
from tunemill.errors import Interrupted
from tunemill.generate.config import GenerateConfig
from tunemill.generate.rows import PlanSource, expand, file_prompts
from tunemill.generate.summary import summarise
from tunemill.stage import Outcome, Stage, StageContext, commit_rows
from tunemill.store import Manifest

__all__ = ["STAGE", "execute", "journal_url"]

_IDENTIFIERS = ("request_id", "prompt_id", "provider", "model", "prompt", "label", "variables", "sample")
_ANSWER = ("text", "finish_reason", "input_tokens", "output_tokens", "cost_usd", "latency_s", "attempts", "created_at")
_FAILURE = ("reason", "status", "error")
# Calls come in small blocks, so that a slow one holds back few rows; files should not be as small.
_FILE_ROWS = 4096
# Reasons of rows that were not called yet (`tunemill.llm.worker.PENDING`, which loads too much to import here).
_PENDING = ("over_budget", "quota_day", "interrupted")
# The provider was paid and withheld its answer: asking again would give the same.
_WITHHELD = "blocked"


def check(config: GenerateConfig) -> None:
    """Raise ConfigError for models that cannot work: none, a parameter that is not taken, a key that is not set."""
    from tunemill.llm.providers import check_model

    config.check_models()
    for model in config.models:
        check_model(model, config.response_schema)


def execute(context: StageContext, source: Any, config: GenerateConfig) -> Outcome:
    """Call every model with every prompt. ConfigError or DataError before any call for what can be known.

    ``source`` is a `PlanSource`, or the rows of a user's file whose columns fill the template.
    """
    from tunemill.generate.plan import plain_plan, plan
    from tunemill.llm.caller import open_calls
    from tunemill.llm.embedded_server import stop_embedded
    from tunemill.resources import connect

    check(config)
    connect()
    planned = isinstance(source, PlanSource)
    prompts = source.dataset() if planned else file_prompts(source, config)
    carried = () if planned else _carried(source)
    journal = journal_url(context, config)
    with open_calls(
        models=config.models,
        journal=journal,
        budget_usd=config.budget_usd,
        workers=config.workers,
        replay_failed=config.replay_failed,
        schema=None if config.response_schema is None else to_plain(config.response_schema),
        job=context.store.folder.url,
        progress=context.progress,
    ) as calls:
        outcome = commit_rows(
            context,
            calls.rows(expand(prompts, config)).repartition(target_num_rows_per_block=_FILE_ROWS, strict=True),
            rows_in=source.count() * len(config.models) * config.samples,
            kept_columns=(*_IDENTIFIERS, *_ANSWER, *carried),
            dropped_columns=(*_IDENTIFIERS, *_ANSWER, *_FAILURE, *carried),
        )
        # Read after the data has flowed: also a caller that died in this attempt had calls in flight.
        repeated = [_may_be_paid(call) for call in calls.summary().maybe_paid]
    stop_embedded()
    if outcome.rows_dropped.get("interrupted"):
        raise Interrupted(
            f"generate: stopped with {outcome.rows_kept:,} answers in {journal}; the same command goes on and pays only the rest"
        )
    details = {
        "models": summarise(context.store.folder, outcome, [model.name for model in config.models]),
        "plan": {"prompts": source.count(), "samples": config.samples, "models": len(config.models), **source.describe},
        # made after the calls, which need not wait for tokenizers to be loaded; it depends on the configuration alone
        "foreseen": plain_plan(plan(config, seed=context.seed)) if planned else None,
        "budget_usd": config.budget_usd,
        "maybe_paid_twice": repeated,
        "journal": journal,
    }
    return dataclasses.replace(outcome, details=details)


def journal_url(context: StageContext, config: GenerateConfig) -> str:
    """Where the journal of this stage lies."""
    return config.journal or context.store.folder.join("journal").url


def _may_be_paid(call: Any) -> dict[str, Any]:
    """A call that was in flight when an earlier attempt ended; it was made again."""
    return {"request_id": call.key, "model": call.model, "attempt": call.attempt, "usd": call.usd, "at": call.at}


def _carried(source: Any) -> tuple[str, ...]:
    """The user's own columns that go along; ``id`` does so as ``source_id``, since one row gives many answers."""
    own = {*_IDENTIFIERS, *_ANSWER, *_FAILURE, "id", "order", "repeat", "system", "source_id"}
    return ("source_id", *(name for name in source.columns() if name not in own))


def _grows(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """More rows, more samples or further models; everything else as it was."""
    same = {key: value for key, value in old.items() if key not in ("rows", "samples", "models")}
    if new.keys() != old.keys() or any(new[key] != value for key, value in same.items()):
        return False
    more = all(new[key] >= old[key] for key in ("rows", "samples"))
    return more and all(model in new["models"] for model in old["models"])


def _unfinished(manifest: Manifest, config: GenerateConfig) -> bool:
    """Rows wait for a new day or a higher cap, or failed rows are to be tried again."""
    dropped = manifest.rows_dropped
    if config.replay_failed and any(reason not in (*_PENDING, _WITHHELD) for reason in dropped):
        return True
    if any(dropped.get(reason) for reason in _PENDING if reason != "over_budget"):
        return True
    before = manifest.details.get("budget_usd")
    raised = config.budget_usd is None or (before is not None and config.budget_usd > before)
    return bool(dropped.get("over_budget")) and raised


STAGE = Stage(name="generate", config_type=GenerateConfig, execute=execute, grows=_grows, unfinished=_unfinished, check=check)
