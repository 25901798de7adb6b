"""Choose how to search from a sample: brute force or cells, how many cells, how wide a sketch.

The choice moves time, never the pairs. Costs are seconds of one core, from constants measured once on
a current server core; only their ratios matter for the choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tunemill.dedup.cells import assign, k_means
from tunemill.dedup.sketch import SLACK, Sketch, fit

__all__ = ["Choice", "SearchPlan", "choose", "plan_search"]

_MULTIPLY_S = 1 / 46e9
"""Per multiply-add pair (2 FLOP) in a product of sketches."""
_SCAN_S = 0.25e-9
"""Per score compared with the threshold."""
_CHECK_S = 0.35e-6
"""Per candidate pair checked in full width (d = 384)."""
_DECIDE_S = 0.8e-6
"""Per pair decided in float64."""
_ASSIGN_S = 2.5e-9
"""Per (row, cell) beyond the product: distances to the bisectors."""
_VISIT_S = 0.15e-6
"""Per (row, cell) entry of the layout: sorting and gathering."""
_CELL_S = 250e-6
"""Per cell joined: Python and gathering."""

_WIDTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
_FIT_ROWS = (2048, 8192)
_PAIR_SAMPLE = (1024, 4096)
_PAIR_PROBES = 1024
_CELL_SAMPLE = 8192
_PROBE_TRAINING = (8192, 32768)
_TRAINING_PER_CELL = 40
_PROBES = (64, 256, 1024)
_MOST_CELLS = 8192
_ROWS_PER_CELL = 40
_PROBING_PAYS_S = 0.3
_ITERATIONS = 5


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """How to search: ``centroids`` is None for brute force."""

    sketch: Sketch
    centroids: np.ndarray | None
    estimate: dict[str, Any] = field(default_factory=dict)
    """What was chosen and the seconds of one core expected for it and for brute force."""

    @property
    def method(self) -> str:
        """``cells`` or ``brute force``."""
        return "brute force" if self.centroids is None else "cells"

    @property
    def cells(self) -> int:
        """Number of cells, 0 for brute force."""
        return 0 if self.centroids is None else len(self.centroids)

    @property
    def shown(self) -> dict[str, Any]:
        """For logs and manifests."""
        return {"method": self.method, "cells": self.cells, "sketch_width": self.sketch.width - 1, **self.estimate}


class Rows(Protocol):
    """Rows to sample from: :class:`Vectors` or a :class:`Spread` of them."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the column groups."""

    def __len__(self) -> int:
        """Number of rows."""

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """Float32 [p, d]: the rows at ``positions`` (ascending)."""


def plan_search(
    vectors: Rows,
    thresholds: Sequence[float],
    *,
    seed: int = 0,
    width: int | None = None,
    cells: int | None = None,
) -> SearchPlan:
    """Choose from a sample; ``width`` and ``cells`` (0: brute force) force a choice (for sweeps and tests)."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return _plan(vectors, thresholds, seed, width, cells)


def _plan(vectors: Rows, thresholds: Sequence[float], seed: int, width: int | None, cells: int | None) -> SearchPlan:
    rng = np.random.default_rng(seed)
    sample = _sample(rng, vectors, _CELL_SAMPLE + int(np.clip(len(vectors) // 10, *_PROBE_TRAINING)))
    rotation = fit(sample[: int(np.clip(len(vectors) // 4, *_FIT_ROWS))], len(vectors.widths))
    chosen = choose(sample, float(np.mean(thresholds)), len(vectors), rotation=rotation, width=width, cells=cells)
    sketch = rotation.narrowed(chosen.width)
    estimate: dict[str, Any] = {
        "expected_core_s": round(chosen.expected_core_s, 3),
        "brute_force_core_s": round(chosen.brute_force_core_s, 3),
        "expected_pairs": chosen.expected_pairs,
    }
    if not chosen.cells:
        return SearchPlan(sketch=sketch, centroids=None, estimate=estimate)
    estimate["expected_work_share"] = round(chosen.work_share, 5)
    estimate["expected_copies"] = round(chosen.copies, 2)
    training = _sample(rng, vectors, max(_CELL_SAMPLE, _TRAINING_PER_CELL * chosen.cells))
    centroids = k_means(sketch.of(training), chosen.cells, iterations=_ITERATIONS, seed=seed + 1)
    return SearchPlan(sketch=sketch, centroids=centroids, estimate=estimate)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How to search a corpus, and what that is expected to cost in seconds of one core."""

    width: int
    cells: int
    """0: brute force."""
    expected_core_s: float
    brute_force_core_s: float
    expected_pairs: int
    work_share: float
    """Scores to compute, of those of brute force."""
    copies: float
    """Cells that a row visits."""


def choose(
    sample: np.ndarray,
    lowest: float,
    n: int,
    *,
    rotation: Sketch | None = None,
    width: int | None = None,
    cells: int | None = None,
) -> Choice:
    """The cheapest way to find the pairs of ``n`` rows like ``sample`` [s, d] whose mean cosine reaches ``lowest``."""
    rotation = rotation or fit(sample)
    d = sample.shape[1]
    shares = _candidate_shares(rotation, sample[: int(np.clip(n // 10, *_PAIR_SAMPLE))], lowest, n)
    pairs = shares[max(shares)] * n * n / 2
    # A sketch of full width is the score itself: its candidates go straight to the decision.
    to_check = {m: shares.get(m, 0) * n * n / 2 if m < d else 0.0 for m in ([width] if width else shares)}
    brute = {m: n * d * m * _MULTIPLY_S + _join_s(n * n / 2, m, to_check[m], pairs) for m in to_check}
    brute_width = min(brute, key=lambda m: brute[m])
    brute_s = brute[brute_width]
    alone = Choice(
        width=brute_width,
        cells=0,
        expected_core_s=brute_s,
        brute_force_core_s=brute_s,
        expected_pairs=round(pairs),
        work_share=1.0,
        copies=0.0,
    )
    # Every way of searching has to decide the pairs themselves.
    if cells == 0 or (cells is None and brute_s - pairs * _DECIDE_S < _PROBING_PAYS_S):
        return alone
    work = _work_by_cells(rotation.narrowed(width or min(64, d)), sample, lowest, n, cells)
    options = {(m, k): _cells_s((n, d), (m, k), work[k], to_check[m], pairs) for m in to_check for k in work}
    best_width, best_cells = min(options, key=lambda option: options[option])
    expected = options[best_width, best_cells]
    if cells is None and expected >= brute_s:
        return alone
    scores, visits = work[best_cells]
    return dataclasses.replace(
        alone,
        width=best_width,
        cells=best_cells,
        expected_core_s=expected,
        work_share=scores / (n * n / 2),
        copies=visits / n,
    )


def _sample(rng: np.random.Generator, vectors: Rows, rows: int) -> np.ndarray:
    n = len(vectors)
    if rows >= n:
        return vectors.rows_at(np.arange(n))
    return vectors.rows_at(np.sort(rng.choice(n, rows, replace=False)))[rng.permutation(rows)]


def _candidate_shares(rotation: Sketch, sample: np.ndarray, lowest: float, n: int) -> dict[int, float]:
    """For each sketch width the share of pairs whose bound reaches the threshold (never taken as none at all)."""
    d, probes = rotation.basis.shape[0], sample[:_PAIR_PROBES]
    shares, pairs = {}, max(len(probes) * (len(sample) - 1), 1)
    for m, bounds in rotation.bounds(probes, sample, sorted({min(m, d) for m in _WIDTHS})):
        above = int(np.count_nonzero(bounds >= lowest - SLACK)) - len(probes)
        shares[m] = (max(above, 0) + 0.5) / pairs
    return shares


def _work_by_cells(
    sketch: Sketch, sample: np.ndarray, lowest: float, n: int, cells: int | None
) -> dict[int, tuple[float, float]]:
    """Scores to compute and visits by number of cells: probed for a few, interpolated on a log scale between."""
    sketches = sketch.of(sample)
    # Rows that shaped the cells lie deeper inside them than others do: cells are tried on rows that they have not seen.
    probe, training = np.split(sketches, [max(1, min(_CELL_SAMPLE, len(sketches) // 2))])
    training = training if len(training) else probe
    most = max(min(_MOST_CELLS, n // _ROWS_PER_CELL), 1)
    probes = [cells] if cells else sorted({min(k, most, len(training) // 4) for k in _PROBES})
    scale, measured = n / len(probe), {}
    for k in probes:
        centroids = k_means(training[: max(4096, 32 * k)], k, iterations=2, seed=0)
        layout = assign(probe, centroids, lowest)
        at_home = np.diff(layout.home_offsets) * scale
        visits = np.diff(layout.visitor_offsets) * scale
        measured[k] = (float((at_home * (at_home / 2 + visits)).sum()), float(visits.sum()))
    if cells:
        return measured
    known = np.log([*measured])
    logs = np.log(np.maximum(np.array([*measured.values()]), 1.0))
    wanted = [int(2**e) for e in np.arange(5, np.log2(most) + 1e-9, 0.5)] or [most]
    return {k: (_along(known, logs[:, 0], k), _along(known, logs[:, 1], k)) for k in wanted}


def _along(known: np.ndarray, logs: np.ndarray, k: int) -> float:
    """Log-log interpolation, following the last slope beyond the probes."""
    x = float(np.log(k))
    if x > known[-1] and len(known) > 1:
        return float(np.exp(logs[-1] + (x - known[-1]) * (logs[-1] - logs[-2]) / (known[-1] - known[-2])))
    return float(np.exp(np.interp(x, known, logs)))


def _join_s(scores: float, width: int, candidates: float, pairs: float) -> float:
    return scores * ((width + 1) * _MULTIPLY_S + _SCAN_S) + candidates * _CHECK_S + pairs * _DECIDE_S


def _cells_s(
    shape: tuple[int, int], choice: tuple[int, int], work: tuple[float, float], candidates: float, pairs: float
) -> float:
    (n, d), (width, cells), (scores, visits) = shape, choice, work
    project = n * d * width * _MULTIPLY_S
    train = (_ITERATIONS + 1) * max(_CELL_SAMPLE, _TRAINING_PER_CELL * cells) * cells * (width * _MULTIPLY_S + _SCAN_S)
    place = n * cells * (width * _MULTIPLY_S + _ASSIGN_S) + visits * _VISIT_S
    # A pair close to a border is met in several cells.
    return project + train + place + cells * _CELL_S + _join_s(scores, width, 2 * candidates, 2 * pairs)
