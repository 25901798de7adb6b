"""A run's split rows -> a ``datasets.DatasetDict`` on disk, written file by file, and on the hub when asked."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import yaml

from tunemill.errors import ConfigError, DataError
from tunemill.export.card import CardFacts, render
from tunemill.export.config import ExportConfig
from tunemill.hub import check_token, uploading
from tunemill.store import Location, Manifest, StageStore

__all__ = ["Exported", "export"]

_STAGES = ("generate", "clean", "embed", "dedup", "split")
_SPLITS = ("train", "validation", "test")
_MOST_CLASSES = 1000
_NOT_EXPORTED = ("split", "embedding", "reason")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written where."""

    folder: Location
    rows: Mapping[str, int]
    """Rows of each split."""
    url: str | None = None
    """Address on the hub, when it was uploaded."""


def export(run: Location, config: ExportConfig, *, overwrite: bool = False) -> Exported:
    """Write RUN's rows as ``datasets.load_from_disk`` reads them.

    Raises DataError when the run has no split stage or lacks a column, ConfigError when the output exists
    (without ``overwrite``) or when the hub is asked for and there is no token.
    """
    from datasets import DatasetDict

    store = StageStore(run.join("split"))
    files = store.committed("data")
    if not files:
        raise DataError(f"{run.url}: no rows to export, the split stage has not finished; run: tunemill run --config FILE")
    output = run.join("export") if config.output is None else Location.of(config.output)
    if output.exists() and not overwrite:
        raise ConfigError(f"output {output.url}: already there; add --overwrite to replace it, or choose another --output")
    if config.push_to_hub:
        check_token("export.push_to_hub")
    schema = pq.read_schema(files[0].path, filesystem=files[0].fs)
    columns = _columns(schema, config, run)
    classes, counts = _labels(files, config.label_column if config.label_column in columns else None)
    shape = _Shape(columns, config.label_column, classes)
    features = shape.features(schema)
    with tempfile.TemporaryDirectory(prefix="tunemill-export-") as scratch:
        splits = {name: _split(files, name, features, shape, Path(scratch)) for name in counts}
        dataset = DatasetDict(splits)
        facts = CardFacts(
            name=(config.push_to_hub or run.name).rsplit("/", 1)[-1],
            config=_run_config(run),
            stages=_manifests(run),
            splits=counts,
            columns={name: _type_name(feature) for name, feature in features.items()},
        )
        card = render(facts)
        _write(dataset, card, output, Path(scratch) / "dataset")
        url = _push(dataset, card, config) if config.push_to_hub else None
        return Exported(folder=output, rows={name: len(split) for name, split in splits.items()}, url=url)


def _columns(schema: pa.Schema, config: ExportConfig, run: Location) -> list[str]:
    for name in config.columns:
        if name not in schema.names:
            raise DataError(f"{run.url}: no column {name!r} to export (columns: {', '.join(schema.names)})")
    return list(config.columns) or [name for name in schema.names if name not in _NOT_EXPORTED and not name.startswith("_")]


def _labels(files: list[Location], column: str | None) -> tuple[list[str] | None, dict[str, Counter[str]]]:
    """The class names (None where the label is no class), and the rows of each split that has some, by label."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in _SPLITS}
    for file in files:
        table = pq.read_table(file.path, filesystem=file.fs, columns=["split", *([column] if column else [])])
        labels = [""] * len(table) if column is None else ["" if v is None else str(v) for v in table[column].to_pylist()]
        for split, label in zip(table["split"].to_pylist(), labels, strict=True):
            counts[split][label] += 1
    counts = {name: counter for name, counter in counts.items() if counter}
    known = sorted({label for counter in counts.values() for label in counter if label})
    if not known or len(known) > _MOST_CLASSES:
        return None, {name: Counter({"": counter.total()}) for name, counter in counts.items()}
    return known, counts


@dataclasses.dataclass(frozen=True)
class _Shape:
    """Which columns are written, and how."""

    columns: list[str]
    label: str
    classes: list[str] | None
    """Names of the label's classes; None where it stays as it is."""

    def features(self, schema: pa.Schema) -> Any:
        """The ``datasets.Features`` of the exported columns."""
        from datasets import ClassLabel, Features

        found = Features.from_arrow_schema(pa.schema([schema.field(name) for name in self.columns]))
        if self.classes is not None:
            found[self.label] = ClassLabel(names=self.classes)
        return found

    def apply(self, table: pa.Table) -> pa.Table:
        """The exported columns, the label as the position of its class; a missing label stays missing."""
        chosen = table.select(self.columns)
        if self.classes is None:
            return chosen
        codes = pc.index_in(chosen[self.label].cast(pa.string()), value_set=pa.array(self.classes)).cast(pa.int64())
        return chosen.set_column(self.columns.index(self.label), self.label, codes)


def _split(files: list[Location], split: str, features: Any, shape: _Shape, scratch: Path) -> Any:
    """A memory-mapped ``datasets.Dataset`` of one split's rows."""
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    path = scratch / f"{split}.arrow"
    with ArrowWriter(features=features, path=str(path)) as writer:
        for file in files:
            table = pq.read_table(file.path, filesystem=file.fs, filters=pc.field("split") == split)
            if len(table):
                writer.write_table(shape.apply(table).cast(features.arrow_schema))
        writer.finalize()
    return Dataset.from_file(str(path))


def _write(dataset: Any, card: str, output: Location, scratch: Path) -> None:
    dataset.save_to_disk(str(scratch))
    (scratch / "README.md").write_text(card, encoding="utf-8")
    if output.is_remote:
        output.delete()
        pafs.copy_files(str(scratch), output.path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=output.fs)
        return
    output.make_folder()
    aside = Path(f"{output.path}.part")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(scratch, aside)
    output.delete()
    os.replace(aside, output.path)


def _push(dataset: Any, card: str, config: ExportConfig) -> str:
    """Upload the splits, then the card with the hub's own metadata (which file is which split) kept in front."""
    from huggingface_hub import DatasetCard

    name = str(config.push_to_hub)
    with uploading(f"export.push_to_hub {name!r}"):
        dataset.push_to_hub(name, private=config.private)
        made = DatasetCard.load(name)
        ours = DatasetCard(card, ignore_metadata_errors=True)
        merged = {**ours.data.to_dict(), **made.data.to_dict()}
        front = yaml.safe_dump(merged, sort_keys=False, allow_unicode=True)
        DatasetCard(f"---\n{front}---\n{ours.text}", ignore_metadata_errors=True).push_to_hub(name)
    return f"https://huggingface.co/datasets/{name}"


def _run_config(run: Location) -> dict[str, Any]:
    try:
        return yaml.safe_load(run.join("run.yaml").read_text()) or {}
    except FileNotFoundError:
        return {}


def _manifests(run: Location) -> list[Manifest]:
    found = (StageStore(run.join(name)).read_manifest() for name in _STAGES)
    return [manifest for manifest in found if manifest is not None]


def _type_name(feature: Any) -> str:
    names = getattr(feature, "names", None)
    if names is not None:
        return f"class: {', '.join(f'{i} = {name}' for i, name in enumerate(names))}"
    return str(getattr(feature, "dtype", None) or type(feature).__name__.lower())
