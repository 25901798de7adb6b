"""Which texts share a forward pass. Pure decisions, no model.

A text's padded width follows from its own length alone, never from its neighbours. On a CPU the kernels
give a row, on one thread, the same bits whatever the number of rows beside it, and other bits only for another padded
width, so a text's vector does not depend on what it was batched with. (A GPU chooses kernels by the
number of rows too: there vectors agree to the rounding of the data type.) Where the model needs no padding
(:mod:`tunemill.embed.fast_bert`) a text's width is its length, and the same holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

__all__ = ["Batch", "Buckets", "padded_width"]

_EXACT_UP_TO = 16
_STEPS_PER_OCTAVE = 8


def padded_width(length: int, limit: int) -> int:
    """Tokens to which a text of ``length`` tokens is padded: eight steps per octave, at most ``limit``.

    Lengths up to 16 are not padded; beyond that padding adds 6 % on average and never more than 12.5 %.
    """
    if length <= _EXACT_UP_TO:
        return max(length, 1)
    step = (1 << (length - 1).bit_length() - 1) // _STEPS_PER_OCTAVE
    return max(length, min(-(-length // step) * step, limit))


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Texts (by position) that go through the model together; none is wider than ``width`` tokens."""

    rows: list[int]
    width: int


class Buckets:
    """Collects texts by width and gives them back as batches of up to ``batch_tokens`` tokens.

    Padded, a batch holds texts of one width; unpadded, also texts of several lengths, those of one length side by side.
    """

    def __init__(self, batch_tokens: int, limit: int, *, padded: bool = True) -> None:
        self._batch_tokens = batch_tokens
        self._limit = limit
        self._padded = padded
        self._open: dict[int, list[int]] = {}

    def add(self, first_row: int, lengths: np.ndarray) -> Iterator[Batch]:
        """Take the texts ``first_row``, ``first_row + 1``, ... with these token lengths; yields full batches."""
        for row, length in enumerate(lengths.tolist(), first_row):
            width = padded_width(length, self._limit) if self._padded else length
            rows = self._open.setdefault(width, [])
            rows.append(row)
            if (len(rows) + 1) * width > self._batch_tokens:
                yield Batch(self._open.pop(width), width)

    def flush(self) -> Iterator[Batch]:
        """What is left, widest first."""
        batch, tokens = Batch([], 0), 0
        for width in sorted(self._open, reverse=True):
            for row in self._open.pop(width):
                full = tokens + width > self._batch_tokens or (self._padded and width != batch.width)
                if full and batch.rows:
                    yield batch
                if full or not batch.rows:
                    batch, tokens = Batch([], width), 0
                batch.rows.append(row)
                tokens += width
        if batch.rows:
            yield batch
