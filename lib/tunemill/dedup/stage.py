"""The dedup stage: rows in, near-duplicates out, with the pairs, the reasons and an index on file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunemill.dedup.approximate import approximate_pairs
from tunemill.dedup.config import DedupConfig
from tunemill.dedup.corpus import Corpus, collect
from tunemill.dedup.decide import Decision, Rows, decide
from tunemill.dedup.details import details_of
from tunemill.dedup.exact import collapse
from tunemill.dedup.fixed import (
    Earlier,
    FixedRows,
    named_rows,
    no_rows,
    protected_rows,
    protected_source,
    side_by_side_rows,
    write_index,
)
from tunemill.dedup.graph import PairGraph
from tunemill.dedup.hot import summarise
from tunemill.dedup.listing import listed_parts, summed_up, write_parts
from tunemill.dedup.memory import check_hot
from tunemill.dedup.pairs import Pairs
from tunemill.dedup.plan import SearchPlan, plan_search
from tunemill.dedup.priority import ranks
from tunemill.dedup.reuse import may_reuse, stored_parts
from tunemill.dedup.search import search
from tunemill.dedup.spread import Spread
from tunemill.dedup.tasks import Handle, Here, OnRay, Tasks
from tunemill.errors import ConfigError
from tunemill.resources import connect
from tunemill.stage import Outcome, Stage, StageContext, commit_rows

__all__ = ["STAGE", "execute"]

_SMALL = 50_000


@dataclass(frozen=True, kw_only=True)
class _Everything:
    """The corpus first, then protected rows, then those of an earlier run, with names and groups of all."""

    corpus: Corpus
    protected: FixedRows
    earlier: FixedRows
    spread: Spread
    ids: np.ndarray
    rows: Rows


def execute(context: StageContext, source: Any, config: DedupConfig) -> Outcome:
    """Search, decide and write both tables, the pairs and the index."""
    connect()
    where = f"dedup input {source.describe.get('path') or source.describe.get('stage', '')}".strip()
    if config.reuse_pairs and config.prefer.endswith("centre") and "embedding" not in source.columns():
        raise ConfigError(
            f"dedup.prefer is {config.prefer}: needs vectors, which dedup.reuse_pairs does without; leave one of them out"
        )
    earlier = Earlier.find(config.against) if config.against else None
    protected = protected_source(config)
    rows = source.count() + (earlier.count() if earlier else 0) + (protected.count() if protected else 0)
    small = config.shards is None and rows < _SMALL and config.device != "cuda"
    tasks: Tasks = Here() if small else OnRay(threads=config.threads or 1, device=config.device)
    corpus = collect(source, config, tasks, where=where, vectors=not config.reuse_pairs)
    if corpus.rescaled:
        context.progress.note(f"embeddings not of unit length, normalised: {corpus.rescaled:,}")
    everything = _everything(
        config,
        corpus,
        protected_rows(config, protected, tasks) if protected else no_rows(corpus.spread),
        earlier.rows(tasks) if earlier else no_rows(corpus.spread),
    )
    n = len(corpus)
    parts, floor, plan, engine = _pairs(context, config, everything, earlier.plan() if earlier else None)
    threshold = None if config.text_thresholds else config.threshold
    graph = PairGraph.of(tasks, parts, everything.rows.rank, threshold)
    decision = _without_text(decide(config, everything.spread, graph, everything.rows), corpus)
    groups = _group_names(everything, decision)
    files = {"pairs": write_parts(tasks, parts, everything.ids, context.store.folder, context.attempt)}
    if config.keep_index and plan is not None:
        before = everything.earlier
        kept = [(before, np.ones(len(before), dtype=bool)), (named_rows(corpus, groups[:n]), decision.kept[:n])]
        files["index"] = write_index(context, kept, plan)
    columns = [name for name in source.columns() if name not in ("group", "reason", "kept_id", "similarity")]
    outcome = commit_rows(
        context,
        _marked(source.dataset(), everything, decision, groups),
        rows_in=n,
        kept_columns=[*columns, "group"],
        dropped_columns=[*columns, "reason", "kept_id", "similarity"],
        dropped_only=("kept_id", "similarity"),
        details=lambda: details_of(
            config, corpus, summed_up(tasks, parts, n, config.threshold, floor), decision, floor=floor, engine=engine
        ),
    )
    context.store.folder.join("ledger").delete()
    return dataclasses.replace(outcome, files={**outcome.files, **files})


def _everything(config: DedupConfig, corpus: Corpus, protected: FixedRows, earlier: FixedRows) -> _Everything:
    n, p, e = len(corpus), len(protected), len(earlier)
    own = ranks(
        config.prefer,
        ids=corpus.ids,
        lengths=corpus.lengths,
        column=corpus.score,
        position=corpus.position,
        spread=corpus.spread,
    )
    rank = np.concatenate([own + p + e, np.arange(p + e)])
    keys = np.concatenate([corpus.keys if corpus.keys is not None else np.zeros(n, "S16"), protected.keys, earlier.keys])
    stands_for = np.arange(n + p + e)
    if config.exact_first and corpus.keys is not None:
        stands_for[:n] = collapse(keys, rank)[:n]
    place = np.arange(n + p + e)
    stands_for[:n][corpus.blank] = place[:n][corpus.blank]
    return _Everything(
        corpus=corpus,
        protected=protected,
        earlier=earlier,
        spread=side_by_side_rows(corpus, [protected, earlier]),
        ids=np.concatenate([corpus.ids, protected.ids, earlier.ids]),
        rows=Rows(rank=rank, stands_for=stands_for, protected=(place >= n) & (place < n + p), earlier=place >= n + p),
    )


def _pairs(
    context: StageContext, config: DedupConfig, everything: _Everything, plan: SearchPlan | None
) -> tuple[list[Handle], float, SearchPlan | None, dict[str, Any]]:
    """Pairs of the rows that stand for themselves, in parts, down to the floor; the plan, and what to show of the engine."""
    rows, corpus, tasks = everything.rows, everything.corpus, everything.spread.tasks
    if config.reuse_pairs:
        parts, floor = stored_parts(context.store, config, tasks, corpus.ids, rows.stands_for[: len(corpus)])
        return parts, floor, None, {"method": "stored pairs"}
    alone = np.flatnonzero((rows.stands_for == np.arange(len(rows.rank))) & ~_blank(everything))
    spread = everything.spread.take(alone)
    thresholds = config.text_thresholds or (config.floor,) * len(spread.widths)
    fixed = rows.fixed[alone]
    if config.mode == "approximate":
        vectors = spread.vectors_at(np.arange(len(spread)))
        found, facts = approximate_pairs(vectors, thresholds, config, fixed=fixed, seed=context.seed)
        plan = plan or plan_search(vectors, thresholds, cells=0)
        return [tasks.put(_placed(found, alone))], config.floor, plan, facts
    progress, n = context.progress, len(spread)

    def advanced(done: int, shards: int, pairs: int) -> None:
        progress.reached(round(n * done / shards), shards=f"{done} of {shards}", pairs=f"{pairs:,}")

    progress.total(n)
    result = search(
        spread,
        thresholds,
        ledger=context.store.folder.join("ledger"),
        fixed=fixed,
        max_pairs=config.most_pairs(n),
        shards=config.shards,
        memory_gb=config.memory_gb,
        seed=context.seed,
        plan=plan if plan is not None and plan.cells else None,
        note=progress.note,
        advanced=advanced,
    )
    progress.reached(0)
    if not len(result.hot):
        return listed_parts(tasks, result.pairs, alone), config.floor, result.plan, result.facts
    check_hot(result.count, config.memory_gb)
    hot, listed = spread.vectors_at(result.hot), result.pairs.pairs(n)
    pairs = summarise(hot, result.hot, listed, rows.rank[alone], config.threshold, fixed=fixed)
    return [tasks.put(_placed(pairs, alone))], config.floor, result.plan, result.facts


def _blank(everything: _Everything) -> np.ndarray:
    blank = np.zeros(len(everything.rows.rank), dtype=bool)
    blank[: len(everything.corpus)] = everything.corpus.blank
    return blank


def _placed(pairs: Pairs, alone: np.ndarray) -> Pairs:
    return Pairs(a=alone[pairs.a], b=alone[pairs.b], similarity=pairs.similarity)


def _without_text(decision: Decision, corpus: Corpus) -> Decision:
    """Rows without any text leave with a reason of their own; nothing is kept in their stead."""
    lost = np.flatnonzero(corpus.blank)
    kept, reason, survivor, similarity = (
        values.copy() for values in (decision.kept, decision.reason, decision.survivor, decision.similarity)
    )
    kept[lost], reason[lost], survivor[lost], similarity[lost] = False, "empty_text", -1, np.nan
    return dataclasses.replace(decision, kept=kept, reason=reason, survivor=survivor, similarity=similarity)


def _group_names(everything: _Everything, decision: Decision) -> np.ndarray:
    """A group is named after its smallest id; where it holds rows of an earlier run, it keeps the smallest of their names."""
    names = everything.ids[decision.group].astype(object)
    if not len(everything.earlier):
        return names.astype(str)
    start = len(names) - len(everything.earlier)
    known: dict[int, str] = {}
    for group, name in zip(decision.group[start:].tolist(), everything.earlier.groups.tolist(), strict=True):
        known[group] = min(known.get(group, name), name)
    return np.array(
        [known.get(group, name) for group, name in zip(decision.group.tolist(), names.tolist(), strict=True)], dtype=str
    )


def _marked(dataset: Any, everything: _Everything, decision: Decision, groups: np.ndarray) -> Any:
    """The rows with ``group, reason, kept_id, similarity``; only rows about which there is something to tell are sent around."""
    import ray

    n = len(everything.corpus)
    ids, kept, survivor = everything.ids[:n], decision.kept[:n], decision.survivor[:n]
    told = np.flatnonzero((groups[:n] != ids) | ~kept)
    alone = survivor[told] < 0
    table = pa.table(
        {
            "id": pa.array(ids[told], pa.string()),
            "group": pa.array(groups[told], pa.string()),
            "reason": pa.array(decision.reason[told], pa.string()),
            "kept_id": pa.array(everything.ids[survivor[told]], pa.string(), mask=alone),
            "similarity": pa.array(decision.similarity[told], pa.float64(), mask=alone),
        }
    )
    return dataset.map_batches(_Mark(ray.put(table)), batch_size=None, batch_format="pyarrow", zero_copy_batch=True)


@dataclass(frozen=True)
class _Mark:
    """Lay the decisions beside a block's rows."""

    decisions: Any

    def __call__(self, table: pa.Table) -> pa.Table:
        import ray

        decisions = ray.get(self.decisions)
        if not len(table):
            return table
        ids = table["id"].cast(pa.string())
        found = decisions.take(pc.index_in(ids, value_set=decisions["id"]))
        told = {name: found[name] for name in ("group", "reason", "kept_id", "similarity")}
        told["group"] = pc.coalesce(found["group"], ids)
        rest = table.drop_columns([name for name in told if name in table.column_names])
        for name, values in told.items():
            rest = rest.append_column(name, values)
        return rest


STAGE = Stage(name="dedup", config_type=DedupConfig, execute=execute, grows=may_reuse)
