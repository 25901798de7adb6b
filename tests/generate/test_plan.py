"""`tunemill plan`: figures before anybody is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mock_provider import MockConfig, start_mock
from tunemill.config import build
from tunemill.errors import ConfigError
from tunemill.generate.config import GenerateConfig
from tunemill.generate.plan import plan
from tunemill.generate.plan_table import render

PRICED = {"price": {"input": 1.0, "output": 2.0}}


def model(name: str, **values: Any) -> dict[str, Any]:
    """A model that is never called."""
    return {"name": name, "provider": "openai", "model": "m-1", "params": {"max_tokens": 100}, **values}


def config(*models: dict[str, Any], **values: Any) -> GenerateConfig:
    """A thousand prompts for the given models."""
    base = {"template": "Say {a} {b}.", "variables": {"a": ["up", "down"], "b": [str(i) for i in range(600)]}, "label": "a"}
    return build(GenerateConfig, {**base, "rows": 1000, "models": list(models), **values}, "test")


def test_price_and_tokens_follow_from_calls() -> None:
    """USD is tokens times price; the output runs from a tenth of max_tokens to max_tokens."""
    made = plan(config(model("a", **PRICED), samples=2))
    one = made.models[0]
    assert (one.calls, one.answered, made.labels, made.repeated) == (2000, 0, {"up": 500, "down": 500}, 0)
    assert (one.output_tokens.low, one.output_tokens.high) == (20_000, 200_000)
    assert one.usd is not None
    assert one.usd.high == pytest.approx((one.input_tokens.high * 1.0 + 200_000 * 2.0) / 1e6)
    assert 2000 * 5 < one.input_tokens.low < 2000 * 30


def test_hours_come_from_the_limit_that_binds_and_accounts_are_shared() -> None:
    """Two entries of one account need the time of both together; another account runs beside them."""
    limits = {"limits": {"rpm": 100, "tpm": 1_000_000}}
    shared = plan(
        config(
            model("a", **limits),
            model("b", params={"max_tokens": 50}, **limits),
            model("c", account="other", params={"max_tokens": 60}, **limits),
        )
    )
    a, b, c = shared.models
    assert a.hours == b.hours
    assert a.hours is not None
    assert c.hours is not None
    assert a.hours.high == pytest.approx(2000 / 100 / 60)
    assert c.hours.high == pytest.approx(1000 / 100 / 60)
    assert (a.bound_by, shared.hours) == ("rpm 100", a.hours)
    tokens = plan(config(model("a", limits={"rpm": 10_000, "output_tpm": 1000}))).models[0]
    assert tokens.bound_by == "output_tpm 1,000"
    assert tokens.hours is not None
    assert tokens.hours.high == pytest.approx(100_000 / 1000 / 60)


def test_real_tokenizers_count_and_estimates_are_marked() -> None:
    """A Mistral model's input is counted exactly; an unknown model's has a ~ in the table."""
    bedrock = {"provider": "bedrock", "region": "eu-west-1", "model": "mistral.mistral-7b-instruct-v0:2"}
    made = plan(config(model("mistral", **bedrock), model("other", provider="gemini", model="gemini-x")))
    assert [m.counted for m in made.models] == [True, False]
    lines = {line.split()[0]: line for line in render(made).splitlines() if line}
    assert "~" not in lines["mistral"]
    assert "~" in lines["other"]


def test_table_says_what_one_would_act_on() -> None:
    """Unknown prices, the effect of the cap and repeats are named, within 110 columns and for any script."""
    made = plan(
        config(
            model("a-model-with-a-very-long-name", **PRICED, limits={"rpm": 60}),
            model("日本語", provider="gemini", model="g"),
            template="{a} ספרו לי בבקשה על {b} " * 8,
            budget_usd=0.1,
            rows=2000,
        )
    )
    text = render(made)
    assert max(len(line) for line in text.splitlines()) <= 110
    assert "2,000 prompts x 2 models = 4,000 calls" in text
    assert "800 prompts repeat an earlier one" in text
    assert "unknown price" in text
    assert "the run will not start" in text
    capped = render(plan(config(model("a", **PRICED), budget_usd=0.1)))
    assert "budget_usd 0.1 covers all calls at the low end" in capped
    assert "budget_usd 9 covers the whole run" in render(plan(config(model("a", **PRICED), budget_usd=9)))
    assert "nothing caps the spending" in render(plan(config(model("a", **PRICED))))


def test_plan_refuses_what_the_run_would_refuse() -> None:
    """A missing variable or model is said at once."""
    with pytest.raises(ConfigError, match=r"variables\.c is missing"):
        plan(config(model("a"), template="{a} {b} {c}"))
    with pytest.raises(ConfigError, match="models is empty"):
        plan(config())
    with pytest.raises(ConfigError, match="--pilot"):
        plan(config(model("a")), pilot=3)


@pytest.mark.usefixtures("ray_session")
def test_pilot_narrows_the_ranges_and_is_not_bought_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pilot the figures are the server's own, and its calls count as answered from then on."""
    monkeypatch.setenv("MOCK_KEY", "k")
    with start_mock() as mock:
        mock.configure(MockConfig(answer_tokens=20))
        made = config(model("a", base_url=f"{mock.url}/v1", api_key_env="MOCK_KEY", **PRICED), rows=100)
        first = plan(made, journal=str(tmp_path), pilot=4).models[0]
        again = plan(made, journal=str(tmp_path), pilot=4).models[0]
        assert mock.stats()["paid"] == 4
    assert first.pilot is not None
    assert (first.pilot.calls, first.pilot.answered, first.answered, first.calls) == (4, 4, 4, 96)
    assert (first.output_tokens.low, first.output_tokens.high) == (96 * 20, 96 * 20)
    assert again.pilot == first.pilot
    assert first.counted
    assert first.hours is not None
    assert first.bound_by == "concurrency 64"
