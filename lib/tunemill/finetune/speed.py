"""How fast a run was, and how far from what the hardware could do.

FLOP of a LoRA step: a matrix product of P weights costs 2P a token forward and 2P backward (the frozen
weights need no gradient), and 2P more when activations are computed again: 4P or 6P. Attention adds, for
causal rows of L tokens, 2 x layers x heads x head size x L^2 forward (half of the full square) and twice that
backward. The adapter's own products and the output head at trained positions are counted as well.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["SpeedMeter", "Totals", "gemm_peak", "step_flop"]


def step_flop(
    config: Any, *, block_weights: int, adapter_weights: int, tokens: int, squares: float, trained: int, recompute: bool
) -> float:
    """Least FLOP of training on ``tokens`` tokens in rows whose squared lengths sum to ``squares``.

    ``block_weights`` are the matrix weights of the transformer blocks; ``trained`` positions go through the output head.
    """
    passes = 3 if recompute else 2
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = 2 * config.num_hidden_layers * heads * head_dim * squares
    linear = 2 * passes * block_weights * tokens
    adapter = (2 * passes + 2) * adapter_weights * tokens
    head = 4 * config.hidden_size * config.vocab_size * trained
    return float(linear + adapter + head + attention * (4 if recompute else 3))


def gemm_peak(dtype: torch.dtype, device: torch.device, hidden: int, intermediate: int, *, seconds: float = 0.6) -> float:
    """Measured FLOP/s of the model's own largest matrix product on this device and its threads (best of several)."""
    tokens = 8192 if device.type == "cuda" else 1024
    a = torch.randn(tokens, hidden, dtype=dtype, device=device)
    b = torch.randn(intermediate, hidden, dtype=dtype, device=device)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        _wait(device)
        started = time.perf_counter()
        torch.nn.functional.linear(a, b)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * tokens * hidden * intermediate / best


@dataclass(kw_only=True)
class Totals:
    """What a run has done up to a step, over all its attempts; plain values, kept in every checkpoint."""

    steps: int = 0
    rows: int = 0
    tokens: int = 0
    """Real tokens of all workers."""
    padded: int = 0
    """Token places that all workers computed, padding included."""
    flop: float = 0.0
    """Of the first worker."""
    step_s: float = 0.0
    """Seconds of training steps, without the phases below that stand beside them."""
    wait_s: float = 0.0
    """Seconds in which a step waited for its batch."""
    restarts: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds by name."""


class SpeedMeter:
    """Counts tokens, FLOP and seconds of one worker, on top of the ``totals`` of earlier attempts."""

    def __init__(self, model: Any, *, device: torch.device, recompute: bool, totals: Totals | None = None) -> None:
        self._config = model.config.get_text_config()
        head = model.get_output_embeddings()
        skipped = {id(head.weight), id(model.get_input_embeddings().weight)} if head is not None else set()
        matrices = [p for p in model.parameters() if _numel(p) and _ndim(p) >= 2 and id(p) not in skipped]
        self._block_weights = sum(_numel(p) for p in matrices if not p.requires_grad)
        self._adapter_weights = sum(_numel(p) for p in matrices if p.requires_grad)
        self._device, self._recompute = device, recompute
        self.totals = totals or Totals()
        self._mark = time.perf_counter()
        self._last: dict[str, float] = {"tokens": 0, "padded": 0}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's seconds to a named phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.add(name, spent)
            # Not part of the next step's time.
            self._mark += spent

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a named phase."""
        self.totals.phases[name] = self.totals.phases.get(name, 0.0) + seconds

    def begin(self) -> None:
        """Training starts now."""
        self._mark = time.perf_counter()

    def passed(self, batch: Mapping[str, Any], seconds: float) -> None:
        """Count one step of this worker: its batch and the seconds of its forward and backward passes."""
        totals = self.totals
        totals.steps += 1
        totals.rows += batch["rows"]
        totals.tokens += batch["tokens"]
        totals.padded += batch["padded"]
        totals.wait_s += batch["wait_s"]
        self.add("forward_backward", seconds)
        self._last = {"tokens": batch["tokens"], "padded": batch["padded"]}
        totals.flop += step_flop(
            self._config, block_weights=self._block_weights, adapter_weights=self._adapter_weights, tokens=batch["own_tokens"],
            squares=batch["own_squares"], trained=batch["own_trained"], recompute=self._recompute,
        )  # fmt: skip

    def since_last_step(self) -> dict[str, float]:
        """Seconds and tokens/s (of all workers) of the step that just ended."""
        _wait(self._device)
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        self.totals.step_s += seconds
        return {
            "seconds": round(seconds, 4),
            "tokens_per_s": round(self._last["tokens"] / max(seconds, 1e-9), 1),
            "padded_tokens_per_s": round(self._last["padded"] / max(seconds, 1e-9), 1),
        }

    def report(self, dtype: torch.dtype) -> dict[str, Any]:
        """The speed of the whole run, over its restarts (work done twice is counted once).

        ``flop``, ``peak`` and memory are those of this worker's device; the peak is measured here.
        """
        totals = self.totals
        seconds = max(totals.step_s, 1e-9)
        mlp = getattr(self._config, "intermediate_size", 4 * self._config.hidden_size)
        peak = gemm_peak(dtype, self._device, self._config.hidden_size, mlp)
        memory = (
            torch.cuda.max_memory_allocated(self._device)
            if self._device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        return {
            "steps": totals.steps,
            "restarts": totals.restarts,
            "tokens": totals.tokens,
            "tokens_per_s": round(totals.tokens / seconds, 1),
            "padded_tokens_per_s": round(totals.padded / seconds, 1),
            "padding_share": round(1 - totals.tokens / max(totals.padded, 1), 4),
            "flop_per_s_per_worker": round(totals.flop / seconds),
            "gemm_peak_flop_per_s": round(peak),
            "share_of_gemm_peak": round(totals.flop / seconds / peak, 4),
            "floor_s": round(totals.flop / peak, 3),
            "recompute": self._recompute,
            "peak_memory_bytes": int(memory),
            "data_wait_share": round(totals.wait_s / seconds, 5),
            "seconds": {"training": round(seconds, 3), **{name: round(value, 3) for name, value in totals.phases.items()}},
        }


# Weights that ZeRO-3 has sharded are empty here and carry their true shape beside.
def _numel(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", None) or parameter.numel())


def _ndim(parameter: Any) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
