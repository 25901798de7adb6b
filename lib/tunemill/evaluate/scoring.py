"""Log-probabilities of given continuations under a causal language model, with and without its adapter.

One load of the base model serves both: PEFT turns the adapter off and on. Prompts are padded on the
left, so that one slice of positions holds what is wanted of every row and no other logits are made.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunemill.errors import ConfigError
from tunemill.evaluate.metrics import Floats

__all__ = ["Scorer", "load_scorer"]

log = logging.getLogger("tunemill")

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A loaded model; ``adapter`` says whether it carries one."""

    model: Any
    adapter: bool
    device: str

    @property
    def context_tokens(self) -> int:
        """The longest sequence the model was made for."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 1 << 30))

    def shared(self, prompts: Sequence[Sequence[int]], tails: Sequence[Sequence[int]], *, tuned: bool) -> Floats:
        """Summed log-probability of each tail after each prompt, [n prompts, n tails].

        Every prompt goes through the model once: a tail of one token costs nothing more, a longer one a
        short pass over a copy of the prompt's cache.
        """
        first = torch.tensor([tail[0] for tail in tails], device=self.device)
        longer = [(column, tail) for column, tail in enumerate(tails) if len(tail) > 1]
        ids, mask = self._padded(prompts)
        with self._variant(tuned):
            output = self.model(
                input_ids=ids, attention_mask=mask, position_ids=_positions(mask), logits_to_keep=1, use_cache=bool(longer)
            )
            scores = _log_softmax(output.logits[:, -1]).index_select(1, first)
            for column, tail in longer:
                scores[:, column] += self._rest(copy.deepcopy(output.past_key_values), mask, tail)
        return scores.double().cpu().numpy()

    def whole(self, sequences: Sequence[Sequence[int]], weights: Sequence[Sequence[float]], *, tuned: bool) -> Floats:
        """Weighted sum of each token's log-probability given those before it, [n]; the first token counts nothing."""
        ids, mask = self._padded(sequences)
        first = [next((i for i, weight in enumerate(row) if weight and i), len(row)) for row in weights]
        keep = max(len(row) - start for row, start in zip(weights, first, strict=True)) + 1
        with self._variant(tuned):
            logits = self.model(
                input_ids=ids, attention_mask=mask, position_ids=_positions(mask), logits_to_keep=keep, use_cache=False
            ).logits
        found = []
        for row, start in enumerate(first):
            count = len(weights[row]) - start
            steps = _log_softmax(logits[row, -count - 1 : -1]).gather(1, ids[row, ids.shape[1] - count :, None])[:, 0]
            found.append((steps * torch.tensor(weights[row][start:], device=steps.device)).sum())
        return torch.stack(found).double().cpu().numpy()

    def _rest(self, cache: Any, mask: torch.Tensor, tail: Sequence[int]) -> torch.Tensor:
        rows = mask.shape[0]
        ids = torch.tensor([list(tail)], device=self.device).expand(rows, -1)
        whole = torch.cat([mask, mask.new_ones(rows, len(tail) - 1)], dim=1)
        positions = _positions(whole)[:, mask.shape[1] :]
        logits = self.model(
            input_ids=ids[:, :-1], attention_mask=whole, position_ids=positions, past_key_values=cache, use_cache=True
        ).logits
        return _log_softmax(logits).gather(2, ids[:, 1:, None]).sum(dim=(1, 2))

    def _padded(self, sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(tokens) for tokens in sequences)
        ids = torch.zeros(len(sequences), width, dtype=torch.long)
        mask = torch.zeros(len(sequences), width, dtype=torch.long)
        for row, tokens in enumerate(sequences):
            ids[row, width - len(tokens) :] = torch.tensor(list(tokens))
            mask[row, width - len(tokens) :] = 1
        return ids.to(self.device), mask.to(self.device)

    @contextlib.contextmanager
    def _variant(self, tuned: bool) -> Iterator[None]:
        off = self.model.disable_adapter() if self.adapter and not tuned else contextlib.nullcontext()
        with torch.inference_mode(), off:
            yield


def load_scorer(base_model: str, adapter: str | None, *, precision: str) -> Scorer:
    """Load a model (a folder or hub name) and lay its adapter over it; ConfigError when either is not there."""
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = _DTYPES[precision] if precision != "auto" else _native_dtype(device)
    try:
        model = AutoModelForCausalLM.from_pretrained(base_model, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(f"evaluate.base_model {base_model!r}: cannot be loaded ({reason})") from error
    model = model.to(device)
    if adapter is not None:
        model = _with_adapter(model, adapter)
    _compute_logits_in_float32(model.get_base_model() if adapter is not None else model)
    return Scorer(model=model.eval(), adapter=adapter is not None, device=device)


class _Float32Head(nn.Module):
    """The output layer in float32: bfloat16 logits come in steps of 1/16 or more, which makes ties between rows."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(head.weight.detach().float(), requires_grad=False)
        self.bias = None if head.bias is None else nn.Parameter(head.bias.detach().float(), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., vocabulary] of hidden states [..., width]."""
        return nn.functional.linear(hidden.float(), self.weight, self.bias)


def _compute_logits_in_float32(model: Any) -> None:
    head = model.get_output_embeddings()
    # A head that carries an adapter of its own is left as it is.
    if type(head) is nn.Linear and head.weight.dtype != torch.float32:
        model.set_output_embeddings(_Float32Head(head))


def _with_adapter(model: Any, adapter: str) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(f"evaluate.adapter {adapter}: does not fit {model.config.name_or_path} ({reason})") from error


def _native_dtype(device: str) -> torch.dtype:
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    flags = torch.backends.cpu.get_cpu_capability() if hasattr(torch.backends.cpu, "get_cpu_capability") else ""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast and flags else torch.float32


def _positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits.float(), dim=-1)
