"""The split stage: a ``split`` column (train, validation or test) by dedup group, stratified by label."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

from tunemill.split.assign import SPLITS, assign_groups
from tunemill.split.config import SplitConfig
from tunemill.stage import Outcome, Source, Stage, StageContext, commit_rows

__all__ = ["STAGE"]


def execute(context: StageContext, source: Source, config: SplitConfig) -> Outcome:
    """Decide on the driver from the small columns, then mark the rows where they are."""
    columns = source.columns()
    key = next(name for name in (config.group_column, "id", "request_id") if name in columns)
    label = config.label_column if config.label_column in columns else None
    groups, labels = _small_columns(source, key, label)
    sides = assign_groups(
        groups, labels, test_fraction=config.test_fraction, validation_fraction=config.validation_fraction, seed=context.seed
    )

    def mark(table: pa.Table) -> pa.Table:
        values = [sides[str(group)] for group in table[key].to_pylist()]
        plain = table.drop_columns(["split"]) if "split" in table.column_names else table
        return plain.append_column("split", pa.array(values, pa.string()))

    rows = source.dataset().map_batches(mark, batch_size=None, batch_format="pyarrow")
    counts = Counter(zip((sides[group] for group in groups), labels, strict=True))
    table = {side: {str(name): n for (s, name), n in sorted(counts.items(), key=str) if s == side} for side in SPLITS}
    return commit_rows(
        context,
        rows,
        rows_in=len(groups),
        details=lambda: {"rows": table, "grouped_by": key, "stratified_by": label, "groups": len(sides)},
    )


def _small_columns(source: Source, key: str, label: str | None) -> tuple[list[str], list[str | None]]:
    groups: list[str] = []
    labels: list[str | None] = []
    names = [key, label] if label else [key]
    selected: Any = source.dataset().select_columns(names)
    for batch in selected.iter_batches(batch_size=None, batch_format="pyarrow"):
        groups += [str(value) for value in batch[key].to_pylist()]
        labels += [None if v is None else str(v) for v in batch[label].to_pylist()] if label else [None] * len(batch)
    return groups, labels


STAGE = Stage(name="split", config_type=SplitConfig, execute=execute)
