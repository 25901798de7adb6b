"""What the clean stage can be told."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Literal

from pydantic import Field

from tunemill.config import operational
from tunemill.embed.config import EmbedConfig
from tunemill.errors import ConfigError

__all__ = ["CleanConfig"]


def _embed() -> EmbedConfig:
    # In bf16 a vector depends a little on the texts beside it, which could tip a near tie.
    return EmbedConfig(precision="fp32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """Answers to one text each, without the chatter around it."""

    method: Literal["padding_clusters", "none"] = "padding_clusters"
    """padding_clusters finds the wanted sentence by clusters of sentence vectors; none only drops empty answers."""
    text_column: str = "text"
    """The column with the answers."""
    clusters: Annotated[int, Field(ge=1, le=64)] | None = None
    """Clusters of sentences; null takes the most with which one cluster still covers nearly all answers."""
    coverage: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the answers that the cluster of wanted sentences should cover."""
    pca_dims: Annotated[int, Field(ge=1)] = 10
    """Dimensions to which sentence vectors are reduced before they are grouped."""
    keyword_patterns: tuple[str, ...] | None = None
    """Regular expressions of padding; null takes the packaged list (English and a few other languages), [] none."""
    keyword_file: str | None = None
    """A file with one pattern on each line, in place of the packaged list; # starts a comment."""
    min_chars: Annotated[int, Field(ge=1)] = 1
    """Kept texts with fewer characters are dropped as too_short."""
    fit_segments: Annotated[int, Field(ge=100)] = 20000
    """Sentences, drawn by a hash of their answer's id, on which clusters are fitted; the rest is assigned to them."""
    embed: EmbedConfig = dataclasses.field(default_factory=_embed)
    """The model of the sentence vectors."""
    workers: Annotated[int, Field(ge=1)] | None = operational(None)
    """Model copies that run at once where answers outnumber the fitted ones; null fits them to the cluster."""

    def __post_init__(self) -> None:
        if not self.text_column:
            raise ConfigError("clean.text_column is empty; name the column that holds the answers")
        if self.keyword_patterns is not None and self.keyword_file is not None:
            raise ConfigError("clean.keyword_patterns and clean.keyword_file are both given; give one of them")
        for pattern in self.keyword_patterns or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(
                    f"clean.keyword_patterns holds {pattern!r}, which is not a regular expression ({error})"
                ) from error
        if self.embed.provider != "local":
            raise ConfigError(f"clean.embed.provider is {self.embed.provider!r}, should be local")
