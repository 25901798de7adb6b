"""What `tunemill merge` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

__all__ = ["MergeConfig"]


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """How to merge."""

    output: str | None = None
    """Folder of the merged model; null takes merged/ beside the adapter."""
    base_model: str | None = None
    """Base model in place of the one that the adapter names (a folder that moved)."""
    tolerance: Annotated[float, Field(gt=0, le=1)] | None = None
    """Most that a probability may change by merging; null takes 0.001 for fp32 and 0.05 for 16-bit weights."""
