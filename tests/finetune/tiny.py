"""Tiny random models and rows for the fine-tuning tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tunemill.config import build
from tunemill.finetune.config import FinetuneConfig
from tunemill.finetune.rows import TokenRows
from tunemill.finetune.trainer import Hooks
from tunemill.finetune.worker import TrainOutcome, train

VOCABULARY = 264
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def tiny_model(folder: Path, family: str = "Llama", **changes: Any) -> str:
    """A random model of a family, as a Hugging Face folder."""
    import transformers

    torch.manual_seed(0)
    name = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, name)(**(SMALL | changes))
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    return str(folder)


def table(count: int, seed: int = 0, longest: int = 60) -> pa.Table:
    """Rows of random tokens of 5 to ``longest`` tokens; the second half of each is trained, with weights of 1 and 0.5."""
    draw = np.random.default_rng(seed)
    ids = [draw.integers(1, VOCABULARY, int(draw.integers(5, longest))).tolist() for _ in range(count)]
    weights = [[0.0] * (len(row) // 2) + [1.0, 0.5] * len(row) for row in ids]
    weights = [weight[: len(row)] for weight, row in zip(weights, ids, strict=True)]
    return pa.table(
        {
            "id": [f"r{i:04d}" for i in range(count)],
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "loss_weights": pa.array(weights, pa.list_(pa.float32())),
        }
    )


def rows(count: int, seed: int = 0, longest: int = 60) -> TokenRows:
    """:func:`table` as token rows."""
    return TokenRows.of([table(count, seed, longest)])


def config(model: str, **changes: Any) -> FinetuneConfig:
    """A quick exact configuration: fp32, rank 4, 8 rows a step."""
    values = {
        "base_model": model,
        "precision": "fp32",
        "batch_size": 8,
        "epochs": 2,
        "learning_rate": 1e-2,
        "lora": {"r": 4},
    }
    return build(FinetuneConfig, values | changes, "test")


@dataclasses.dataclass
class Run:
    """What a training run left."""

    outcome: TrainOutcome
    records: list[dict[str, Any]]

    @property
    def losses(self) -> list[float]:
        """Training loss of each step."""
        return [record["loss"] for record in self.records if "loss" in record]

    @property
    def validation(self) -> list[float]:
        """Validation losses."""
        return [record["eval_loss"] for record in self.records if "eval_loss" in record]


def run(
    settings: FinetuneConfig, folder: Path, *, data: TokenRows | None = None, checked: TokenRows | None = None, **more: Any
) -> Run:
    """Train in this process."""
    records: list[dict[str, Any]] = []
    hooks = more.pop("hooks", None) or Hooks(record=records.append)
    outcome = train(
        settings,
        base_model=settings.base_model,
        rows=data if data is not None else rows(21),
        validation=checked if checked is not None else rows(5, seed=1),
        seed=0,
        work=str(folder / "work"),
        adapter=str(folder / "adapter"),
        hooks=hooks,
        device=torch.device("cpu"),
        threads=1,
        **more,
    )
    return Run(outcome, records)
