"""What the finetune stage can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from tunemill.config import operational
from tunemill.errors import ConfigError

__all__ = ["FinetuneConfig", "LoraConfig"]


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The adapter. Field names are those of peft."""

    r: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the adapter."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Scale of the adapter (alpha / r, with rslora alpha / sqrt(r)); null takes 2 x r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the adapter; above 0 the loss depends on the number of workers."""
    targets: tuple[str, ...] = ()
    """Names of the layers that get an adapter (q_proj, v_proj, ...); empty takes all linear layers but the output head."""
    rslora: bool = False
    """Rank-stabilised LoRA: scale by alpha / sqrt(r)."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """LoRA fine-tuning with a loss on weighted tokens. The loss curve does not depend on workers, accumulation or packing."""

    base_model: str = "embedded/smollm2-135m"
    """A hub name, a local folder, or embedded/smollm2-135m (installs from PyPI)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; null takes its main branch."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """The adapter."""
    epochs: Annotated[float, Field(gt=0)] = 2.0
    """Passes over the training rows."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimiser steps in all; null follows epochs."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Rows in one optimiser step, over all workers and accumulation together."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-4
    """Peak learning rate; LoRA wants about ten times that of full fine-tuning."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """How the learning rate goes on after the warm-up."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of all steps in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW weight decay on the adapter."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are clipped to this norm; 0 does not clip."""
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimiser steps between evaluations on the validation split; null evaluates once an epoch."""
    early_stop: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many evaluations without a better validation loss; null never stops early."""
    keep: Literal["best", "last"] = "best"
    """Which adapter is the result: of the lowest validation loss, or the last one."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Base weights and matrix products; the adapter stays fp32. auto takes bf16 where the processor computes it."""
    workers: Annotated[int, Field(ge=1)] = operational(1)
    """Ray Train workers; they share the batch."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | None = operational(None)
    """GPUs of a worker; null takes one where the cluster has enough."""
    cpus_per_worker: Annotated[int, Field(ge=1)] | None = operational(None)
    """CPUs of a worker; null shares out the cluster's CPUs."""
    accumulation: Annotated[int, Field(ge=1)] = operational(1)
    """Cuts a worker's share of a batch into at least so many forward passes."""
    micro_tokens: Annotated[int, Field(ge=16)] | None = operational(None)
    """Most tokens in one forward pass (a longer row goes alone); null fits it to the device."""
    packing: Literal["auto", "packed", "bucketed", "padded"] = operational("auto")
    """packed puts rows end to end, isolated from each other; bucketed pads rows of similar length; padded pads the whole pass."""
    deepspeed: Literal["zero2", "zero3"] | None = operational(None)
    """Shard the optimiser (zero2) or the weights as well (zero3) over the workers; null is plain data parallelism."""
    gradient_checkpointing: Literal["auto", "on", "off"] = operational("auto")
    """Compute activations again in the backward pass: less memory, half as many more FLOP. auto: only if nothing else fits."""
    liger: Literal["auto", "on", "off"] = operational("auto")
    """Fused Liger kernels on a GPU; auto uses them when liger-kernel is installed."""
    save_steps: Annotated[int, Field(ge=1)] | None = operational(None)
    """Optimiser steps between checkpoints; null saves about ten times in a run."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = operational(2)
    """Checkpoints that stay on disk."""
    max_failures: Annotated[int, Field(ge=-1)] = operational(3)
    """Lost workers that a run survives by going on from its last checkpoint; -1 is no limit. Preemptions do not count."""
    tensorboard: bool = operational(True)
    """Write TensorBoard event files beside metrics.jsonl."""
    push_to_hub: str | None = operational(None)
    """Name of a Hugging Face repository for the adapter (needs HF_TOKEN)."""

    def __post_init__(self) -> None:
        if not self.base_model.strip():
            raise ConfigError("finetune.base_model is empty; name a hub model, a folder, or embedded/smollm2-135m")
        if self.base_model.startswith("mistral-common/"):
            raise ConfigError(
                f"finetune.base_model is {self.base_model!r}, which is only a tokenizer; "
                "name a model with weights, such as mistralai/Mistral-7B-Instruct-v0.3"
            )
        if self.batch_size < self.workers:
            raise ConfigError(
                f"finetune.batch_size is {self.batch_size} (rows in one step over all workers), "
                f"which is less than workers ({self.workers}); use a batch_size of at least {self.workers}"
            )
