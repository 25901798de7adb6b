"""Tokenised rows in memory: zero-copy views of Arrow blocks, in an order that no parallelism changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tunemill.errors import DataError

__all__ = ["TokenRows"]


@dataclass(frozen=True)
class TokenRows:
    """Rows of token ids and loss weights, ordered by id.

    ``lengths`` [rows] are tokens; ``loss_sums`` [rows] are the summed weights of the tokens that can be
    predicted (all but the first).
    """

    blocks: tuple[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int64]], ...]
    """For each Arrow block: all its token ids, their weights, and where each row starts (one more at the end)."""
    places: npt.NDArray[np.int64]
    """[rows, 2]: block and row within it."""
    lengths: npt.NDArray[np.int64]
    loss_sums: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, number: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Token ids and loss weights of one row."""
        block, at = (int(x) for x in self.places[number])
        ids, weights, starts = self.blocks[block]
        span = slice(int(starts[at]), int(starts[at + 1]))
        return ids[span], weights[span]

    def select(self, numbers: Sequence[int]) -> TokenRows:
        """The given rows, in the given order."""
        index = np.asarray(numbers, dtype=np.int64)
        return TokenRows(self.blocks, self.places[index], self.lengths[index], self.loss_sums[index])

    @classmethod
    def of(cls, tables: Sequence[pa.Table]) -> TokenRows:
        """Rows of tables with ``id, input_ids, loss_weights``; DataError when a row's lists differ in length or are empty."""
        blocks: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int64]]] = []
        ids: list[str] = []
        places, lengths, sums = [], [], []
        for table in tables:
            for batch in table.to_batches():
                if not batch.num_rows:
                    continue
                tokens, weights, starts = _flat(batch)
                size = np.diff(starts)
                if (size == 0).any():
                    bad = batch.column("id")[int(np.argmin(size))].as_py()
                    raise DataError(f"row {bad!r}: input_ids is empty; run the template stage again, it drops such rows")
                places.append(np.stack([np.full(batch.num_rows, len(blocks)), np.arange(batch.num_rows)], axis=1))
                sums.append(np.add.reduceat(weights, starts[:-1], dtype=np.float64) - weights[starts[:-1]].astype(np.float64))
                lengths.append(size)
                ids += batch.column("id").to_pylist()
                blocks.append((tokens, weights, starts))
        if not blocks:
            empty: Any = np.zeros(0, dtype=np.int64)
            return cls((), empty.reshape(0, 2), empty, np.zeros(0))
        order = np.asarray(sorted(range(len(ids)), key=lambda i: str(ids[i])), dtype=np.int64)
        return cls(tuple(blocks), np.concatenate(places)[order], np.concatenate(lengths)[order], np.concatenate(sums)[order])


def _flat(batch: pa.RecordBatch) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    tokens, weights = batch.column("input_ids"), batch.column("loss_weights")
    starts = tokens.offsets.to_numpy().astype(np.int64)
    if not np.array_equal(np.diff(starts), np.diff(weights.offsets.to_numpy())):
        raise DataError("input_ids and loss_weights differ in length; run the template stage again")
    return (
        tokens.flatten().to_numpy().astype(np.int32, copy=False),
        weights.flatten().to_numpy().astype(np.float32, copy=False),
        starts - starts[0],
    )
