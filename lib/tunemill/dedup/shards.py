"""The search in parts: each shard is an idempotent task whose result is on file before the next step counts on it.

The ledger is a folder with the plan and one file for each finished shard, under a key of what was searched.
A run that is killed and started again reads the plan and does only the shards that are missing.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunemill.config import fingerprint
from tunemill.dedup.cells import Cells, Chunks, Layout
from tunemill.dedup.join import join
from tunemill.dedup.pairs import Pairs, Vectors, unique_pairs
from tunemill.dedup.plan import SearchPlan
from tunemill.dedup.sketch import Sketch
from tunemill.store import Location

__all__ = ["Ledger", "Shard", "Work", "cut", "search_key", "united"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that a shard needs, with its own row numbers: small enough to send, complete enough to run anywhere."""

    rows: np.ndarray
    positions: np.ndarray
    """Place of each row in the whole corpus."""
    widths: tuple[int, ...]
    code: np.ndarray
    cells: Cells
    sketch: Sketch
    thresholds: tuple[float, ...]
    threads: int = 1
    device: str = "cpu"

    def run(self) -> Pairs:
        """The shard's pairs, in places of the whole corpus."""
        vectors = Vectors.of(self.rows, self.widths, threads=self.threads)
        sketches = None if self.device == "cuda" else self.sketch.of(self.rows, self.threads)
        found = join(vectors, sketches, self.cells, self.thresholds, code=self.code, threads=self.threads, device=self.device)
        return Pairs(a=self.positions[found.a], b=self.positions[found.b], similarity=found.similarity)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Some cells of a layout; rows are gathered only when the shard is about to run."""

    number: int
    cells: tuple[int, ...]
    layout: Layout = field(repr=False)

    def positions(self) -> np.ndarray:
        """All rows that the shard's cells hold, sorted."""
        parts = [part for cell in self.cells for part in (self.layout.home(cell), self.layout.visitors(cell))]
        return np.unique(np.concatenate(parts)).astype(np.int64)

    def work(self, vectors: Vectors, code: np.ndarray, plan: SearchPlan, thresholds: Sequence[float]) -> Work:
        """Gather the shard's rows."""
        positions = self.positions()
        home = [np.searchsorted(positions, self.layout.home(cell)) for cell in self.cells]
        visitors = [np.searchsorted(positions, self.layout.visitors(cell)) for cell in self.cells]
        return Work(
            rows=vectors.rows[positions],
            positions=positions,
            widths=vectors.widths,
            code=code[positions],
            cells=Cells(*_flat(home), *_flat(visitors)),
            sketch=plan.sketch,
            thresholds=tuple(thresholds),
        )


def cut(layout: Layout, shards: int, centroids: np.ndarray | None) -> list[Shard]:
    """Cells into shards of similar work; cells near each other go together, so that they share visitors."""
    work = np.array([_scores(layout, cell) for cell in range(layout.count)], dtype=np.float64) + 1.0
    cells = np.arange(layout.count)
    parts = [cells[i::shards] for i in range(shards)] if centroids is None else list(_halved(cells, centroids, work, shards))
    return [Shard(number=i, cells=tuple(part.tolist()), layout=layout) for i, part in enumerate(p for p in parts if len(p))]


def search_key(vectors: Vectors, code: np.ndarray, thresholds: Sequence[float], shards: int, salt: object) -> str:
    """A short hash of everything that the shards' results depend on."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(np.ascontiguousarray(vectors.rows).data)
    digest.update(np.ascontiguousarray(code).data)
    return fingerprint([digest.hexdigest(), list(vectors.widths), list(thresholds), shards, salt])


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

    def finished(self) -> dict[int, Location]:
        """Files of finished shards by number."""
        return {int(file.name[6:12]): file for file in self.folder.files("shard-*.parquet", recursive=False)}

    def record(self, number: int, pairs: Pairs) -> None:
        """Put a shard's pairs on file; whole or not at all."""
        sink = io.BytesIO()
        table = pa.table({"a": pairs.a, "b": pairs.b, "similarity": pairs.similarity})
        pq.write_table(table, sink, compression="zstd")
        self.folder.join(f"shard-{number:06d}.parquet").write_bytes(sink.getvalue())

    def pairs(self, n: int) -> Pairs:
        """The union of all shards on file."""
        return united([_read_pairs(file) for file in self.finished().values()], n)


def united(parts: Sequence[Pairs], n: int) -> Pairs:
    """Pairs of several shards, each once."""
    if not parts:
        return Pairs.empty()
    a, b = np.concatenate([part.a for part in parts]), np.concatenate([part.b for part in parts])
    return unique_pairs(a, b, np.concatenate([part.similarity for part in parts]), n)


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


def _read_pairs(file: Location) -> Pairs:
    table = pq.read_table(io.BytesIO(file.read_bytes()))
    return Pairs(a=table["a"].to_numpy(), b=table["b"].to_numpy(), similarity=table["similarity"].to_numpy())


def _scores(layout: Layout, cell: int) -> float:
    if isinstance(layout, Chunks):
        at_home = len(layout.home(cell))
        return at_home * (at_home / 2 + layout.rows - (cell + 1) * layout.size)
    at_home = len(layout.home(cell))
    return at_home * (at_home / 2 + len(layout.visitors(cell)))


def _halved(cells: np.ndarray, centroids: np.ndarray, work: np.ndarray, shards: int) -> Iterator[np.ndarray]:
    """Split along the direction in which the centroids spread most, in proportion to the shards on each side."""
    if shards <= 1 or len(cells) <= 1:
        yield cells
        return
    axis = int(centroids[cells].var(axis=0).argmax())
    order = cells[np.argsort(centroids[cells, axis], kind="stable")]
    left = shards // 2
    done = np.cumsum(work[order])
    middle = int(np.clip(np.searchsorted(done, done[-1] * left / shards) + 1, 1, len(order) - 1))
    yield from _halved(order[:middle], centroids, work, left)
    yield from _halved(order[middle:], centroids, work, shards - left)


def _flat(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    return np.concatenate(parts).astype(np.int32), offsets
