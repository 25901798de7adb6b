"""The embed stage, and :func:`add_embeddings` for stages that need vectors on the way."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tunemill.embed.api import PENDING, check_api, embed_by_api
from tunemill.embed.config import EmbedConfig
from tunemill.embed.models import find
from tunemill.embed.workers import Pool, Tally, Task, VectorColumn, pool_for
from tunemill.errors import DataError
from tunemill.resources import cluster_resources, connect
from tunemill.stage import Outcome, Source, Stage, StageContext, commit_rows
from tunemill.store import Manifest
from tunemill.tables import nearest_column

__all__ = ["STAGE", "add_embeddings"]

_SAMPLE_ROWS = 256


def add_embeddings(dataset: Any, config: EmbedConfig, *, text_column: str, output_column: str = "embedding") -> Any:
    """A lazy Dataset with unit vectors of ``text_column``; null where the text is empty.

    The first texts are read at once, for the check of the data type that all workers share.
    """
    connect()
    cpus, gpus = cluster_resources()
    pool = pool_for(config, cpus=cpus, gpus=gpus, rows=None)
    sample = _sample(dataset, config, text_column)
    task = Task(config=config, text_column=text_column, output_column=output_column, sample=sample)
    return _with_vectors(dataset, task, pool, None)


def execute(context: StageContext, source: Source, config: EmbedConfig) -> Outcome:
    """Embed the text column; rows without text are dropped as ``empty_text``."""
    import ray

    columns = source.columns()
    if config.text_column not in columns:
        raise DataError(f"embed.text_column: no column {config.text_column!r}{nearest_column(config.text_column, columns)}")
    connect()
    rows = source.count()
    carried = [name for name in columns if name not in ("embedding", "reason", "error")]
    if config.provider != "local":
        return embed_by_api(context, source.dataset(), config, rows=rows, columns=carried)
    cpus, gpus = cluster_resources()
    pool = pool_for(config, cpus=cpus, gpus=gpus, rows=rows)
    dataset = source.dataset()
    tally = ray.remote(Tally).options(num_cpus=0).remote()
    even = dataset.repartition(target_num_rows_per_block=pool.rows_per_call)
    task = Task(
        config=config,
        text_column=config.text_column,
        output_column="embedding",
        sample=_sample(dataset, config, config.text_column),
    )
    embedded = _with_vectors(even, task, pool, tally)
    return commit_rows(
        context,
        embedded.map_batches(_Reasons(config.text_column), batch_size=None, batch_format="pyarrow"),
        rows_in=rows,
        kept_columns=[*carried, "embedding"],
        dropped_columns=[*carried, "reason"],
        details=lambda: _details(ray.get(tally.total.remote()), config, pool),
    )


def _with_vectors(dataset: Any, task: Task, pool: Pool, tally: Any) -> Any:
    return dataset.map_batches(
        VectorColumn,
        fn_constructor_args=(task, pool.threads, tally),
        batch_size=pool.rows_per_call,
        batch_format="pyarrow",
        **pool.options,
    )


def _sample(dataset: Any, config: EmbedConfig, column: str) -> tuple[str, ...]:
    """The first texts, the same for every worker, so that all settle on the same data type."""
    if config.precision == "fp32":
        return ()
    head = dataset.select_columns([column]).limit(_SAMPLE_ROWS).take_all()
    return tuple(text for row in head if isinstance(text := row[column], str) and text.strip())


class _Reasons:
    """Why a row has no vector; null where it has one."""

    def __init__(self, text_column: str) -> None:
        self._text_column = text_column

    def __call__(self, table: pa.Table) -> pa.Table:
        plain = table.drop_columns(["reason"]) if "reason" in table.column_names else table
        if not len(plain) or "embedding" not in plain.column_names:
            return plain
        texts = plain[self._text_column].cast(pa.string())
        empty = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(texts, "")), "")
        lost = pc.if_else(pc.is_null(plain["embedding"]), "not_finite", pa.scalar(None, pa.string()))
        return plain.append_column("reason", pc.if_else(empty, "empty_text", lost))


def _details(total: dict[str, Any], config: EmbedConfig, pool: Pool) -> dict[str, Any]:
    facts = total["facts"][0] if total["facts"] else {}
    others = [f for f in total["facts"][1:] if f.get("precision") != facts.get("precision")]
    return {
        **facts,
        **total["counts"],
        "output": config.output,
        "workers": pool.workers,
        "threads": pool.threads,
        **({"mixed_precision": [f.get("precision") for f in others]} if others else {}),
    }


def check(config: EmbedConfig) -> None:
    """Raise ConfigError, before anything runs, for a model that is not there or an API that cannot be called."""
    if config.provider == "local":
        find(config)
    else:
        check_api(config)


def _unfinished(manifest: Manifest, config: EmbedConfig) -> bool:
    """Rows wait for a higher cap, a new day, or the end of an interruption."""
    return any(manifest.rows_dropped.get(reason) for reason in PENDING)


STAGE = Stage(name="embed", config_type=EmbedConfig, execute=execute, unfinished=_unfinished, check=check)
