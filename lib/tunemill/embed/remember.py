"""An embedder that asks its memory first: texts of this run, then the cache of earlier runs.

The model is loaded only when there is a text that neither knows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunemill.config import fingerprint
from tunemill.embed.cache import VectorCache, text_keys
from tunemill.embed.config import EmbedConfig
from tunemill.embed.embedder import Embedded, Embedder, pick_device
from tunemill.embed.models import Found, find
from tunemill.embed.precision import candidates
from tunemill.store import Location

__all__ = ["RememberingEmbedder"]

_MEMO_BYTES = 128 << 20


class RememberingEmbedder:
    """Like `Embedder`, embedding each text at most once in a worker and, with a cache, once for all runs."""

    def __init__(self, config: EmbedConfig, *, sample: Sequence[str] = ()) -> None:
        self._config = config
        self._sample = sample
        self._inner: Embedder | None = None
        self._memo: dict[bytes, tuple[np.ndarray, int, bool]] = {}
        self._cache = _open_cache(config)
        self._cached_facts = self._cache.facts() if self._cache else None
        self.computed = 0
        """Texts that went through the model so far."""

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest says of the model."""
        if self._inner is None and self._cached_facts is not None:
            return self._cached_facts
        return self._embedder().facts

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self.facts["dimension"])

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Unit vectors with token counts, as `Embedder.embed` gives them."""
        keys, first, back = np.unique(text_keys(texts), return_index=True, return_inverse=True)
        vectors = np.full((len(keys), self.dimension), np.nan, np.float32)
        n_tokens = np.zeros(len(keys), np.int64)
        cut = np.zeros(len(keys), bool)
        missing = self._recall(keys, vectors, n_tokens, cut)
        if len(missing):
            # In the order of the texts, not of their hashes: a grown corpus then reads runs of neighbouring rows.
            missing = missing[np.argsort(first[missing], kind="stable")]
            found = self._embedder().embed([texts[place] for place in first[missing]])
            vectors[missing], n_tokens[missing], cut[missing] = found.vectors, found.n_tokens, found.cut
            self.computed += len(missing)
            if self._cache is not None:
                self._cache.begin(self._embedder().facts)
                self._cache.put(keys[missing], found.vectors, found.n_tokens, found.cut)
        self._memorise(keys, vectors, n_tokens, cut)
        return Embedded(vectors[back], n_tokens[back], cut[back])

    def _recall(self, keys: np.ndarray, vectors: np.ndarray, n_tokens: np.ndarray, cut: np.ndarray) -> np.ndarray:
        """Fill in what is known; returns the positions that are not."""
        unknown = []
        for place, key in enumerate(keys.tolist()):
            known = self._memo.get(key)
            if known is None:
                unknown.append(place)
            else:
                vectors[place], n_tokens[place], cut[place] = known
        missing = np.array(unknown, np.int64)
        if self._cache is None or not len(missing):
            return missing
        hits, found, tokens, cuts = self._cache.get(keys[missing], self.dimension)
        vectors[missing[hits]], n_tokens[missing[hits]], cut[missing[hits]] = found, tokens, cuts
        return np.delete(missing, hits)

    def _memorise(self, keys: np.ndarray, vectors: np.ndarray, n_tokens: np.ndarray, cut: np.ndarray) -> None:
        room = _MEMO_BYTES // (4 * self.dimension + 100) - len(self._memo)
        for place, key in enumerate(keys[: max(room, 0)].tolist()):
            self._memo.setdefault(key, (vectors[place], int(n_tokens[place]), bool(cut[place])))

    def _embedder(self) -> Embedder:
        if self._inner is None:
            config = self._config
            if self._cached_facts is not None:
                # One space, one data type: what was settled for it stays, whatever this run's sample would say.
                config = dataclasses.replace(config, precision=self._cached_facts["precision"])
            self._inner = Embedder(config, sample=self._sample)
        return self._inner


def _open_cache(config: EmbedConfig) -> VectorCache | None:
    if config.cache is None:
        return None
    return VectorCache(Location.of(config.cache), _space(config, find(config)))


def _space(config: EmbedConfig, found: Found) -> str:
    """Everything that decides a vector besides its text; the data types that are tried stand for the kind of device."""
    device = pick_device(config)
    return fingerprint([found.revision, config.prefix, config.max_length, device, candidates(config, device)])
