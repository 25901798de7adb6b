"""Exact duplicates: rows whose texts are the same after normalising Unicode, whitespace and case."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np

__all__ = ["collapse", "normalised", "text_key"]


def normalised(text: str) -> str:
    """NFKC, case folded, runs of whitespace as one blank. Folding can undo NFKC, so it is applied again."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def text_key(texts: Sequence[str | None]) -> bytes:
    """A 16-byte hash of a row's texts, one for each text column; a missing text counts as empty."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = normalised(text or "").encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


def collapse(keys: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """The row that stands for each row: among rows with an equal key the one of the highest priority.

    ``keys`` [n] of any sortable type, ``rank`` [n] with 0 for the highest priority. Returns int64 [n].
    """
    if len(keys) == 0:
        return np.zeros(0, np.int64)
    order = np.lexsort((rank, keys))
    starts = np.empty(len(keys), dtype=bool)
    starts[0] = True
    starts[1:] = keys[order[1:]] != keys[order[:-1]]
    leaders = order[starts]
    stands_for = np.empty(len(keys), np.int64)
    stands_for[order] = leaders[np.cumsum(starts) - 1]
    return stands_for
