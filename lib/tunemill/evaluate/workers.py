"""The worker that scores rows: one loaded model in each actor of the pool.

A chunk of rows is the unit of work. Chunks, and the batches inside one, depend on the rows only, so the
scores are the same for any number of workers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tunemill.evaluate.labels import Message, Tokens, answer_tokens, label_tails
from tunemill.evaluate.prompts import Row, token_batches, with_examples

__all__ = ["SCORES", "ScoreRows", "ScoringPlan", "chunk_item"]

SCORES = pa.schema(
    [
        ("order", pa.int64()),
        ("variant", pa.string()),
        ("reason", pa.string()),
        ("sums", pa.list_(pa.float64())),
        ("tokens", pa.float64()),
    ]
)
"""One row for each row and variant: summed log-probability of each label, or of the answer with its ``tokens`` weight."""


@dataclass(frozen=True, kw_only=True)
class ScoringPlan:
    """What every scoring worker does; picklable."""

    base_model: str
    adapter: str | None
    tokenizer: str
    precision: str
    variants: tuple[str, ...]
    batch_tokens: int
    threads: int = 0
    """CPU threads of one worker; 0 leaves the library's choice."""
    labels: tuple[str, ...] = ()
    """Empty: the answer itself is scored."""
    tails: tuple[Tokens, ...] = ()
    examples: tuple[Row, ...] = ()


@dataclass
class _Job:
    """One row under one kind of prompt."""

    order: int
    prompt: Tokens
    sequences: list[Tokens] = field(default_factory=list)
    weights: list[list[float]] = field(default_factory=list)
    """Whole sequences to score where the labels' shared tokens do not fit; empty when they do."""

    @property
    def length(self) -> int:
        return max((len(tokens) for tokens in self.sequences), default=len(self.prompt))


def chunk_item(rows: Sequence[Row], orders: Sequence[int]) -> dict[str, Any]:
    """One chunk as the value of a Ray Data item."""
    texts = [[row.id, row.messages, row.label] for row in rows]
    return {"orders": list(orders), "rows": json.dumps(texts, ensure_ascii=False)}


class ScoreRows:
    """Ray Data callable: a table of chunks to a table of :data:`SCORES`."""

    def __init__(self, plan: ScoringPlan) -> None:
        import torch
        from transformers.utils.logging import disable_progress_bar

        from tunemill.chat.tokenizer import load
        from tunemill.evaluate.scoring import load_scorer

        if plan.threads:
            torch.set_num_threads(plan.threads)
            os.environ["OMP_NUM_THREADS"] = str(plan.threads)
        disable_progress_bar()
        self.plan = plan
        self.tokenizer = load(plan.tokenizer)
        self.scorer = load_scorer(plan.base_model, plan.adapter, precision=plan.precision)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score every row of the table's chunks under every variant."""
        found: list[dict[str, Any]] = []
        for chunk in table.to_pylist():
            rows = [Row(id=i, messages=tuple(messages), label=label) for i, messages, label in json.loads(chunk["rows"])]
            plain = [name for name in self.plan.variants if name in ("base", "tuned")]
            found += self._score(rows, chunk["orders"], plain, shots=False)
            if "base_few_shot" in self.plan.variants:
                found += self._score(rows, chunk["orders"], ["base_few_shot"], shots=True)
        return pa.Table.from_pylist(found, schema=SCORES)

    def _score(self, rows: Sequence[Row], orders: Sequence[int], variants: Sequence[str], *, shots: bool) -> list[dict[str, Any]]:
        jobs = [self._job(row, order, shots) for row, order in zip(rows, orders, strict=True)]
        room = self.scorer.context_tokens - max((len(tail) for tail in self.plan.tails), default=0)
        found: list[dict[str, Any]] = []
        for variant in variants:
            found += [{"order": job.order, "variant": variant, "reason": "too_long"} for job in jobs if job.length > room]
            found += self._shared([job for job in jobs if job.length <= room and not job.sequences], variant)
            found += [self._whole(job, variant) for job in jobs if job.length <= room and job.sequences]
        return found

    def _shared(self, jobs: Sequence[_Job], variant: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for batch in token_batches([job.length for job in jobs], self.plan.batch_tokens):
            sums = self.scorer.shared([jobs[i].prompt for i in batch], self.plan.tails, tuned=variant == "tuned").tolist()
            found += [{"order": jobs[i].order, "variant": variant, "sums": row} for i, row in zip(batch, sums, strict=True)]
        return found

    def _whole(self, job: _Job, variant: str) -> dict[str, Any]:
        sums = [0.0] * len(job.sequences)
        for batch in token_batches([len(tokens) for tokens in job.sequences], self.plan.batch_tokens):
            sequences, weights = [job.sequences[i] for i in batch], [job.weights[i] for i in batch]
            for i, value in zip(batch, self.scorer.whole(sequences, weights, tuned=variant == "tuned").tolist(), strict=True):
                sums[i] = value
        return {"order": job.order, "variant": variant, "sums": sums, "tokens": sum(job.weights[0][1:])}

    def _job(self, row: Row, order: int, shots: bool) -> _Job:
        prompt = with_examples(row.prompt, self.plan.examples) if shots else list(row.prompt)
        if not self.plan.labels:
            encoded = self.tokenizer.encode([*prompt, row.messages[-1]])
            return _Job(order, (), [tuple(encoded.input_ids)], [list(encoded.loss_weights)])
        ids = tuple(self.tokenizer.encode_prompt(prompt))
        before, answer = self._answer(prompt, ids, self.plan.labels[0])
        if before == ids and answer[: len(self.plan.tails[0])] == self.plan.tails[0]:
            return _Job(order, ids)
        return self._merged(prompt, ids, order)

    def _merged(self, prompt: list[Message], ids: Tokens, order: int) -> _Job:
        """The rare prompt over whose end a label's tokens merge: every label is scored in its own whole sequence."""
        parts = [self._answer(prompt, ids, label) for label in self.plan.labels]
        start = min(len(before) for before, _ in parts)
        tails = label_tails([(*before, *answer)[start:] for before, answer in parts])
        return _Job(order, ids, [(*ids[:start], *tail) for tail in tails], [[0.0] * start + [1.0] * len(tail) for tail in tails])

    def _answer(self, prompt: list[Message], ids: Tokens, label: str) -> tuple[Tokens, Tokens]:
        return answer_tokens(self.tokenizer.encode([*prompt, {"role": "assistant", "content": label}]), ids)
