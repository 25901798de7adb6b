"""Small corpora of unit vectors in clusters, and hypothesis strategies for them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

CORPUS = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 250),
        "dims": st.integers(2, 40),
        "centres": st.integers(1, 12),
        "spread": st.sampled_from([0.0, 0.02, 0.1, 0.3, 1.0]),
        "copies": st.integers(0, 20),
        "seed": st.integers(0, 2**16),
    }
)


def corpus(*, rows: int, dims: int, centres: int, spread: float, copies: int, seed: int) -> np.ndarray:
    """Unit float32 rows in clusters, some of them copied exactly."""
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(centres, dims))
    x = middle[rng.integers(0, centres, rows)] + spread * rng.normal(size=(rows, dims)) * np.linspace(1, 0.1, dims)
    x[rng.integers(0, rows, copies)] = x[rng.integers(0, rows, copies)]
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
