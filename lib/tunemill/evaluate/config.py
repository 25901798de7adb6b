"""Configuration of the evaluate stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from tunemill.config import operational
from tunemill.errors import ConfigError

__all__ = ["EvaluateConfig"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score every label for every held-out row, with the base model and with the tuned one."""

    labels: tuple[str, ...] = ()
    """The labels to choose between; empty takes the distinct labels of the rows."""

    positive_label: str | None = None
    """The class of positive F1 and ROC-AUC; default: the first of `labels`, or the last in sorted order where labels is empty."""

    base_model: str | None = None
    """Hub name, local folder or embedded/smollm2-135m; default: the model that the adapter was trained on."""

    adapter: str | None = None
    """Folder of the PEFT adapter; default: the adapter of the same run, if there is one."""

    tokenizer: str | None = None
    """Whose chat template builds the prompts, named as in template.tokenizer; default: the run's, or the base model's."""

    variants: tuple[Literal["base", "tuned", "embedding"], ...] = ("base", "tuned")
    """What to compare; embedding adds a logistic regression on sentence embeddings, fitted on the train split."""

    few_shot: Annotated[int, Field(ge=0, le=64)] = 0
    """Examples for each label, drawn from the train split and put before the question; above 0 adds the variant base_few_shot."""

    bootstrap: Annotated[int, Field(ge=0, le=100_000)] = 2000
    """Paired resamples behind the 95 % intervals; 0 leaves them out."""

    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number format of the forward pass; auto takes bf16 where the hardware computes in it. Probabilities are float32."""

    embedding_model: str = "all-MiniLM-L6-v2"
    """The sentence-transformers model of the embedding variant."""

    batch_tokens: Annotated[int, Field(ge=1)] = 4096
    """Padded tokens in one forward pass; it steers memory, and through batching the last digits of bf16 scores."""

    workers: Annotated[int, Field(ge=1)] | None = operational(None)
    """Scoring actors; default: one for each GPU, or a single one on CPUs."""

    gpus_per_worker: Annotated[float, Field(ge=0)] | None = operational(None)
    """GPUs of one actor; default: 1 where the cluster has any, otherwise 0."""

    def __post_init__(self) -> None:
        if len(self.labels) == 1:
            raise ConfigError(f"evaluate.labels is {list(self.labels)}, should name at least two labels to choose between")
        if len(set(self.labels)) != len(self.labels):
            twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
            raise ConfigError(f"evaluate.labels names {', '.join(map(repr, twice))} twice, should name each label once")
        if any(not label.strip() for label in self.labels):
            raise ConfigError("evaluate.labels holds an empty label, should hold the words that the model answers with")
        if self.positive_label is not None and self.labels and self.positive_label not in self.labels:
            raise ConfigError(f"evaluate.positive_label is {self.positive_label!r}, should be one of {', '.join(self.labels)}")
        if not self.variants:
            raise ConfigError("evaluate.variants is empty, should name base, tuned or both")
        if self.few_shot and "base" not in self.variants:
            raise ConfigError(f"evaluate.few_shot is {self.few_shot}, but variants has no base to put the examples before")
