"""What must hold before training starts. Each failure is one line that says what would be right."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from tunemill.config import difference, essential
from tunemill.embedded import EMBEDDED_MODEL, resolve_model, smollm2_gguf
from tunemill.errors import ConfigError, DataError, ResumeRefused
from tunemill.finetune.config import FinetuneConfig
from tunemill.finetune.data import Loaded
from tunemill.hub import check_token
from tunemill.store import Location

__all__ = ["check_base_model", "check_checkpoints", "check_cluster", "check_config", "check_rows", "mark_done"]

_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")


def check_config(config: FinetuneConfig) -> None:
    """What needs no rows and no cluster, so that a whole pipeline can be refused before it costs anything."""
    if config.push_to_hub is not None:
        _check_push(config.push_to_hub)
    if config.deepspeed is not None and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"finetune.deepspeed is {config.deepspeed}, but deepspeed is not installed: pip install 'tunemill[gpu]'"
        )
    if config.base_model == EMBEDDED_MODEL:
        smollm2_gguf()
    else:
        check_base_model(config)


def _check_push(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"finetune.push_to_hub is {name!r}; give a name such as my-organisation/my-adapter") from error
    check_token(f"finetune.push_to_hub {name!r}")


def check_base_model(config: FinetuneConfig) -> tuple[str, Any]:
    """What transformers should load, and the model's text config; ConfigError when it is not there."""
    from transformers import AutoConfig

    path = resolve_model(config.base_model)
    folder = Path(path)
    if folder.is_dir() and not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        raise ConfigError(f"finetune.base_model {config.base_model!r}: the folder holds no weights (*.safetensors)")
    try:
        settings = AutoConfig.from_pretrained(path, revision=config.revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ConfigError(
            f"finetune.base_model {config.base_model!r}: not found here or on the Hugging Face hub ({reason}); "
            "give a folder, a hub name (log in for gated ones), or embedded/smollm2-135m"
        ) from error
    return path, settings.get_text_config()


def check_rows(rows: Loaded, settings: Any, base_model: str) -> None:
    """Token ids and lengths must fit the model."""
    if rows.largest_token >= settings.vocab_size:
        raise DataError(
            f"finetune: the rows hold token id {rows.largest_token}, but {base_model} knows {settings.vocab_size} tokens; "
            "set template.tokenizer to the tokenizer of this model and run the template stage again"
        )
    most = getattr(settings, "max_position_embeddings", None)
    if most and rows.longest > most:
        raise DataError(
            f"finetune: row {rows.longest_id!r} has {rows.longest} tokens, but {base_model} reads at most {most}; "
            f"set template.max_length to {most} or less"
        )


def check_cluster(config: FinetuneConfig, *, cpus: int, gpus: int) -> int:
    """GPUs for each worker (0 or 1); ConfigError when the workers do not fit the cluster."""
    per_worker = config.gpus_per_worker
    if per_worker is None:
        per_worker = 1 if gpus >= config.workers else 0
    if per_worker and config.workers > gpus:
        raise ConfigError(
            f"finetune.workers is {config.workers} with a GPU each, but the cluster has {gpus} GPUs; use at most {gpus}"
        )
    each = config.cpus_per_worker or 1
    if config.workers * each > cpus:
        raise ConfigError(
            f"finetune.workers is {config.workers} with {each} CPUs each, but the cluster has {cpus} CPUs; "
            f"use at most {max(1, cpus // each)} workers"
        )
    return per_worker


def check_checkpoints(folder: Location, name: str, config: FinetuneConfig, input_: dict[str, Any]) -> None:
    """Note whose checkpoints these are; refuse an unfinished run of another configuration on the same rows.

    ``name`` carries the hash of configuration, rows and seed. Checkpoints of other rows are left aside.
    """
    identity = {"config": essential(config), "input": input_.get("fingerprint")}
    for file in folder.files("*.json", recursive=False):
        found = json.loads(file.read_text())
        if file.name == f"{name}.json" or found.get("done") or found["input"] != identity["input"]:
            continue
        lines = difference(found["config"], identity["config"])
        if lines:
            raise ResumeRefused(
                f"{folder.url}: holds checkpoints of an unfinished run with other settings ({'; '.join(lines)}); "
                "set them back to go on with it, or delete that folder to start anew"
            )
    own = folder.join(f"{name}.json")
    if own.exists() and json.loads(own.read_text()).get("done"):
        folder.join(name).delete()
    own.write_text(json.dumps(identity, indent=1))


def mark_done(folder: Location, name: str) -> None:
    """The run has ended well: the next one under this name starts anew."""
    own = folder.join(f"{name}.json")
    own.write_text(json.dumps({**json.loads(own.read_text()), "done": True}, indent=1))
