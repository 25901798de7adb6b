"""Uploads to the Hugging Face hub: what is asked of them beforehand, and their errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tunemill.errors import ConfigError, RunFailed

__all__ = ["check_token", "uploading"]


def check_token(where: str) -> None:
    """ConfigError, which begins with ``where``, when there is no token in HF_TOKEN or from a login."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise ConfigError(f"{where}: there is no Hugging Face token; set HF_TOKEN or run: hf auth login")


@contextmanager
def uploading(where: str, *, then: str = "") -> Iterator[None]:
    """What the hub does not take in the block becomes RunFailed; ``then`` says how things stand."""
    # Also the error of a hub that cannot be reached; which HTTP library it comes from depends on the hub's version.
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except HTTPError as error:
        raise RunFailed(f"{where}: the hub did not take it ({str(error).splitlines()[0][:200]}){then}") from error
