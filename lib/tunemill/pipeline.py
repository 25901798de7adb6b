"""The configuration of a whole run: one YAML file, one section for each stage.

Also fills in what one section takes from another (the tokenizer of ``template`` is the model of
``finetune``, and so on), so that a stage run alone and in a pipeline gets the same config.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from tunemill.chat.config import TemplateConfig
from tunemill.clean.config import CleanConfig
from tunemill.config import operational
from tunemill.dedup.config import DedupConfig
from tunemill.embed.config import EmbedConfig
from tunemill.errors import ConfigError
from tunemill.evaluate.config import EvaluateConfig
from tunemill.finetune.config import FinetuneConfig
from tunemill.generate.config import GenerateConfig
from tunemill.split.config import SplitConfig
from tunemill.tables import InputConfig

__all__ = ["ORDER", "PipelineConfig", "RunConfig", "StageName", "complete", "stage_names", "upstream"]

StageName = Literal["generate", "clean", "embed", "dedup", "split", "template", "finetune", "evaluate"]
ORDER: tuple[StageName, ...] = ("generate", "clean", "embed", "dedup", "split", "template", "finetune", "evaluate")
_ADAPTER_STAGES = ("finetune", "evaluate")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run lies and how far it goes."""

    output: str = operational("runs/run")
    """Folder of the run, local, s3:// or gs://; relative to where the command is typed."""
    seed: int = 0
    """Seed of every random choice."""
    until: StageName | None = operational(None)
    """Last stage to run; null runs all."""


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """A run from prompts (``generate``) or from the user's own rows (``input``) to a tuned, evaluated model."""

    run: RunConfig = field(default_factory=RunConfig)
    """Where the run lies."""
    input: InputConfig | None = None
    """The user's own rows, in place of generate."""
    generate: GenerateConfig | None = None
    """Ask models for labelled texts."""
    clean: CleanConfig | None = None
    """Strip padding from answers; by default only what generate made is cleaned."""
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    """Texts to vectors."""
    dedup: DedupConfig = field(default_factory=DedupConfig)
    """Near-duplicates out."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Train, validation and test."""
    template: TemplateConfig = field(default_factory=TemplateConfig)
    """Chat template, token ids and loss weights."""
    finetune: FinetuneConfig | None = None
    """LoRA fine-tuning; without this section the run ends with the training set."""
    evaluate: EvaluateConfig | None = None
    """Label probabilities before and after tuning."""

    def __post_init__(self) -> None:
        if (self.input is None) == (self.generate is None):
            raise ConfigError(
                "a run starts from one section: generate (ask models) or input (your own rows), not both or neither"
            )


def complete(config: PipelineConfig) -> PipelineConfig:
    """Fill the fields whose default is another section's value."""
    several = len(config.dedup.text_columns) > 1
    column = config.embed.text_column if several else config.dedup.text_columns[0]
    embed = dataclasses.replace(config.embed, text_column=column)
    template, evaluate = config.template, config.evaluate
    if template.tokenizer is None and config.finetune is not None:
        template = dataclasses.replace(template, tokenizer=config.finetune.base_model)
    if template.format == "auto" and config.input is not None:
        template = dataclasses.replace(template, format=config.input.format)
    if template.task is None and evaluate is not None and evaluate.labels:
        template = dataclasses.replace(template, task="classify")
    if evaluate is not None and evaluate.base_model is None and config.finetune is not None:
        evaluate = dataclasses.replace(evaluate, base_model=config.finetune.base_model)
    clean = config.clean
    if clean is None and config.generate is not None:
        clean = CleanConfig()
    return dataclasses.replace(
        config,
        clean=clean,
        embed=embed,
        dedup=dataclasses.replace(config.dedup, embed=embed),
        template=template,
        evaluate=evaluate,
    )


def stage_names(config: PipelineConfig) -> list[StageName]:
    """The stages of this run, in order. ConfigError when ``run.until`` names a stage that is not among them."""
    names = [name for name in ORDER if getattr(config, name) is not None]
    if len(config.dedup.text_columns) > 1:
        names.remove("embed")  # several text columns need a vector each, which the dedup stage makes for itself
    if config.template.tokenizer is None and config.finetune is None:
        names.remove("template")  # nobody is to be trained, so there is no template to render
    until = config.run.until
    if until is None:
        return names
    if until not in names:
        raise ConfigError(f"run.until is {until!r}, which is not a stage of this run; should be one of {', '.join(names)}")
    return names[: names.index(until) + 1]


def upstream(config: PipelineConfig, name: StageName) -> StageName | None:
    """The stage whose rows ``name`` reads, or None for the first one."""
    names = stage_names(dataclasses.replace(config, run=dataclasses.replace(config.run, until=None)))
    before = names[: names.index(name)] if name in names else [n for n in names if ORDER.index(n) < ORDER.index(name)]
    readable = [n for n in before if n not in _ADAPTER_STAGES]
    return readable[-1] if readable else None
