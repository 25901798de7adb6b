"""The small instruct model that comes with the package, served on loopback by a real llama.cpp server.

It is an OpenAI-compatible server; only its identity differs: the hash of the model file, since its port changes
from run to run.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunemill.llm.config import ModelConfig
from tunemill.llm.providers.openai import OpenAI
from tunemill.llm.request import Prompt, WireRequest

__all__ = ["PROVIDER", "Embedded"]


class Embedded(OpenAI):
    """Chat completions of the embedded server; ``base_url`` is filled in by the caller once the server runs."""

    name = "embedded"
    reserves_output = False

    def check(self, model: ModelConfig) -> None:
        """Parameters, and that the model file is installed."""
        super().check(_placed(model))
        self.endpoint(model)

    def build(
        self, model: ModelConfig, prompt: Prompt, *, schema: Mapping[str, Any] | None, sample: int, seed: int | None
    ) -> WireRequest:
        """As for any OpenAI-compatible server."""
        return super().build(_placed(model), prompt, schema=schema, sample=sample, seed=seed)

    def endpoint(self, model: ModelConfig) -> str:
        """``embedded:`` and the hash of the model file."""
        from tunemill.embedded import smollm2_gguf

        path = Path(smollm2_gguf())
        return f"embedded:{_file_hash(path, path.stat().st_size, path.stat().st_mtime_ns)}"

    def auth_headers(self, model: ModelConfig) -> dict[str, str]:
        """None: the server listens on loopback only."""
        return {}


def _placed(model: ModelConfig) -> ModelConfig:
    """The model with an address, so that it can be planned and hashed before a server runs."""
    return dataclasses.replace(model, model=model.model or "smollm2-135m", base_url=model.base_url or "http://embedded.invalid")


@functools.cache
def _file_hash(path: Path, size: int, modified_ns: int) -> str:
    state = hashlib.blake2b(digest_size=12)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


PROVIDER = Embedded()
