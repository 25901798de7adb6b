"""Token estimates and prices."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunemill.llm.config import ModelConfig, Params, Price
from tunemill.llm.pricing import cost_usd, estimate_tokens, most_usd, token_counter
from tunemill.llm.request import Prompt

MODEL = ModelConfig(
    name="m", provider="openai", model="mistral-7b", params=Params(max_tokens=100), price=Price(input=2.0, output=10.0)
)


def test_cost_is_per_million_tokens() -> None:
    """Prices are USD per million tokens, in and out."""
    assert cost_usd(MODEL, 1_000_000, 500_000) == pytest.approx(7.0)


@given(st.text(max_size=200))
@settings(deadline=None)
def test_the_highest_price_is_an_upper_bound(text: str) -> None:
    """With the real Mistral tokenizer no text costs more than its highest price."""
    text = text.encode("utf-8", "replace").decode()
    tokens = token_counter("openai", "mistral-7b").count(text)
    assert most_usd(MODEL, Prompt.of(text)) >= cost_usd(MODEL, tokens, 100)


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over the lazy dog near the river bank in the morning.",
        "El zorro marrón salta sobre el perro perezoso cerca del río por la mañana.",
        "השועל החום המהיר קופץ מעל הכלב העצלן ליד הנהר בבוקר.",
        "빠른 갈색 여우가 아침에 강가에서 게으른 개를 뛰어넘습니다.",
    ],
)
def test_estimates_are_near_a_real_tokenizer(text: str) -> None:
    """English, Spanish, Hebrew and Korean are estimated within a factor of two of Mistral's tekken."""
    counter = token_counter("openai", "mistral-small-2501")
    assert counter.exact
    assert 0.5 <= estimate_tokens(text) / counter.count(text) <= 2.0


def test_an_unknown_model_is_estimated_and_says_so() -> None:
    """Without its tokenizer a count is marked as an estimate."""
    assert not token_counter("gemini", "gemini-2.5-flash").exact


@pytest.mark.parametrize(("provider", "model", "least"), [("embedded", "", 30), ("openai", "mistral-7b", 3)])
def test_prompts_are_counted_through_the_models_own_template(provider: str, model: str, least: int) -> None:
    """The frame counts with what the template itself says: SmolLM2's puts a system text before every prompt without one."""
    counter = token_counter(provider, model)
    text = "Write one short sentence about the village bakery."
    framed, system = counter.prompt(Prompt.of(text)), counter.prompt(Prompt.of(text, "Be brief."))
    assert framed - counter.count(text) >= least
    assert (system < framed) == (provider == "embedded")
