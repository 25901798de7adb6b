"""Vectors from an embedding API, through the budgeted, journalled caller that generation uses.

Rows are cut into groups that depend on the rows alone (never on block sizes), so that a run that is started
again asks for the same groups and finds them in its journal. A text that is long enough to be refused
travels alone: it can only take itself down.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunemill.embed.config import EmbedConfig
from tunemill.embed.workers import Tally, texts_of, vector_array
from tunemill.llm.config import ModelConfig, Params
from tunemill.llm.pricing import estimate_tokens
from tunemill.llm.providers import check_model, provider_for
from tunemill.stage import Outcome, StageContext, commit_rows

__all__ = ["PENDING", "check_api", "embed_by_api"]

PENDING = ("over_budget", "quota_day", "interrupted")
"""Reasons of rows that were not sent yet; the same command goes on with them."""
_GROUPED_ROWS = 2048
_LONG_TOKENS = 2000
_CALL_TOKENS = 100_000


def model_of(config: EmbedConfig) -> ModelConfig:
    """The embedding model as the caller knows it."""
    if config.provider == "local":
        raise TypeError("provider local calls nobody")
    api = config.api
    return ModelConfig(
        name=config.model,
        provider=config.provider,
        model=config.model,
        base_url=api.base_url,
        api_key_env=api.api_key_env,
        account=api.account,
        region=api.region,
        api_version=api.api_version,
        params=Params(extra=dict(api.extra)),
        task="embed",
        limits=api.limits,
        price=api.price,
    )


def check_api(config: EmbedConfig) -> None:
    """Raise ConfigError for what can be known to be wrong before any call: address, key, model family."""
    check_model(model_of(config))


def embed_by_api(context: StageContext, dataset: Any, config: EmbedConfig, *, rows: int, columns: list[str]) -> Outcome:
    """Embed the text column by calls; commits the stage's tables."""
    import ray

    from tunemill.llm.caller import open_calls

    model = model_of(config)
    limit: Any = provider_for(model.provider, "embed")
    size = min(config.api.texts_per_call, limit.texts_per_call(model))
    journal = config.api.journal or context.store.folder.join("journal").url
    tally = ray.remote(Tally).options(num_cpus=0).remote()
    options = {"batch_size": None, "batch_format": "pyarrow"}
    full = dataset.map_batches(_WithText(config.text_column, wanted=True), **options)
    empty = dataset.map_batches(_WithText(config.text_column, wanted=False), **options)
    groups = full.repartition(target_num_rows_per_block=_GROUPED_ROWS, strict=True)
    with open_calls(
        models=(model,),
        journal=journal,
        budget_usd=config.api.budget_usd,
        job=context.store.folder.url,
        progress=context.progress,
    ) as calls:
        called = calls.rows(groups.map_batches(_Group(config, size), **options))
        return commit_rows(
            context,
            called.map_batches(_Ungroup(config, tally), **options).union(empty),
            rows_in=rows,
            kept_columns=[*columns, "embedding"],
            dropped_columns=[*columns, "reason", "error"],
            dropped_only=("error",),
            details=lambda: _details(config, ray.get(tally.total.remote()), journal, size),
        )


class _WithText:
    """The rows with a text, or those without, which get their reason here."""

    def __init__(self, column: str, *, wanted: bool) -> None:
        self._column = column
        self._wanted = wanted

    def __call__(self, table: pa.Table) -> pa.Table:
        plain = table.drop_columns([name for name in ("reason", "error", "embedding") if name in table.column_names])
        if not len(plain):
            return plain
        has_text = pa.array([bool(text.strip()) for text in texts_of(plain, self._column)])
        if self._wanted:
            return plain.filter(has_text)
        empty = plain.filter(pc.invert(has_text))
        return empty.append_column("reason", pa.array(["empty_text"] * len(empty), pa.string()))


class _Group:
    """Neighbouring rows -> one row for each call, which carries them as bytes."""

    def __init__(self, config: EmbedConfig, size: int) -> None:
        self._config = config
        self._size = size

    def __call__(self, table: pa.Table) -> pa.Table:
        texts = [(self._config.prefix or "") + text for text in texts_of(table, self._config.text_column)] if len(table) else []
        spans = list(_spans(texts, self._size))
        return pa.table(
            {
                "model": pa.array([self._config.model] * len(spans), pa.string()),
                "sample": pa.array([0] * len(spans), pa.int64()),
                "texts": pa.array([list(dict.fromkeys(texts[a:b])) for a, b in spans], pa.list_(pa.string())),
                "rows": pa.array([_pack(table.slice(a, b - a)) for a, b in spans], pa.large_binary()),
            }
        )


def _spans(texts: list[str], size: int) -> Iterator[tuple[int, int]]:
    """Neighbouring texts that share a call: at most ``size`` texts and 100,000 tokens; a long text is alone."""
    start, tokens = 0, 0
    for place, text in enumerate(texts):
        cost = estimate_tokens(text)
        alone = cost > _LONG_TOKENS
        if place > start and (alone or place - start >= size or tokens + cost > _CALL_TOKENS):
            yield start, place
            start, tokens = place, 0
        tokens += cost
        if alone:
            yield start, place + 1
            start, tokens = place + 1, 0
    if start < len(texts):
        yield start, len(texts)


class _Ungroup:
    """An answered call -> its rows with their vectors, or with the reason why there are none."""

    def __init__(self, config: EmbedConfig, tally: Any) -> None:
        self._config = config
        self._tally = tally

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        for row in table.to_pylist():
            rows = _unpack(row["rows"])
            texts = [(self._config.prefix or "") + text for text in texts_of(rows, self._config.text_column)]
            answered = row["reason"] is None and row["vectors"] is not None
            reasons: list[str | None] = [row["reason"]] * len(rows)
            vectors = np.zeros((len(rows), 1), np.float32)
            if answered and len(row["vectors"]) != len(row["texts"]):
                answered, reasons = False, ["bad_answer"] * len(rows)
            if answered:
                vectors = _unit(row["vectors"], row["texts"], texts)
                reasons = [None if ok else "not_finite" for ok in np.isfinite(vectors.sum(axis=1)).tolist()]
            counts = {"tokens": row["input_tokens"] or 0, "calls": 1, "nano_usd": round((row["cost_usd"] or 0) * 1e9)}
            self._tally.add.remote(row["request_id"], counts, {"dimension": vectors.shape[1]} if answered else None)
            marked = rows.append_column("reason", pa.array(reasons, pa.string()))
            marked = marked.append_column("error", pa.array([row["error"]] * len(rows), pa.string()))
            yield marked.append_column("embedding", vector_array(vectors, self._config.output)) if answered else marked


def _unit(vectors: list[list[float]], sent: list[str], wanted: list[str]) -> np.ndarray:
    """Unit vectors of the ``wanted`` texts, float32 [n, d]; NaN where an answer has no direction."""
    found = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    place = {text: i for i, text in enumerate(sent)}
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((found / norms)[[place[text] for text in wanted]])


def _pack(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _unpack(data: bytes) -> pa.Table:
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


def _details(config: EmbedConfig, total: dict[str, Any], journal: str, size: int) -> dict[str, Any]:
    counts = dict(total["counts"])
    cost_usd = counts.pop("nano_usd", 0) / 1e9
    dimension = {key: value for facts in total["facts"] for key, value in facts.items()}
    return {
        "model": config.model,
        "provider": config.provider,
        **dimension,
        **counts,
        "cost_usd": cost_usd,
        "texts_per_call": size,
        "output": config.output,
        "journal": journal,
    }
