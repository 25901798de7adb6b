"""Merging an adapter into its base model."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from chat.toy import GOOD, toy_tokenizer
from finetune.tiny import config, run, table, tiny_model
from tunemill.errors import ConfigError, RunFailed
from tunemill.finetune.merge import merge
from tunemill.finetune.merge_config import MergeConfig
from tunemill.store import Location


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a run with an adapter, its tokenizer and its rows."""
    model = tiny_model(tmp_path / "model")
    toy_tokenizer(GOOD).save_pretrained(tmp_path / "model")
    run(config(model, max_steps=2, lora={"r": 4, "rslora": True}), tmp_path / "run" / "finetune")
    toy_tokenizer(GOOD).save_pretrained(tmp_path / "run" / "finetune" / "adapter")
    rows = tmp_path / "run" / "template" / "data"
    rows.mkdir(parents=True)
    pq.write_table(table(6).append_column("split", pa.array(["train"] * 5 + ["test"])), rows / "rows.parquet")
    return tmp_path / "run"


def test_merged_and_unmerged_say_the_same(finished: Path) -> None:
    """The merged folder loads in plain transformers and gives the logits of base model plus adapter."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = merge(Location.of(finished), MergeConfig())
    assert done.probes == 5
    assert done.probability_difference < 1e-5
    whole = AutoModelForCausalLM.from_pretrained(done.folder.path).eval()
    parts = AutoPeftModelForCausalLM.from_pretrained(str(finished / "finetune" / "adapter")).eval()
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(whole(ids).logits, parts(ids).logits, rtol=0, atol=1e-4)
    assert AutoTokenizer.from_pretrained(done.folder.path).chat_template == GOOD


def test_an_existing_model_is_not_overwritten(finished: Path) -> None:
    """A second merge into the same folder is refused."""
    merge(Location.of(finished), MergeConfig())
    with pytest.raises(ConfigError, match="already holds a model"):
        merge(Location.of(finished), MergeConfig())


def test_a_merge_that_changes_answers_is_not_written(finished: Path) -> None:
    """A merge beyond the tolerance leaves nothing behind."""
    file = finished / "finetune" / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor * 50 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(RunFailed, match="the merged model was not written"):
        merge(Location.of(finished), MergeConfig(tolerance=1e-12))
    assert not (finished / "finetune" / "merged").exists()


def test_a_folder_without_adapter_is_named(tmp_path: Path) -> None:
    """Merging what is no run says what to name."""
    with pytest.raises(ConfigError, match="holds no adapter"):
        merge(Location.of(tmp_path), MergeConfig())
