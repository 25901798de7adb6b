"""Which rows train in which step, on which worker, in which forward pass. Pure: numbers in, numbers out.

One optimiser step takes ``batch_size`` rows of the epoch's order; workers, accumulation and packing
only cut that set of rows, so they never change what is learnt. An epoch's last step is smaller when
the rows do not divide: no row is skipped or repeated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from tunemill.chat.packing import pack

__all__ = ["StepPlan", "epoch_order", "share_out", "split_pieces"]

Layout = Literal["packed", "bucketed", "padded"]

# Padding a forward pass of its own is worth, in tokens: the fixed cost of one more pass.
_PASS_COST_TOKENS = 96


@lru_cache(maxsize=4)
def epoch_order(rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of ``rows`` rows in one epoch (counted from 0): a permutation given by seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """The rows of every optimiser step of a run."""

    rows: int
    batch_size: int
    epochs: float
    seed: int
    max_steps: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps that see every row once."""
        return math.ceil(self.rows / self.batch_size)

    @property
    def steps(self) -> int:
        """Optimiser steps in all, at least one."""
        return self.max_steps or max(1, round(self.epochs * self.steps_per_epoch))

    def rows_of(self, step: int) -> list[int]:
        """Row numbers of one step (counted from 0), ascending in neither length nor number."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.rows, self.seed, epoch)
        return [int(row) for row in order[within * self.batch_size : (within + 1) * self.batch_size]]

    def epoch_of(self, step: int) -> float:
        """Epochs done after ``step`` steps."""
        return step / self.steps_per_epoch


def share_out(rows: Sequence[int], lengths: npt.NDArray[np.int64], workers: int) -> list[list[int]]:
    """Cut rows into one list for each worker, with about equal tokens (longest row first, to the least loaded)."""
    shares: list[list[int]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for row in sorted(rows, key=lambda r: (-int(lengths[r]), r)):
        lightest = min(range(workers), key=lambda w: (loads[w], len(shares[w]), w))
        shares[lightest].append(row)
        loads[lightest] += int(lengths[row])
    return shares


def split_pieces(
    rows: Sequence[int], lengths: npt.NDArray[np.int64], *, layout: Layout, accumulation: int, micro_tokens: int
) -> list[list[int]]:
    """Cut a worker's rows into forward passes of at most ``micro_tokens`` tokens (a longer row goes alone).

    ``packed`` fills passes best-fit-decreasing; ``bucketed`` cuts the rows, sorted by length, where padding
    and the number of passes cost least; ``padded`` cuts them in the given order.
    """
    if not rows:
        return []
    if layout == "packed":
        return _packed(rows, lengths, accumulation, micro_tokens)
    ordered = sorted(rows, key=lambda r: (int(lengths[r]), r)) if layout == "bucketed" else list(rows)
    wanted = min(accumulation, len(ordered))
    if layout == "padded":
        size = math.ceil(len(ordered) / wanted)
        cut = [ordered[i : i + size] for i in range(0, len(ordered), size)]
        return [part for piece in cut for part in _halve_until(piece, lengths, micro_tokens)]
    return _bucketed(ordered, [int(lengths[r]) for r in ordered], micro_tokens, wanted)


def _packed(rows: Sequence[int], lengths: npt.NDArray[np.int64], accumulation: int, micro_tokens: int) -> list[list[int]]:
    sizes = [int(lengths[r]) for r in rows]
    bins = pack([min(size, micro_tokens) for size in sizes], micro_tokens)
    if len(bins) < min(accumulation, len(rows)):
        return [share for share in share_out(rows, lengths, min(accumulation, len(rows))) if share]
    return [[rows[i] for i in bin_] for bin_ in bins]


def _halve_until(piece: list[int], lengths: npt.NDArray[np.int64], micro_tokens: int) -> list[list[int]]:
    if len(piece) == 1 or len(piece) * max(int(lengths[r]) for r in piece) <= micro_tokens:
        return [piece]
    middle = len(piece) // 2
    return [*_halve_until(piece[:middle], lengths, micro_tokens), *_halve_until(piece[middle:], lengths, micro_tokens)]


def _bucketed(rows: list[int], sizes: list[int], micro_tokens: int, wanted: int) -> list[list[int]]:
    """Cheapest cut of ascending sizes: padded tokens plus a fixed cost for each pass (dynamic programme, O(n^2))."""
    count = len(rows)
    longest = math.ceil(count / wanted)
    best = [0.0] + [math.inf] * count
    cut = [0] * (count + 1)
    for end in range(1, count + 1):
        for start in range(end - 1, max(-1, end - longest - 1), -1):
            padded = sizes[end - 1] * (end - start)
            if padded > micro_tokens and end - start > 1:
                break
            cost = best[start] + padded + _PASS_COST_TOKENS
            if cost < best[end]:
                best[end], cut[end] = cost, start
    pieces: list[list[int]] = []
    end = count
    while end:
        pieces.append(rows[cut[end] : end])
        end = cut[end]
    return pieces[::-1]
