"""Hot groups: rows with so many near-duplicates that their pairs cannot be listed.

Pairs between two hot rows are left out of the search and looked at here in blocks that are thrown away.
What is kept of them is a short list of edges with which every answer at the threshold is the same as
with all of them:

* greedy: from each dropped hot row to its most similar kept hot row of higher priority;
* groups: edges that connect whatever the left-out pairs connect;
* orphans under ``components``: every edge from the row that a component keeps.

The cost is (hot rows) x (kept hot rows) scores, and for the groups the rows that these edges leave apart.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tunemill.dedup.pairs import Pairs, Vectors, unique_pairs
from tunemill.dedup.sketch import SLACK, Sketch, fit
from tunemill.dedup.spread import Block, Spread
from tunemill.dedup.survivors import Edges, greedy_mask, labels_of, oriented

__all__ = ["find_hot", "summarise"]

_SAMPLE = 4096
_SKETCH = 64
_ROWS = 1024
_COLUMNS = 4096

Ends = list[tuple[np.ndarray, np.ndarray]]


def find_hot(spread: Spread, threshold: float, max_pairs: int, *, seed: int = 0) -> np.ndarray:
    """Positions of the rows to treat as hot, so that about ``max_pairs`` pairs are left to list.

    Degrees are estimated from a sample, and from above; a wrong guess costs time or disk, never a wrong answer.
    """
    n = len(spread)
    rows = spread.rows_at(np.sort(np.random.default_rng(seed).choice(n, min(n, _SAMPLE), replace=False)))
    rotation = fit(rows, len(spread.widths))
    sketch = rotation.narrowed(min(_SKETCH, rotation.basis.shape[1]))
    degree = np.empty(n, np.int64)
    for places, found in spread.all(_degrees, sketch, sketch.of(rows), threshold):
        degree[places] = found
    # Each listed pair has at least one end that is not hot: list the rows of low degree first.
    order = np.argsort(degree, kind="stable")
    listed = np.cumsum(np.maximum(degree[order] - 1, 0) * (n / len(rows)))
    over = order[listed > max_pairs]
    # Rows of similar degree belong to one mass: listing a part of it would fill the whole budget for nothing.
    return np.flatnonzero(degree >= degree[over].min() / 2) if len(over) else over


def _degrees(
    block: Block, places: np.ndarray, sketch: Sketch, probes: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a block's rows, and near how many probes each may be."""
    rows = np.flatnonzero(places >= 0)
    degree = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), _COLUMNS):
        scores = sketch.of(block.rows[rows[start : start + _COLUMNS]]) @ probes.T
        degree[start : start + _COLUMNS] = np.count_nonzero(scores >= threshold - SLACK, axis=1)
    return places[rows], degree


def summarise(
    vectors: Vectors, hot: np.ndarray, pairs: Pairs, rank: np.ndarray, threshold: float, *, fixed: np.ndarray | None = None
) -> Pairs:
    """``pairs`` of n rows (all but those between two hot rows) with the edges that stand for the pairs left out.

    ``vectors`` are those of the ``hot`` rows (positions, ascending). ``fixed`` bool [n] marks rows that stay whatever they
    are near to; pairs of two of them do not count.
    """
    n = len(rank)
    stays = np.zeros(n, dtype=bool) if fixed is None else fixed
    lines = hot[np.argsort(rank[hot])]
    block = _Hot(vectors, hot, threshold, stays)
    copies, originals = _identical(block, lines, stays)
    lines = lines[~np.isin(lines, copies)]
    edges: Ends = [(originals, copies)]
    close = pairs.at_least(threshold)
    kept = ~_greedy(block, lines, copies, close, rank)
    edges += _to_survivors(block, hot, kept, rank)
    labels = _components(_joined(block, close, edges), n)
    edges += _connecting(block, lines, labels)
    labels = _components(_joined(block, close, edges), n)
    edges += _from_leaders(block, hot, labels, rank)
    return _joined(block, pairs, edges)


class _Hot:
    """Which hot rows are pairs with which others; decided in float32 and, close to the threshold, in float64."""

    def __init__(self, vectors: Vectors, hot: np.ndarray, threshold: float, stays: np.ndarray) -> None:
        self._vectors, self._threshold, self._stays = vectors, threshold, stays
        self._at = np.full(len(stays), -1, np.int64)
        self._at[hot] = np.arange(len(hot))
        self.n = len(stays)

    def rows(self, positions: np.ndarray | int) -> np.ndarray:
        """Vectors of hot rows."""
        return self._vectors.rows[self._at[positions]]

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Float64 [p], as in :meth:`Vectors.similarity`."""
        return self._vectors.similarity(self._at[a], self._at[b])

    def scores(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Float32 [rows, others]: the cosine where the two are a pair, -2 elsewhere."""
        widths, start = self._vectors.widths, 0
        left, right = self.rows(rows), self.rows(others)
        scores = np.full((len(rows), len(others)), 2, np.float32)
        for width in widths:
            np.minimum(scores, left[:, start : start + width] @ right[:, start : start + width].T, out=scores)
            start += width
        i, j = np.nonzero(np.abs(scores - np.float32(self._threshold)) < SLACK)
        if len(i):
            sure = self.similarity(rows[i], others[j]) >= self._threshold
            scores[i, j] = np.where(sure, np.float32(self._threshold), -2)
        scores[scores < np.float32(self._threshold)] = -2
        scores[np.ix_(self._stays[rows], self._stays[others])] = -2
        return scores


def _identical(block: _Hot, lines: np.ndarray, stays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Free rows whose vector is that of an earlier free row, and those earlier rows: such copies are always dropped."""
    first: dict[bytes, int] = {}
    free = lines[~stays[lines]]
    originals = np.array([first.setdefault(block.rows(row).tobytes(), row) for row in free.tolist()], np.int64)
    copied = originals != free
    return free[copied], originals[copied]


def _greedy(block: _Hot, lines: np.ndarray, copies: np.ndarray, close: Pairs, rank: np.ndarray) -> np.ndarray:
    """Dropped rows, bool [n]: rows in order of priority, a chunk of hot rows and all others in their range at a time."""
    dropped = np.zeros(len(rank), dtype=bool)
    dropped[copies] = True
    edges = oriented(close, rank)
    order = np.argsort(rank[edges.lower], kind="stable")
    higher, lower = edges.higher[order], edges.lower[order]
    lower_rank = rank[lower]
    kept_hot = np.zeros(0, np.int64)
    done = 0
    for start in range(0, max(len(lines), 1), _ROWS):
        chunk = lines[start : start + _ROWS]
        end = len(lower) if start + _ROWS >= len(lines) else int(np.searchsorted(lower_rank, rank[chunk[-1]], side="right"))
        above, below = higher[done:end], lower[done:end]
        floor_rank = rank[lines[start - 1]] if start else -1
        settled = rank[above] <= floor_rank
        dropped[below[settled & ~dropped[above]]] = True
        for part in _parts(kept_hot):
            dropped[chunk[(block.scores(part, chunk) > -2).any(axis=0)]] = True
        open_ = chunk[~dropped[chunk]]
        i, j = np.nonzero(np.triu(block.scores(open_, open_) > -2, 1))
        above = np.concatenate([above[~settled], open_[i]])
        below = np.concatenate([below[~settled], open_[j]])
        live = ~dropped[above] & ~dropped[below]
        undecided = Edges(higher=above[live], lower=below[live], similarity=np.ones(int(live.sum())))
        dropped |= ~greedy_mask(len(rank), undecided, rank)
        kept_hot = np.concatenate([kept_hot, open_[~dropped[open_]]])
        done = end
    return dropped


def _to_survivors(block: _Hot, hot: np.ndarray, kept: np.ndarray, rank: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The edge from each dropped hot row to its most similar kept hot row of higher priority."""
    kept_hot, dropped_hot = hot[kept[hot]], hot[~kept[hot]]
    for rows in _parts(dropped_hot, _ROWS):
        best, score = np.full(len(rows), -1, np.int64), np.full(len(rows), -2, np.float32)
        for part in _parts(kept_hot):
            scores = block.scores(rows, part)
            scores[rank[part][None, :] > rank[rows][:, None]] = -2
            top = scores.argmax(axis=1)
            value = scores[np.arange(len(rows)), top]
            better = value > score
            best[better], score[better] = part[top[better]], value[better]
        found = best >= 0
        yield best[found], rows[found]


def _connecting(block: _Hot, lines: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Edges that unite components. Only rows outside the largest one have to be looked at, against all."""
    labels = labels.copy()
    if not len(lines):
        return
    names, counts = np.unique(labels[lines], return_counts=True)
    rest = lines[labels[lines] != names[counts.argmax()]]
    for rows in _parts(rest, _ROWS):
        for others in _parts(lines):
            ends = rows[labels[rows] != _largest(labels, lines)]
            if not len(ends):
                break
            scores = block.scores(ends, others)
            scores[labels[ends][:, None] == labels[others][None, :]] = -2
            i, j = np.nonzero(scores > -2)
            if not len(i):
                continue
            _, first = np.unique(labels[ends[i]] * len(labels) + labels[others[j]], return_index=True)
            a, b = ends[i[first]], others[j[first]]
            yield a, b
            labels = _united(labels, a, b)


def _largest(labels: np.ndarray, lines: np.ndarray) -> int:
    names, counts = np.unique(labels[lines], return_counts=True)
    return int(names[counts.argmax()])


def _united(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low, high = np.minimum(labels[a], labels[b]), np.maximum(labels[a], labels[b])
    return labels_of(len(labels), low, high)[labels]


def _from_leaders(block: _Hot, hot: np.ndarray, labels: np.ndarray, rank: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every edge between hot rows that starts at the row of highest priority in its component."""
    best = np.full(len(labels), len(labels), np.int64)
    np.minimum.at(best, labels, rank)
    members = hot[np.argsort(labels[hot], kind="stable")]
    for group in np.split(members, np.flatnonzero(labels[members][1:] != labels[members][:-1]) + 1):
        leader = group[rank[group] == best[labels[group[:1]]]] if len(group) else group
        others = group[group != leader] if len(leader) else group[:0]
        for part in _parts(others):
            close = part[(block.scores(leader, part) > -2)[0]]
            yield np.repeat(leader, len(close)), close


def _components(pairs: Pairs, n: int) -> np.ndarray:
    return labels_of(n, pairs.a, pairs.b)


def _joined(block: _Hot, pairs: Pairs, edges: Ends) -> Pairs:
    a = np.concatenate([edge[0] for edge in edges])
    b = np.concatenate([edge[1] for edge in edges])
    return unique_pairs(
        np.concatenate([pairs.a, a]),
        np.concatenate([pairs.b, b]),
        np.concatenate([pairs.similarity, block.similarity(a, b)]),
        block.n,
    )


def _parts(rows: np.ndarray, size: int = _COLUMNS) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
