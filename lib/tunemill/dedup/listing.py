"""The list of pairs in parts: read where they were found, written under their rows' ids, and summed up for the report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunemill.dedup.ledger import Ledger
from tunemill.dedup.pairs import Pairs
from tunemill.dedup.tasks import Handle, Tasks
from tunemill.store import Location

__all__ = ["Listing", "listed_parts", "summed_up", "write_parts"]

_PAIRS_PER_PART = 4_000_000
_EXAMPLES = 8
_BINS = 20


def listed_parts(tasks: Tasks, book: Ledger, alone: np.ndarray) -> list[Handle]:
    """Handles of the pairs on file, each once, in ranges of rows; ``alone`` has the position of each row that was searched."""
    places = tasks.put(alone)
    return [tasks.start(_part, book, first, end, places) for first, end in book.ranges(_PAIRS_PER_PART)]


def write_parts(tasks: Tasks, parts: list[Handle], ids: np.ndarray, folder: Location, attempt: str) -> list[str]:
    """Write ``id_a, id_b, similarity``, one file for each part; returns the paths to list under ``files``."""
    names = tasks.put(pa.array(ids, pa.string()))
    files = [f"pairs/{attempt}-part-{number:05d}.parquet" for number in range(len(parts))]
    tasks.all(_write, [(part, names, folder.join(file)) for part, file in zip(parts, files, strict=True)])
    return files


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Pairs in figures: how many, a histogram of their similarity, and those closest to the threshold on both sides."""

    count: int
    edges: np.ndarray
    counts: np.ndarray
    above: Pairs
    below: Pairs


def summed_up(tasks: Tasks, parts: list[Handle], n: int, threshold: float, floor: float) -> Listing:
    """The pairs between two of the first ``n`` rows, over all parts."""
    found: list[Listing] = tasks.all(_sum_up, [(part, n, threshold, floor) for part in parts])
    return Listing(
        count=sum(part.count for part in found),
        edges=_bins(floor),
        counts=np.sum([part.counts for part in found], axis=0) if found else np.zeros(_BINS, np.int64),
        above=_closest([part.above for part in found], threshold),
        below=_closest([part.below for part in found], threshold),
    )


def _part(book: Ledger, first: int, end: int, alone: np.ndarray) -> Pairs:
    pairs = book.pairs(len(alone), first, end)
    return Pairs(a=alone[pairs.a], b=alone[pairs.b], similarity=pairs.similarity)


def _write(pairs: Pairs, ids: pa.Array, target: Location) -> None:
    table = pa.table({"id_a": ids.take(pa.array(pairs.a)), "id_b": ids.take(pa.array(pairs.b)), "similarity": pairs.similarity})
    target.fs.create_dir(target.path.rsplit("/", 1)[0], recursive=True)
    pq.write_table(table, target.path, filesystem=target.fs, compression="zstd")


def _sum_up(pairs: Pairs, n: int, threshold: float, floor: float) -> Listing:
    among = (pairs.a < n) & (pairs.b < n)
    pairs = Pairs(a=pairs.a[among], b=pairs.b[among], similarity=pairs.similarity[among])
    high = pairs.similarity >= threshold
    return Listing(
        count=len(pairs),
        edges=_bins(floor),
        counts=np.histogram(pairs.similarity, bins=_bins(floor))[0],
        above=_closest([Pairs(a=pairs.a[high], b=pairs.b[high], similarity=pairs.similarity[high])], threshold),
        below=_closest([Pairs(a=pairs.a[~high], b=pairs.b[~high], similarity=pairs.similarity[~high])], threshold),
    )


def _bins(floor: float) -> np.ndarray:
    return np.linspace(min(floor, 0.999), 1.0, _BINS + 1)


def _closest(parts: list[Pairs], threshold: float) -> Pairs:
    none = Pairs.empty()
    a, b, similarity = (np.concatenate([getattr(part, name) for part in (none, *parts)]) for name in ("a", "b", "similarity"))
    order = np.lexsort((b, a, np.abs(similarity - threshold)))[:_EXAMPLES]
    return Pairs(a=a[order], b=b[order], similarity=similarity[order])
