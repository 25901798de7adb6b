"""One fp32 MiniLM for the tests of this folder: loading it is the slow part."""

from __future__ import annotations

import pytest

from tunemill.embed.config import EmbedConfig
from tunemill.embed.embedder import Embedder


@pytest.fixture(scope="session")
def minilm() -> Embedder:
    """The documented model in fp32 on the CPU."""
    return Embedder(EmbedConfig(precision="fp32", device="cpu"))
