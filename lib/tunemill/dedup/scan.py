"""Find the rows of a cell whose scores reach a bound: on sketches with numpy, or on whole rows with torch tiles."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from tunemill.dedup.cells import Meeting
from tunemill.dedup.sketch import SLACK

__all__ = ["Precision", "SketchScan", "TileScan"]

Precision = Literal["fp32", "tf32", "bf16"]

_BLOCK_ROWS = 768
"""Side of a block of scores. As a power of two its rows would compete for the same lines of the cache."""
_PART_ROWS = 3 * _BLOCK_ROWS
_TILE_BYTES = 512 << 20
_FULL_PAIRS = 1 << 20
# Both factors of a product are rounded to 8 (bf16) or cut to 11 (tf32) significant bits, and so is a bf16 score: by
# Cauchy-Schwarz the scores of unit vectors are off by at most three such roundings.
_ROUNDING: dict[Precision, float] = {"fp32": SLACK, "tf32": 3 * 2.0**-10, "bf16": 3 * 2.0**-8}


class SketchScan:
    """Scores of sketches [n, m + 1]; score blocks live in buffers that each thread reuses."""

    def __init__(self, sketches: np.ndarray, code: np.ndarray | None, lowest: float) -> None:
        self._sketches, self._code, self._lowest = sketches, code, np.float32(lowest - SLACK)
        self._buffers = threading.local()
        self.size = _PART_ROWS
        """Rows at home in one call: enough to be fast, few enough for threads to share a large cell."""

    def pairs(self, meeting: Meeting) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Row positions int64 of both ends of each pair that a row at home may make, some at a time."""
        for rows, met, among in _classes(meeting, self._code):
            yield from self._above(rows, met, among)

    def _above(self, rows: np.ndarray, met: np.ndarray, among: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        left, right = self._sketches[rows], self._sketches[met]
        for i in range(0, len(rows), _BLOCK_ROWS):
            block = left[i : i + _BLOCK_ROWS]
            for j in range(i if among else 0, len(met), _BLOCK_ROWS):
                others = right[j : j + _BLOCK_ROWS]
                hits, width = self._hits(block, others), len(others)
                if len(hits):
                    yield _ends(rows, met, hits // width + i, hits % width + j, among and j < len(rows))

    def _hits(self, block: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Flat positions in the score block."""
        mine = self._buffers
        if not hasattr(mine, "scores"):
            mine.scores = np.empty(_BLOCK_ROWS**2, np.float32)
            mine.mask = np.empty(_BLOCK_ROWS**2, np.bool_)
        size = len(block) * len(others)
        np.matmul(block, others.T, out=mine.scores[:size].reshape(len(block), len(others)))
        np.greater_equal(mine.scores[:size], self._lowest, out=mine.mask[:size])
        return np.flatnonzero(mine.mask[:size])


class TileScan:
    """Scores of whole rows [n, d] in tiles on a torch device; the threshold is applied tile by tile, nothing else leaves it."""

    def __init__(
        self,
        rows: np.ndarray,
        code: np.ndarray | None,
        lowest: float,
        *,
        groups: int = 1,
        device: str = "cuda",
        precision: Precision = "bf16",
    ) -> None:
        import torch

        self._torch, self._code, self._lowest = torch, code, lowest - SLACK - _ROUNDING[precision]
        if precision == "tf32":
            torch.backends.cuda.matmul.allow_tf32 = True
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        self._whole: Any = torch.from_numpy(np.array(rows, np.float32)).to(device) / groups**0.5
        self._rows: Any = self._whole.to(kind)
        self._sure = lowest - SLACK
        self._side = max(64, int((_TILE_BYTES / self._rows.element_size()) ** 0.5) if device == "cuda" else 1024)
        self.size = self._side

    def pairs(self, meeting: Meeting) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Row positions int64 of both ends of each pair that a row at home may make, some at a time."""
        for rows, met, among in _classes(meeting, self._code):
            yield from self._above(rows, met, among)

    def _above(self, rows: np.ndarray, met: np.ndarray, among: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        torch, side = self._torch, self._side
        left = self._rows[torch.from_numpy(rows.astype(np.int64)).to(self._rows.device)]
        right = self._rows[torch.from_numpy(met.astype(np.int64)).to(self._rows.device)]
        for i in range(0, len(rows), side):
            for j in range(i if among else 0, len(met), side):
                hits = torch.nonzero(left[i : i + side] @ right[j : j + side].T >= self._lowest)
                if len(hits):
                    row, column = hits.cpu().numpy().T
                    a, b = _ends(rows, met, row + i, column + j, among and j < len(rows))
                    yield self._in_full(a, b)

    def _in_full(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pairs that reach the bound in float32 as well."""
        torch, keep = self._torch, np.empty(len(a), dtype=bool)
        for start in range(0, len(a), _FULL_PAIRS):
            part = slice(start, start + _FULL_PAIRS)
            left, right = (self._whole[torch.from_numpy(end[part]).to(self._whole.device)] for end in (a, b))
            keep[part] = ((left * right).sum(dim=1) >= self._sure).cpu().numpy()
        return a[keep], b[keep]


def _ends(rows: np.ndarray, met: np.ndarray, row: np.ndarray, column: np.ndarray, among: bool) -> tuple[np.ndarray, np.ndarray]:
    if among:
        later = column > row
        row, column = row[later], column[later]
    return rows[row].astype(np.int64), met[column].astype(np.int64)


def _classes(meeting: Meeting, code: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Rows at home, the rows they are compared with, and whether these begin with the same rows (then only later ones count)."""
    home, visitors, apart = meeting
    if len(home) == 0 or len(home) + len(visitors) < 2:
        return
    if code is None or not (code[home].any() or code[visitors].any()):
        yield home, visitors if apart else np.concatenate([home, visitors]), not apart
        return
    ordered = home[np.argsort(code[home], kind="stable")]
    own = code[ordered]
    starts = np.flatnonzero(np.r_[True, own[1:] != own[:-1]])
    for start, end in zip(starts, [*starts[1:], len(own)], strict=True):
        met = visitors if apart else np.concatenate([ordered[start:], visitors])
        yield ordered[start:end], met[(code[met] & own[start]) == 0], bool(own[start] == 0) and not apart
