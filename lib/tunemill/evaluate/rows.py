"""The rows to evaluate on and the rows to draw examples from, read from a finished stage or a user's file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunemill.chat.config import ConversationRules
from tunemill.chat.conversations import has_known_columns, read_row
from tunemill.errors import DataError
from tunemill.evaluate.prompts import Row
from tunemill.stage import Source

__all__ = ["HeldOut", "read_rows"]

_HEAVY = ("input_ids", "loss_weights", "embedding")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Rows by split, sorted by id; ``dropped`` counts test rows that are no conversation, by reason."""

    test: tuple[Row, ...]
    train: tuple[Row, ...]
    dropped: dict[str, int]


def read_rows(source: Source, *, with_train: bool) -> HeldOut:
    """Read the test split (every row where there is no ``split`` column), and the train split if wanted.

    The whole test split is held on the driver: texts only, without token ids and vectors. Raises
    DataError for columns that hold no conversation, and for a test row without a label in a text+label file.
    """
    columns = source.columns()
    if not has_known_columns(columns):
        shown = ", ".join(columns)
        raise DataError(
            f"evaluate: the rows should hold messages, or text and label (columns: {shown}); map yours with --text-columns"
        )
    rules = ConversationRules()
    test: list[Row] = []
    train: list[Row] = []
    dropped: Counter[str] = Counter()
    unlabelled = 0
    for values in _iterate(source, [name for name in columns if name not in _HEAVY]):
        split = values.get("split", "test")
        if split != "test" and not (with_train and split == "train"):
            continue
        unlabelled += split == "test" and "text" in values and "messages" not in values and values.get("label", "") is None
        read = read_row(values, rules)
        if read.reason is not None:
            dropped.update([read.reason] if split == "test" else [])
            continue
        label = values.get("label")
        row = Row(id=str(values["id"]), messages=read.messages, label=None if label is None else str(label))
        (test if split == "test" else train).append(row)
    if unlabelled:
        raise DataError(f"evaluate: {unlabelled:,} rows have no label; give each row one, or leave those rows out")
    return HeldOut(test=_sorted(test), train=_sorted(train), dropped=dict(sorted(dropped.items())))


def _iterate(source: Source, columns: list[str]) -> Iterator[Mapping[str, Any]]:
    for batch in source.dataset().select_columns(columns).iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from batch.to_pylist()


def _sorted(rows: list[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: row.id))
