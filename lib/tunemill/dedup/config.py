"""What the dedup stage can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from tunemill.config import operational
from tunemill.embed.config import EmbedConfig
from tunemill.errors import ConfigError

__all__ = ["DedupConfig", "Preference", "parse_preference"]

Preference = Literal["longest", "shortest", "first", "last", "closest_to_centre", "farthest_from_centre", "column"]
_SHOWN_BELOW = 0.02
_PREFERENCES = ("longest", "shortest", "first", "last", "closest_to_centre", "farthest_from_centre")


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """Near-duplicates: rows whose texts' embeddings have a cosine at or above the threshold."""

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Cosine at or above which two rows are near-duplicates, in (0, 1]."""
    prefer: str = "longest"
    """Which row of a pair stays: longest, shortest, first, last, closest_to_centre, farthest_from_centre, or
    'column NAME' (the largest value stays). Ties go to the smaller id."""
    rule: Literal["greedy", "components"] = "greedy"
    """greedy drops a row only if a kept row is at or above the threshold; components keeps one row of each
    connected component, which can leave rows without a survivor that close (orphans)."""
    pair_floor: Annotated[float, Field(gt=0, le=1)] | None = None
    """Store pairs down to this cosine, so that --reuse-pairs can answer for any threshold above it; null: 0.02 below
    the threshold, which lets the report show pairs on both sides of it."""
    reuse_pairs: bool = False
    """Answer from the pairs that an earlier run in this folder stored, without searching again."""
    mode: Literal["exact", "approximate"] = "exact"
    """exact finds every pair; approximate searches a FAISS index and reports its recall on a sample."""
    index: Literal["ivf", "hnsw"] = "ivf"
    """The FAISS index of approximate mode."""
    nprobe: Annotated[int, Field(ge=1)] = 16
    """Cells that approximate mode visits for each row (ivf); for hnsw the search depth is 8 times this."""
    neighbours: Annotated[int, Field(ge=1)] = 64
    """Most pairs that approximate mode finds for one row."""
    text_columns: tuple[str, ...] = ("text",)
    """Columns compared; with several, a pair needs every one of them at or above the threshold."""
    text_thresholds: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    """One threshold for each of text_columns; empty: the threshold for all."""
    exact_first: bool = True
    """Collapse rows whose texts are the same after Unicode NFKC, whitespace and case normalisation."""
    against: str | None = None
    """A folder of an earlier dedup run: its kept rows stay, and only new rows are dropped."""
    protect: str | None = None
    """A file of rows (a test set) that must not leak: rows near one of them are dropped as near_protected."""
    keep_index: bool = True
    """Store the kept rows' vectors and the cells, so that a later run can be compared with this one by --against."""
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    """The embedding model for rows that carry no embedding column."""
    shards: Annotated[int, Field(ge=1)] | None = operational(None)
    """Parts in which the search is spread and resumed; null fits them to rows and cluster."""
    device: Literal["auto", "cpu", "cuda"] = operational("auto")
    """Where the search multiplies; decisions are made in float64 and are the same on each."""
    threads: Annotated[int, Field(ge=1)] | None = operational(None)
    """Processor cores for each shard; null: all cores of the machine shared between the shards at work."""
    max_pairs: Annotated[int, Field(ge=1000)] | None = None
    """Above this many expected pairs, those inside hot groups are summarised instead of listed (by the one process that
    decides); survivors stay the same. null: 50 million, or 50 for each row where that is more."""
    memory_gb: Annotated[float, Field(gt=0)] | None = operational(None)
    """Memory that the stage may plan with on one machine, in GB; null: what is free."""

    def __post_init__(self) -> None:
        parse_preference(self.prefer)
        if self.pair_floor is not None and self.pair_floor > self.threshold:
            raise ConfigError(
                f"dedup.pair_floor is {self.pair_floor}: above dedup.threshold {self.threshold}; use a value at or below it"
            )
        if not self.text_columns or len(set(self.text_columns)) != len(self.text_columns):
            raise ConfigError(f"dedup.text_columns is {list(self.text_columns)}: name one or more different columns")
        if self.text_thresholds and len(self.text_thresholds) != len(self.text_columns):
            raise ConfigError(
                f"dedup.text_thresholds has {len(self.text_thresholds)} values; give one for each of {list(self.text_columns)}"
            )
        if self.text_thresholds and self.pair_floor is not None:
            raise ConfigError("dedup.pair_floor cannot be combined with dedup.text_thresholds; leave one of them out")
        if self.against is not None and self.reuse_pairs:
            raise ConfigError("dedup.reuse_pairs cannot be combined with dedup.against; leave one of them out")

    def most_pairs(self, rows: int) -> int:
        """The pairs that may be listed of a corpus."""
        return self.max_pairs or max(50_000_000, 50 * rows)

    @property
    def floor(self) -> float:
        """The cosine down to which pairs are searched and stored."""
        if self.pair_floor is not None:
            return self.pair_floor
        return (
            self.threshold
            if self.text_thresholds
            else max(round(self.threshold - _SHOWN_BELOW, 6), min(self.threshold, _SHOWN_BELOW))
        )


def parse_preference(prefer: str) -> tuple[Preference, str | None]:
    """``prefer`` as its kind and, for ``column NAME``, the column. Raises ConfigError."""
    word, _, name = prefer.strip().partition(" ")
    if word == "column" and name.strip():
        return "column", name.strip()
    for known in _PREFERENCES:
        if prefer == known:
            return known, None  # type: ignore[return-value]
    raise ConfigError(f"dedup.prefer is {prefer!r}: use {', '.join(_PREFERENCES)} or 'column NAME'")
