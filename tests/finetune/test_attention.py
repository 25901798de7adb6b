"""Attention over rows laid end to end."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from tunemill.finetune.attention import varlen_attention


def plain(query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """The textbook formula for one row; tensors [1, H, L, D]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    length = query.shape[2]
    back = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    unseen = (back < 0) | (back >= (window or length))
    scores = scores.masked_fill(unseen, float("-inf"))
    return scores.softmax(-1) @ value


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (4, None), (None, 5.0), (4, 5.0)])
@pytest.mark.parametrize("lengths", [(1, 7, 8, 9), (3, 200, 5), (12,)])
def test_rows_see_only_themselves(lengths: tuple[int, ...], window: int | None, softcap: float | None) -> None:
    """Outputs and gradients equal those of each row alone, with grouped heads, windows and soft caps."""
    torch.manual_seed(0)
    total = sum(lengths)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    inputs = [torch.randn(1, heads, total, 8, dtype=torch.float64, requires_grad=True) for heads in (6, 2, 2)]
    ours, _ = varlen_attention(
        nn.Module(),
        *inputs,
        None,
        scaling=0.3,
        sliding_window=window,
        softcap=softcap,
        row_starts=starts,
        longest_row=max(lengths),
    )
    parts = [
        plain(*(x[:, :, a:b] for x in inputs), scale=0.3, window=window, softcap=softcap) for a, b in pairwise(starts.tolist())
    ]
    theirs = torch.cat(parts, 2).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    weights = torch.randn_like(theirs)
    grads = [torch.autograd.grad((out * weights).sum(), inputs) for out in (ours, theirs)]
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_without_boundaries_it_is_causal_attention() -> None:
    """A padded batch goes through ordinary causal attention."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 2, 5, 4) for _ in range(3))
    ours, _ = varlen_attention(nn.Module(), query, key, value, None, scaling=0.5)
    theirs = torch.cat(
        [
            plain(q[None], k[None], v[None], scale=0.5, window=None, softcap=None)
            for q, k, v in zip(query, key, value, strict=True)
        ]
    )
    torch.testing.assert_close(ours, theirs.transpose(1, 2))
