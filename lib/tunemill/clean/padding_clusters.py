"""Which segment of an answer is the wanted one: clusters of segment vectors, and the rule on top. Pure.

Padding ("Let me know if...", "This sentence conveys...") is said in few ways and lies apart from what the
answers are about. The segments' vectors are reduced by PCA and grouped by KMeans; the cluster that
covers most answers is the target. The number of clusters is the largest with which one cluster still
covers nearly all answers: fewer leave padding in the target, more cut the target into topics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

__all__ = ["MAX_CLUSTERS", "Choice", "Clusters", "choose", "fit_clusters"]

MAX_CLUSTERS = 8
_STARTS = 5
_LEAST = 4
# A cluster this much tighter than the most varied one holds a stock phrase, not what the answers are about.
_FORMULAIC = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clusters:
    """A fitted reduction and grouping of segment vectors; ``p`` is the reduced dimension, ``k`` the number of clusters."""

    mean: np.ndarray
    """[d] float32"""
    components: np.ndarray
    """[p, d] float32"""
    centres: np.ndarray
    """[k, p] float32"""
    target: int | None
    """The cluster of wanted segments; None when no cluster covers enough answers, so that all segments are candidates."""
    reach: float
    """Distance from the target's centre within which a segment of another cluster still counts as wanted."""
    explained_variance: tuple[float, ...]
    """Share of the variance that each component explains."""
    covered: tuple[float, ...]
    """For each cluster, the share of answers that have a segment in it."""

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors [n, d] in reduced coordinates [n, p]."""
        return np.asarray((vectors - self.mean) @ self.components.T, dtype=np.float32)

    def assign(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For reduced points [n, p]: their cluster [n], and their distance [n] to the target's centre (or to the origin)."""
        apart = ((points[:, None, :] - self.centres[None, :, :]) ** 2).sum(axis=2)
        centre = self.centres[self.target] if self.target is not None else np.zeros(points.shape[1], np.float32)
        return apart.argmin(axis=1), np.linalg.norm(points - centre, axis=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """The kept segment of an answer, or why there is none."""

    index: int | None
    reason: str | None


def fit_clusters(
    vectors: np.ndarray,
    answers: np.ndarray,
    padding: np.ndarray,
    *,
    dims: int,
    clusters: int | None,
    coverage: float,
    seed: int,
) -> Clusters:
    """Fit on segment vectors [n, d] with their answer's number [n] and whether a keyword pattern hits them [n].

    ``clusters`` None chooses the number; ``coverage`` is the share of answers that the target should cover then.
    """
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    if len(np.unique(vectors, axis=0)) < _LEAST:
        return _ungrouped(vectors)
    dims = max(1, min(dims, len(vectors) - 1, vectors.shape[1]))
    # One thread: sums in another order would move centres by rounding, and rows with them.
    with threadpool_limits(1):
        pca = PCA(dims, svd_solver="covariance_eigh").fit(vectors.astype(np.float64))
        points = np.asarray(pca.transform(vectors.astype(np.float64)), dtype=np.float32)
        if clusters is not None:
            grouped = _group(points, answers, padding, count=clusters, coverage=coverage, seed=seed)
        else:
            grouped = _finest(points, answers, padding, coverage=coverage, seed=seed)
    return Clusters(
        mean=pca.mean_.astype(np.float32),
        components=pca.components_.astype(np.float32),
        centres=grouped.centres,
        target=grouped.target,
        reach=grouped.reach,
        explained_variance=tuple(round(float(v), 6) for v in pca.explained_variance_ratio_),
        covered=grouped.covered,
    )


def _ungrouped(vectors: np.ndarray) -> Clusters:
    """Too few different segments for clusters: all are candidates, and nearness is to their mean."""
    return Clusters(
        mean=vectors.mean(axis=0, dtype=np.float32),
        components=np.zeros((1, vectors.shape[1]), np.float32),
        centres=np.zeros((1, 1), np.float32),
        target=None,
        reach=float("inf"),
        explained_variance=(0.0,),
        covered=(1.0,),
    )


@dataclasses.dataclass(frozen=True)
class _Grouping:
    """One KMeans fit: centres [k, p], the target if there is one, its mean and 99th percentile distance to its centre."""

    centres: np.ndarray
    covered: tuple[float, ...]
    target: int | None = None
    spread: float = 0.0
    reach: float = float("inf")


def _finest(points: np.ndarray, answers: np.ndarray, padding: np.ndarray, *, coverage: float, seed: int) -> _Grouping:
    """The grouping with most clusters in which a varied cluster covers enough answers; one cluster when there is none."""
    most = min(MAX_CLUSTERS, len(np.unique(points, axis=0)))
    found = [_group(points, answers, padding, count=count, coverage=coverage, seed=seed) for count in range(most, 1, -1)]
    found = [grouping for grouping in found if grouping.target is not None and grouping.covered[grouping.target] >= coverage]
    if not found:
        return _Grouping(points.mean(axis=0, keepdims=True), (1.0,))
    varied = max(grouping.spread for grouping in found)
    return next(grouping for grouping in found if grouping.spread >= _FORMULAIC * varied)


def _group(points: np.ndarray, answers: np.ndarray, padding: np.ndarray, *, count: int, coverage: float, seed: int) -> _Grouping:
    from sklearn.cluster import KMeans

    count = max(1, min(count, len(np.unique(points, axis=0))))
    fitted = KMeans(count, n_init=_STARTS, random_state=seed).fit(points)
    labels, centres = fitted.labels_, np.asarray(fitted.cluster_centers_, dtype=np.float32)
    total = len(np.unique(answers))
    covered = tuple(round(len(np.unique(answers[labels == c])) / total, 4) for c in range(count))
    # Stock phrases may cover as many answers as the wanted text: a cluster that mostly hits the patterns cannot be
    # the target, and of those that cover about the same the most varied one is.
    able = [c for c in range(count) if padding[labels == c].mean() <= 0.5]
    if not able:
        return _Grouping(centres, covered)
    enough = min(coverage, max(covered[c] for c in able))
    apart = np.linalg.norm(points - centres[labels], axis=1)
    spreads = {c: float(apart[labels == c].mean()) for c in able if covered[c] >= enough}
    target = max(spreads, key=lambda c: spreads[c])
    return _Grouping(centres, covered, target, spreads[target], float(np.quantile(apart[labels == target], 0.99)))


def choose(labels: Sequence[int], distances: Sequence[float], padding: Sequence[bool], clusters: Clusters) -> Choice:
    """The wanted one among the segments of one answer, given each one's cluster, distance and keyword hit.

    One segment in the target is kept; of several, the nearest to the centre that no pattern hits. Where none
    is in the target, the nearest that no pattern hits is kept if it lies within the target's reach. Without a target
    there is no centre to be near to, and the first that no pattern hits is kept.
    """
    inside = [i for i in range(len(labels)) if clusters.target is None or labels[i] == clusters.target]
    if len(inside) == 1:
        return Choice(inside[0], None)
    candidates = [i for i in (inside or range(len(labels))) if not padding[i]]
    if not candidates:
        return Choice(None, "keyword" if inside else "padding")
    if clusters.target is None:
        return Choice(candidates[0], None)
    nearest = min(candidates, key=lambda i: (distances[i], i))
    if inside or distances[nearest] <= clusters.reach:
        return Choice(nearest, None)
    return Choice(None, "far_from_centre")
