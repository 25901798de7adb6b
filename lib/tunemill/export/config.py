"""What an export can be told."""

from __future__ import annotations

from dataclasses import dataclass

from tunemill.errors import ConfigError

__all__ = ["ExportConfig"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """A run's rows as a Hugging Face DatasetDict, on disk and, if wanted, on the hub."""

    output: str | None = None
    """Folder for the dataset; null is RUN/export."""
    columns: tuple[str, ...] = ()
    """Columns to export; empty takes all but the vectors."""
    label_column: str = "label"
    """Becomes a ClassLabel feature when it is there."""
    push_to_hub: str | None = None
    """Also upload it under this name (NAME or ORGANISATION/NAME); needs a token (HF_TOKEN or `hf auth login`)."""
    private: bool = True
    """Upload as a private dataset."""

    def __post_init__(self) -> None:
        if self.push_to_hub is not None and not self.push_to_hub.strip():
            raise ConfigError("export.push_to_hub is empty; give a name such as my-organisation/sentiment")
