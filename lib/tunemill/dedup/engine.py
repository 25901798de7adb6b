"""All pairs of rows whose cosine is at or above a threshold, found exactly. Numpy only: no Ray, no files.

A plan is chosen from a sample, rows are sketched and laid into cells, and the rows that meet are
compared. Every step before the float64 decision can only let too much through, so the pairs are the
same for any plan, any number of threads or shards, and any device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunemill.dedup.cells import Cells, assign
from tunemill.dedup.join import join
from tunemill.dedup.pairs import Pairs, Vectors
from tunemill.dedup.plan import SearchPlan, plan_search
from tunemill.dedup.threads import cores

__all__ = ["all_pairs", "lay_out"]


def all_pairs(
    vectors: Vectors | np.ndarray,
    threshold: float | Sequence[float],
    *,
    plan: SearchPlan | None = None,
    code: np.ndarray | None = None,
    threads: int | None = None,
) -> Pairs:
    """Every pair with similarity >= ``threshold`` (one number, or one for each column group).

    ``vectors`` are unit-length float32 rows [n, d]. ``code`` uint8 [n]: rows that share a bit are not compared.
    """
    rows = vectors if isinstance(vectors, Vectors) else Vectors.of(vectors)
    thresholds = [float(threshold)] * len(rows.widths) if isinstance(threshold, (int, float)) else list(threshold)
    if len(rows) < 2:
        return Pairs.empty()
    threads = threads or cores()
    plan = plan or plan_search(rows, thresholds)
    sketches = plan.sketch.of(rows.rows, threads)
    layout = lay_out(plan, sketches, thresholds, threads)
    return join(rows, sketches, layout, thresholds, code=code, threads=threads)


def lay_out(plan: SearchPlan, sketches: np.ndarray, thresholds: Sequence[float], threads: int) -> Cells:
    """The cells of a plan, filled with rows."""
    if plan.centroids is None:
        return Cells.one(len(sketches))
    return assign(sketches, plan.centroids, float(np.mean(thresholds)), threads)
