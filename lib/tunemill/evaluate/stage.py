"""The evaluate stage: held-out rows -> label probabilities of each variant -> metrics.

Only rows of the test split are scored; rows without a split are all held out. Answers that are labels
are scored against the other labels; other answers by their loss for each token.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tunemill.errors import ConfigError, DataError
from tunemill.evaluate.config import EvaluateConfig
from tunemill.evaluate.labels import LabelSet, Tokens, answer_tokens, choose_labels, first_token_clashes, label_tails
from tunemill.evaluate.metrics import Floats
from tunemill.evaluate.prompts import Row, draw_examples, is_classification
from tunemill.evaluate.results import answer_results, label_results, softmax
from tunemill.evaluate.rows import HeldOut, read_rows
from tunemill.evaluate.workers import ScoreRows, ScoringPlan, chunk_item
from tunemill.stage import Outcome, Source, Stage, StageContext, write_table
from tunemill.store import Location, Manifest, StageStore, content_fingerprint

__all__ = ["STAGE", "adapter_folder", "execute"]

_CHUNK_ROWS = 64


def execute(context: StageContext, source: Source, config: EvaluateConfig) -> Outcome:
    """Score the test rows under every variant and write predictions and metrics.json."""
    sought = _sought(config, context.run)
    adapter = adapter_folder(config, context.run)
    base_model = config.base_model or (_base_of(adapter) if adapter else None)
    if base_model is None:
        raise ConfigError("evaluate.base_model is not set and there is no adapter that names one; give the model to evaluate")
    rows = read_rows(source, with_train=config.few_shot > 0 or "embedding" in config.variants)
    if not rows.test:
        raise DataError("evaluate: there are no rows to evaluate on; the test split is empty")
    labels = None
    if is_classification(rows.test, config.labels):
        labels = choose_labels([row.answer for row in rows.test], config.labels, config.positive_label)
    names = labels.names if labels else ()
    plan = _plan(context, config, rows, names, base_model=base_model, adapter=adapter)
    scored = _score(context, rows.test, plan, config)
    kept = [order for order in range(len(rows.test)) if order not in scored.lost]
    if not kept:
        raise DataError(f"evaluate: none of the {len(rows.test):,} rows fits the model's context; shorten them or lower few_shot")
    table, metrics = _results(context, config, rows, scored, kept=kept, labels=labels)
    context.store.folder.join("metrics.json").write_text(json.dumps(metrics, ensure_ascii=False, indent=1))
    dropped = Counter(rows.dropped) + Counter(scored.lost.values())
    return Outcome(
        rows_in=len(rows.test) + sum(rows.dropped.values()),
        rows_kept=len(kept),
        rows_dropped=dict(sorted(dropped.items())),
        files={"predictions": [write_table(context, "predictions", table)]},
        details={
            **metrics,
            "base_model": base_model,
            "adapter": adapter,
            "adapter_sought": sought.url if sought else None,
            "adapter_content": _content(sought) if adapter and sought else None,
            "scored_tokens": dict(zip(names, plan.tails, strict=True)),
        },
    )


def _other_adapter(manifest: Manifest, _: EvaluateConfig) -> bool:
    """True when the adapter has been trained again, or has come to be, since it was evaluated."""
    sought = manifest.details.get("adapter_sought")
    return sought is not None and _content(Location(sought)) not in (None, manifest.details.get("adapter_content"))


STAGE = Stage(name="evaluate", config_type=EvaluateConfig, execute=execute, unfinished=_other_adapter)


def adapter_folder(config: EvaluateConfig, run: Location | None) -> str | None:
    """The adapter to evaluate: the configured one, the run's own, or None; ConfigError when a configured one is not there."""
    found = _sought(config, run)
    if found is not None and found.join("adapter_config.json").exists():
        return found.url
    if config.adapter and found is not None:
        raise ConfigError(f"evaluate.adapter {config.adapter}: holds no adapter_config.json; name the folder of a PEFT adapter")
    return None


def _sought(config: EvaluateConfig, run: Location | None) -> Location | None:
    if "tuned" not in config.variants:
        return None
    return Location.of(config.adapter) if config.adapter else run.join("finetune", "adapter") if run else None


def _content(adapter: Location) -> str | None:
    """A hash of the adapter's weights and settings; None where there is no adapter."""
    files = adapter.files("adapter_*", recursive=False)
    return content_fingerprint(files) if files else None


def _base_of(adapter: str) -> str | None:
    name = json.loads(Location(adapter).join("adapter_config.json").read_text()).get("base_model_name_or_path")
    return str(name) if name else None


def _run_tokenizer(run: Location | None) -> str | None:
    """The tokenizer that made the run's training rows: prompts must be built by the same one."""
    manifest = StageStore(run.join("template")).read_manifest() if run else None
    name = manifest.config.get("tokenizer") if manifest else None
    return str(name) if name else None


def _plan(
    context: StageContext, config: EvaluateConfig, rows: HeldOut, names: tuple[str, ...], *, base_model: str, adapter: str | None
) -> ScoringPlan:
    from tunemill.embedded import resolve_model

    if adapter is None and "tuned" in config.variants:
        context.progress.note("there is no adapter, so only the base model is evaluated")
    if not names and (config.few_shot or "embedding" in config.variants):
        raise ConfigError("evaluate: few_shot and the embedding variant need labels, but the answers of these rows are texts")
    tokenizer = config.tokenizer or _run_tokenizer(context.run) or base_model
    variants = [name for name in ("base", "tuned") if name in config.variants and (name == "base" or adapter)]
    return ScoringPlan(
        base_model=resolve_model(base_model),
        adapter=adapter,
        tokenizer=tokenizer,
        precision=config.precision,
        variants=(*variants, *(["base_few_shot"] if config.few_shot else [])),
        batch_tokens=config.batch_tokens,
        labels=names,
        tails=_tails(context, tokenizer, names) if names else (),
        examples=draw_examples(rows.train, names, config.few_shot, context.seed) if config.few_shot else (),
    )


def _tails(context: StageContext, tokenizer_name: str, names: Sequence[str]) -> tuple[Tokens, ...]:
    """The tokens to score for each label after an ordinary prompt."""
    from tunemill.chat.tokenizer import load

    tokenizer = load(tokenizer_name)
    prompt = [{"role": "user", "content": "Hello"}]
    ids = tokenizer.encode_prompt(prompt)
    tails = label_tails(
        [answer_tokens(tokenizer.encode([*prompt, {"role": "assistant", "content": name}]), ids)[1] for name in names]
    )
    for one, other in first_token_clashes(names, tails)[:3]:
        context.progress.note(f"labels {one!r} and {other!r} begin with the same token; others may be easier to learn")
    return tails


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scored:
    """Sums [rows, labels] of each variant (labels: 1 for answers), token weights [rows], and why a row is lost."""

    sums: dict[str, Floats]
    tokens: Floats
    lost: dict[int, str]


def _score(context: StageContext, rows: Sequence[Row], plan: ScoringPlan, config: EvaluateConfig) -> _Scored:
    """Send the rows, in chunks of like length, through a pool of scoring actors."""
    context.progress.total(len(rows))
    sums = {variant: np.zeros((len(rows), max(len(plan.labels), 1))) for variant in plan.variants}
    tokens = np.ones(len(rows))
    lost: dict[int, str] = {}
    by_size = sorted(range(len(rows)), key=lambda order: (rows[order].size, rows[order].id))
    chunks = [by_size[i : i + _CHUNK_ROWS] for i in range(0, len(rows), _CHUNK_ROWS)] if plan.variants else []
    with tempfile.TemporaryDirectory(prefix="tunemill-adapter-") as folder:
        ready = dataclasses.replace(plan, adapter=_local_copy(plan.adapter, folder))
        for batch in _pool([chunk_item([rows[order] for order in chunk], chunk) for chunk in chunks], ready, config):
            for found in batch.to_pylist():
                if found["reason"]:
                    lost[found["order"]] = found["reason"]
                else:
                    sums[found["variant"]][found["order"]] = found["sums"]
                    tokens[found["order"]] = found["tokens"] if found["tokens"] is not None else 1.0
            context.progress.advance(batch.num_rows // len(plan.variants))
    return _Scored(sums=sums, tokens=tokens, lost=lost)


def _pool(items: list[dict[str, Any]], plan: ScoringPlan, config: EvaluateConfig) -> Iterator[pa.Table]:
    """Tables of scores from a pool of actors that take one chunk at a time."""
    import ray.data

    from tunemill.resources import cluster_resources

    if not items:
        return
    gpus = cluster_resources()[1]
    per_worker = config.gpus_per_worker if config.gpus_per_worker is not None else float(gpus > 0)
    workers = min(config.workers or (max(int(gpus // per_worker), 1) if per_worker else 1), len(items))
    threads = 0 if per_worker else max((os.cpu_count() or 1) // workers, 1)
    scored = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        ScoreRows,
        fn_constructor_args=(dataclasses.replace(plan, threads=threads),),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=per_worker or None,
    )
    yield from scored.iter_batches(batch_size=None, batch_format="pyarrow")


def _local_copy(adapter: str | None, folder: str) -> str | None:
    """An adapter on an object store is fetched once; a folder is used where it stands."""
    if adapter is None or not Location(adapter).is_remote:
        return adapter
    import pyarrow.fs as pafs

    source = Location(adapter)
    pafs.copy_files(source.path, folder, source_filesystem=source.fs, destination_filesystem=pafs.LocalFileSystem())
    return folder


def _results(
    context: StageContext, config: EvaluateConfig, rows: HeldOut, scored: _Scored, *, kept: Sequence[int], labels: LabelSet | None
) -> tuple[pa.Table, dict[str, Any]]:
    test = [rows.test[order] for order in kept]
    options = {"resamples": config.bootstrap, "seed": context.seed}
    if labels is None:
        answers = {variant: found[kept, 0] for variant, found in scored.sums.items()}
        return answer_results(test, answers, scored.tokens[kept], **options)
    scores = {variant: softmax(found[kept]) for variant, found in scored.sums.items()}
    if "embedding" in config.variants:
        from tunemill.evaluate.baseline import embedding_scores

        scores["embedding"] = embedding_scores(test, rows.train, labels.names, config.embedding_model, seed=context.seed)
    return label_results(test, scores, labels, **options)
