"""Attention over rows laid end to end, each row seeing only itself: no padding and no mask.

Registered with transformers under :data:`VARLEN`. On a GPU it is torch's flash varlen kernel; on a CPU,
scaled-dot-product attention row by row, so the cost is the sum of squared lengths, not the square of
the sum; short rows of about the same length go together through plain matrix products, which cost a
third of one flash call each. Soft-capped models (Gemma 2) take the plain formula row by row. Calls
without row boundaries are ordinary causal attention.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["VARLEN", "register_varlen"]

VARLEN = "tunemill_varlen"

# On a CPU, rows up to this length are cheaper through plain products (measured with 9 heads of 64, bf16 and fp32).
_SHORT_TOKENS = 160
# Rows go together when the shortest has at least this share of the longest's length.
_ALIKE = 0.8


def register_varlen() -> None:
    """Make :data:`VARLEN` known to transformers; safe to call again."""
    from transformers import AttentionInterface

    AttentionInterface.register(VARLEN, varlen_attention)


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    row_starts: Tensor | None = None,
    longest_row: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention for queries [B, H, T, D], keys and values [B, H_kv, T, D]; returns [B, T, H, D].

    ``row_starts`` [rows + 1] are the boundaries of the rows in a single sequence (B = 1), ``longest_row`` the
    longest of them, both in tokens.
    """
    if attention_mask is not None:
        raise ValueError("tunemill_varlen takes row boundaries, not an attention mask")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    how: dict[str, Any] = {"scale": scale, "dropout": dropout, "window": sliding_window, "softcap": softcap}
    if row_starts is None:
        out = _causal(query, key, value, **how)
        return out.transpose(1, 2).contiguous(), None
    if query.is_cuda and softcap is None and dropout == 0.0 and query.dtype in (torch.bfloat16, torch.float16):
        longest = longest_row or query.shape[2]
        return _flash(query, key, value, scale=scale, window=sliding_window, row_starts=row_starts, longest=longest), None
    bounds = row_starts.tolist()
    together = not query.is_cuda and softcap is None and dropout == 0.0
    parts = []
    for first, last in _runs(tuple(bounds), together):
        a, b = bounds[first], bounds[last]
        q, k, v = query[:, :, a:b], key[:, :, a:b], value[:, :, a:b]
        if last - first == 1:
            parts.append(_causal(q, k, v, **how))
        else:
            sizes = tuple(y - x for x, y in pairwise(bounds[first : last + 1]))
            parts.append(_alike_rows(q, k, v, sizes, scale=scale, window=sliding_window))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


@lru_cache(maxsize=32)
def _runs(bounds: tuple[int, ...], together: bool) -> list[tuple[int, int]]:
    """Neighbouring rows that go through attention in one call, as half-open ranges of row numbers."""
    sizes = [b - a for a, b in pairwise(bounds)]
    runs: list[tuple[int, int]] = []
    start = 0
    for row in range(1, len(sizes) + 1):
        run = sizes[start : row + 1]
        if not together or row == len(sizes) or max(run) > _SHORT_TOKENS or min(run) < _ALIKE * max(run):
            runs.append((start, row))
            start = row
    return runs


@lru_cache(maxsize=32)
def _padding(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Where each place of a padded [rows, longest] block is found, and which places are real."""
    width = torch.arange(max(sizes))
    real = width[None] < torch.tensor(sizes)[:, None]
    starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    return torch.where(real, starts[:, None] + width[None], 0), real


def _alike_rows(query: Tensor, key: Tensor, value: Tensor, sizes: tuple[int, ...], *, scale: float, window: int | None) -> Tensor:
    """Attention of rows of about equal length in batched matrix products; tensors as in :func:`_causal`."""
    place, real = _padding(sizes)
    rows, width = place.shape
    heads, kv_heads, head_dim = query.shape[1], key.shape[1], query.shape[-1]
    q, k, v = (x[0].transpose(0, 1)[place].transpose(1, 2) for x in (query * scale, key, value))
    q = q.reshape(rows, kv_heads, heads // kv_heads * width, head_dim)
    steps = torch.arange(width)
    back = steps[:, None] - steps[None, :]
    hidden = (back < 0) if window is None else (back < 0) | (back >= window)
    scores = (q @ k.transpose(2, 3)).view(rows, heads, width, width).float().masked_fill(hidden, float("-inf"))
    shares = scores.softmax(-1).to(value.dtype).view(rows, kv_heads, -1, width)
    out = (shares @ v).view(rows, heads, width, head_dim)
    return out.transpose(1, 2)[real].transpose(0, 1)[None]


def _flash(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None, row_starts: Tensor, longest: int
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    # transformers counts the token itself in its window, flash does not.
    left = -1 if window is None else window - 1
    out = varlen_attn(
        q, k, v, row_starts, row_starts, longest, longest, scale=scale, window_size=(left, 0), enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[None]


def _causal(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float, window: int | None, softcap: float | None
) -> Tensor:
    length = query.shape[2]
    band = None
    if window is not None and length > window:
        steps = torch.arange(length, device=query.device)
        back = steps[:, None] - steps[None, :]
        band = (back >= 0) & (back < window)
    if softcap is None:
        return nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=band,
            dropout_p=dropout,
            is_causal=band is None and length > 1,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.tanh(query @ key.transpose(2, 3) * scale / softcap) * softcap
    if band is None:
        band = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    shares = scores.masked_fill(~band, torch.finfo(scores.dtype).min).float().softmax(-1).to(query.dtype)
    return nn.functional.dropout(shares, dropout) @ value
