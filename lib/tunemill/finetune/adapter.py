"""Reading and writing the LoRA weights alone: never the base model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["ADAPTER_FILE", "adapter_state", "load_adapter_state", "write_adapter"]

ADAPTER_FILE = "adapter_model.safetensors"


def adapter_state(model: Any) -> dict[str, Tensor]:
    """The adapter's weights in fp32 on the CPU, under the names that peft and vLLM expect.

    Under DeepSpeed every worker has to call this, since the shards are gathered.
    """
    from peft import get_peft_model_state_dict

    weights = {name: _whole(p).detach().float().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}
    state: dict[str, Tensor] = get_peft_model_state_dict(model, state_dict=weights, save_embedding_layers=False)
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _whole(parameter: Tensor) -> Tensor:
    # Under DeepSpeed the fp32 weights are the optimiser's; the parameter itself is a bf16 copy, or empty.
    if not (hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")):
        return parameter
    from deepspeed.utils import safe_get_full_fp32_param

    whole: Tensor = safe_get_full_fp32_param(parameter)
    return whole


def load_adapter_state(model: Any, state: Mapping[str, Tensor]) -> None:
    """Put adapter weights into a PeftModel; ValueError when a weight has no place there."""
    from peft import set_peft_model_state_dict

    outcome = set_peft_model_state_dict(model, dict(state))
    if outcome.unexpected_keys:
        raise ValueError(f"adapter weights without a place in the model: {outcome.unexpected_keys[:3]}")


def write_adapter(model: Any, state: Mapping[str, Tensor], folder: str | os.PathLike[str], base_model: str) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``, the layout of plain peft and of vLLM."""
    from safetensors.torch import save_file

    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(dict(state), os.path.join(folder, ADAPTER_FILE), metadata={"format": "pt"})
    settings = model.peft_config["default"]
    before = settings.base_model_name_or_path, settings.inference_mode, settings.target_modules
    settings.base_model_name_or_path, settings.inference_mode = base_model, True
    if isinstance(settings.target_modules, set):
        settings.target_modules = sorted(settings.target_modules)
    settings.save_pretrained(str(folder))
    settings.base_model_name_or_path, settings.inference_mode, settings.target_modules = before
