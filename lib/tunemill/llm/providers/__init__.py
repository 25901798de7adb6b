"""The wire formats, one module each, behind the `tunemill.llm.request.Provider` seam."""

from __future__ import annotations

import functools
import importlib
from typing import Literal

from tunemill.llm.config import ModelConfig
from tunemill.llm.request import Provider

__all__ = ["check_model", "provider_for"]


@functools.cache
def provider_for(name: str, task: Literal["chat", "embed"] = "chat") -> Provider:
    """The wire format of a provider; only its own module is imported."""
    module = importlib.import_module(f"tunemill.llm.providers.{name}")
    provider: Provider = module.PROVIDER if task == "chat" else module.EMBEDDINGS
    return provider


def check_model(model: ModelConfig) -> None:
    """Refuse a model entry that cannot work; raises ConfigError before anything is called."""
    provider_for(model.provider, model.task).check(model)
