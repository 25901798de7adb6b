"""Which data types a device computes fast, and whether one holds for a model."""

from __future__ import annotations

import numpy as np

from tunemill.embed.config import EmbedConfig

__all__ = ["LEAST_COSINE", "candidates", "cosines"]

LEAST_COSINE = 0.999


def candidates(config: EmbedConfig, device: str) -> list[str]:
    """Data types to try, best first; fp32 is always the last resort under ``auto``."""
    if config.precision != "auto":
        return [config.precision]
    import torch

    if device.startswith("cuda"):
        # Both run at the same speed; fp16 rounds eight times finer, bf16 cannot overflow.
        return ["fp16", "bf16", "fp32"] if torch.cuda.is_bf16_supported() else ["fp16", "fp32"]
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return ["bf16", "fp32"] if fast else ["fp32"]


def cosines(vectors: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Cosine of each row with its reference, float64 [n]; 0 where a vector is zero or not finite."""
    a, b = vectors.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.einsum("nd,nd->n", a, b) / norms
    return np.where(np.isfinite(found), found, 0.0)
