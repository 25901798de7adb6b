"""Log-probabilities of continuations against a plain forward pass of the same tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from tunemill.errors import ConfigError
from tunemill.evaluate.scoring import Scorer, load_scorer

PROMPTS = [[1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [1, 20, 21], [1, 3, 4, 5, 6]]
TAILS = [[30], [31, 32, 2], [33, 34]]


def tiny_llama() -> LlamaForCausalLM:
    """A random two-layer model."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
        )
    )


def tiny_gemma() -> Gemma3ForCausalLM:
    """A random model whose first layer sees a window shorter than the prompts."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    )
    return Gemma3ForCausalLM(config)


def plain(model: torch.nn.Module, prompt: list[int], tail: list[int]) -> float:
    """The sum by one forward pass without padding or cache."""
    with torch.inference_mode():
        steps = torch.log_softmax(model(input_ids=torch.tensor([prompt + tail])).logits[0].float(), dim=-1)
    return sum(float(steps[len(prompt) + i - 1, token]) for i, token in enumerate(tail))


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma])
def test_shared_prefix_and_padding_change_nothing(make: type) -> None:
    """Batched prompts with cached prefixes give what each prompt and label give alone, sliding windows included."""
    model = make().eval()
    found = Scorer(model=model, adapter=False, device="cpu").shared(PROMPTS, TAILS, tuned=False)
    expected = [[plain(model, prompt, tail) for tail in TAILS] for prompt in PROMPTS]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma])
def test_whole_sequences_give_the_same_sums(make: type) -> None:
    """Scoring a label inside its whole sequence equals scoring it after the shared prompt."""
    model = make().eval()
    scorer = Scorer(model=model, adapter=False, device="cpu")
    sequences = [prompt + TAILS[1] for prompt in PROMPTS]
    weights = [[0.0] * len(prompt) + [1.0] * 3 for prompt in PROMPTS]
    np.testing.assert_allclose(
        scorer.whole(sequences, weights, tuned=False), scorer.shared(PROMPTS, TAILS, tuned=False)[:, 1], atol=1e-4
    )


def test_weights_pick_and_weigh_tokens() -> None:
    """A token of weight 0 counts nothing, one of 0.5 half, and the very first has nothing before it."""
    model = tiny_llama().eval()
    found = Scorer(model=model, adapter=False, device="cpu").whole([[1, 5, 6, 7]], [[1.0, 0.5, 0.0, 1.0]], tuned=False)
    assert found[0] == pytest.approx(0.5 * plain(model, [1], [5]) + plain(model, [1, 5, 6], [7]), abs=1e-4)


def test_one_load_serves_the_base_and_the_tuned_model(tmp_path: Path) -> None:
    """With the adapter off the scores are the base model's, with it on they are the adapted model's."""
    tiny_llama().save_pretrained(tmp_path / "base")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    scorer = load_scorer(str(tmp_path / "base"), str(tmp_path / "adapter"), precision="fp32")
    base = load_scorer(str(tmp_path / "base"), None, precision="fp32")
    off, on = (scorer.shared(PROMPTS, TAILS, tuned=tuned) for tuned in (False, True))
    np.testing.assert_allclose(off, base.shared(PROMPTS, TAILS, tuned=False), atol=1e-5)
    np.testing.assert_allclose(on[0, 1], plain(adapted.eval(), PROMPTS[0], TAILS[1]), atol=1e-4)
    assert np.abs(on - off).max() > 0.01


def test_logits_are_float32_under_bf16(tmp_path: Path) -> None:
    """The output layer works in float32, so that scores are not rounded to the coarse steps of bf16."""
    tiny_llama().save_pretrained(tmp_path)
    scorer = load_scorer(str(tmp_path), None, precision="bf16")
    with torch.inference_mode():
        logits = scorer.model(input_ids=torch.tensor([PROMPTS[0]]), logits_to_keep=1).logits
    assert scorer.model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """A wrong base model or adapter is named, before any row is scored."""
    with pytest.raises(ConfigError, match=r"evaluate.base_model .* cannot be loaded") as error:
        load_scorer(str(tmp_path), None, precision="fp32")
    assert "\n" not in str(error.value)
