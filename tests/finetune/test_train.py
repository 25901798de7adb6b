"""Training in one process, on tiny random models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from finetune.tiny import config, rows, run, tiny_model
from tunemill.errors import ConfigError, RunFailed
from tunemill.finetune.rows import TokenRows
from tunemill.finetune.trainer import Hooks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama."""
    return tiny_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def plain(model: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The undisturbed run: batches of 8 in one padded pass."""
    return run(config(model, packing="padded"), tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    "changes",
    [
        {"packing": "packed"},
        {"packing": "bucketed"},
        {"packing": "packed", "accumulation": 4},
        {"packing": "padded", "accumulation": 4},
        {"packing": "packed", "micro_tokens": 70},
        {"packing": "packed", "gradient_checkpointing": "on"},
    ],
    ids=str,
)
def test_how_a_batch_is_cut_changes_nothing(changes: dict[str, Any], model: str, plain: Any, tmp_path: Path) -> None:
    """Packing, accumulation and recomputing give the loss curve of one padded pass to 1e-5."""
    ours = run(config(model, **changes), tmp_path)
    np.testing.assert_allclose(ours.losses, plain.losses, atol=1e-5)
    np.testing.assert_allclose(ours.validation, plain.validation, atol=1e-5)
    assert ours.losses[0] - ours.losses[-1] > 0.01


def test_the_loss_is_a_weighted_mean_over_the_whole_batch(model: str, plain: Any) -> None:
    """The first loss equals sum(w * ce) / sum(w) computed with plain transformers."""
    from transformers import AutoModelForCausalLM

    from tunemill.finetune.worker import plan_of

    data = rows(21)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    total = weight = 0.0
    for number in plan_of(config(model), 21, 0).rows_of(0):
        ids, weights = data.row(number)
        with torch.no_grad():
            logits = network(torch.tensor(ids[None].astype(np.int64))).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:].astype(np.int64)), reduction="none")
        total += float((losses * torch.tensor(weights[1:])).sum())
        weight += float(weights[1:].sum())
    assert plain.losses[0] == pytest.approx(total / weight, abs=1e-5)


def test_going_on_from_a_checkpoint_repeats_the_losses(model: str, plain: Any, tmp_path: Path) -> None:
    """A run that stops after a checkpoint and goes on gives the losses and the adapter of the undisturbed run."""
    kept: list[str] = []

    def saved(folder: str, record: dict[str, Any]) -> None:
        target = tmp_path / "kept" / Path(folder).name
        shutil.copytree(folder, target)
        kept.append(str(target))

    whole = run(config(model, save_steps=2, packing="padded"), tmp_path / "one", hooks=Hooks(saved=saved))
    assert sum(f.stat().st_size for f in Path(kept[0]).iterdir()) < 400_000
    resumed = run(config(model, save_steps=2, packing="padded"), tmp_path / "two", resume=kept[0])
    np.testing.assert_allclose(resumed.losses, plain.losses[2:], atol=1e-6)
    one, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert resumed.outcome.steps == whole.outcome.steps == 6
    assert resumed.outcome.trained_steps == 4
    one_speed, two_speed = whole.outcome.speed, resumed.outcome.speed
    assert (one_speed["restarts"], two_speed["restarts"]) == (0, 1)
    assert all(one_speed[name] == two_speed[name] for name in ("steps", "tokens", "padding_share"))
    # The first two steps' seconds came with the checkpoint.
    kept_s = json.loads(Path(kept[0], "tunemill.json").read_text())["totals"]["step_s"]
    assert two_speed["seconds"]["training"] >= round(kept_s + sum(r["seconds"] for r in resumed.records if "loss" in r), 3) - 0.01


def test_preemption_saves_once_more(model: str, tmp_path: Path) -> None:
    """When the machines are about to go away, the next step ends with a checkpoint, once."""
    steps: list[int] = []
    hooks = Hooks(saved=lambda folder, record: steps.append(record["step"]), preempted=lambda: True)
    run(config(model, save_steps=100), tmp_path, hooks=hooks)
    assert steps == [1, 6]


def test_stops_early_and_keeps_the_best(model: str, tmp_path: Path) -> None:
    """Without a better validation loss for so many evaluations training ends, and the result is the best adapter."""
    noise = rows(6, seed=9)
    ours = run(config(model, learning_rate=0.3, epochs=8, eval_steps=1, early_stop=2), tmp_path, checked=noise)
    assert ours.outcome.stopped_early
    assert ours.outcome.steps < 24
    assert ours.outcome.best_loss == min(ours.validation)
    assert ours.outcome.kept_step == ours.validation.index(min(ours.validation)) + 1


def test_a_loss_that_is_no_number_stops_the_run(model: str, tmp_path: Path) -> None:
    """Training that diverges says so, instead of going on with garbage."""
    data = pa.table(
        {
            "id": ["a", "b"],
            "input_ids": [[1, 2, 3]] * 2,
            "loss_weights": pa.array([[0.0, float("inf"), 1.0]] * 2, pa.list_(pa.float32())),
        }
    )
    with pytest.raises(RunFailed, match="loss is nan"):
        run(config(model), tmp_path, data=TokenRows.of([data]))


def test_an_unknown_target_is_named(model: str, tmp_path: Path) -> None:
    """A LoRA target that no layer is called by is refused with the names there are."""
    with pytest.raises(ConfigError, match=r"'query'; this model has|called 'query'"):
        run(config(model, lora={"r": 4, "targets": ["query"]}), tmp_path)


def test_the_adapter_loads_in_plain_peft_and_has_vllm_layout(model: str, tmp_path: Path) -> None:
    """AutoPeftModel loads it; names and files are those that vLLM reads; weights are fp32 on all linear layers."""
    from peft import AutoPeftModelForCausalLM

    run(config(model, lora={"r": 4, "rslora": True}), tmp_path)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == model
    assert settings["use_rslora"] is True
    assert settings["modules_to_save"] is None
    assert sorted(settings["target_modules"]) == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.model.layers.") and ".lora_" in name for name in state)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))
    assert float(loaded.get_base_model().model.layers[0].self_attn.q_proj.lora_B["default"].weight.abs().max()) > 0


@pytest.mark.parametrize(
    ("memory", "checkpointing", "expected"),
    [
        (10**9, "auto", (False, 16384)),
        (120_000_000, "auto", (False, 8192)),
        (25_000_000, "auto", (True, 16384)),
        (25_000_000, "off", (False, 4096)),
        (10**9, "on", (True, 16384)),
    ],
)
def test_a_gpu_takes_shorter_passes_before_it_recomputes(
    memory: int, checkpointing: str, expected: tuple[bool, int], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations that do not fit beside the weights first shorten the passes; only then are they computed again."""
    from transformers import AutoModelForCausalLM

    from tunemill.finetune.model import _settle_memory

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=memory))
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    settings = config(model, gradient_checkpointing=checkpointing)
    assert _settle_memory(settings, network, torch.device("cuda"), torch.float32, 60) == expected


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Mistral", {"sliding_window": 16}),
        ("Mistral", {"head_dim": 16}),
        ("Gemma", {"head_dim": 16}),
        ("Gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}),
        ("Gemma3", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}),
    ],
    ids=["mistral", "nemo", "gemma", "gemma2", "gemma3"],
)
def test_families_train_the_same_packed_and_padded(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Each architecture takes a step, and packed rows give the loss of transformers' own attention on padded ones."""
    from transformers import AutoModelForCausalLM

    folder = tiny_model(tmp_path / "model", "Gemma3" if family == "Gemma3" else family, **changes)
    data = rows(6)
    ours = run(config(folder, packing="packed", max_steps=2, batch_size=6), tmp_path, data=data)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    total = weight = 0.0
    for number in range(6):
        ids, weights = data.row(number)
        with torch.no_grad():
            logits = network(torch.tensor(ids[None].astype(np.int64))).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:].astype(np.int64)), reduction="none")
        total += float((losses * torch.tensor(weights[1:])).sum())
        weight += float(weights[1:].sum())
    assert ours.losses[0] == pytest.approx(total / weight, abs=1e-4)
    assert ours.losses[1] < ours.losses[0]


def test_bf16_keeps_the_adapter_in_fp32(model: str, plain: Any, tmp_path: Path) -> None:
    """With bf16 products the adapter still moves at a low learning rate, because its weights are fp32."""
    ours = run(config(model, precision="bf16", learning_rate=1e-5), tmp_path)
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert ours.outcome.precision == "bfloat16"
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert max(float(tensor.abs().max()) for name, tensor in state.items() if "lora_B" in name) > 1e-6
    assert ours.losses[0] == pytest.approx(plain.losses[0], abs=0.02)
