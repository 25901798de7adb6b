"""Rows of the template stage, through Ray Data into blocks that every worker reads without copying."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tunemill.errors import DataError
from tunemill.stage import Source

__all__ = ["Loaded", "load_rows"]

NEEDED = ("id", "input_ids", "loss_weights")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Token rows in the object store, and what is known of them."""

    train: list[Any]
    """References to Arrow tables with ``id, input_ids, loss_weights``."""
    validation: list[Any]
    train_rows: int
    validation_rows: int
    untrainable: list[str]
    """Ids of rows whose loss weights are all zero; they are in neither list."""
    tokens: int
    trained_tokens: int
    longest: int
    longest_id: str
    largest_token: int


def load_rows(source: Source) -> Loaded:
    """Read and check the rows; DataError for a missing column, no training rows or nothing to train on."""
    columns = source.columns()
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise DataError(
            f"finetune: the input has no column {missing[0]!r}; it needs {', '.join(NEEDED)} "
            f"(and split), which the template stage makes; it has {', '.join(columns)}"
        )
    has_split = "split" in columns
    dataset = source.dataset().select_columns([*NEEDED, *(["split"] if has_split else [])])
    marked = dataset.map_batches(_mark, batch_size=None, batch_format="pyarrow", zero_copy_batch=True).materialize()
    parts = {part: _part(marked, part) for part in ("train", "validation")}
    facts = _facts(marked)
    counts = {part: sum(f["rows"] for f in facts if f["part"] == part) for part in ("train", "validation")}
    untrainable = sorted(name for f in facts if f["part"] == "untrainable" for name in f["ids"])
    used = [f for f in facts if f["part"] in counts]
    if not counts["train"] and untrainable:
        raise DataError(
            f"finetune: none of the {len(untrainable)} rows has a token with a loss weight above 0, so nothing would be learnt; "
            "check that the conversations hold assistant turns, or set template.prompt_loss_weight"
        )
    if not counts["train"]:
        raise DataError(
            "finetune: the input holds no row of split 'train'; check split.test_fraction and split.validation_fraction"
        )
    longest = max(used, key=lambda f: f["longest"])
    return Loaded(
        train=parts["train"],
        validation=parts["validation"],
        train_rows=counts["train"],
        validation_rows=counts["validation"],
        untrainable=untrainable,
        tokens=sum(f["tokens"] for f in used),
        trained_tokens=sum(f["trained"] for f in used),
        longest=longest["longest"],
        longest_id=longest["longest_id"],
        largest_token=max(f["largest"] for f in used),
    )


def _mark(table: pa.Table) -> pa.Table:
    """Replace ``split`` by ``part``: train, validation, untrainable or unused (the test split)."""
    split = table.column("split") if "split" in table.column_names else pa.array(["train"] * table.num_rows)
    lists = table.column("loss_weights").combine_chunks()
    predicted = pc.list_slice(lists, 1) if len(lists) else lists
    trained = pa.array(
        [bool(pc.any(pc.greater(row.values, 0)).as_py()) if row.values is not None else False for row in predicted]
    )
    wanted = pc.is_in(split, pa.array(["train", "validation"]))
    part = pc.if_else(wanted, pc.if_else(trained, split, "untrainable"), "unused")
    return table.select(list(NEEDED)).append_column("part", part)


def _part(marked: Any, part: str) -> list[Any]:
    def keep(table: pa.Table) -> pa.Table:
        return table.filter(pc.equal(table.column("part"), part)).select(list(NEEDED))

    return list(marked.map_batches(keep, batch_size=None, batch_format="pyarrow").materialize().to_arrow_refs())


def _facts(marked: Any) -> list[dict[str, Any]]:
    facts = marked.map_batches(_count, batch_size=None, batch_format="pyarrow").take_all()
    return [fact for fact in facts if fact["rows"]]


def _count(table: pa.Table) -> pa.Table:
    found = []
    for part in ("train", "validation", "untrainable"):
        rows = table.filter(pc.equal(table.column("part"), part))
        if not rows.num_rows:
            continue
        lengths = pc.list_value_length(rows.column("input_ids"))
        longest = pc.index(lengths, pc.max(lengths)).as_py()
        found.append(
            {
                "part": part,
                "rows": rows.num_rows,
                "ids": [str(x) for x in rows.column("id").to_pylist()] if part == "untrainable" else [],
                "tokens": pc.sum(lengths).as_py(),
                "trained": pc.sum(pc.cast(pc.greater(pc.list_flatten(rows.column("loss_weights")), 0), pa.int64())).as_py(),
                "longest": lengths[longest].as_py(),
                "longest_id": str(rows.column("id")[longest].as_py()),
                "largest": pc.max(pc.list_flatten(rows.column("input_ids"))).as_py(),
            }
        )
    schema = pa.schema(
        [
            ("part", pa.string()), ("rows", pa.int64()), ("ids", pa.list_(pa.string())), ("tokens", pa.int64()),
            ("trained", pa.int64()), ("longest", pa.int64()), ("longest_id", pa.string()), ("largest", pa.int64()),
        ]
    )  # fmt: skip
    return pa.Table.from_pylist(found, schema=schema)
