"""The weighted loss at trained positions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tunemill.finetune.loss import CHUNK, weighted_loss


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("count", [0, 1, CHUNK + 7])
def test_equals_cross_entropy_with_weights(count: int, frozen: bool, softcap: float | None) -> None:
    """Loss and gradient equal the plain formula, over several chunks, with and without a soft cap."""
    torch.manual_seed(0)
    head = nn.Linear(8, 50, bias=False)
    head.weight.requires_grad_(not frozen)
    hidden = torch.randn(count, 8, requires_grad=True)
    targets, weights = torch.randint(0, 50, (count,)), torch.rand(count)
    ours = weighted_loss(hidden, head, targets, weights, softcap)
    logits = head(hidden)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    theirs = (nn.functional.cross_entropy(logits, targets, reduction="none") * weights).sum()
    torch.testing.assert_close(ours, theirs)
    (mine,) = torch.autograd.grad(ours * 0.3, hidden)
    (other,) = torch.autograd.grad(theirs * 0.3, hidden)
    torch.testing.assert_close(mine, other)
