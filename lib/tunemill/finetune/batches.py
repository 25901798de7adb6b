"""A worker's share of one optimiser step, as tensors.

A *piece* is one forward pass. ``packed`` pieces lay rows end to end (positions start again at each row);
other layouts pad on the right, where causal attention never looks, so no mask is needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunemill.finetune.plan import Layout, StepPlan, share_out, split_pieces
from tunemill.finetune.rows import TokenRows

__all__ = ["Feed", "collate", "pieces_of"]


def collate(rows: TokenRows, numbers: Sequence[int], layout: Layout) -> dict[str, Tensor | int]:
    """Tensors of one forward pass.

    ``input_ids`` [1, T] or [B, L]; ``loss_positions`` [K] index the flattened positions whose *next* token is
    trained, ``loss_targets`` [K] are those tokens and ``loss_weights`` [K] their weights. Without rows it is
    one token of no weight, so that every worker makes the same number of passes.
    """
    # Rows of like length side by side: attention takes them together.
    ordered = sorted(numbers, key=lambda number: int(rows.lengths[number])) if layout == "packed" else numbers
    taken = [rows.row(number) for number in ordered] or [(np.zeros(1, np.int32), np.zeros(1, np.float32))]
    sizes = [len(ids) for ids, _ in taken]
    width = 0 if layout == "packed" else max(sizes)
    positions, targets, weights = [], [], []
    start = 0
    for (ids, weight), size in zip(taken, sizes, strict=True):
        trained = np.flatnonzero(weight[1:])
        positions.append(trained + start)
        targets.append(ids[1:][trained])
        weights.append(weight[1:][trained])
        start += width or size
    batch: dict[str, Tensor | int] = {
        "loss_positions": torch.from_numpy(np.concatenate(positions)),
        "loss_targets": torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        "loss_weights": torch.from_numpy(np.concatenate(weights).astype(np.float32)),
    }
    if layout == "packed":
        batch["input_ids"] = torch.from_numpy(np.concatenate([ids for ids, _ in taken]).astype(np.int64))[None]
        batch["position_ids"] = torch.from_numpy(np.concatenate([np.arange(size) for size in sizes]))[None]
        batch["row_starts"] = torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
        batch["longest_row"] = max(sizes)
    else:
        padded = np.zeros((len(taken), width), dtype=np.int64)
        for line, (ids, _) in zip(padded, taken, strict=True):
            line[: len(ids)] = ids
        batch["input_ids"] = torch.from_numpy(padded)
    return batch


def pieces_of(
    numbers: Sequence[int], rows: TokenRows, *, layout: Layout, workers: int, accumulation: int, micro_tokens: int
) -> list[list[list[int]]]:
    """The forward passes of every worker for one step; all workers get the same number (some may be empty)."""
    cuts = [
        split_pieces(share, rows.lengths, layout=layout, accumulation=accumulation, micro_tokens=micro_tokens)
        for share in share_out(numbers, rows.lengths, workers)
    ]
    passes = max(1, *(len(cut) for cut in cuts))
    return [cut + [[] for _ in range(passes - len(cut))] for cut in cuts]


@dataclass(kw_only=True)
class Feed:
    """The batches of one worker, step by step; iterating starts at ``first_step``.

    It stands where transformers expects a data loader: one item is one optimiser step.
    """

    rows: TokenRows
    plan: StepPlan
    layout: Layout
    """May be set anew until the first batch is made: whether rows can be packed is only proven then."""
    workers: int
    rank: int
    accumulation: int
    micro_tokens: int
    first_step: int = 0

    def __len__(self) -> int:
        return self.plan.steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step in range(self.first_step, self.plan.steps):
            yield self.batch(step)

    def batch(self, step: int) -> dict[str, Any]:
        """This worker's pieces of one step, the loss weight and counts of the whole step, and ``own_`` counts for its FLOP."""
        started = time.perf_counter()
        numbers = self.plan.rows_of(step)
        cuts = pieces_of(
            numbers,
            self.rows,
            layout=self.layout,
            workers=self.workers,
            accumulation=self.accumulation,
            micro_tokens=self.micro_tokens,
        )
        pieces = [collate(self.rows, piece, self.layout) for piece in cuts[self.rank]]
        own = self.rows.lengths[[number for piece in cuts[self.rank] for number in piece]]
        return {
            "pieces": pieces,
            "weight": float(self.rows.loss_sums[numbers].sum()),
            "rows": len(numbers),
            "tokens": int(self.rows.lengths[numbers].sum()),
            "padded": sum(self._places(piece) for cut in cuts for piece in cut),
            "own_tokens": int(own.sum()),
            "own_squares": float((own.astype(np.float64) ** 2).sum()),
            "own_trained": sum(len(piece["loss_targets"]) for piece in pieces if isinstance(piece["loss_targets"], Tensor)),
            "wait_s": time.perf_counter() - started,
        }

    def _places(self, piece: Sequence[int]) -> int:
        """Token places that one forward pass computes, padding included."""
        if not piece:
            return 1
        sizes = self.rows.lengths[piece]
        return int(sizes.sum() if self.layout == "packed" else len(piece) * sizes.max())
