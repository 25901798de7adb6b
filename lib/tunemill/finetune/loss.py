"""Weighted cross-entropy that computes logits only where a token is trained.

The output head is frozen under LoRA, so its gradient is not needed and the gradient with respect to
the hidden states is made chunk by chunk in the forward pass (as in Liger's fused linear
cross-entropy): at no time do more than ``CHUNK`` x vocabulary logits exist.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["add_weighted_loss", "weighted_loss"]

CHUNK = 512


def add_weighted_loss(model: Any) -> None:
    """Give a causal language model a forward pass that returns the weighted loss when ``loss_targets`` is passed.

    It stays reachable through PEFT, DDP and DeepSpeed wrappers, because it is the model's own ``forward``.
    """
    plain = model.forward

    def forward(self: Any, *args: Any, loss_targets: Tensor | None = None, **kwargs: Any) -> Any:
        if loss_targets is None:
            return plain(*args, **kwargs)
        positions, weights = kwargs.pop("loss_positions"), kwargs.pop("loss_weights")
        for name in ("labels", "output_attentions", "output_hidden_states", "return_dict"):
            kwargs.pop(name, None)
        hidden = self.model(*args, **kwargs, use_cache=False)[0]
        trained = hidden.reshape(-1, hidden.shape[-1])[positions]
        config = self.config.get_text_config()
        return weighted_loss(
            trained, self.get_output_embeddings(), loss_targets, weights, getattr(config, "final_logit_softcapping", None)
        )

    model.forward = types.MethodType(forward, model)


def weighted_loss(hidden: Tensor, head: nn.Module, targets: Tensor, weights: Tensor, softcap: float | None = None) -> Tensor:
    """Sum of ``weights * cross_entropy``: hidden [K, H], targets [K] token ids, weights [K]; a float32 scalar."""
    weight = getattr(head, "weight", None)
    plain_head = type(head) is nn.Linear and getattr(head, "bias", None) is None and not hasattr(weight, "ds_id")
    if plain_head and weight is not None and not weight.requires_grad:
        return _FrozenHeadLoss.apply(hidden, weight, targets, weights, softcap)
    # ZeRO-3 gathers the head's weights when the module is called, so it has to be called.
    total = hidden.new_zeros((), dtype=torch.float32) + hidden.sum().float() * 0
    for start in range(0, max(len(targets), 1), CHUNK):
        span = slice(start, start + CHUNK)
        logits = _capped(head(hidden[span]).float(), softcap)
        total = total + (nn.functional.cross_entropy(logits, targets[span], reduction="none") * weights[span]).sum()
    return total


class _FrozenHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        hidden, weight, targets, weights, softcap = inputs
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.zeros_like(hidden, dtype=weight.dtype)
        # Outside of autocast, which would give the logits back in another type.
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), CHUNK):
                span = slice(start, start + CHUNK)
                raw = (hidden[span].to(weight.dtype) @ weight.T).float()
                logits = _capped(raw, softcap)
                logs = logits.log_softmax(-1)
                aim, weigh = targets[span, None], weights[span].float()
                total -= (logs.gather(1, aim)[:, 0] * weigh).sum()
                if not ctx.needs_input_grad[0]:
                    continue
                slope = logs.exp_().scatter_add_(1, aim, torch.full_like(aim, -1, dtype=logs.dtype)).mul_(weigh[:, None])
                if softcap is not None:
                    slope *= 1 - (logits / softcap) ** 2
                gradient[span] = slope.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient.to(hidden.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None, None, None


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap
