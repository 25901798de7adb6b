"""Runs a stage of a run, a stage alone on a user's files, and all stages of a run in order."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import yaml

from tunemill.cli import Command, Options, Parsed, parse
from tunemill.config import build, essential, fingerprint, overlay, to_plain
from tunemill.errors import ConfigError, DataError, ResumeRefused
from tunemill.generate.config import GenerateConfig
from tunemill.generate.rows import PlanSource
from tunemill.pipeline import ORDER, PipelineConfig, StageName, complete, stage_names, upstream
from tunemill.progress import Progress
from tunemill.stage import Source, Stage, is_done, new_context, run_stage, stage_source
from tunemill.store import Location, Manifest, StageStore
from tunemill.tables import FileSource, InputConfig

__all__ = ["NoRows", "Run", "StageOptions", "exclusive", "run_stage_job", "stage_command"]

C = TypeVar("C")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageOptions(Options):
    """Flags of a stage that is called by itself."""

    input: str | None = None
    """Your own rows: one file, a folder or a glob (parquet, JSONL, JSONL.gz, CSV), local, s3:// or gs://."""
    output: str | None = None
    """Folder for the result; with --config and without --input, the folder of the run."""
    format: str | None = None
    """How rows are written: sharegpt, messages, alpaca, prompt_completion or text; recognised by the columns."""
    id_column: str | None = None
    """Column that identifies a row; made from the content when left out."""
    text_columns: tuple[str, ...] = ()
    """Columns that hold the text."""
    label_column: str | None = None
    """Column that holds the label."""
    limit: int | None = None
    """Take only the first N rows."""
    seed: int | None = None
    """Seed of every random choice (default: 0, or the run's)."""


@dataclasses.dataclass(frozen=True)
class NoRows:
    """The source of a stage that makes its own rows (generate)."""

    @property
    def describe(self) -> dict[str, Any]:
        """Nothing is read."""
        return {"fingerprint": fingerprint("no rows")}

    def count(self) -> int:
        """None."""
        return 0

    def columns(self) -> list[str]:
        """None."""
        return []

    def dataset(self) -> Any:
        """There is none."""
        raise DataError("this stage reads no rows; give --input")


@contextlib.contextmanager
def exclusive(folder: Location) -> Iterator[None]:
    """Hold a folder for this process, so that two commands never pay for the same calls.

    The lock ends with the process, also by ``kill -9``. Object stores have no such lock.
    """
    if folder.is_remote:
        yield
        return
    folder.make_folder()
    with open(os.path.join(folder.path, ".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"output {folder.url}: another tunemill process is at work there; wait for it or choose another output"
            ) from error
        yield


@dataclasses.dataclass
class Run:
    """The stages of one run, one after the other, each reading what the last one kept."""

    folder: Location
    config: PipelineConfig
    progress: Progress
    overwrite: bool

    def store(self, name: str) -> StageStore:
        """The folder of one stage."""
        return StageStore(self.folder.join(name))

    def source_of(self, name: StageName) -> Source:
        """What a stage reads: the user's rows, an earlier stage, or nothing."""
        before = upstream(self.config, name)
        if before is not None:
            return stage_source(self.store(before))
        if self.config.generate is not None and name == "generate":
            return PlanSource.of(self.config.generate, self.config.run.seed)
        return FileSource(self.config.input) if self.config.input is not None else NoRows()

    def stage(self, stage: Stage[C]) -> Manifest:
        """Run one stage unless it is done."""
        name = _stage_name(stage.name)
        context = new_context(self.store(name), seed=self.config.run.seed, progress=self.progress, run=self.folder)
        inside = upstream(self.config, name) is not None
        return run_stage(
            stage, self.source_of(name), getattr(self.config, name), context, overwrite=self.overwrite, stale_ok=inside
        )

    def refuse_early(self, stages: Sequence[Stage[Any]]) -> None:
        """Before anything runs: raise for a finished stage with other settings, or for settings that cannot work."""
        first = stage_names(self.config)[0]
        source, found = self.source_of(first), self.store(first).read_manifest()
        if found is None:
            source.columns()
        elif not self.overwrite and self.config.input is not None:
            self._refuse_changed_input(found, source)
        for stage in stages:
            name = _stage_name(stage.name)
            config, store = getattr(self.config, name), self.store(name)
            found = store.read_manifest()
            if found is None:
                stage.check(config)
            elif not self.overwrite and not stage.grows(found.config, wanted := essential(config)):
                store.refuse_mismatch(wanted, found.input)

    def _refuse_changed_input(self, found: Manifest, source: Source) -> None:
        if found.input.get("fingerprint") != source.describe["fingerprint"]:
            raise ResumeRefused(
                f"{self.folder.url}: made from other rows than the input now holds; "
                "add --overwrite to replace it, or choose another output"
            )

    def write_config(self) -> None:
        """Write ``run.yaml``; keys are never in a configuration, only the names of their variables."""
        text = yaml.safe_dump(to_plain(self.config), allow_unicode=True, sort_keys=False)
        self.folder.join("run.yaml").write_text(text)


def stage_command(stage: Stage[Any], usage: str) -> Command:
    """The command line of one stage."""
    return Command(job=stage.name, usage=usage, config_type=stage.config_type, section=stage.name, options_type=StageOptions)


def run_stage_job(stage: Stage[C], argv: Sequence[str], usage: str) -> Manifest:
    """``tunemill <stage>``: on a user's files (--input, --output), or within a run (--config)."""
    parsed = parse(stage_command(stage, usage), argv)
    options: StageOptions = parsed.options
    if options.input is None and options.output is None and options.config is not None:
        return _within_run(stage, parsed)
    makes_rows = stage.name == "generate"
    if options.output is None or (options.input is None and not makes_rows):
        missing = "--output DIR" if options.output is None else "--input PATH"
        raise ConfigError(
            f"tunemill {stage.name}: {missing} is missing; by itself a stage needs both, within a run only --config FILE"
        )
    return _alone(stage, parsed)


def _within_run(stage: Stage[C], parsed: Parsed[C]) -> Manifest:
    options: StageOptions = parsed.options
    values = overlay(parsed.file_values, {stage.name: parsed.values})
    if options.seed is not None:
        values = overlay(values, {"run": {"seed": options.seed}})
    config = complete(build(PipelineConfig, values, parsed.where))
    if getattr(config, _stage_name(stage.name)) is None:
        raise ConfigError(f"{parsed.where}: has no section {stage.name!r}, so there is nothing to do")
    run = Run(Location.of(config.run.output), config, parsed.progress(), options.overwrite)
    with exclusive(run.folder):
        run.write_config()
        return run.stage(stage)


def _alone(stage: Stage[C], parsed: Parsed[C]) -> Manifest:
    options: StageOptions = parsed.options
    values = dict(parsed.values)
    fields = {field.name for field in dataclasses.fields(stage.config_type)}  # type: ignore[arg-type]
    renamed = options.text_columns
    if renamed and "text_columns" in fields:
        values["text_columns"], renamed = list(renamed), ()
    elif renamed and "text_column" in fields:
        values["text_column"], renamed = renamed[0], ()
    if options.format is not None and "format" in fields:
        values["format"] = options.format
    config = build(stage.config_type, values, parsed.where)
    source: Source = (
        PlanSource.of(config, options.seed or 0) if isinstance(config, GenerateConfig) and options.input is None else NoRows()
    )
    if options.input is not None:
        mapping: Mapping[str, Any] = {
            "path": options.input,
            "format": options.format or "auto",
            "id_column": options.id_column,
            "text_columns": renamed,
            "label_column": options.label_column,
            "limit": options.limit,
        }
        source = _user_source(build(InputConfig, mapping, "flags"))
    folder = Location.of(str(options.output))
    store = StageStore(folder)
    with exclusive(folder):
        context = new_context(store, seed=options.seed or 0, progress=parsed.progress())
        if not is_done(stage, config, store, source.describe):
            source.columns()
        return run_stage(stage, source, config, context, overwrite=options.overwrite)


def _user_source(config: InputConfig) -> Source:
    """A user's files, or the committed rows of a stage folder of an earlier run."""
    if not any(mark in config.path for mark in "*?["):
        store = StageStore(Location.of(config.path))
        plain = InputConfig(path=config.path)
        if dataclasses.replace(config, format="auto") == plain and store.folder.join("manifest.json").exists():
            return stage_source(store)
    return FileSource(config)


def _stage_name(name: str) -> StageName:
    return next(known for known in ORDER if known == name)
