"""What every stage shares: where its rows come from, how they are committed, and when it is skipped.

A stage is a :class:`Stage`: a name, a config class, and ``execute(context, source, config)`` that
returns an :class:`Outcome`. Stages that map rows to rows build a lazy Ray Dataset with a ``reason``
column (null for kept rows) and hand it to :func:`commit_rows`; the transforming part stays separable.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from tunemill.config import essential, fingerprint
from tunemill.errors import DataError
from tunemill.progress import Progress
from tunemill.resources import connect
from tunemill.store import Location, Manifest, StageStore, new_attempt

__all__ = ["Outcome", "Source", "Stage", "StageContext", "commit_rows", "run_stage", "stage_source", "write_table"]

C = TypeVar("C")


class Source(Protocol):
    """Rows that a stage reads."""

    @property
    def describe(self) -> dict[str, Any]:
        """Plain facts for the manifest; ``fingerprint`` changes when the rows may have changed."""

    def count(self) -> int:
        """Number of rows."""

    def columns(self) -> list[str]:
        """Names of the columns."""

    def dataset(self) -> Any:
        """A fresh lazy ``ray.data.Dataset`` of the rows, in order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageContext:
    """What a stage needs besides its rows and its config."""

    store: StageStore
    attempt: str
    seed: int
    progress: Progress
    run: Location | None = None
    """The run folder when the stage is part of a run; None when it is called alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage did: counts that must add up, files by kind (paths relative to its folder), details."""

    rows_in: int
    rows_kept: int
    rows_dropped: Mapping[str, int]
    files: Mapping[str, list[str]]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage(Generic[C]):
    """One step of the system."""

    name: str
    config_type: type[C]
    execute: Callable[[StageContext, Any, C], Outcome]
    grows: Callable[[dict[str, Any], dict[str, Any]], bool] = lambda old, new: False
    """True when ``new`` config only asks for more than ``old`` (so that no ``--overwrite`` is needed)."""
    check: Callable[[C], None] = lambda config: None
    """Refuse, before anything runs or costs, what is wrong with the config (a missing model, file or key)."""
    unfinished: Callable[[Manifest, C], bool] = lambda manifest, config: False
    """True when a committed stage still has work (rows that a spending cap held back)."""


@dataclasses.dataclass(frozen=True)
class CommittedSource:
    """The kept rows of a finished stage."""

    store: StageStore
    manifest: Manifest

    @property
    def describe(self) -> dict[str, Any]:
        """The stage's identity and count."""
        return {"stage": self.manifest.stage, "rows": self.manifest.rows_kept, "fingerprint": self.manifest.output_fingerprint}

    def count(self) -> int:
        """Rows kept by the stage."""
        return self.manifest.rows_kept

    def columns(self) -> list[str]:
        """Columns of the first committed file."""
        files = self.store.committed("data")
        return list(pq.read_schema(files[0].path, filesystem=files[0].fs).names) if files else []

    def dataset(self) -> Any:
        """The committed parquet files in row order."""
        import ray.data

        files = self.store.committed("data")
        if not files:
            raise DataError(
                f"{self.store.folder.url}: stage {self.manifest.stage} kept no rows, so there is nothing to go on with"
            )
        return ray.data.read_parquet([f.path for f in files], filesystem=files[0].fs, file_extensions=None)


def stage_source(store: StageStore) -> CommittedSource:
    """The rows of a finished stage; DataError when it has not finished."""
    manifest = store.read_manifest()
    if manifest is None:
        raise DataError(f"{store.folder.url}: this stage has not finished; run it first")
    return CommittedSource(store, manifest)


def run_stage(
    stage: Stage[C], source: Source, config: C, context: StageContext, *, overwrite: bool, stale_ok: bool = False
) -> Manifest:
    """Skip, refuse or execute a stage, and commit it.

    ``stale_ok`` allows replacing output whose only difference is its input (an earlier stage of the
    same run was made again). Raises ResumeRefused on any other mismatch without ``overwrite``.
    """
    wanted, input_ = essential(config), source.describe
    found = context.store.read_manifest()
    if found is not None:
        if is_done(stage, config, context.store, input_):
            context.progress.skipped(stage.name, found.rows_kept)
            return found
        same_config = found.config == wanted or stage.grows(found.config, wanted)
        same_input = found.input.get("fingerprint") == input_["fingerprint"]
        if not overwrite and not (same_config and (same_input or stale_ok)):
            context.store.refuse_mismatch(wanted, input_)
    stage.check(config)
    context.store.folder.make_folder()
    context.store.clean()
    connect()
    started = time.monotonic()
    with context.progress.stage(stage.name):
        outcome = stage.execute(context, source, config)
    manifest = Manifest(
        stage=stage.name,
        config=wanted,
        config_fingerprint=fingerprint(config),
        input=input_,
        rows_in=outcome.rows_in,
        rows_kept=outcome.rows_kept,
        rows_dropped=dict(outcome.rows_dropped),
        files=dict(outcome.files),
        seconds=round(time.monotonic() - started, 3),
        details=dict(outcome.details),
        attempt=context.attempt,
    )
    committed = context.store.commit(manifest)
    context.progress.finished(committed)
    return committed


def is_done(stage: Stage[C], config: C, store: StageStore, input_: Mapping[str, Any]) -> bool:
    """True when the stage finished with this configuration and input and has nothing left to do."""
    found = store.read_manifest()
    return found is not None and store.matches(essential(config), input_) and not stage.unfinished(found, config)


def commit_rows(
    context: StageContext,
    dataset: Any,
    *,
    rows_in: int,
    kept_columns: Sequence[str] | None = None,
    dropped_columns: Sequence[str] | None = None,
    dropped_only: Sequence[str] = (),
    details: Callable[[], Mapping[str, Any]] = dict,
) -> Outcome:
    """Run a lazy Dataset whose ``reason`` column is null for kept rows, and write both tables.

    Each block is written by the worker that holds it, under a name of its own, and only names that
    reach the driver are committed, so a retried task never doubles rows. ``kept_columns`` and
    ``dropped_columns`` select and order the columns; ``dropped_only`` columns leave the kept table.
    ``details`` is called after the data has flowed.
    """
    from tunemill.tables import Writer

    writer = Writer(
        folder=context.store.folder,
        attempt=context.attempt,
        kept_columns=None if kept_columns is None else tuple(kept_columns),
        dropped_columns=None if dropped_columns is None else tuple(dropped_columns),
        dropped_only=("reason", *dropped_only),
    )
    files: dict[str, list[str]] = {"data": [], "dropped": []}
    dropped: dict[str, int] = {}
    kept = 0
    written = dataset.map_batches(writer, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
    context.progress.total(rows_in)
    for batch in written.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in batch.to_pylist():
            if row["file"]:
                files[row["kind"]].append(row["file"])
            if row["kind"] == "data":
                kept += row["rows"]
            for reason, count in zip(row["reasons"], row["counts"], strict=True):
                dropped[reason] = dropped.get(reason, 0) + count
            context.progress.advance(row["rows"], dropped=sum(row["counts"]))
    return Outcome(rows_in=rows_in, rows_kept=kept, rows_dropped=dict(sorted(dropped.items())), files=files, details=details())


def write_table(context: StageContext, kind: str, table: pa.Table, name: str = "table") -> str:
    """Write a side table of a stage as ``<kind>/<attempt>-<name>.parquet``; returns the path to list under ``files``."""
    relative = f"{kind}/{context.attempt}-{name}.parquet"
    target = context.store.folder.join(relative)
    target.fs.create_dir(context.store.folder.join(kind).path, recursive=True)
    pq.write_table(table, target.path, filesystem=target.fs, compression="zstd")
    return relative


def new_context(store: StageStore, *, seed: int, progress: Progress, run: Location | None = None) -> StageContext:
    """A context for one attempt at a stage."""
    return StageContext(store=store, attempt=new_attempt(), seed=seed, progress=progress, run=run)
