"""What is refused before any call, how requests are keyed, and where secrets must not be."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

import pytest

from tunemill.config import build, fingerprint, to_plain
from tunemill.errors import ConfigError
from tunemill.llm.config import ModelConfig
from tunemill.llm.providers import check_model, provider_for
from tunemill.llm.providers.wire import merged, normal_url, scrub, secrets_of
from tunemill.llm.request import Prompt, derived_seed, keyed_request
from tunemill.llm.schema import check_schema, schema_problem

SECRET = "sk-verysecret0123456789"
ALL_KEYS = ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY")
NAMES = ("openai", "azure", "anthropic", "gemini", "bedrock", "embedded")


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALL_KEYS:
        monkeypatch.setenv(name, SECRET)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)


def model(provider: str, **fields: Any) -> ModelConfig:
    """A valid entry for a provider, built as from a configuration file."""
    base: dict[str, dict[str, Any]] = {
        "azure": {"base_url": "https://x.openai.azure.com"},
        "bedrock": {"region": "eu-west-1", "model": "amazon.titan-text-express-v1"},
    }
    return build(ModelConfig, {"name": "m", "provider": provider, "model": "m-1", **base.get(provider, {}), **fields}, "test")


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"params": {"temprature": 1}}, "did you mean 'temperature'"),
        ({"params": {"max_token": 1}}, "did you mean 'max_tokens'"),
        ({"params": {"temperature": 3}}, "params.temperature is 3"),
        ({"limits": {"rpm": 0}}, "limits.rpm is 0"),
        ({"price": {"input": -1}}, "price.input is -1"),
        ({"provider": "opnai"}, "provider is"),
        ({"model": ""}, "model is empty"),
    ],
)
def test_bad_entries_are_refused_in_one_line(fields: dict[str, Any], part: str) -> None:
    """An unknown parameter, a limit of zero or a negative price is refused with field, value and the nearest valid name."""
    with pytest.raises(ConfigError) as refused:
        model(fields.pop("provider", "openai"), **fields)
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("provider", "fields", "part"),
    [
        ("openai", {"params": {"top_k": 5}}, "params.top_k is 5, but openai m-1 does not take it"),
        ("anthropic", {"params": {"seed": 5}}, "params.seed is 5"),
        ("anthropic", {"params": {"temperature": 1.5}}, "anthropic takes 0 to 1"),
        ("bedrock", {"model": "meta.llama2-70b-chat-v1", "params": {"stop": ["x"]}}, "params.stop"),
        ("bedrock", {"region": None}, "region is missing"),
        ("bedrock", {"api": "invoke", "model": "amazon.nova-lite-v1:0"}, "use api: converse"),
        ("openai", {"params": {"extra": {"stream": True}}}, "extra.stream"),
        ("openai", {"params": {"extra": {"n": 3}}}, "extra.n is 3"),
        ("openai", {"params": {"temperature": 1, "extra": {"temperature": 0}}}, "keep one"),
        ("openai", {"base_url": "localhost:8000"}, "should start with http"),
        ("openai", {"base_url": f"https://user:{SECRET}@host"}, "api_key_env"),
        ("gemini", {"base_url": f"https://host?key={SECRET}"}, "api_key_env"),
        ("azure", {"base_url": None}, "base_url is missing"),
        ("gemini", {"task": "embed"}, "no embeddings"),
    ],
)
def test_what_a_provider_would_refuse_is_refused_before_any_call(provider: str, fields: dict[str, Any], part: str) -> None:
    """A parameter that the wire has no room for, a wrong address or a missing region is a configuration error."""
    with pytest.raises(ConfigError) as refused:
        check_model(model(provider, **fields))
    assert part in str(refused.value)
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("provider", "variable"), [(NAMES[i], ALL_KEYS[i]) for i in range(4)])
def test_missing_key_names_the_variable(monkeypatch: pytest.MonkeyPatch, provider: str, variable: str) -> None:
    """Without its key a hosted provider is refused with the name of the variable to set."""
    monkeypatch.delenv(variable)
    with pytest.raises(ConfigError, match=f"set the environment variable {variable}"):
        check_model(model(provider))
    with pytest.raises(ConfigError, match="set the environment variable OTHER"):
        check_model(model(provider, api_key_env="OTHER"))


def test_usual_key_is_not_sent_to_a_stranger() -> None:
    """A server given by base_url gets a key only when api_key_env names one."""
    provider = provider_for("openai")
    assert provider.auth_headers(model("openai")) == {"authorization": f"Bearer {SECRET}"}
    assert provider.auth_headers(model("openai", base_url="http://localhost:8000")) == {}
    named = model("openai", base_url="http://localhost:8000", api_key_env="OPENAI_API_KEY")
    assert SECRET in str(provider.auth_headers(named))


@pytest.mark.parametrize("provider", NAMES)
def test_requests_hold_no_secret(provider: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the request, nor its key, nor the configuration, nor a log line knows the API key."""
    caplog.set_level(logging.DEBUG)
    entry = model(provider)
    check_model(entry)
    key, wire = keyed_request(provider_for(provider), entry, Prompt.of("Hi", "Be brief"))
    everything = repr((key, wire, entry, to_plain(entry), provider_for(provider), caplog.text))
    assert SECRET not in everything


def test_messages_are_scrubbed_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that repeats the key in its refusal does not get it into a message."""
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {SECRET}.", "code": "invalid_api_key"}}).encode()
    result = provider_for("openai").read(401, {}, body)
    assert SECRET not in repr(result)
    assert scrub(f"Authorization: Bearer {SECRET}x, AIzaSyA0123456789abcdef") == "Authorization: Bearer [key], [key]"
    monkeypatch.setenv("MY_KEY", "plainlookingvalue")
    assert scrub("got plainlookingvalue", secrets_of(model("openai", api_key_env="MY_KEY"))) == "got [key]"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1/chat/completions"),
        (" https://Host.example/api/v2 ", "https://host.example/api/v2/chat/completions"),
        ("https://h/v1/chat/completions", "https://h/v1/chat/completions"),
        (None, "https://api.openai.com/v1/chat/completions"),
    ],
)
def test_addresses_are_normalised(given: str | None, expected: str) -> None:
    """However an address is typed, the same server has the same identity."""
    wire = provider_for("openai").build(model("openai", base_url=given), Prompt.of("x"), schema=None, sample=0, seed=None)
    assert wire.url == expected


def test_azure_has_deployments_and_the_versionless_api() -> None:
    """The deployment stands in the path with its api-version, or the /openai/v1 address is taken as it is."""
    form = provider_for("azure")
    old = form.build(model("azure"), Prompt.of("x"), schema=None, sample=0, seed=None)
    assert old.url == "https://x.openai.azure.com/openai/deployments/m-1/chat/completions?api-version=2024-10-21"
    new = form.build(
        model("azure", base_url="https://x.openai.azure.com/openai/v1/"), Prompt.of("x"), schema=None, sample=0, seed=None
    )
    assert new.url == "https://x.openai.azure.com/openai/v1/chat/completions"


def test_key_depends_on_everything_that_can_change_the_answer() -> None:
    """System text, parameters, model, sample and server each give another key; limits, price and account do not."""
    form = provider_for("openai")
    base = model("openai")
    same = [
        base,
        model("openai", limits={"rpm": 5}, price={"input": 9}, account="b", timeout_s=9, name="other"),
    ]
    assert len({keyed_request(form, entry, Prompt.of("x", "s"))[0] for entry in same}) == 1
    different = [
        keyed_request(form, base, Prompt.of("x", "s")),
        keyed_request(form, base, Prompt.of("x")),
        keyed_request(form, base, Prompt.of("x", "s"), sample=1),
        keyed_request(form, model("openai", model="m-2"), Prompt.of("x", "s")),
        keyed_request(form, model("openai", base_url="http://h"), Prompt.of("x", "s")),
        keyed_request(form, model("openai", params={"max_tokens": 9}), Prompt.of("x", "s")),
        keyed_request(form, model("openai", params={"extra": {"user": "u"}}), Prompt.of("x", "s")),
        keyed_request(form, base, Prompt.of("x", "s"), schema={"type": "object", "properties": {"a": {}}}),
    ]
    assert len({key for key, _ in different}) == len(different)


def test_seed_follows_from_the_key_or_the_user() -> None:
    """Without a seed of the user's each request and sample has its own; with one, sample k takes seed + k."""
    form = provider_for("openai")
    key, wire = keyed_request(form, model("openai"), Prompt.of("x"))
    assert json.loads(wire.body)["seed"] == derived_seed(key)
    assert 0 <= derived_seed(key) < 2**31
    chosen = model("openai", params={"seed": 7})
    seeds = [json.loads(keyed_request(form, chosen, Prompt.of("x"), sample=k)[1].body)["seed"] for k in range(2)]
    assert seeds == [7, 8]


def test_embedded_identity_is_the_model_file_not_the_port() -> None:
    """The same request to the embedded model has the same key on whatever port it is served."""
    form = provider_for("embedded")
    placed = [model("embedded", model=""), model("embedded", model="", base_url="http://127.0.0.1:4711/v1")]
    keys = [keyed_request(form, entry, Prompt.of("x"))[0] for entry in placed]
    assert keys[0] == keys[1]
    assert form.endpoint(placed[0]).startswith("embedded:")


def test_extra_merges_deeply_and_null_removes() -> None:
    """A nested provider parameter joins what is there; null takes a key away."""
    body = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merged(body, {"a": {"b": 9, "e": {"f": 1}}, "d": None}) == {"a": {"b": 9, "c": 2, "e": {"f": 1}}}
    entry = model("openai", params={"max_tokens": 5, "extra": {"max_completion_tokens": None, "max_tokens": 5}})
    wire = provider_for("openai").build(entry, Prompt.of("x"), schema=None, sample=0, seed=None)
    assert json.loads(wire.body) == {"model": "m-1", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}


def test_limits_and_prices_are_outside_the_fingerprint() -> None:
    """Changing limits, price or timeout does not make another configuration."""
    base = model("openai")
    assert fingerprint(base) == fingerprint(model("openai", limits={"rpm": 5}, price={"input": 1}, timeout_s=5))
    assert fingerprint(base) != fingerprint(model("openai", params={"max_tokens": 5}))


def test_schema_is_checked_before_and_after() -> None:
    """A broken schema is a configuration error; an answer that does not fit says where."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    check_schema(schema)
    for broken in ({"type": "objekt"}, {"type": "array", "items": {}}, {"type": "object", "properties": {"a": {"type": 5}}}):
        with pytest.raises(ConfigError, match="response_schema"):
            check_schema(broken)
    assert schema_problem(schema, '{"n": 1}') is None
    assert "not JSON" in str(schema_problem(schema, "n = 1"))
    assert "at n" in str(schema_problem(schema, '{"n": "one"}'))


def test_schema_where_no_server_supports_it_is_refused() -> None:
    """Families without structured output refuse a response schema before any call."""
    with pytest.raises(ConfigError, match="response_schema is not supported"):
        check_model(model("bedrock"), {"type": "object", "properties": {"a": {}}})


def test_gemini_schema_falls_back_to_json_schema() -> None:
    """What Gemini's OpenAPI subset can not say is sent as responseJsonSchema instead."""
    form = provider_for("gemini")
    simple = {"type": "object", "properties": {"a": {"const": "x"}}, "additionalProperties": False}
    rich = {"type": "object", "properties": {"a": {"type": ["string", "null"]}}}
    bodies = [
        json.loads(form.build(model("gemini"), Prompt.of("x"), schema=schema, sample=0, seed=None).body)["generationConfig"]
        for schema in (simple, rich)
    ]
    assert bodies[0]["responseSchema"] == {"type": "object", "properties": {"a": {"enum": ["x"]}}}
    assert bodies[1]["responseJsonSchema"] == rich


def test_bedrock_picks_the_api_by_model() -> None:
    """Old families are invoked with their own bodies, everything newer goes through Converse, by any kind of model id."""
    form = provider_for("bedrock")
    expected = {
        "ai21.j2-mid-v1": "invoke_model",
        "meta.llama2-13b-chat-v1": "invoke_model",
        "us.meta.llama3-3-70b-instruct-v1:0": "converse",
        "anthropic.claude-instant-v1": "invoke_model",
        "eu.anthropic.claude-sonnet-4-20250514-v1:0": "converse",
        "arn:aws:bedrock:us-east-1:1:inference-profile/us.amazon.nova-pro-v1:0": "converse",
        "mistral.mistral-7b-instruct-v0:2": "invoke_model",
        "mistral.mistral-large-2407-v1:0": "converse",
    }
    found = {
        name: form.build(model("bedrock", model=name), Prompt.of("x"), schema=None, sample=0, seed=None).operation
        for name in expected
    }
    assert found == expected
    assert form.output_weight(model("bedrock", model="eu.anthropic.claude-sonnet-4-20250514-v1:0")) == 5.0
    assert form.output_weight(model("bedrock", model="anthropic.claude-3-5-haiku-20241022-v1:0")) == 1.0


def test_base_url_survives_dataclass_replacement() -> None:
    """Placing a model at another address keeps everything else."""
    entry = dataclasses.replace(model("embedded", model=""), base_url="http://127.0.0.1:1/v1")
    assert normal_url(entry, None) == "http://127.0.0.1:1/v1"
