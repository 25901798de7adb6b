"""The Hugging Face Trainer with one change: a step is a list of forward passes with a weighted, globally normalised loss.

Optimiser, scheduler, DDP, DeepSpeed and resuming are the Trainer's. What a batch is, what the loss is,
when it evaluates, and what a checkpoint holds are ours.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunemill.errors import RunFailed
from tunemill.finetune.adapter import ADAPTER_FILE, adapter_state, load_adapter_state, write_adapter
from tunemill.finetune.batches import Feed, collate, pieces_of
from tunemill.finetune.plan import Layout
from tunemill.finetune.rows import TokenRows
from tunemill.finetune.speed import SpeedMeter, Totals

__all__ = ["POSITION_FILE", "Cadence", "Hooks", "Standing", "WeightedTrainer"]

POSITION_FILE = "tunemill.json"
BEST_FILE = "best_adapter.safetensors"


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """The world around the loop; every worker calls each of them at the same steps."""

    record: Callable[[dict[str, Any]], None] = lambda record: None
    """Takes one line of metrics (called on the first worker only)."""
    saved: Callable[[str, dict[str, Any]], None] = lambda folder, record: None
    """Takes a finished checkpoint folder of this worker."""
    preempted: Callable[[], bool] = lambda: False
    """True when this job's machines will go away soon."""


@dataclass(kw_only=True)
class Standing:
    """What a resumed run must remember besides weights and optimiser."""

    best_loss: float | None = None
    best_step: int = 0
    stale: int = 0
    """Evaluations since the best one."""
    stopped_early: bool = False
    best_state: dict[str, Tensor] | None = field(default=None, repr=False)
    totals: Totals = field(default_factory=Totals)

    def write(self, folder: str, *, step: int) -> None:
        """Write to a checkpoint folder."""
        from safetensors.torch import save_file

        if self.best_state is not None:
            save_file(self.best_state, os.path.join(folder, BEST_FILE))
        plain = {
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "stale": self.stale,
            "stopped_early": self.stopped_early,
            "step": step,
            "totals": asdict(self.totals),
        }
        Path(folder, POSITION_FILE).write_text(json.dumps(plain), encoding="utf-8")

    @classmethod
    def read(cls, folder: str) -> Standing:
        """Read from a checkpoint folder; the attempt that reads it is one restart more."""
        from safetensors.torch import load_file

        plain = json.loads(Path(folder, POSITION_FILE).read_text(encoding="utf-8"))
        best = os.path.join(folder, BEST_FILE)
        known = {name: plain[name] for name in ("best_loss", "best_step", "stale", "stopped_early")}
        totals = Totals(**{**plain["totals"], "restarts": plain["totals"]["restarts"] + 1})
        return cls(**known, totals=totals, best_state=load_file(best) if os.path.exists(best) else None)


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """When to evaluate and to save, in optimiser steps; ``early_stop`` in evaluations."""

    steps: int
    eval_steps: int
    save_steps: int
    early_stop: int | None


class WeightedTrainer(Trainer):
    """Trains on a :class:`Feed`; one item of the feed is one optimiser step."""

    def __init__(
        self, *, feed: Feed, validation: TokenRows, standing: Standing, hooks: Hooks, cadence: Cadence, meter: SpeedMeter,
        settle_layout: Callable[[Any, Callable[..., Any]], Layout], base_model: str, model: Any, args: TrainingArguments,
    ) -> None:  # fmt: skip
        self.feed, self.validation, self.standing, self.hooks = feed, validation, standing, hooks
        self.meter, self.base_model, self.settle_layout = meter, base_model, settle_layout
        rhythm = _Rhythm(cadence, standing, hooks, self._begin)
        super().__init__(model=model, args=args, train_dataset=feed.rows, callbacks=[rhythm])
        self.remove_callback(PrinterCallback)

    control: TrainerControl

    def _begin(self) -> None:
        # Sharded weights come together only in calls of DeepSpeed's own wrapper, which exists from here on.
        with self.meter.phase("packing_proof"):
            forward = self.model_wrapped if self.is_deepspeed_enabled else self.model
            self.feed.layout = self.settle_layout(self.model, forward)
        self.meter.begin()

    def get_train_dataloader(self) -> Any:
        """The feed itself: it is already cut for this worker."""
        return self.feed

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Counted by the speed meter instead."""
        return 0

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward over all passes of a step; returns the step's loss as this worker sees it.

        The loss is sum(w * ce) / (sum of w over all workers and passes). Gradients are averaged over the
        workers afterwards, so each scales its part by their number.
        """
        started = time.perf_counter()
        model.train()
        scale = self.args.world_size / max(inputs["weight"], 1e-12)
        sharded = self.is_deepspeed_enabled
        total = torch.zeros((), device=self.args.device)
        for number, piece in enumerate(inputs["pieces"], start=1):
            last = number == len(inputs["pieces"])
            self.accelerator.gradient_state._set_sync_gradients(last)
            with nullcontext() if last or sharded else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = model(**self._prepare_inputs(piece)) * scale
                self.accelerator.backward(loss, **({"scale_wrt_gas": False} if sharded else {}))
            total += loss.detach()
        self.meter.passed(inputs, time.perf_counter() - started)
        return total

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Weighted loss on the validation rows, over all workers; keeps the adapter if it is the best yet."""
        with self.meter.phase("evaluate"):
            loss = self._validation_loss()
            better = self.standing.best_loss is None or loss < self.standing.best_loss
            if better:
                self.standing.best_loss, self.standing.best_step, self.standing.stale = loss, self.state.global_step, 0
                self.standing.best_state = adapter_state(self.model)
            else:
                self.standing.stale += 1
        metrics = {"eval_loss": loss}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _validation_loss(self) -> float:
        model = self.model_wrapped if self.is_deepspeed_enabled else self.model
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        feed, count = self.feed, len(self.validation)
        group = max(feed.plan.batch_size, feed.workers) * 4
        for start in range(0, count, group):
            numbers = range(start, min(start + group, count))
            cut = pieces_of(
                numbers, self.validation, layout=feed.layout, workers=feed.workers, accumulation=1, micro_tokens=feed.micro_tokens
            )
            for piece in cut[feed.rank]:
                batch = self._prepare_inputs(collate(self.validation, piece, feed.layout))
                with self.compute_loss_context_manager():
                    sums[0] += model(**batch).double()
                sums[1] += batch["loss_weights"].double().sum()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        model.train()
        return float(sums[0] / sums[1].clamp(min=1e-12))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One record a step, with our epoch count and the speed since the last one."""
        if "train_loss" in logs:
            return
        record = {"step": self.state.global_step, "epoch": round(self.feed.plan.epoch_of(self.state.global_step), 4), **logs}
        if "loss" in logs:
            if not torch.isfinite(torch.tensor(logs["loss"])):
                raise RunFailed(
                    f"finetune: the loss is {logs['loss']} at step {self.state.global_step}; "
                    "lower finetune.learning_rate, or use precision fp32"
                )
            record |= self.meter.since_last_step()
        if self.is_world_process_zero():
            self.hooks.record(record)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The adapter, not the base model, and the standing of the run."""
        folder = output_dir or self.args.output_dir
        os.makedirs(folder, exist_ok=True)
        state = adapter_state(self.model)
        if self.is_world_process_zero():
            write_adapter(self.model, state, folder, self.base_model)
            self.standing.write(folder, step=self.state.global_step)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.meter.phase("checkpoint"):
            super()._save_checkpoint(model, trial)
            folder = os.path.join(self.args.output_dir, f"checkpoint-{self.state.global_step}")
            self.hooks.saved(folder, {"step": self.state.global_step, "best_loss": self.standing.best_loss})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        load_adapter_state(self.model, load_file(os.path.join(resume_from_checkpoint, ADAPTER_FILE)))


class _Rhythm(TrainerCallback):
    """Says after each step whether to log, evaluate, save or stop."""

    def __init__(self, cadence: Cadence, standing: Standing, hooks: Hooks, begin: Callable[[], None]) -> None:
        self.cadence, self.standing, self.hooks, self.begin = cadence, standing, hooks, begin
        self.saved_for_preemption = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        step, last = state.global_step, state.global_step >= self.cadence.steps
        control.should_log = True
        control.should_evaluate = bool(self.cadence.eval_steps) and (step % self.cadence.eval_steps == 0 or last)
        control.should_save = step % self.cadence.save_steps == 0 or last
        if not control.should_save and not self.saved_for_preemption and self.hooks.preempted():
            control.should_save = self.saved_for_preemption = True
        return control

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        limit = self.cadence.early_stop
        if limit is not None and self.standing.stale >= limit:
            control.should_training_stop = control.should_save = True
            self.standing.stopped_early = True
        return control
