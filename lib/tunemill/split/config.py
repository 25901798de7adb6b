"""What the split stage can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from tunemill.errors import ConfigError

__all__ = ["SplitConfig"]


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Shares of the rows; whole dedup groups go to one side."""

    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the rows held out for the final evaluation."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the rows for choosing checkpoints."""
    group_column: str = "group"
    """Rows with the same value stay together (the dedup stage makes `group`); without that column each row is its own."""
    label_column: str = "label"
    """Each side gets the same share of every label; without that column the split is not stratified."""

    def __post_init__(self) -> None:
        if self.test_fraction + self.validation_fraction >= 1:
            raise ConfigError(
                f"split: test_fraction {self.test_fraction} and validation_fraction {self.validation_fraction} "
                "leave nothing to train on; their sum should be below 1"
            )
