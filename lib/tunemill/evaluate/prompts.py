"""From rows to what the model reads: the right answer, the examples of few-shot prompts, and batches.

Plain functions; random choice depends on the seed and the rows' ids only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunemill.errors import DataError
from tunemill.evaluate.labels import Message

__all__ = ["Row", "draw_examples", "is_classification", "token_batches", "with_examples"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A conversation whose last turn is the right answer."""

    id: str
    messages: tuple[Message, ...]
    label: str | None = None
    """The row's label column, where it has one."""

    @property
    def answer(self) -> str:
        """The text of the last turn."""
        return self.messages[-1]["content"].strip()

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the last turn."""
        return self.messages[:-1]

    @property
    def question(self) -> str:
        """The text of the last user turn."""
        return next((turn["content"] for turn in reversed(self.prompt) if turn["role"] == "user"), "")

    @property
    def size(self) -> int:
        """Characters of the conversation, a measure of its length before tokenising."""
        return sum(len(turn["content"]) for turn in self.messages)


def is_classification(rows: Sequence[Row], labels: Sequence[str]) -> bool:
    """True when answers are labels: they are named, or every row's answer is its label column."""
    return bool(labels) or all(row.label is not None and row.label.strip() == row.answer for row in rows)


def draw_examples(rows: Sequence[Row], labels: Sequence[str], count: int, seed: int) -> tuple[Row, ...]:
    """``count`` rows of each label, in an order of their own; DataError when a label has fewer.

    The draw depends on the seed and the ids, not on the order of ``rows``.
    """
    by_lot = sorted(rows, key=lambda row: _lot(seed, row.id))
    chosen: list[Row] = []
    for label in labels:
        found = [row for row in by_lot if row.answer == label][:count]
        if len(found) < count:
            raise DataError(
                f"evaluate.few_shot is {count}, but the train split has {len(found)} rows with label {label!r}; lower few_shot"
            )
        chosen += found
    return tuple(sorted(chosen, key=lambda row: _lot(seed + 1, row.id)))


def with_examples(prompt: Sequence[Message], examples: Sequence[Row]) -> list[Message]:
    """The prompt with the examples as earlier turns; its own system text stays first."""
    start = 1 if prompt and prompt[0]["role"] == "system" else 0
    shown = [turn for row in examples for turn in row.messages if turn["role"] != "system"]
    return [*prompt[:start], *shown, *prompt[start:]]


def token_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of ``lengths`` in batches, shortest first, each of at most ``batch_tokens`` padded tokens (or one row)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _lot(seed: int, row_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{row_id}".encode(), digest_size=8).digest()
