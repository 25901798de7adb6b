"""The wire formats, one module each, behind the `tunemill.llm.request.Provider` seam."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any, Literal

from tunemill.errors import ConfigError
from tunemill.llm.config import ModelConfig
from tunemill.llm.request import Prompt, Provider

__all__ = ["check_model", "provider_for"]


@functools.cache
def provider_for(name: str, task: Literal["chat", "embed"] = "chat") -> Provider:
    """The wire format of a provider; only its own module is imported."""
    module = importlib.import_module(f"tunemill.llm.providers.{name}")
    provider: Provider | None = module.PROVIDER if task == "chat" else getattr(module, "EMBEDDINGS", None)
    if provider is None:
        raise ConfigError(f"provider {name} has no embeddings here, should be openai, azure or bedrock")
    return provider


def check_model(model: ModelConfig, schema: Mapping[str, Any] | None = None) -> None:
    """Refuse a model entry that cannot work, or a schema that it can not be held to; ConfigError before anything is called."""
    if schema is not None:
        from tunemill.llm.schema import check_schema

        check_schema(schema)
    provider = provider_for(model.provider, model.task)
    provider.check(model)
    provider.build(model, Prompt.of("?"), schema=schema, sample=0, seed=0)
