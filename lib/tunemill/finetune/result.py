"""What stands beside the adapter's weights: the tokenizer with its chat template, and the model card."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml

from tunemill.config import essential
from tunemill.finetune.config import FinetuneConfig
from tunemill.hub import uploading
from tunemill.store import Location

__all__ = ["finish_adapter", "model_card", "push"]


def finish_adapter(folder: Location, tokenizer: Any, config: FinetuneConfig, details: dict[str, Any]) -> None:
    """Add the tokenizer, its chat template and ``README.md`` to an adapter folder."""
    with tempfile.TemporaryDirectory(prefix="tunemill-") as aside:
        tokenizer.save(aside)
        for file in sorted(path for path in Path(aside).rglob("*") if path.is_file()):
            folder.join(str(file.relative_to(aside))).write_bytes(file.read_bytes())
    folder.join("README.md").write_text(model_card(config, details))


def model_card(config: FinetuneConfig, details: dict[str, Any]) -> str:
    """The model card: recipe, data counts, metrics, and what licence to look up before sharing."""
    rows, speed = details["rows"], details["speed"]
    losses, checked = details["losses"], details["validation_losses"]
    head = {
        "base_model": config.base_model,
        "library_name": "peft",
        "tags": ["lora", "tunemill"],
        "pipeline_tag": "text-generation",
    }
    first_last = f"{losses[0][1]:.4f} at the first step, {losses[-1][1]:.4f} at the last" if losses else "no step was made"
    validation = ", ".join(f"step {step}: {loss:.4f}" for step, loss in checked[-10:]) or "no validation rows"
    recipe = yaml.safe_dump(essential(config), sort_keys=False, allow_unicode=True).strip()
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# LoRA adapter for {config.base_model}

Made by tunemill. The folder holds the adapter, and the tokenizer with the chat template it was trained on.

## Licence

The adapter is a derivative of `{config.base_model}`: check that model's licence and its use policy, and the terms of
every source of the training rows, before sharing it.

## Data

| | rows |
|---|---|
| train | {rows["train"]:,} |
| validation | {rows["validation"]:,} |

{details["tokens"]:,} tokens, of which {details["trained_tokens"]:,} carry a loss weight.
The longest row has {details["longest"]:,} tokens.

## Results

- Training loss: {first_last}.
- Validation loss: {validation}.
- Kept: step {details["kept_step"]} of {details["steps"]} ({config.keep}).
- Speed: {speed["tokens_per_s"]:,.0f} tokens/s in {details["precision"]}, {details["trainable_weights"]:,} trained weights.

## Recipe

Seed {details["seed"]}.

```yaml
{recipe}
```

## Use

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

vLLM serves it as it is: `vllm serve {config.base_model} --enable-lora --lora-modules tuned=FOLDER`.
"""


def push(folder: Location, name: str) -> None:
    """Upload an adapter folder to a Hugging Face repository, with the token of HF_TOKEN or of a login.

    Raises RunFailed when the hub does not take it.
    """
    from huggingface_hub import HfApi

    stands = f"; the adapter stands in {folder.url}, and the same command tries again without training anew"
    with uploading(f"finetune.push_to_hub {name!r}", then=stands):
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="tunemill-") as aside:
            for file in folder.files():
                target = Path(aside, file.url.removeprefix(folder.url).lstrip("/"))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
            api.upload_folder(repo_id=name, folder_path=aside)
