"""Vectors that outlive a run: by text, model, revision and settings, in a local folder or on an object store.

A *space* is a folder for everything that decides a vector besides the text. In it each segment is two files,
``<name>.vectors.npy`` (float32 [n, d]) and then ``<name>.keys.npy``, whose presence makes the segment count:
a killed writer leaves nothing that is read. Segments are never changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import uuid
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from tunemill.errors import DataError
from tunemill.store import Location

__all__ = ["VectorCache", "text_keys"]

_KEY = np.dtype([("key", "S32"), ("n_tokens", "<i4"), ("cut", "?")])
_FACTS = "facts.json"


def text_keys(texts: Sequence[str]) -> np.ndarray:
    """The 16-byte hash of each text as hex, shape [n], dtype S32."""
    digests = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest().encode() for text in texts]
    return np.array(digests, dtype="S32")


@dataclasses.dataclass(frozen=True)
class _Index:
    """All keys of a space, sorted, and where their vectors lie."""

    keys: np.ndarray
    """Rows of _KEY [n], sorted by key."""
    segment: np.ndarray
    row: np.ndarray
    files: list[Location]
    """The vector file of each segment."""


class VectorCache:
    """One space of a cache folder. Reading sees what was there when it was opened."""

    def __init__(self, folder: Location, space: str) -> None:
        self._folder = folder.join(space)

    def facts(self) -> dict[str, Any] | None:
        """What the model was when this space was begun; None for a new space."""
        try:
            found: dict[str, Any] = json.loads(self._folder.join(_FACTS).read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(f"embed.cache {self._folder.url}/{_FACTS}: not valid JSON; delete this folder") from error
        return found

    def begin(self, facts: dict[str, Any]) -> None:
        """Note what the model is, once for a space."""
        if not self._folder.join(_FACTS).exists():
            self._folder.join(_FACTS).write_text(json.dumps(facts, ensure_ascii=False, indent=1))

    def get(self, keys: np.ndarray, dimension: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Which of ``keys`` are known (positions [m]), their vectors [m, d], token counts [m] and cut marks [m]."""
        index = self._index
        place = np.searchsorted(index.keys["key"], keys)
        inside = np.minimum(place, max(len(index.keys) - 1, 0))
        known = np.flatnonzero((place < len(index.keys)) & (index.keys["key"][inside] == keys)) if len(index.keys) else place[:0]
        at = place[known]
        vectors = np.empty((len(at), dimension), np.float32)
        for segment in np.unique(index.segment[at]).tolist():
            mine = np.flatnonzero(index.segment[at] == segment)
            vectors[mine] = _read_rows(index.files[segment], index.row[at[mine]], dimension)
        return known, vectors, index.keys["n_tokens"][at].astype(np.int64), index.keys["cut"][at]

    def put(self, keys: np.ndarray, vectors: np.ndarray, n_tokens: np.ndarray, cut: np.ndarray) -> None:
        """Add a segment; vectors that are not finite are left out."""
        good = np.isfinite(vectors).all(axis=1)
        if not good.any():
            return
        head = np.empty(int(good.sum()), _KEY)
        head["key"], head["n_tokens"], head["cut"] = keys[good], n_tokens[good], cut[good]
        name = uuid.uuid4().hex
        self._folder.join(f"{name}.vectors.npy").write_bytes(_npy(vectors[good].astype(np.float32)))
        self._folder.join(f"{name}.keys.npy").write_bytes(_npy(head))

    @cached_property
    def _index(self) -> _Index:
        found = self._folder.files("*.keys.npy", recursive=False)
        heads = [np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) for file in found]
        keys = np.concatenate([np.empty(0, _KEY), *heads])
        sizes = [len(head) for head in heads]
        segment = np.repeat(np.arange(len(heads)), sizes)
        row = np.concatenate([np.empty(0, np.int64), *(np.arange(size) for size in sizes)])
        order = np.argsort(keys["key"], kind="stable")
        files = [Location(file.url.removesuffix(".keys.npy") + ".vectors.npy") for file in found]
        return _Index(keys[order], segment[order], row[order], files)


def _read_rows(file: Location, rows: np.ndarray, dimension: int) -> np.ndarray:
    """Rows of a vector file, in the order asked for; runs of neighbouring rows are read at once."""
    width = dimension * 4
    order = np.argsort(rows, kind="stable")
    unique, back = np.unique(rows[order], return_inverse=True)
    starts = np.flatnonzero(np.diff(unique, prepend=-2) != 1)
    parts = []
    with file.fs.open_input_file(file.path) as stream:
        header = _header_bytes(stream.read_at(10, 0))
        for start, stop in zip(starts, [*starts[1:], len(unique)], strict=True):
            count = int(stop - start)
            data = stream.read_at(count * width, header + int(unique[start]) * width)
            parts.append(np.frombuffer(data, "<f4").reshape(count, dimension))
    vectors = np.empty((len(rows), dimension), np.float32)
    vectors[order] = np.concatenate(parts)[back]
    return vectors


def _header_bytes(start: bytes) -> int:
    """Length of a version 1 npy header, whose bytes 8 and 9 hold what follows the first ten (NEP 1)."""
    return 10 + int.from_bytes(start[8:10], "little")


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
