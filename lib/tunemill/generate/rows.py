"""From prompts to the rows that the caller takes: one for each prompt, model and sample.

Prompts come from a plan (`PlanSource`) or from the columns of the user's own file (`file_prompts`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tunemill.config import fingerprint
from tunemill.errors import ConfigError, DataError
from tunemill.generate.config import GenerateConfig, template_names
from tunemill.generate.prompts import PromptPlan, make_plan, prompt_id
from tunemill.tables import nearest_column

__all__ = ["PlanSource", "call_table", "expand", "file_prompts"]

_BLOCK_PROMPTS = 256
# Columns that the stage makes itself; the user's own of the same name do not go along.
_MADE = (
    "request_id", "prompt_id", "provider", "model", "prompt", "system", "sample", "label", "variables", "repeat", "order",
    "source_id", "text", "finish_reason", "input_tokens", "output_tokens", "cost_usd", "latency_s", "attempts", "created_at",
    "reason", "status", "error",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PlanSource:
    """The prompts of a configuration as rows: ``prompt, prompt_id, label, variables, repeat, order``."""

    plan: PromptPlan
    rows: int

    @classmethod
    def of(cls, config: GenerateConfig, seed: int) -> PlanSource:
        """The source that stands in for input files; ConfigError when the plan cannot be made."""
        return cls(make_plan(config, seed), config.rows)

    @property
    def describe(self) -> dict[str, Any]:
        """The number of rows stays out of the fingerprint: a larger plan begins with the smaller one."""
        axes = [dataclasses.asdict(axis) for axis in (*self.plan.axes, *([self.plan.label] if self.plan.label else []))]
        same = fingerprint([self.plan.template, self.plan.system, self.plan.seed, axes])
        return {"prompts": self.rows, "combinations": self.plan.combinations, "seed": self.plan.seed, "fingerprint": same}

    def count(self) -> int:
        """Number of prompts."""
        return self.rows

    def columns(self) -> list[str]:
        """Columns of the rows."""
        return ["prompt", "prompt_id", "label", "variables", "repeat", "order"]

    def dataset(self) -> Any:
        """A lazy Dataset of the prompts, in plan order."""
        import ray.data

        blocks = max(-(-self.rows // _BLOCK_PROMPTS), 1)
        return ray.data.range(self.rows, override_num_blocks=blocks).map_batches(
            self.table, batch_size=None, batch_format="numpy"
        )

    def table(self, batch: dict[str, Any]) -> pa.Table:
        """The prompts at the places in ``batch["id"]``."""
        names = template_names(self.plan.template)
        planned = [self.plan.at(int(i)) for i in batch["id"]]
        return pa.table(
            {
                "prompt": pa.array([p.prompt for p in planned], pa.string()),
                "prompt_id": pa.array([p.prompt_id for p in planned], pa.string()),
                "label": pa.array([p.label for p in planned], pa.string()),
                "variables": _variables(names, [p.variables for p in planned]),
                "repeat": pa.array([p.repeat for p in planned], pa.int64()),
                "order": pa.array(batch["id"], pa.int64()),
            }
        )


def file_prompts(source: Any, config: GenerateConfig) -> Any:
    """Prompts from the user's rows: the template filled with their columns, or the column ``prompt`` as it stands.

    Reads the rows once to number repeated prompts. DataError for a missing column or an empty value.
    """
    columns = source.columns()
    template = config.template or "{prompt}"
    names = template_names(template)
    if config.variables:
        raise ConfigError("generate.variables: with --input the template's names are columns of the file; remove the variables")
    for name in names:
        if name not in columns:
            what = f"template has {{{name}}}, but" if config.template else "no template is given, and"
            raise DataError(f"generate: the {what} the input has no column {name!r}{nearest_column(name, columns)}")
    if config.label is not None and config.label not in columns:
        raise DataError(f"generate.label: the input has no column {config.label!r}{nearest_column(config.label, columns)}")
    label = config.label or ("label" if "label" in columns else None)
    filled = source.dataset().map_batches(_Fill(template, config.system, label), batch_size=None, batch_format="pyarrow")
    orders, repeats = _number(filled)
    return filled.map_batches(_Number(orders, repeats), batch_size=None, batch_format="pyarrow")


def expand(prompts: Any, config: GenerateConfig) -> Any:
    """Each prompt for each model and sample, in (prompt, model, sample) order; a lazy Dataset."""
    names = tuple(model.name for model in config.models)
    return prompts.map_batches(
        call_table,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"models": names, "samples": config.samples, "system": config.system},
    )


def call_table(prompts: pa.Table, *, models: Sequence[str], samples: int, system: str | None) -> pa.Table:
    """One row for each prompt, model and sample.

    The k-th repeat of a prompt takes sample numbers k * samples and up, so the numbers of a prompt always
    begin at 0 and have no gap: asking for more rows or more samples meets the calls made before.
    """
    each = len(models) * samples
    rows = len(prompts)
    spread = prompts.take(pa.array([i for i in range(rows) for _ in range(each)], pa.int64()))
    within = pa.array([s for _ in range(rows * len(models)) for s in range(samples)], pa.int64())
    nth = pa.array([k for _ in range(rows) for k in range(each)], pa.int64())
    sample = pc.add(pc.multiply(spread["repeat"], samples), within)
    order = pc.add(pc.multiply(spread["order"], each), nth)
    made = {
        "model": pa.array([name for _ in range(rows) for name in models for _ in range(samples)], pa.string()),
        "system": pa.array([system] * (rows * each), pa.string()),
        "sample": sample,
    }
    spread = spread.drop_columns(["repeat", "order"])
    for name, values in made.items():
        spread = spread.append_column(name, values)
    return spread.append_column("order", order)


@dataclasses.dataclass(frozen=True)
class _Fill:
    """Fill the template with the columns of each row."""

    template: str
    system: str | None
    label: str | None

    def __call__(self, table: pa.Table) -> pa.Table:
        names = template_names(self.template)
        cells = {name: [_text(value) for value in table[name].to_pylist()] for name in names}
        ids = table["id"].to_pylist() if "id" in table.column_names else [None] * len(table)
        rows = [{name: cells[name][i] for name in names} for i in range(len(table))]
        for row, identity in zip(rows, ids, strict=True):
            for name, value in row.items():
                if not value.strip():
                    raise DataError(
                        f"generate: row with id {identity!r} has nothing in column {name!r}, which the template needs"
                    )
        prompts = [self.template.format_map(row) for row in rows]
        labels = [_text(v) or None for v in table[self.label].to_pylist()] if self.label else [None] * len(table)
        carried = {"source_id": pa.array(ids, pa.string())}
        carried |= {name: table[name] for name in table.column_names if name not in _MADE and name != "id"}
        made = {
            "prompt": pa.array(prompts, pa.string()),
            "prompt_id": pa.array([prompt_id(prompt, self.system) for prompt in prompts], pa.string()),
            "label": pa.array(labels, pa.string()),
            "variables": _variables(names, rows),
        }
        return pa.table({**carried, **made})


@dataclasses.dataclass(frozen=True)
class _Number:
    """Add ``order`` (place in the file) and ``repeat`` (how often the prompt came before)."""

    orders: dict[str, int]
    repeats: dict[str, int]

    def __call__(self, table: pa.Table) -> pa.Table:
        ids = table["source_id"].to_pylist()
        numbered = table.append_column("repeat", pa.array([self.repeats.get(i, 0) for i in ids], pa.int64()))
        return numbered.append_column("order", pa.array([self.orders[i] for i in ids], pa.int64()))


def _number(filled: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Place of every source row, and the repeat number of those whose prompt came before."""
    orders: dict[str, int] = {}
    repeats: dict[str, int] = {}
    seen: dict[str, int] = {}
    keys = filled.select_columns(["source_id", "prompt_id"])
    for batch in keys.iter_batches(batch_size=None, batch_format="pyarrow"):
        for identity, prompt in zip(batch["source_id"].to_pylist(), batch["prompt_id"].to_pylist(), strict=True):
            orders[identity] = len(orders)
            if prompt in seen:
                repeats[identity] = seen[prompt] = seen[prompt] + 1
            else:
                seen[prompt] = 0
    return orders, repeats


def _variables(names: Sequence[str], rows: Sequence[dict[str, str]]) -> pa.Array:
    """A struct with one text field for each name; without names, nulls (parquet has no empty struct)."""
    if not names:
        return pa.nulls(len(rows), pa.string())
    return pa.array(list(rows), pa.struct([(name, pa.string()) for name in names]))


def _text(value: Any) -> str:
    return "" if value is None else str(value)
