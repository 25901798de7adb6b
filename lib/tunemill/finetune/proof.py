"""Shows, on the model and attention kernel in use, that rows packed end to end do not see each other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunemill.finetune.batches import collate
from tunemill.finetune.rows import TokenRows

__all__ = ["prove_packing"]

_ROWS = 4
_MOST_TOKENS = 512
# Packed and alone go through matrix products of different shape, so they differ by rounding: at most this share of the
# logits' standard deviation. A leak shows as 0.05 to 0.5 and more.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}


@torch.no_grad()
def prove_packing(model: Any, forward: Callable[..., Any], rows: TokenRows, dtype: torch.dtype) -> dict[str, Any]:
    """Compare packed rows with the same rows alone, and change one row to see whether the others feel it.

    ``forward`` calls ``model``, through whatever it is wrapped in.
    ``alone_error`` is the largest mean difference of a row's logits, as a share of their standard deviation.
    ``neighbour_error`` is the largest change of any other row's logits when one row's tokens are replaced: the
    shapes are the same, so without a leak it is zero.
    """
    numbers = [int(n) for n in np.argsort(rows.lengths, kind="stable") if 1 < rows.lengths[n] <= _MOST_TOKENS]
    chosen = [numbers[i] for i in sorted({round(j * (len(numbers) - 1) / (_ROWS - 1)) for j in range(_ROWS)})] if numbers else []
    if len(chosen) < 2:
        return {"asked": True, "passed": True, "rows": len(chosen), "detail": "fewer than two short rows: nothing to pack"}
    training = model.training
    model.eval()
    packed: dict[str, Any] = collate(rows, chosen, "packed")
    together = _logits(model, forward, packed, dtype)
    starts = packed["row_starts"].tolist()
    spans = list(pairwise(starts))
    alone_error = 0.0
    for number, (a, b) in zip(chosen, spans, strict=True):
        alone = _logits(model, forward, collate(rows, [number], "padded"), dtype)
        alone_error = max(alone_error, float((together[a:b] - alone).abs().mean() / alone.std().clamp(min=1e-9)))
    first, last = spans[0][0], spans[0][1]
    changed = {**packed, "input_ids": packed["input_ids"].clone()}
    changed["input_ids"][0, first:last] = changed["input_ids"][0, first:last].flip(0).roll(1) + 1
    changed["input_ids"] %= model.config.get_text_config().vocab_size
    after = _logits(model, forward, changed, dtype)
    neighbour_error = float((after[last:] - together[last:]).abs().max())
    model.train(training)
    passed = alone_error <= _TOLERANCE.get(dtype, 0.15) and neighbour_error <= 1e-4
    return {
        "asked": True,
        "passed": bool(passed),
        "rows": len(chosen),
        "tokens": starts[-1],
        "alone_error": round(alone_error, 6),
        "neighbour_error": round(neighbour_error, 6),
        "detail": f"difference to the rows alone {alone_error:.2g}, effect of a changed neighbour {neighbour_error:.2g}",
    }


def _logits(model: Any, forward: Callable[..., Any], batch: dict[str, Any], dtype: torch.dtype) -> Tensor:
    device = next(model.parameters()).device
    inputs = {
        key: value.to(device) if isinstance(value, Tensor) else value
        for key, value in batch.items()
        if not key.startswith("loss_")
    }
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        logits: Tensor = forward(**inputs).logits
    return logits.reshape(-1, logits.shape[-1]).float()
