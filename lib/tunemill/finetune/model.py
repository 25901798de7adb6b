"""The base model with its LoRA adapter, loaded as each family needs it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

import torch

from tunemill.errors import ConfigError
from tunemill.finetune.attention import VARLEN, register_varlen
from tunemill.finetune.config import FinetuneConfig, LoraConfig
from tunemill.finetune.loss import add_weighted_loss

_TOWERS = re.compile("vision_tower|multi_modal_projector|audio_tower")
# Tokens in a forward pass to try, the best first.
_PASS_TOKENS = {"cuda": [16384, 8192, 4096], "cpu": [2048]}

__all__ = ["Prepared", "choose_precision", "load_base", "prepare", "wrap_lora"]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model ready to train, and what was decided for it."""

    model: Any
    checkpointing: bool
    """Whether activations are computed again in the backward pass."""
    micro_tokens: int
    """Most tokens in one forward pass."""
    liger: bool


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The type of base weights and matrix products: ``auto`` is bf16 where the hardware multiplies it."""
    if precision == "fp32":
        return torch.float32
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if _cpu_multiplies_bf16() else torch.float32


def _cpu_multiplies_bf16() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return any(flag in flags.split() for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def load_base(path: str, revision: str | None, dtype: torch.dtype) -> Any:
    """A causal language model with row-wise attention; ConfigError when it cannot be had."""
    from transformers import AutoModelForCausalLM

    register_varlen()
    try:
        model = AutoModelForCausalLM.from_pretrained(path, revision=revision, dtype=dtype, attn_implementation=VARLEN)
    except (OSError, ValueError) as error:
        raise ConfigError(f"finetune.base_model {path!r}: cannot be loaded ({_first_line(error)})") from error
    model.config.use_cache = False
    return model


def wrap_lora(model: Any, lora: LoraConfig) -> Any:
    """The model with a fresh fp32 adapter; ConfigError when a target names no layer."""
    import peft
    from peft.tuners.lora import LoraLayer

    head = model.get_output_embeddings()
    # The towers of multimodal checkpoints see no images here.
    names = sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head and not _TOWERS.search(name)
        }
    )
    unknown = sorted(set(lora.targets) - set(names))
    if unknown:
        raise ConfigError(f"finetune.lora.targets: no linear layer is called {unknown[0]!r}; this model has {', '.join(names)}")
    alpha = lora.alpha if lora.alpha is not None else 2 * lora.r
    towers = any(_TOWERS.search(name) for name, _ in model.named_modules())
    settings = peft.LoraConfig(
        r=lora.r,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=list(lora.targets) or names,
        exclude_modules=f".*({_TOWERS.pattern}).*" if towers else None,
        task_type="CAUSAL_LM",
        bias="none",
    )
    wrapped = peft.get_peft_model(model, settings, autocast_adapter_dtype=True)
    for module in wrapped.modules():
        if isinstance(module, LoraLayer):
            # Autocast brings weights and inputs together; peft would copy every input to fp32 first.
            module.cast_input_dtype_enabled = False
    return wrapped


def prepare(config: FinetuneConfig, path: str, device: torch.device, *, dtype: torch.dtype, seed: int, longest: int) -> Prepared:
    """Load the base model, add the adapter and the weighted loss, and settle memory and kernels.

    ``longest`` is the longest row in tokens.
    """
    base = load_base(path, config.revision, dtype)
    liger = _apply_liger(base, config.liger, device)
    add_weighted_loss(base)
    torch.manual_seed(seed)
    model = wrap_lora(base, config.lora).to(device)
    checkpointing, micro_tokens = _settle_memory(config, base, device, dtype, longest)
    if checkpointing:
        # The frozen embeddings give no gradient, but the first recomputed block needs an input that asks for one.
        model.enable_input_require_grads()
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return Prepared(model=model, checkpointing=checkpointing, micro_tokens=micro_tokens, liger=liger)


def _apply_liger(model: Any, wanted: str, device: torch.device) -> bool:
    if wanted == "off" or device.type != "cuda":
        if wanted == "on":
            raise ConfigError("finetune.liger is on, but the worker has no GPU; use auto")
        return False
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        if wanted == "on":
            raise ConfigError("finetune.liger is on, but liger-kernel is not installed: pip install 'tunemill[gpu]'") from error
        return False
    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        if wanted == "on":
            raise ConfigError(f"finetune.liger is on, but liger-kernel has nothing for {model.config.model_type}; use auto")
        return False
    # The loss is ours (weighted); the kernels are for norms, rotary positions and the gated MLP.
    _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False, cross_entropy=False)
    return True


def _settle_memory(
    config: FinetuneConfig, model: Any, device: torch.device, dtype: torch.dtype, longest: int
) -> tuple[bool, int]:
    """Whether to recompute activations, and the most tokens in one forward pass.

    Shorter passes come first: products of some 4000 tokens are about as fast as longer ones, while recomputing costs half
    as much again.
    """
    tries = [config.micro_tokens] if config.micro_tokens else _PASS_TOKENS[device.type]
    if config.gradient_checkpointing == "on":
        return True, tries[0]
    settings = model.config.get_text_config()
    mlp = getattr(settings, "intermediate_size", 4 * settings.hidden_size)
    # Kept for the backward pass of one block, in values a token (measured on Llama and Mistral, LoRA on all layers).
    values = 16 * settings.hidden_size + 5 * mlp
    a_token = values * dtype.itemsize * settings.num_hidden_layers
    # Under ZeRO-3 a worker holds its shard, which is ds_tensor.
    weights = sum(held.numel() * held.element_size() for held in (getattr(p, "ds_tensor", p) for p in model.parameters()))
    if device.type == "cuda":
        free = 0.9 * torch.cuda.get_device_properties(device).total_memory - weights
    else:
        free = 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    fitting = [tokens for tokens in tries if max(tokens, longest) * a_token <= free]
    if fitting:
        return False, fitting[0]
    return (True, tries[0]) if config.gradient_checkpointing == "auto" else (False, tries[-1])


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
