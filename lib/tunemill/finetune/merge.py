"""Lay an adapter into its base model, and show that the merged model says the same."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from tunemill.embedded import resolve_model
from tunemill.errors import ConfigError, RunFailed
from tunemill.finetune.adapter import ADAPTER_FILE
from tunemill.finetune.merge_config import MergeConfig
from tunemill.store import Location

__all__ = ["Merged", "find_adapter", "merge"]

_SENTENCES = ("The weather today is", "I loved every minute of it.", "12 + 30 =", "¿Dónde está la estación?", "정말 좋았어요")
_PROBE_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Merged:
    """Where the merged model lies and how close it is to base model plus adapter."""

    folder: Location
    probability_difference: float
    """Largest change of a probability among the tokens that matter, over all probes."""
    probes: int
    dtype: str


def find_adapter(folder: Location) -> Location:
    """The adapter folder that ``folder`` is or holds: itself, RUN/finetune/adapter or DIR/adapter. ConfigError when none."""
    for place in (folder, folder.join("finetune", "adapter"), folder.join("adapter")):
        if place.join(ADAPTER_FILE).exists():
            return place
    raise ConfigError(f"{folder.url}: holds no adapter ({ADAPTER_FILE}); name a finished run, or the adapter's folder")


def merge(run_or_adapter: Location, config: MergeConfig) -> Merged:
    """Write base model plus adapter as one model, with tokenizer and card.

    Raises ConfigError when adapter or base model is not there, RunFailed when the merged model answers
    differently; then nothing is left in the output folder.
    """
    source = find_adapter(run_or_adapter)
    output = Location.of(config.output) if config.output else Location(source.url.rsplit("/", 1)[0]).join("merged")
    if output.join("config.json").exists():
        raise ConfigError(f"{output.url}: already holds a model; choose another --output or delete it")
    with tempfile.TemporaryDirectory(prefix="tunemill-merge-") as aside:
        adapter, result = Path(aside, "adapter"), Path(aside, "merged")
        _fetch(source, adapter)
        base_model = config.base_model or json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
        model = _load(base_model, adapter)
        dtype = next(p.dtype for name, p in model.named_parameters() if "lora_" not in name)
        probes = _probes(run_or_adapter, adapter)
        before = [_probabilities(model, *probe) for probe in probes]
        merged = model.merge_and_unload(safe_merge=True)
        after = [_probabilities(merged, *probe) for probe in probes]
        difference = max((float((b - a).abs().max()) for b, a in zip(before, after, strict=True)), default=0.0)
        allowed = config.tolerance or (1e-3 if dtype == torch.float32 else 0.05)
        if not difference <= allowed:
            raise RunFailed(
                f"merge: a probability changes by {difference:.3g} (allowed {allowed:g}), so the merged model was not written; "
                "merge into fp32 weights of the base model, or raise --tolerance"
            )
        merged.save_pretrained(result)
        _copy_tokenizer(adapter, result)
        _write_card(result, base_model, difference, len(probes))
        for file in sorted(path for path in result.rglob("*") if path.is_file()):
            _put(file, output.join(str(file.relative_to(result))))
    return Merged(folder=output, probability_difference=difference, probes=len(probes), dtype=str(dtype).removeprefix("torch."))


def _load(base_model: str, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    try:
        base = AutoModelForCausalLM.from_pretrained(resolve_model(base_model), dtype="auto")
        return PeftModel.from_pretrained(base, str(adapter)).eval()
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ConfigError(
            f"merge: base model {base_model!r} cannot be loaded with this adapter ({reason}); see --base-model"
        ) from error


def _probes(run: Location, adapter: Path) -> list[tuple[list[int], list[int], list[int]]]:
    """Token ids, the positions whose next token is looked at, and the tokens whose probabilities matter there.

    From the run's own rows (never of its test split): the trained tokens, which for a classifier are its labels.
    """
    files = run.join("template", "data").files("*.parquet") if not run.join(ADAPTER_FILE).exists() else []
    rows: list[dict[str, Any]] = []
    for file in files[:1]:
        table = pq.read_table(file.path, filesystem=file.fs, columns=["split", "input_ids", "loss_weights"])
        rows = [row for row in table.to_pylist() if row["split"] != "test"][:_PROBE_ROWS]
    if rows:
        trained = [[i - 1 for i, w in enumerate(row["loss_weights"]) if w > 0 and i] for row in rows]
        tokens = sorted({row["input_ids"][i + 1] for row, places in zip(rows, trained, strict=True) for i in places})
        return [(row["input_ids"], places, tokens) for row, places in zip(rows, trained, strict=True) if places]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(adapter))
    encoded = [tokenizer(sentence)["input_ids"] for sentence in _SENTENCES]
    return [(ids, list(range(len(ids))), sorted({t for row in encoded for t in row})) for ids in encoded]


@torch.no_grad()
def _probabilities(model: Any, ids: Sequence[int], places: Sequence[int], tokens: Sequence[int]) -> Tensor:
    logits = model(input_ids=torch.tensor([list(ids)], device=next(model.parameters()).device), use_cache=False).logits[0]
    return logits[list(places)].float().softmax(-1)[:, list(tokens)].cpu()


def _fetch(source: Location, target: Path) -> None:
    target.mkdir(parents=True)
    for file in source.files(recursive=False):
        (target / file.name).write_bytes(file.read_bytes())


def _copy_tokenizer(adapter: Path, target: Path) -> None:
    for file in adapter.iterdir():
        if not file.name.startswith("adapter_") and file.name != "README.md":
            shutil.copy(file, target / file.name)


def _put(file: Path, target: Location) -> None:
    target.fs.create_dir(target.path.rsplit("/", 1)[0], recursive=True)
    with open(file, "rb") as data, target.fs.open_output_stream(target.path) as out:
        shutil.copyfileobj(data, out, 1 << 24)


def _write_card(folder: Path, base_model: str, difference: float, probes: int) -> None:
    (folder / "README.md").write_text(
        f"---\nbase_model: {base_model}\ntags: [tunemill]\npipeline_tag: text-generation\n---\n\n"
        f"# {base_model} with a LoRA adapter merged in\n\n"
        f"On {probes} probes no probability differs by more than {difference:.2g} from base model plus adapter.\n"
        f"Check the licence of `{base_model}` before sharing it.\n",
        encoding="utf-8",
    )
