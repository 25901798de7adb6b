"""Answers as segments: what is split, which answers are fitted on, and what each answer becomes. No Ray."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tunemill.clean.keywords import Patterns
from tunemill.clean.padding_clusters import Clusters, choose
from tunemill.clean.segments import is_finished, split_segments, trimmed

__all__ = ["SEGMENTS", "Counts", "Places", "Splitter", "decide", "lowest", "segment_table", "shown"]


@dataclasses.dataclass(frozen=True)
class Splitter:
    """Answers to segments, lead-ins that hit a pattern apart. Picklable."""

    patterns: tuple[str, ...]

    def open(self) -> Callable[[str | None], list[str]]:
        """A function from an answer to its segments."""
        compiled = Patterns(self.patterns)

        def split(text: str | None) -> list[str]:
            return [part for segment in split_segments(text or "") for part in compiled.cut_lead_in(segment)]

        return split


@dataclasses.dataclass(frozen=True)
class Places:
    """Where known segments lie: sorted texts [n], their cluster [n] and distance to the target's centre [n]."""

    texts: tuple[str, ...]
    labels: np.ndarray
    distances: np.ndarray

    def index(self) -> dict[str, int]:
        """Place of each text."""
        return {text: i for i, text in enumerate(self.texts)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What a block or a corpus holds."""

    answers: int = 0
    segments: int = 0
    several: int = 0
    """Answers of several segments."""

    def plus(self, other: Counts) -> Counts:
        """The sums."""
        return Counts(
            answers=self.answers + other.answers, segments=self.segments + other.segments, several=self.several + other.several
        )


SEGMENTS = pa.schema([("id", pa.string()), ("segment", pa.int64()), ("text", pa.string()), ("draw", pa.uint64())])


def segment_table(ids: Sequence[str], texts: Sequence[str | None], splitter: Splitter, seed: int) -> tuple[pa.Table, Counts]:
    """The segments of some answers: ``id, segment`` (place in the answer), ``text, draw`` (a hash of seed and id)."""
    split = splitter.open()
    answers = [split(text) for text in texts]
    rows = [
        {"id": identity, "segment": i, "text": segment, "draw": _draw(identity, seed)}
        for identity, segments in zip(ids, answers, strict=True)
        for i, segment in enumerate(segments)
    ]
    counts = Counts(answers=len(answers), segments=len(rows), several=sum(len(segments) > 1 for segments in answers))
    return pa.Table.from_pylist(rows, schema=SEGMENTS), counts


def lowest(table: pa.Table, most: int) -> pa.Table:
    """The segments of the answers with the lowest draws, whole answers only, about ``most`` rows at most.

    The lowest of a whole are among the lowest of its parts, so parts can be thinned out one by one.
    """
    if len(table) <= most:
        return table
    ordered = table.sort_by([("draw", "ascending"), ("id", "ascending"), ("segment", "ascending")])
    ids = ordered.slice(0, most + 1)["id"].to_pylist()
    end = most
    while end > 0 and ids[end] == ids[end - 1]:
        end -= 1
    return ordered.slice(0, end or most)


def _draw(identity: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}:{identity}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def decide(
    text: str | None,
    segments: Sequence[str],
    place: Callable[[str], tuple[int, float]],
    patterns: Patterns,
    clusters: Clusters,
) -> tuple[str, int | None, str | None]:
    """What an answer becomes: its text, which segment that is, and why it is dropped (None when kept).

    One segment passes untouched; a dropped answer keeps its own text.
    """
    if not segments:
        return text or "", None, "empty"
    if len(segments) == 1:
        return text or "", 0, None
    labels, distances = zip(*(place(segment) for segment in segments), strict=True)
    padding = [patterns.hit(segment) for segment in segments]
    # An answer that was cut at max_tokens ends in half a sentence.
    padding[-1] = padding[-1] or (not is_finished(segments[-1]) and any(map(is_finished, segments[:-1])))
    choice = choose(labels, distances, padding, clusters)
    if choice.index is None:
        return text or "", None, choice.reason
    return trimmed(segments[choice.index]), choice.index, None


def shown(
    clusters: Clusters, points: np.ndarray, texts: Sequence[str], answers: np.ndarray, labels: np.ndarray
) -> list[dict[str, Any]]:
    """For the report: size, answers covered and the most central different texts of each cluster."""
    summary = []
    for c in range(len(clusters.centres)):
        members = np.flatnonzero(labels == c)
        near = members[np.argsort(np.linalg.norm(points[members] - clusters.centres[c], axis=1), kind="stable")]
        summary.append(
            {
                "cluster": c,
                "size": len(members),
                "answers": len(np.unique(answers[members])),
                "target": clusters.target is None or c == clusters.target,
                "samples": list(dict.fromkeys(texts[i] for i in near[:50]))[:5],
            }
        )
    return summary
