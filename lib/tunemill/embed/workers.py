"""The Ray side of embedding: a pool of actors that each hold a model and add a vector column to blocks."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunemill.embed.config import EmbedConfig
from tunemill.errors import DataError
from tunemill.tables import nearest_column

__all__ = ["Pool", "Tally", "Task", "VectorColumn", "pool_for", "texts_of", "vector_array"]

_ROWS_PER_CALL = {"cpu": (256, 4096), "cuda": (4096, 32768)}
_ROWS_WORTH_A_WORKER = 1000
_CPUS_PER_WORKER = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """How a Dataset is spread over model copies."""

    workers: int
    rows_per_call: int
    threads: int
    gpus: int

    @property
    def options(self) -> dict[str, Any]:
        """Arguments for ``map_batches``."""
        import ray.data

        # Half a CPU is asked for each thread, so that the tasks that read and write always find room beside the models.
        cpus = 0.5 * self.threads if not self.gpus else 1
        return {
            "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=self.workers, max_tasks_in_flight_per_actor=2),
            "num_cpus": cpus,
            **({"num_gpus": self.gpus} if self.gpus else {}),
        }


def pool_for(config: EmbedConfig, *, cpus: int, gpus: int, rows: int | None) -> Pool:
    """Workers, threads and rows per call for a cluster with these CPUs and GPUs; ``rows`` None is unknown."""
    on_gpu = gpus > 0 and config.device != "cpu"
    threads = 1 if on_gpu else max(1, min(_CPUS_PER_WORKER, cpus // 4))
    fitting = gpus if on_gpu else max(1, cpus // threads)
    worth = fitting if rows is None else -(-rows // _ROWS_WORTH_A_WORKER)
    workers = config.workers or max(1, min(fitting, worth))
    least, most = _ROWS_PER_CALL["cuda" if on_gpu else "cpu"]
    share = most if rows is None else -(-rows // (4 * workers))
    return Pool(workers=workers, rows_per_call=max(least, min(most, share)), threads=threads, gpus=1 if on_gpu else 0)


class Tally:
    """A Ray actor's state: what the workers did, by block, so that a task that runs twice counts once."""

    def __init__(self) -> None:
        self._blocks: dict[str, dict[str, int]] = {}
        self._facts: dict[str, dict[str, Any]] = {}

    def add(self, block: str, counts: dict[str, int], facts: dict[str, Any] | None) -> None:
        """Take one block's counts and the worker's model facts."""
        self._blocks[block] = counts
        if facts is not None:
            self._facts[repr(sorted(facts.items(), key=str))] = facts

    def total(self) -> dict[str, Any]:
        """Counts over all blocks, and each different set of facts that workers gave."""
        names = sorted({name for counts in self._blocks.values() for name in counts})
        return {
            "counts": {name: sum(counts.get(name, 0) for counts in self._blocks.values()) for name in names},
            "facts": list(self._facts.values()),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What each worker is told."""

    config: EmbedConfig
    text_column: str
    output_column: str
    sample: tuple[str, ...] = ()
    """Texts for the precision check; empty takes the worker's own first texts."""


class VectorColumn:
    """The actor: adds ``output_column`` to a block; null where the text is empty or has no finite vector."""

    def __init__(self, task: Task, threads: int, tally: Any) -> None:
        self._task = task
        self._threads = threads
        self._tally = tally
        self._embedder: Any = None

    def __call__(self, table: pa.Table) -> pa.Table:
        if not len(table):
            return table
        texts = texts_of(table, self._task.text_column)
        full = [row for row, text in enumerate(texts) if text.strip()]
        embedder = self._ready()
        before = embedder.computed
        found = embedder.embed([texts[row] for row in full])
        vectors = np.full((len(texts), embedder.dimension), np.nan, np.float32)
        vectors[full] = found.vectors
        array = vector_array(vectors, self._task.config.output)
        if self._tally is not None:
            counts = {
                "tokens": int(found.n_tokens.sum()),
                "truncated": int(found.cut.sum()),
                "embedded_now": embedder.computed - before,
            }
            self._tally.add.remote(
                _block_name(table["id"].to_pylist() if "id" in table.column_names else texts), counts, embedder.facts
            )
        if self._task.output_column in table.column_names:
            table = table.drop_columns([self._task.output_column])
        return table.append_column(self._task.output_column, array)

    def _ready(self) -> Any:
        # Not in __init__: an error here reaches the user as it is, an actor that dies at birth hides it.
        if self._embedder is None:
            import torch

            from tunemill.embed.remember import RememberingEmbedder

            torch.set_num_threads(self._threads)
            if self._threads == 1 and torch.cuda.is_available():
                # The node's CPUs have nothing else to do, and one thread cannot tokenise as fast as a GPU embeds.
                os.environ["TOKENIZERS_PARALLELISM"] = "true"
            self._embedder = RememberingEmbedder(self._task.config, sample=self._task.sample)
        return self._embedder


def vector_array(vectors: np.ndarray, output: str) -> pa.FixedSizeListArray:
    """Rows of shape [n, d] as a fixed-size-list array; rows that hold a NaN become null."""
    dtype = np.float16 if output == "float16" else np.float32
    flat = pa.array(np.ascontiguousarray(vectors, dtype).reshape(-1), pa.float16() if output == "float16" else pa.float32())
    missing = ~np.isfinite(vectors).all(axis=1)
    mask = pa.array(missing) if missing.any() else None
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=mask)


def texts_of(table: pa.Table, column: str) -> list[str]:
    """A text column as strings, null as empty; DataError when it is not there or holds something else."""
    if column not in table.column_names:
        raise DataError(f"embed: no column {column!r}{nearest_column(column, table.column_names)}")
    kind = table.schema.field(column).type
    if pa.types.is_null(kind):
        return [""] * len(table)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise DataError(f"embed: column {column!r} holds {kind}, should hold text")
    return pc.fill_null(table[column], "").to_pylist()


def _block_name(values: Sequence[Any]) -> str:
    """The same for a task that runs again; different for other rows (by their ids, where they have some)."""
    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        digest.update(str(value).encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
