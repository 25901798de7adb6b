"""Load a chat tokenizer by its name in the configuration."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

from tunemill.chat.encoded import ChatTokenizer, Encoded
from tunemill.embedded import EMBEDDED_MODEL, resolve_model
from tunemill.errors import ConfigError, TemplateError

__all__ = ["ChatTokenizer", "Encoded", "load"]

_SHORT_NAMES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
    "tekken": "tekken_240911.json",
}
_PREFIX = "mistral-common/"


def load(name: str, *, prompt_loss_weight: float = 0.0) -> ChatTokenizer:
    """The chat tokenizer called ``name``: a hub name, a folder, ``embedded/smollm2-135m`` or ``mistral-common/...``.

    A model with a Mistral tokenizer file (tekken.json, tokenizer.model.v3) is read by mistral-common.
    Raises ConfigError for a name that leads nowhere, TemplateError for a template that cannot be used.
    """
    if name.startswith(_PREFIX):
        return _mistral(name, _bundled(name), prompt_loss_weight)
    source = resolve_model(name)
    own = _mistral_file(source)
    if own is not None:
        return _mistral(name, own, prompt_loss_weight)
    return _hugging_face(name, source, prompt_loss_weight)


def _mistral(name: str, file: Path, prompt_loss_weight: float) -> ChatTokenizer:
    from tunemill.chat.mistral import MistralChat

    return MistralChat(name, file, prompt_loss_weight=prompt_loss_weight)


def _bundled(name: str) -> Path:
    spec = importlib.util.find_spec("mistral_common")
    if spec is None or spec.origin is None:
        raise ConfigError(f"tokenizer {name!r}: mistral-common is not installed; run: pip install mistral-common sentencepiece")
    folder = Path(spec.origin).parent / "data"
    wanted = name.removeprefix(_PREFIX)
    file = folder / _SHORT_NAMES.get(wanted, wanted)
    known = [*_SHORT_NAMES, *sorted(f.name for f in folder.iterdir() if ".model" in f.name or f.suffix == ".json")]
    if wanted not in known:
        nearest = difflib.get_close_matches(wanted, known, n=1, cutoff=0.3)
        hint = f"did you mean {_PREFIX}{nearest[0]}?" if nearest else f"known: {', '.join(known)}"
        raise ConfigError(f"tokenizer {name!r}: mistral-common has no such file; {hint}")
    return file


def _mistral_file(source: str) -> Path | None:
    """A tokenizer file of Mistral's own in a folder or, for a model of theirs, on the hub."""
    if Path(source).is_dir():
        files = [*sorted(Path(source).glob("tekken*.json")), *sorted(Path(source).glob("*.model.v*"), reverse=True)]
        return files[0] if files else None
    if not any(word in source.lower() for word in ("mistral", "mixtral", "ministral", "codestral", "magistral")):
        return None
    from transformers.utils import cached_file

    for file in ("tekken.json", *(f"tokenizer.model.v{version}" for version in (7, 3, 2, 1))):
        found = cached_file(
            source, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        if found is not None:
            return Path(found)
    return None


def _hugging_face(name: str, source: str, prompt_loss_weight: float) -> ChatTokenizer:
    from transformers import AutoTokenizer

    from tunemill.chat.huggingface import HuggingFaceChat

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        known = [EMBEDDED_MODEL, *(f"{_PREFIX}{short}" for short in _SHORT_NAMES)]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"give a folder, a hub name or one of {', '.join(known)}"
        if Path(source).is_dir():
            raise TemplateError(
                f"tokenizer {name!r}: the folder holds no tokenizer that can be loaded ({_first(error)})"
            ) from error
        raise ConfigError(f"tokenizer {name!r}: not found here or on the hub; {hint}") from error
    return HuggingFaceChat(name, tokenizer, prompt_loss_weight=prompt_loss_weight)


def _first(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
