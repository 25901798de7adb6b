"""BERT encoders (MiniLM, gte, bge, e5) on a CPU: the same sums as the model's own modules, without padding.

The tokens of a batch stand in one matrix, so that products and norms see real tokens only; attention runs
over texts of one length at a time, so that it needs no mask. Letters in names are shapes: T tokens of a
batch, D hidden size, n texts of a group, L their length, H heads, E size of a head.

Which models are taken is decided by their structure; that the vectors are right is checked by the caller.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

__all__ = ["PackedBert", "packed_bert"]

_TYPICAL_TOKENS = 2048
_SAFE_SUMS = (1e-30, 1e30)
"""Sums of exp(scores) that leave room on both sides of what bf16 and fp32 hold."""


def packed_bert(model: Any, dtype: Any) -> PackedBert | None:
    """The packed form of a SentenceTransformer's weights in ``dtype``; None for a model of another structure.

    Taken are a BertModel of plain layers with exact GELU, pooled by mean or first token, perhaps normalised.
    """
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from transformers import BertModel

    transformer, *others = model
    if type(transformer) is not Transformer or [type(m) for m in others] not in ([Pooling], [Pooling, Normalize]):
        return None
    bert, pooling = transformer.model, others[0]
    fits = (
        type(bert) is BertModel
        and bert.config.hidden_act == "gelu"
        and not bert.config.is_decoder
        and pooling.include_prompt
        and pooling.pooling_mode in ("mean", "cls")
        and transformer.processor.padding_side == "right"
        and _plain(bert)
    )
    return PackedBert(bert, pooling.pooling_mode, dtype) if fits else None


def _plain(bert: Any) -> bool:
    """Every part with weights is torch's own: no adapter, no quantised layer."""
    from torch import nn

    weighted = [m for m in bert.modules() if next(m.parameters(recurse=False), None) is not None]
    return all(type(module) in (nn.Linear, nn.LayerNorm, nn.Embedding) for module in weighted)


class PackedBert:
    """An encoder with its pooling."""

    def __init__(self, bert: Any, pooling_mode: str, dtype: Any) -> None:
        import torch

        self._torch = torch
        self._first_token = pooling_mode == "cls"
        with torch.no_grad():
            embeddings = bert.embeddings
            self._words = embeddings.word_embeddings.weight.to(dtype)
            # Every token is of type 0, so its vector is part of the position's.
            self._positions = (embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]).to(dtype)
            self._norm = _Norm(embeddings.LayerNorm, dtype)
            self._layers = [_Layer(layer, dtype) for layer in bert.encoder.layer]

    def __call__(self, items: Sequence[Sequence[int]]) -> Any:
        """Pooled vectors, float32 [n, D], of texts as token ids. Neighbours of one length share their attention."""
        torch = self._torch
        groups = [(len(list(texts)), length) for length, texts in itertools.groupby(map(len, items))]
        ids_T = torch.tensor(list(itertools.chain.from_iterable(items)))
        positions_TD = torch.cat([self._positions[:length].repeat(n, 1) for n, length in groups])
        x_TD = self._norm(positions_TD.add_(self._words[ids_T]))
        for layer in self._layers:
            x_TD = layer(x_TD, groups)
        return torch.cat([self._pool(x_TD[rows].view(n, length, -1)) for rows, n, length in _slices(groups)])

    def _pool(self, x_nLD: Any) -> Any:
        return x_nLD[:, 0].float() if self._first_token else x_nLD.mean(dim=1, dtype=self._torch.float32)


class _Layer:
    """One encoder layer."""

    def __init__(self, layer: Any, dtype: Any) -> None:
        import torch

        own, after, last = layer.attention.self, layer.attention.output, layer.output
        self._heads = own.num_attention_heads
        # The scale of the scores is part of the queries' weights: one pass over the scores less.
        parts = [(own.query, own.scaling), (own.key, 1.0), (own.value, 1.0)]
        weight = torch.cat([part.weight * scale for part, scale in parts])
        bias = torch.cat([part.bias * scale for part, scale in parts])
        self._qkv = _Linear(weight, bias, dtype)
        self._out = _Linear(after.dense.weight, after.dense.bias, dtype)
        self._up = _Linear(layer.intermediate.dense.weight, layer.intermediate.dense.bias, dtype)
        self._down = _Linear(last.dense.weight, last.dense.bias, dtype)
        self._norms = _Norm(after.LayerNorm, dtype), _Norm(last.LayerNorm, dtype)

    def __call__(self, x_TD: Any, groups: list[tuple[int, int]]) -> Any:
        qkv_T3D = self._qkv(x_TD)
        mixed_TD = x_TD.new_empty(x_TD.shape)
        for rows, n, length in _slices(groups):
            _attend(qkv_T3D[rows].view(n, length, 3, self._heads, -1), mixed_TD[rows].view(n, length, self._heads, -1))
        x_TD = self._norms[0](self._out.plus(mixed_TD, x_TD))
        return self._norms[1](self._down.plus(self._up.gelu(x_TD), x_TD))


def _slices(groups: list[tuple[int, int]]) -> list[tuple[slice, int, int]]:
    """Where each group of ``n`` texts of ``length`` tokens stands among the rows of a batch."""
    ends = itertools.accumulate(n * length for n, length in groups)
    return [(slice(end - n * length, end), n, length) for end, (n, length) in zip(ends, groups, strict=True)]


def _attend(qkv_nL3HE: Any, out_nLHE: Any) -> None:
    """Attention of texts of one length, all tokens real, written to ``out``; the queries are scaled already.

    The softmax is exp(scores) / sum without subtracting each row's largest score first, which would take longer than
    the rest; heads in which that comes near what a float holds (scores about 70) are done again with the usual softmax.
    """
    import torch

    n, length, _, heads, size = qkv_nL3HE.shape
    q, k, v = qkv_nL3HE.permute(2, 0, 3, 1, 4).reshape(3, n * heads, length, size)
    weights = torch.bmm(q, k.transpose(1, 2)).exp_()
    mixed, total = torch.bmm(weights, v), weights.sum(-1, keepdim=True)
    low, high = _SAFE_SUMS
    least, most = total.aminmax()
    if not low < least <= most < high:
        lost = (~((total > low) & (total < high))).any(dim=1).flatten()
        mixed[lost] = torch.bmm(torch.bmm(q[lost], k[lost].transpose(1, 2)).softmax(-1), v[lost])
        total[lost] = 1
    mixed, total = (part.view(n, heads, length, -1).transpose(1, 2) for part in (mixed, total))
    torch.div(mixed, total, out=out_nLHE)


class _Norm:
    """Layer norm over the last dimension."""

    def __init__(self, norm: Any, dtype: Any) -> None:
        self._shape, self._eps = norm.normalized_shape, norm.eps
        self._weight, self._bias = norm.weight.to(dtype), norm.bias.to(dtype)

    def __call__(self, x: Any) -> Any:
        from torch.nn.functional import layer_norm

        return layer_norm(x, self._shape, self._weight, self._bias, self._eps)


class _Linear:
    """x W' + b, alone or fused with what follows, its weight laid out once as the processor's kernels want it.

    Where torch has no such operators (they are its compiler's, not public) the plain ones do the same.
    """

    def __init__(self, weight: Any, bias: Any, dtype: Any) -> None:
        import torch

        self._fused: Any = None
        self._weight, self._bias = weight.detach().to(dtype).contiguous(), bias.detach().to(dtype)
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(self._weight, _TYPICAL_TOKENS)
            torch.ops.mkldnn._linear_pointwise(self._weight[:1], packed, self._bias, "none", [], "")
        except (AttributeError, NotImplementedError, RuntimeError):
            return
        self._weight, self._fused = packed, torch.ops.mkldnn._linear_pointwise

    def __call__(self, x: Any) -> Any:
        from torch.nn.functional import linear

        if self._fused is None:
            return linear(x, self._weight, self._bias)
        return self._fused(x, self._weight, self._bias, "none", [], "")

    def gelu(self, x: Any) -> Any:
        """Exact GELU of the product."""
        from torch.nn.functional import gelu

        if self._fused is None:
            return gelu(self(x))
        return self._fused(x, self._weight, self._bias, "gelu", [], "none")

    def plus(self, x: Any, residual: Any) -> Any:
        """The product plus ``residual``, summed before it is rounded."""
        if self._fused is None:
            return self(x).add_(residual)
        return self._fused.binary(x, residual, self._weight, self._bias, "add")
