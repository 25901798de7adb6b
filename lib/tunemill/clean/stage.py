"""The clean stage: fit clusters on the answers' segments, then give every answer one text or a reason."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunemill.clean.answers import SEGMENTS, Counts, Places, Splitter, decide, lowest, segment_table, shown
from tunemill.clean.config import CleanConfig
from tunemill.clean.keywords import Patterns, load_patterns
from tunemill.clean.padding_clusters import Clusters, fit_clusters
from tunemill.errors import DataError
from tunemill.stage import Outcome, Source, Stage, StageContext, commit_rows, write_table
from tunemill.tables import nearest_column

__all__ = ["STAGE", "execute"]

_FIRST = ("id", "request_id", "prompt", "text", "label", "model")
# What generate knows of its calls stays in its own table.
_OF_CALLS = {
    *("prompt_id", "provider", "variables", "sample", "finish_reason", "input_tokens", "output_tokens", "cost_usd"),
    *("latency_s", "attempts", "created_at"),
}
_EMBED_ROWS = 512
_DECIDE_ROWS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Clusters, and where the fitted segments lie."""

    clusters: Clusters
    places: Places
    table: pa.Table
    """The fitted segments: ``id, segment, text``, sorted."""
    points: np.ndarray
    """Of each different text, [n, p]."""


def check(config: CleanConfig) -> None:
    """Raise ConfigError for patterns that cannot be read."""
    load_patterns(config)


def execute(context: StageContext, source: Source, config: CleanConfig) -> Outcome:
    """Keep one text of each answer. DataError when the text column is missing."""
    from tunemill.resources import connect

    columns = source.columns()
    if config.text_column not in columns:
        raise DataError(f"clean.text_column: no column {config.text_column!r}{nearest_column(config.text_column, columns)}")
    identity = next((name for name in ("id", "request_id") if name in columns), None)
    if identity is None:
        raise DataError(f"clean: no column 'id'{nearest_column('id', columns)}; name one with --id-column")
    connect()
    splitter = Splitter(load_patterns(config))
    answers = source.dataset()
    fit, facts = _fit(answers, config, splitter, identity, context.seed) if config.method == "padding_clusters" else (None, {})
    if fit is not None and facts["segments"] > len(fit.table):
        answers = answers.repartition(target_num_rows_per_block=_DECIDE_ROWS)
    cleaned = _decided(answers, config, fit, splitter, identity)
    plain = [name for name in columns if name not in {*_FIRST, *_OF_CALLS, "reason"}]
    outcome = commit_rows(
        context,
        cleaned,
        rows_in=source.count(),
        kept_columns=(*_FIRST, *plain),
        dropped_columns=("id", "request_id", "text", "reason"),
    )
    if fit is None:
        return dataclasses.replace(outcome, details={"method": config.method, **facts})
    table, details = _account(fit, splitter)
    files = {**outcome.files, "segments": [write_table(context, "segments", table)]}
    return dataclasses.replace(outcome, files=files, details={"method": config.method, **facts, **details})


def _fit(answers: Any, config: CleanConfig, splitter: Splitter, identity: str, seed: int) -> tuple[Fit | None, dict[str, Any]]:
    """Clusters of a sample of the answers; None where no answer has several segments."""
    table, counts = _segments(answers, config, splitter, identity, seed)
    facts: dict[str, Any] = {
        "answers": counts.answers,
        "segments": counts.segments,
        "answers_of_several": counts.several,
        "patterns": len(splitter.patterns),
    }
    if not counts.several or not len(table):
        return None, facts
    texts = sorted(set(table["text"].to_pylist()))
    matrix = _vectors(texts, config)
    place = {text: i for i, text in enumerate(texts)}
    rows = np.array([place[text] for text in table["text"].to_pylist()])
    patterns = Patterns(splitter.patterns)
    hits = np.array([patterns.hit(text) for text in texts])
    clusters = fit_clusters(
        matrix[rows],
        _numbered(table),
        hits[rows],
        dims=config.pca_dims,
        clusters=config.clusters,
        coverage=config.coverage,
        seed=seed,
    )
    points = clusters.project(matrix)
    labels, distances = clusters.assign(points)
    facts |= {"fitted_segments": len(table), "embed": config.embed.model}
    return Fit(clusters=clusters, places=Places(tuple(texts), labels, distances), table=table, points=points), facts


def _segments(answers: Any, config: CleanConfig, splitter: Splitter, identity: str, seed: int) -> tuple[pa.Table, Counts]:
    """The segments to fit on, sorted by answer, and what there is in all; one pass."""

    def split(batch: pa.Table) -> pa.Table:
        ids = [str(value) for value in batch[identity].to_pylist()]
        table, counts = segment_table(ids, batch[config.text_column].cast(pa.string()).to_pylist(), splitter, seed)
        # The counts travel as a row of their own, so that one pass gives both.
        total = {"id": json.dumps(dataclasses.asdict(counts)), "segment": -1, "text": "", "draw": 0}
        return pa.concat_tables([lowest(table, config.fit_segments), pa.Table.from_pylist([total], schema=SEGMENTS)])

    found, counts = SEGMENTS.empty_table(), Counts()
    for part in answers.map_batches(split, batch_size=None, batch_format="pyarrow").iter_batches(
        batch_size=None, batch_format="pyarrow"
    ):
        totals = pc.equal(part["segment"], -1)
        for text in part.filter(totals)["id"].to_pylist():
            counts = counts.plus(Counts(**json.loads(text)))
        found = lowest(pa.concat_tables([found, part.filter(pc.invert(totals))]), config.fit_segments)
    return found.sort_by([("id", "ascending"), ("segment", "ascending")]), counts


def _vectors(texts: list[str], config: CleanConfig) -> np.ndarray:
    """Vectors of different texts, float32 [n, d]; zero where the model gave nothing finite."""
    import ray.data

    from tunemill.embed.stage import add_embeddings

    distinct = ray.data.from_arrow(pa.table({"text": texts})).repartition(-(-len(texts) // _EMBED_ROWS))
    found: dict[str, Any] = {}
    for batch in add_embeddings(distinct, config.embed, text_column="text").iter_batches(batch_size=None, batch_format="pyarrow"):
        found.update(zip(batch["text"].to_pylist(), batch["embedding"].to_pylist(), strict=True))
    return np.nan_to_num(np.array([found[text] for text in texts], dtype=np.float32))


def _decided(answers: Any, config: CleanConfig, fit: Fit | None, splitter: Splitter, identity: str) -> Any:
    """The answers with their kept text and ``reason``; models are only loaded where segments lie outside the fit."""
    import ray.data

    from tunemill.resources import cluster_resources

    known = None if fit is None else ray.put((fit.clusters, fit.places))
    most = config.workers or max(1, cluster_resources()[0] - 1)
    return answers.map_batches(
        _Decide,
        fn_constructor_args=(config, splitter, identity, known),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
    )


class _Decide:
    """Give each answer of a block one text or a reason."""

    def __init__(self, config: CleanConfig, splitter: Splitter, identity: str, known: Any) -> None:
        import ray

        self._config, self._identity = config, identity
        self._split, self._patterns = splitter.open(), Patterns(splitter.patterns)
        self._clusters: Clusters | None = None
        if known is not None:
            self._clusters, self._places = ray.get(known) if isinstance(known, ray.ObjectRef) else known
            self._index = self._places.index()
        self._embedder: Any = None

    def __call__(self, table: pa.Table) -> pa.Table:
        ids = [str(value) for value in table[self._identity].to_pylist()]
        texts = table[self._config.text_column].cast(pa.string()).to_pylist()
        kept, reasons = [], []
        for text, (own, reason) in zip(texts, self._outcomes(texts), strict=True):
            short = reason is None and len(own.strip()) < self._config.min_chars
            kept.append(text or "" if short else own)
            reasons.append("too_short" if short else reason)
        plain = table.drop_columns([name for name in ("id", "text", "reason") if name in table.column_names])
        made = {"id": pa.array(ids, pa.string()), "text": pa.array(kept, pa.string()), "reason": pa.array(reasons, pa.string())}
        for name, column in made.items():
            plain = plain.append_column(name, column)
        return plain

    def _outcomes(self, texts: list[str | None]) -> list[tuple[str, str | None]]:
        answers = [self._split(text) for text in texts]
        if self._clusters is None:
            return [(text or "", None if segments else "empty") for text, segments in zip(texts, answers, strict=True)]
        labels, distances, index = self._placed([s for segments in answers if len(segments) > 1 for s in segments])
        made = []
        for text, segments in zip(texts, answers, strict=True):
            own, _, reason = decide(
                text, segments, lambda s: (int(labels[index[s]]), float(distances[index[s]])), self._patterns, self._clusters
            )
            made.append((own, reason))
        return made

    def _placed(self, segments: list[str]) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        """Clusters and distances by text; segments outside the fit are embedded here."""
        places, index = self._places, self._index
        new = sorted({segment for segment in segments if segment not in index})
        if not new or self._clusters is None:
            return places.labels, places.distances, index
        if self._embedder is None:
            from tunemill.embed.embedder import Embedder

            self._embedder = Embedder(self._config.embed)
        labels, distances = self._clusters.assign(self._clusters.project(np.nan_to_num(self._embedder.encode(new))))
        index = {**index, **{text: len(places.texts) + i for i, text in enumerate(new)}}
        return np.concatenate([places.labels, labels]), np.concatenate([places.distances, distances]), index


def _account(fit: Fit, splitter: Splitter) -> tuple[pa.Table, dict[str, Any]]:
    """The side table of the fitted segments, and the clusters for the report."""
    index, patterns = fit.places.index(), Patterns(splitter.patterns)
    ids, texts = fit.table["id"].to_pylist(), fit.table["text"].to_pylist()
    rows = np.array([index[text] for text in texts])
    labels = fit.places.labels[rows]
    kept = np.zeros(len(rows), dtype=bool)
    starts = [i for i in range(len(ids)) if i == 0 or ids[i] != ids[i - 1]]
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        _, chosen, _ = decide(
            None,
            texts[start:end],
            lambda s: (int(fit.places.labels[index[s]]), float(fit.places.distances[index[s]])),
            patterns,
            fit.clusters,
        )
        if chosen is not None:
            kept[start + chosen] = True
    points = fit.points[rows]
    y = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points), np.float32)
    target = np.ones(len(rows), dtype=bool) if fit.clusters.target is None else labels == fit.clusters.target
    columns = {"cluster": labels.astype(np.int32), "x": points[:, 0], "y": y, "target": target, "kept": kept}
    table = pa.table({"id": fit.table["id"], "segment": fit.table["segment"], **columns, "text": fit.table["text"]})
    details = {
        "clusters": shown(fit.clusters, points, texts, _numbered(fit.table), labels),
        "covered": list(fit.clusters.covered),
        "explained_variance": list(fit.clusters.explained_variance),
    }
    return table, details


def _numbered(table: pa.Table) -> np.ndarray:
    """The answers' numbers for each segment row, int64 [n]."""
    return np.unique(np.array(table["id"].to_pylist(), dtype=object), return_inverse=True)[1]


STAGE = Stage(name="clean", config_type=CleanConfig, execute=execute, check=check)
