"""The dedup stage: rows in, near-duplicates out, with the pairs and the reasons on file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunemill.dedup.config import DedupConfig
from tunemill.dedup.corpus import Corpus, collect
from tunemill.dedup.decide import Decision, decide
from tunemill.dedup.details import details_of
from tunemill.dedup.engine import all_pairs
from tunemill.dedup.exact import collapse
from tunemill.dedup.pairs import Pairs
from tunemill.dedup.priority import ranks
from tunemill.stage import Outcome, Stage, StageContext, commit_rows, write_table

__all__ = ["STAGE", "execute"]


def execute(context: StageContext, source: Any, config: DedupConfig) -> Outcome:
    """Search, decide and write both tables and the pairs."""
    where = f"dedup input {source.describe.get('path') or source.describe.get('stage', '')}".strip()
    columns = source.columns()
    corpus = collect(source, config, where=where)
    if corpus.rescaled:
        context.progress.note(f"{corpus.rescaled:,} embeddings were not of unit length and were normalised")
    rank = ranks(
        config.prefer,
        ids=corpus.ids,
        lengths=corpus.lengths,
        column=corpus.score,
        position=corpus.position,
        vectors=corpus.vectors,
    )
    collapsed = config.exact_first and corpus.keys is not None
    stands_for = collapse(corpus.keys, rank) if collapsed and corpus.keys is not None else np.arange(len(corpus))
    alone = np.flatnonzero(stands_for == np.arange(len(corpus)))
    found = all_pairs(corpus.vectors.take(alone), config.floor)
    pairs = Pairs(a=alone[found.a], b=alone[found.b], similarity=found.similarity)
    decision = decide(config, corpus.vectors, pairs, rank, stands_for)
    files = {"pairs": [write_table(context, "pairs", _pairs_table(corpus, pairs))]}
    outcome = commit_rows(
        context,
        _marked(source.dataset(), corpus, decision),
        rows_in=len(corpus),
        kept_columns=[*columns, "group"],
        dropped_columns=[*(name for name in columns if name != "reason"), "reason", "kept_id", "similarity"],
        dropped_only=("kept_id", "similarity"),
        details=lambda: details_of(config, corpus, pairs, decision),
    )
    return Outcome(
        rows_in=outcome.rows_in,
        rows_kept=outcome.rows_kept,
        rows_dropped=outcome.rows_dropped,
        files={**outcome.files, **files},
        details=outcome.details,
    )


def _pairs_table(corpus: Corpus, pairs: Pairs) -> pa.Table:
    ids = pa.array(corpus.ids, pa.string())
    return pa.table({"id_a": ids.take(pa.array(pairs.a)), "id_b": ids.take(pa.array(pairs.b)), "similarity": pairs.similarity})


def _marked(dataset: Any, corpus: Corpus, decision: Decision) -> Any:
    """The rows with ``group, reason, kept_id, similarity``; rows alone in the world are not sent around."""
    import ray

    group = corpus.ids[decision.group]
    told = np.flatnonzero((decision.group != np.arange(len(corpus))) | ~decision.kept)
    kept_id = pa.array(corpus.ids[np.maximum(decision.survivor[told], 0)], pa.string(), mask=decision.kept[told])
    table = pa.table(
        {
            "id": pa.array(corpus.ids[told], pa.string()),
            "group": pa.array(group[told], pa.string()),
            "reason": pa.array(decision.reason[told], pa.string()),
            "kept_id": kept_id,
            "similarity": pa.array(decision.similarity[told], pa.float64(), mask=decision.kept[told]),
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
        ids = table["id"].cast(pa.string())
        found = decisions.take(pc.index_in(ids, value_set=decisions["id"]))
        told: Mapping[str, Any] = {
            "group": pc.coalesce(found["group"], ids),
            "reason": found["reason"],
            "kept_id": found["kept_id"],
            "similarity": found["similarity"],
        }
        rest = table.drop_columns([name for name in told if name in table.column_names])
        for name, values in told.items():
            rest = rest.append_column(name, values)
        return rest


STAGE = Stage(name="dedup", config_type=DedupConfig, execute=execute)
