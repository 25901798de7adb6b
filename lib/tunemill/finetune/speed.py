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
from typing import Any

import torch

__all__ = ["SpeedMeter", "gemm_peak", "step_flop"]


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


class SpeedMeter:
    """Counts tokens, FLOP and seconds of one worker."""

    def __init__(self, model: Any, *, device: torch.device, recompute: bool, workers: int) -> None:
        self._config = model.config.get_text_config()
        head = model.get_output_embeddings()
        skipped = {id(head.weight), id(model.get_input_embeddings().weight)} if head is not None else set()
        matrices = [p for p in model.parameters() if _numel(p) and p.ndim >= 2 and id(p) not in skipped]
        self._block_weights = sum(_numel(p) for p in matrices if not p.requires_grad)
        self._adapter_weights = sum(_numel(p) for p in matrices if p.requires_grad)
        self._device, self._recompute, self._workers = device, recompute, workers
        self.phases: dict[str, float] = {}
        self.steps = self.rows = self.tokens = self.padded = 0
        self.flop = self.step_s = self.wait_s = 0.0
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
            self.phases[name] = self.phases.get(name, 0.0) + spent
            # Not part of the next step's time.
            self._mark += spent

    def begin(self) -> None:
        """Training starts now."""
        self._mark = time.perf_counter()

    def passed(self, batch: Mapping[str, Any], seconds: float) -> None:
        """Count one step of this worker: its batch and the seconds of its forward and backward passes."""
        self.steps += 1
        self.rows += batch["rows"]
        self.tokens += batch["tokens"]
        self.padded += batch["padded"]
        self.wait_s += batch["wait_s"]
        self.phases["forward_backward"] = self.phases.get("forward_backward", 0.0) + seconds
        self._last = {"tokens": batch["tokens"], "padded": batch["padded"]}
        self.flop += step_flop(
            self._config, block_weights=self._block_weights, adapter_weights=self._adapter_weights, tokens=batch["tokens"],
            squares=batch["squares"], trained=batch["trained"], recompute=self._recompute,
        )  # fmt: skip

    def since_last_step(self) -> dict[str, float]:
        """Seconds and tokens/s (of all workers, taken as equal) of the step that just ended."""
        _wait(self._device)
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        self.step_s += seconds
        tokens, padded = (self._last[name] * self._workers for name in ("tokens", "padded"))
        return {
            "seconds": round(seconds, 4),
            "tokens_per_s": round(tokens / max(seconds, 1e-9), 1),
            "padded_tokens_per_s": round(padded / max(seconds, 1e-9), 1),
        }

    def report(self, dtype: torch.dtype) -> dict[str, Any]:
        """The speed report of this worker's device, with the measured peak of its matrix products."""
        seconds = max(self.step_s, 1e-9)
        mlp = getattr(self._config, "intermediate_size", 4 * self._config.hidden_size)
        peak = gemm_peak(dtype, self._device, self._config.hidden_size, mlp)
        memory = (
            torch.cuda.max_memory_allocated(self._device)
            if self._device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        return {
            "steps": self.steps,
            "tokens": self.tokens * self._workers,
            "tokens_per_s": round(self.tokens * self._workers / seconds, 1),
            "padded_tokens_per_s": round(self.padded * self._workers / seconds, 1),
            "padding_share": round(1 - self.tokens / max(self.padded, 1), 4),
            "flop_per_token": round(self.flop / max(self.tokens, 1)),
            "flop_per_s_per_worker": round(self.flop / seconds),
            "gemm_peak_flop_per_s": round(peak),
            "share_of_gemm_peak": round(self.flop / seconds / peak, 4),
            "floor_s": round(self.flop / peak, 3),
            "recompute": self._recompute,
            "peak_memory_bytes": int(memory),
            "data_wait_share": round(self.wait_s / seconds, 5),
            "seconds": {"training": round(seconds, 3), **{name: round(value, 3) for name, value in self.phases.items()}},
        }


def _numel(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", None) or parameter.numel())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
