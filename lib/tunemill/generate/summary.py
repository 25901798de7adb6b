"""What each model did, from the committed tables: calls, reasons, tokens, cost and latency."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunemill.stage import Outcome
from tunemill.store import Location

__all__ = ["summarise"]

_COLUMNS = ("model", "input_tokens", "output_tokens", "cost_usd", "latency_s", "finish_reason", "reason")


@dataclasses.dataclass
class _Tally:
    kept: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    cut: int = 0
    latencies: list[np.ndarray] = dataclasses.field(default_factory=list)

    def add(self, rows: pa.Table) -> None:
        reasons = [reason for reason in _list(rows, "reason") if reason is not None]
        for reason in reasons:
            self.dropped[reason] = self.dropped.get(reason, 0) + 1
        self.kept += len(rows) - len(reasons)
        self.input_tokens += sum(value or 0 for value in _list(rows, "input_tokens"))
        self.output_tokens += sum(value or 0 for value in _list(rows, "output_tokens"))
        self.cost_usd += sum(value or 0.0 for value in _list(rows, "cost_usd"))
        self.cut += sum(value == "length" for value in _list(rows, "finish_reason"))
        if not reasons:
            self.latencies.append(np.array([v for v in _list(rows, "latency_s") if v is not None], dtype=np.float64))

    def plain(self) -> dict[str, Any]:
        latencies = np.concatenate(self.latencies) if self.latencies else np.empty(0)
        middle, high = (float(np.quantile(latencies, q)) if latencies.size else None for q in (0.5, 0.95))
        return {
            "calls": self.kept + sum(self.dropped.values()),
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "cut_at_max_tokens": self.cut,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": round(self.cost_usd, 6),
            "latency_p50_s": None if middle is None else round(middle, 3),
            "latency_p95_s": None if high is None else round(high, 3),
        }


def summarise(folder: Location, outcome: Outcome, models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each model: ``calls, kept, dropped`` by reason, tokens, ``cost_usd``, ``latency_p50_s`` and ``_p95_s``."""
    tallies = {name: _Tally() for name in models}
    for table in _tables(folder, outcome):
        names = table["model"].to_pylist()
        for model in set(names):
            tallies.setdefault(model, _Tally()).add(table.filter(pa.array([name == model for name in names])))
    return {name: tally.plain() for name, tally in tallies.items()}


def _tables(folder: Location, outcome: Outcome) -> Iterator[pa.Table]:
    for kind in ("data", "dropped"):
        for name in outcome.files.get(kind, []):
            file = folder.join(name)
            with file.fs.open_input_file(file.path) as stream:
                parquet = pq.ParquetFile(stream)
                columns = [column for column in _COLUMNS if column in parquet.schema_arrow.names]
                yield parquet.read(columns=columns)


def _list(rows: pa.Table, column: str) -> list[Any]:
    return rows[column].to_pylist() if column in rows.column_names else []
