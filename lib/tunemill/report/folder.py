"""What a run folder holds, read so that any stage, file or column may be missing.

A run that is still going or that stopped half-way has some manifests and not others; a page is made of
what is there.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from tunemill.errors import ConfigError, DataError
from tunemill.store import Location, Manifest, StageStore

__all__ = ["STAGES", "RunFolder", "open_run"]

STAGES = ("generate", "clean", "embed", "dedup", "split", "template", "finetune", "evaluate")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run's folder with its configuration and the manifests of its finished stages."""

    folder: Location
    config: dict[str, Any]
    stores: dict[str, StageStore]
    """Where each stage that has begun keeps its files."""
    manifests: dict[str, Manifest]

    @functools.cached_property
    def expected(self) -> list[str]:
        """The stages that the configuration asks for, or those that have begun, in order."""
        from tunemill.config import build
        from tunemill.pipeline import PipelineConfig, complete, stage_names

        asked: Sequence[str]
        try:
            asked = stage_names(complete(build(PipelineConfig, self.config, "run.yaml")))
        except ConfigError:  # of another version, or of a stage called alone: its sections still tell
            asked = [name for name in STAGES if self.config.get(name) is not None]
        return [name for name in STAGES if name in asked or name in self.stores]

    def details(self, stage: str) -> dict[str, Any]:
        """What a finished stage said of itself; empty when it has not finished."""
        manifest = self.manifests.get(stage)
        return manifest.details if manifest else {}

    def table(self, stage: str, kind: str, columns: Sequence[str], *, most_rows: int | None = None) -> pa.Table | None:
        """Those of ``columns`` that exist, of the committed files of a kind; None where there is nothing.

        With ``most_rows`` reading stops after the file that fills them, and the rest is cut off.
        """
        manifest = self.manifests.get(stage)
        tables: list[pa.Table] = []
        rows = 0
        for name in manifest.files.get(kind, []) if manifest else []:
            table = _read(self.stores[stage].folder.join(name), columns)
            if table is None or not table.num_columns:
                continue
            tables.append(table)
            rows += len(table)
            if most_rows is not None and rows >= most_rows:
                break
        if not tables:
            return None
        whole = pa.concat_tables(tables, promote_options="permissive")
        return whole if most_rows is None else whole.slice(0, most_rows)

    def rows_by_id(self, stage: str, ids: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The rows of a stage's ``data`` with these ids, by id."""
        found: dict[str, dict[str, Any]] = {}
        manifest = self.manifests.get(stage)
        for name in manifest.files.get("data", []) if manifest and ids else []:
            file = self.stores[stage].folder.join(name)
            keys = _read(file, ["id"])
            if keys is None or not keys.num_columns or not pc.any(pc.is_in(keys["id"], pa.array(list(ids)))).as_py():
                continue
            table = _read(file, ["id", *columns])
            if table is not None:
                wanted = table.filter(pc.is_in(table["id"], pa.array(list(ids))))
                found |= {str(row["id"]): row for row in wanted.to_pylist()}
        return found

    def lines(self, stage: str, name: str) -> list[dict[str, Any]]:
        """The complete lines of a JSONL file that a stage writes while it runs; empty when there is none."""
        store = self.stores.get(stage)
        if store is None:
            return []
        try:
            text = store.folder.join(name).read_text()
        except (FileNotFoundError, UnicodeDecodeError):
            return []
        return list(itertools.chain.from_iterable(_parsed(line) for line in text.splitlines()))


def open_run(folder: Location) -> RunFolder:
    """Read what is there of a run, or of one stage called alone; DataError when it is neither."""
    alone = StageStore(folder)
    manifest = alone.read_manifest()
    if manifest is not None:
        return RunFolder(folder=folder, config={}, stores={manifest.stage: alone}, manifests={manifest.stage: manifest})
    stores = {name: StageStore(folder.join(name)) for name in STAGES if folder.join(name).exists()}
    manifests = {name: found for name, store in stores.items() if (found := store.read_manifest()) is not None}
    config_file = folder.join("run.yaml")
    if not stores and not config_file.exists():
        raise DataError(f"{folder.url}: is not the folder of a run (it has no run.yaml and no stage in it)")
    return RunFolder(folder=folder, config=_config(config_file), stores=stores, manifests=manifests)


def _config(file: Location) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        return {}
    except yaml.YAMLError as error:
        raise DataError(f"{file.url}: not valid YAML; restore it, or delete it to report without the configuration") from error
    return values if isinstance(values, dict) else {}


def _read(file: Location, columns: Sequence[str]) -> pa.Table | None:
    try:
        with file.fs.open_input_file(file.path) as stream:
            parquet = pq.ParquetFile(stream)
            present = [name for name in dict.fromkeys(columns) if name in parquet.schema_arrow.names]
            return parquet.read(columns=present)
    except FileNotFoundError:
        # A stage that is being made again right now has replaced the file since its manifest was read.
        return None


def _parsed(line: str) -> list[dict[str, Any]]:
    try:
        values = json.loads(line)
    except ValueError:
        # The last line of a running or killed writer.
        return []
    return [values] if isinstance(values, dict) else []
