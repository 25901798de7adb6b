"""What one worker does: load, prove, train, return. Runs under Ray Train, under torchrun, or alone."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from tunemill.errors import RunFailed
from tunemill.finetune.adapter import adapter_state, write_adapter
from tunemill.finetune.batches import Feed
from tunemill.finetune.config import FinetuneConfig
from tunemill.finetune.model import choose_precision, prepare
from tunemill.finetune.plan import Layout, StepPlan
from tunemill.finetune.proof import prove_packing
from tunemill.finetune.rows import TokenRows
from tunemill.finetune.speed import SpeedMeter
from tunemill.finetune.trainer import POSITION_FILE, Cadence, Hooks, Standing, WeightedTrainer

__all__ = ["TrainOutcome", "cadence_of", "plan_of", "train"]


@dataclass(frozen=True, kw_only=True)
class TrainOutcome:
    """What training yields, besides the adapter folder; plain values."""

    steps: int
    trained_steps: int
    """Optimiser steps made since the last (re)start."""
    kept_step: int
    best_loss: float | None
    stopped_early: bool
    layout: str
    packing_proof: dict[str, Any]
    precision: str
    trainable_weights: int
    speed: dict[str, Any]


def plan_of(config: FinetuneConfig, rows: int, seed: int) -> StepPlan:
    """The rows of each step under this configuration."""
    return StepPlan(rows=rows, batch_size=config.batch_size, epochs=config.epochs, seed=seed, max_steps=config.max_steps)


def cadence_of(config: FinetuneConfig, plan: StepPlan, validation_rows: int) -> Cadence:
    """When to evaluate (never without validation rows) and to save."""
    evaluate = (config.eval_steps or plan.steps_per_epoch) if validation_rows else 0
    save = config.save_steps or max(1, plan.steps // 10)
    return Cadence(steps=plan.steps, eval_steps=evaluate, save_steps=save, early_stop=config.early_stop)


def train(
    config: FinetuneConfig,
    *,
    base_model: str,
    rows: TokenRows,
    validation: TokenRows,
    seed: int,
    work: str,
    adapter: str | None,
    hooks: Hooks | None = None,
    resume: str | None = None,
    workers: int = 1,
    rank: int = 0,
    device: torch.device | None = None,
    threads: int | None = None,
) -> TrainOutcome:
    """Train an adapter on this worker's share of ``rows``.

    ``work`` is a local folder of this worker for checkpoints in the making; ``adapter`` is where the first
    worker writes the result (None: nowhere); ``resume`` is a checkpoint folder of an earlier attempt.
    """
    _use_environment(threads)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = choose_precision(config.precision, device)
    plan = plan_of(config, len(rows), seed)
    started = time.perf_counter()
    # Before the model: from them transformers knows that ZeRO-3 wants it loaded in shards, never whole in one worker.
    arguments = _arguments(config, plan, work=work, device=device, dtype=dtype, seed=seed, workers=workers)
    longest = max(int(part.lengths.max()) for part in (rows, validation) if len(part))
    prepared = prepare(config, base_model, device, dtype=dtype, seed=seed, longest=longest)
    standing = Standing.read(resume) if resume else Standing()
    meter = SpeedMeter(prepared.model, device=device, recompute=prepared.checkpointing, totals=standing.totals)
    meter.add("load_model", time.perf_counter() - started)
    first_step = _step_of(resume) if resume else 0
    feed = Feed(
        rows=rows,
        plan=plan,
        layout="bucketed" if config.packing == "auto" else config.packing,
        workers=workers,
        rank=rank,
        accumulation=config.accumulation,
        micro_tokens=_least(prepared.micro_tokens, device),
        first_step=first_step,
    )
    proof: dict[str, Any] = {"asked": False}

    def settle(model: Any, forward: Callable[..., Any]) -> Layout:
        layout, found = _settle_layout(config, model, forward, rows, dtype)
        proof.update(found)
        return layout

    trainer = WeightedTrainer(
        feed=feed, validation=validation, standing=standing, hooks=hooks or Hooks(), meter=meter, base_model=config.base_model,
        cadence=cadence_of(config, plan, len(validation)), settle_layout=settle, model=prepared.model, args=arguments,
    )  # fmt: skip
    if not standing.stopped_early:
        trainer.train(resume_from_checkpoint=resume)
    state = adapter_state(prepared.model)
    keep_best = config.keep == "best" and standing.best_state is not None
    if adapter is not None and trainer.is_world_process_zero():
        write_adapter(prepared.model, (standing.best_state if keep_best else None) or state, adapter, config.base_model)
    return TrainOutcome(
        steps=meter.totals.steps,
        trained_steps=meter.totals.steps - first_step,
        kept_step=standing.best_step if keep_best else meter.totals.steps,
        best_loss=standing.best_loss,
        stopped_early=standing.stopped_early,
        layout=feed.layout,
        packing_proof=proof,
        precision=str(dtype).removeprefix("torch."),
        trainable_weights=sum(tensor.numel() for tensor in state.values()),
        speed=meter.report(dtype),
    )


def _least(value: int, device: torch.device) -> int:
    """The least of all workers' values: every worker has to cut a step into the same passes."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    found = torch.tensor(value, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MIN)
    return int(found)


def _use_environment(threads: int | None) -> None:
    # DeepSpeed compiles an operator with the ninja of this environment, which need not be activated.
    tools = os.path.join(sys.prefix, "bin")
    if tools not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([tools, os.environ.get("PATH", "")])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if threads:
        torch.set_num_threads(threads)


def _arguments(
    config: FinetuneConfig, plan: StepPlan, *, work: str, device: torch.device, dtype: torch.dtype, seed: int, workers: int
) -> Any:
    """TrainingArguments; when to log, evaluate and save is decided by our own callback."""
    from transformers import TrainingArguments

    cpu = device.type == "cpu"
    return TrainingArguments(
        output_dir=work,
        max_steps=plan.steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup" if config.schedule == "constant" else config.schedule,
        warmup_steps=round(config.warmup * plan.steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused" if not cpu and not config.deepspeed else "adamw_torch",
        bf16=dtype == torch.bfloat16,
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and workers > 1 else None,
        ddp_find_unused_parameters=False,
        deepspeed=_deepspeed(config.deepspeed, dtype) if config.deepspeed else None,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        ignore_data_skip=True,
        seed=seed,
        save_total_limit=2,
    )


def _deepspeed(stage: Literal["zero2", "zero3"], dtype: torch.dtype) -> dict[str, Any]:
    return {
        "zero_optimization": {"stage": int(stage[-1]), "overlap_comm": False, "contiguous_gradients": True},
        "bf16": {"enabled": dtype == torch.bfloat16},
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _settle_layout(
    config: FinetuneConfig, model: Any, forward: Callable[..., Any], rows: TokenRows, dtype: torch.dtype
) -> tuple[Layout, dict[str, Any]]:
    """``packed`` only when it is proven on this model and kernel; ``auto`` falls back to ``bucketed``."""
    if config.packing in ("bucketed", "padded"):
        return config.packing, {"asked": False}
    proof = prove_packing(model, forward, rows, dtype)
    if proof["passed"]:
        return "packed", proof
    if config.packing == "packed":
        raise RunFailed(
            f"finetune.packing is packed, but packed rows see each other on this model and kernel ({proof['detail']}); use auto"
        )
    return "bucketed", proof


def _step_of(checkpoint: str) -> int:
    return int(json.loads(Path(checkpoint, POSITION_FILE).read_text(encoding="utf-8"))["step"])
