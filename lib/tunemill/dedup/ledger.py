"""What a search has on file: a folder with the plan, the layout and one file of pairs for each finished shard.

Its name is a key of what is searched. A run that is killed and started again reads plan and layout and does only the
shards that are missing.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunemill.config import fingerprint
from tunemill.dedup.pairs import Pairs, unique_pairs
from tunemill.dedup.plan import SearchPlan
from tunemill.dedup.sketch import Sketch
from tunemill.dedup.spread import Block, Spread
from tunemill.store import Location

__all__ = ["Ledger", "plan_bytes", "read_plan", "search_key"]

_ROW_GROUP = 1 << 17
"""Pairs in one row group: those of a range of rows are found by the smallest and largest row of each group."""
_DIGEST_ROWS = 4096


@dataclass(frozen=True)
class Ledger:
    """Finished work of one search in ``folder``."""

    folder: Location

    def plan(self, make: Callable[[], SearchPlan]) -> SearchPlan:
        """The plan on file, or a new one that is put there."""
        location = self.folder.join("plan.npz")
        if location.exists():
            return read_plan(location.read_bytes())
        plan = make()
        location.write_bytes(plan_bytes(plan))
        return plan

    def array(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array on file, or a new one that is put there: shards that are done and those still to do have to agree on
        it to the last row, whatever machine goes on with them."""
        found = self.find(name)
        if found is None:
            found, sink = make(), io.BytesIO()
            np.save(sink, found)
            self.folder.join(f"{name}.npy").write_bytes(sink.getvalue())
        return found

    def find(self, name: str) -> np.ndarray | None:
        """The array on file, if any."""
        location = self.folder.join(f"{name}.npy")
        return np.load(io.BytesIO(location.read_bytes()), allow_pickle=False) if location.exists() else None

    def finished(self) -> dict[int, Location]:
        """Files of finished shards by number."""
        return {int(file.name[6:12]): file for file in self.folder.files("shard-*.parquet", recursive=False)}

    def record(self, number: int, pairs: Pairs) -> None:
        """Put a shard's pairs on file; whole or not at all."""
        sink = io.BytesIO()
        table = pa.table({"a": pairs.a, "b": pairs.b, "similarity": pairs.similarity})
        pq.write_table(table, sink, compression="zstd", row_group_size=_ROW_GROUP)
        self.folder.join(f"shard-{number:06d}.parquet").write_bytes(sink.getvalue())

    def count(self) -> int:
        """Pairs on file; one that was met in two shards counts twice."""
        return int(self._row_groups()[1].sum())

    def ranges(self, most: int) -> list[tuple[int, int]]:
        """Ranges of ``a``, together all, that hold about ``most`` pairs each."""
        first, count = self._row_groups()
        part = (np.cumsum(count) - count) // most
        bounds = first[np.flatnonzero(np.diff(part)) + 1]
        ends = [0, *np.unique(bounds[bounds > 0]).tolist(), np.iinfo(np.int64).max]
        return list(itertools.pairwise(ends))

    def _row_groups(self) -> tuple[np.ndarray, np.ndarray]:
        """The smallest ``a`` and the number of pairs of each row group, sorted."""
        found = [(0, 0)]
        for file in self.finished().values():
            with file.fs.open_input_file(file.path) as data:
                footer = pq.read_metadata(data)
            groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
            found += [(group.column(0).statistics.min, group.num_rows) for group in groups if group.num_rows]
        first, count = np.array(sorted(found), np.int64).T
        return first, count

    def pairs(self, n: int, first: int = 0, end: int | None = None) -> Pairs:
        """The union of all shards on file: the pairs whose ``a`` is in [first, end), each once."""
        return _united([_read(file, first, end) for _, file in sorted(self.finished().items())], n)


def search_key(spread: Spread, code: np.ndarray, *more: object) -> str:
    """A short hash of what the shards' results depend on, the same however the rows lie in blocks."""
    rows = np.sum(spread.all(_digest), axis=0, dtype=np.uint64)
    return fingerprint([rows.tolist(), hashlib.blake2b(code.tobytes(), digest_size=16).hexdigest(), list(spread.widths), *more])


def plan_bytes(plan: SearchPlan) -> bytes:
    """A plan as one file."""
    sink = io.BytesIO()
    centroids = np.zeros((0, plan.sketch.width), np.float32) if plan.centroids is None else plan.centroids
    np.savez(sink, basis=plan.sketch.basis, centroids=centroids, **{f"estimate.{k}": v for k, v in plan.estimate.items()})
    return sink.getvalue()


def read_plan(data: bytes) -> SearchPlan:
    """A plan from its file."""
    with np.load(io.BytesIO(data), allow_pickle=False) as values:
        estimate = {k.removeprefix("estimate."): values[k].item() for k in values.files if k.startswith("estimate.")}
        centroids = values["centroids"]
        return SearchPlan(sketch=Sketch(values["basis"]), centroids=centroids if len(centroids) else None, estimate=estimate)


def _read(file: Location, first: int, end: int | None) -> Pairs:
    wanted = None if end is None else [("a", ">=", first), ("a", "<", end)]
    table = pq.read_table(file.path, filesystem=file.fs, filters=wanted)
    return Pairs(a=table["a"].to_numpy(), b=table["b"].to_numpy(), similarity=table["similarity"].to_numpy())


def _united(parts: Sequence[Pairs], n: int) -> Pairs:
    if not parts:
        return Pairs.empty()
    a, b = np.concatenate([part.a for part in parts]), np.concatenate([part.b for part in parts])
    return unique_pairs(a, b, np.concatenate([part.similarity for part in parts]), n)


def _digest(block: Block, places: np.ndarray) -> np.ndarray:
    """Two sums over the rows of a hash of each row's bits and position: they depend on neither order nor blocks."""
    total = np.zeros(2, np.uint64)
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 1 << 63, (2, block.rows.shape[1] + 1), np.uint64) * np.uint64(2) + np.uint64(1)
    rows = np.flatnonzero(places >= 0)
    for start in range(0, len(rows), _DIGEST_ROWS):
        some = rows[start : start + _DIGEST_ROWS]
        bits = np.ascontiguousarray(block.rows[some]).view(np.uint32).astype(np.uint64)
        for i, key in enumerate(keys):
            mixed = bits @ key[:-1] + (places[some].astype(np.uint64) + np.uint64(1)) * key[-1]
            # Without this step of splitmix64 two rows that trade places could leave the sum as it was.
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            total[i : i + 1] += (mixed ^ (mixed >> np.uint64(27))).sum(dtype=np.uint64)
    return total
