"""Texts -> token ids -> padded tensors, for any sentence-transformers model.

A model whose first module is a plain text transformer is tokenised here, unpadded, so that batches can be
built by token length. Every other kind (routers, static embeddings, chat-template models, flash attention
without padding) is fed through its own ``preprocess``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tokenizers

__all__ = ["Reader", "Tokens", "reader_for"]

_CHARS_PER_TOKEN = 4
_UNLIMITED = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Tokens:
    """Some texts, read."""

    lengths: np.ndarray
    """Tokens of each text, int64 [n]; estimated where the model's own ``preprocess`` does the tokenising."""
    cut: np.ndarray
    """True where a text was longer than the model takes, bool [n]; all False where that cannot be known."""
    items: Sequence[Any]
    """Token ids or texts, whatever ``pad`` takes."""


class Reader(Protocol):
    """Turns texts into what a model's forward pass takes."""

    limit: int
    """Most tokens of one text."""
    gives_ids: bool
    """Items are lists of token ids."""

    def read(self, texts: Sequence[str]) -> Tokens:
        """Tokenise; safe to call from another thread than :meth:`pad`."""

    def pad(self, items: Sequence[Any], width: int) -> dict[str, Any]:
        """The features of one batch, its rows padded to ``width`` tokens, on the CPU."""


def reader_for(model: Any, prompt: str) -> Reader:
    """The fastest reader that is right for this model."""
    from sentence_transformers.base.modules import Transformer
    from transformers import PreTrainedTokenizerBase

    first = model[0]
    plain = (
        isinstance(first, Transformer)
        and isinstance(first.processor, PreTrainedTokenizerBase)
        and first.processor.is_fast
        and first.processor.pad_token_id is not None
        and first.transformer_task == "feature-extraction"
        and "message" not in first.modality_config
        and not first.can_flatten_inputs
        and not first.processing_kwargs
    )
    return _TokenReader(first, prompt) if plain else _TextReader(model, prompt)


class _TokenReader:
    """For a plain text transformer."""

    gives_ids = True

    def __init__(self, module: Any, prompt: str) -> None:
        self._tokenizer = module.processor
        self._prompt = prompt
        self._prompt_length = module.preprocess([""], prompt=prompt).get("prompt_length") if prompt else None
        self._with_types = "token_type_ids" in self._tokenizer.model_input_names
        self.limit = min(int(module.max_seq_length or _UNLIMITED), _UNLIMITED)
        self._direct = _direct_tokenizer(self._tokenizer, self.limit)

    def read(self, texts: Sequence[str]) -> Tokens:
        full = [self._prompt + text for text in texts] if self._prompt else list(texts)
        encodings = self._direct.encode_batch_fast(full)
        ids = [encoding.ids for encoding in encodings]
        cut = np.fromiter((bool(encoding.overflowing) for encoding in encodings), bool, len(ids))
        return Tokens(np.fromiter((len(row) for row in ids), np.int64, len(ids)), cut, ids)

    def pad(self, items: Sequence[Any], width: int) -> dict[str, Any]:
        import torch

        tokenizer = self._tokenizer
        left = tokenizer.padding_side == "left"
        ids = np.full((len(items), width), tokenizer.pad_token_id, np.int64)
        mask = np.zeros((len(items), width), np.int64)
        for row, item in enumerate(items):
            place = slice(width - len(item), width) if left else slice(0, len(item))
            ids[row, place] = item
            mask[row, place] = 1
        features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask), "modality": "text"}
        if self._with_types:
            features["token_type_ids"] = torch.zeros(ids.shape, dtype=torch.int64)
        if self._prompt_length is not None:
            features["prompt_length"] = self._prompt_length
        return features


def _direct_tokenizer(tokenizer: Any, limit: int) -> Any:
    """The Rust tokenizer inside a Hugging Face one, as a copy that cuts and does not pad.

    It does the same work without building Python dicts for each text, which takes as long as tokenising.
    """
    copy = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.encode_special_tokens = tokenizer.backend_tokenizer.encode_special_tokens
    copy.no_padding()
    if limit < _UNLIMITED:
        copy.enable_truncation(limit, direction=tokenizer.truncation_side)
    else:
        copy.no_truncation()
    return copy


class _TextReader:
    """For every other model: its own ``preprocess``, on texts of about the same number of characters."""

    gives_ids = False

    def __init__(self, model: Any, prompt: str) -> None:
        from sentence_transformers.base.modules import Router

        self._model = model
        self._prompt = prompt or None
        routes = model[0].sub_modules if isinstance(model[0], Router) else {}
        self._options = {"task": "document"} if "document" in routes else {}
        self.limit = min(int(model.max_seq_length or _UNLIMITED), _UNLIMITED)

    def read(self, texts: Sequence[str]) -> Tokens:
        lengths = np.fromiter((min(len(text) // _CHARS_PER_TOKEN + 2, self.limit) for text in texts), np.int64, len(texts))
        return Tokens(lengths, np.zeros(len(texts), bool), list(texts))

    def pad(self, items: Sequence[Any], width: int) -> dict[str, Any]:
        features: dict[str, Any] = self._model.preprocess(list(items), prompt=self._prompt, **self._options)
        return features
