"""Each wire format goes through its real client to the strict mock and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from mock_provider import Faults, Limit, MockConfig, MockHandle, start_mock
from tunemill.llm.config import ModelConfig, Params
from tunemill.llm.providers import check_model, provider_for
from tunemill.llm.request import Answer, Failure, Message, Prompt, keyed_request
from tunemill.llm.schema import schema_problem
from tunemill.llm.send import Sender

KEY = "test-key-0123456789"
SCHEMA = {
    "type": "object",
    "properties": {"sentiment": {"type": "string", "enum": ["positive", "negative"]}, "score": {"type": "number"}},
    "required": ["sentiment", "score"],
    "additionalProperties": False,
}
CHAT = Prompt(
    (
        Message("system", "Answer in one line."),
        Message("user", "[[p1]] שלום, how are you?"),
        Message("assistant", "Well."),
        Message("user", "Why? 😀"),
    )
)
COMMON = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 50}
MODELS: list[tuple[str, str, dict[str, Any]]] = [
    ("openai", "gpt-4o-mini", {**COMMON, "stop": ("END",), "presence_penalty": 0.5, "frequency_penalty": 0.1}),
    ("azure", "my-deployment", {**COMMON, "stop": ("END",), "presence_penalty": 0.5}),
    ("anthropic", "claude-sonnet-4-5", {**COMMON, "top_k": 40, "stop": ("END",)}),
    ("gemini", "gemini-2.5-flash", {**COMMON, "top_k": 40, "stop": ("END",), "frequency_penalty": 0.1}),
    ("bedrock", "ai21.j2-ultra-v1", {**COMMON, "stop": ("END",), "presence_penalty": 0.5, "frequency_penalty": 0.2}),
    ("bedrock", "amazon.titan-text-express-v1", {**COMMON, "stop": ("END",)}),
    ("bedrock", "anthropic.claude-v2:1", {**COMMON, "top_k": 40, "stop": ("END",)}),
    ("bedrock", "meta.llama2-70b-chat-v1", COMMON),
    ("bedrock", "mistral.mixtral-8x7b-instruct-v0:1", {**COMMON, "top_k": 40, "stop": ("END",)}),
    ("bedrock", "us.amazon.nova-lite-v1:0", {**COMMON, "stop": ("END",)}),
    ("bedrock", "anthropic.claude-3-5-haiku-20241022-v1:0", {**COMMON, "top_k": 40}),
]
INVOKED: list[tuple[str, dict[str, Any]]] = [
    ("us.anthropic.claude-3-haiku-20240307-v1:0", {**COMMON, "top_k": 40, "stop": ("END",)}),
    ("meta.llama3-1-8b-instruct-v1:0", COMMON),
]
STRUCTURED = ["gpt-4o-mini", "my-deployment", "claude-sonnet-4-5", "gemini-2.5-flash", "us.amazon.nova-lite-v1:0"]


@pytest.fixture(scope="module")
def mock() -> Iterator[MockHandle]:
    """One server for the tests that need no faults."""
    with start_mock() as handle:
        yield handle


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOCK_KEY", KEY)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)


def entry(mock: MockHandle, provider: str, model: str, params: dict[str, Any] | None = None, **fields: Any) -> ModelConfig:
    """A model entry that points to the mock."""
    if provider == "bedrock":
        fields.setdefault("region", "us-east-1")
    else:
        fields.setdefault("api_key_env", "MOCK_KEY")
    return ModelConfig(
        name=model,
        provider=provider,
        model=model,
        base_url=mock.url,
        params=Params(**(COMMON if params is None else params)),
        **fields,
    )  # type: ignore[arg-type]


async def call(model: ModelConfig, prompt: Prompt = CHAT, schema: Any = None) -> Answer | Failure:
    """One call through the client that the caller uses."""
    check_model(model, schema)
    provider = provider_for(model.provider, model.task)
    _, wire = keyed_request(provider, model, prompt, schema=schema)
    sender = Sender(model, 4)
    try:
        response = await sender.send(wire)
    finally:
        await sender.close()
    return response if isinstance(response, Failure) else provider.read(response.status, response.headers, response.body)


@pytest.mark.parametrize(("provider", "name", "params"), MODELS, ids=[model for _, model, _ in MODELS])
async def test_answer_arrives_through_the_real_client(mock: MockHandle, provider: str, name: str, params: dict[str, Any]) -> None:
    """A conversation with every parameter the format takes is accepted by the strict mock and answered."""
    answer = await call(entry(mock, provider, name, params))
    assert isinstance(answer, Answer), answer
    assert answer.text
    assert answer.finish_reason == "stop"
    assert answer.blocked is None
    counted = "claude-v2" not in name and "mixtral" not in name
    last = mock.records()[-1]
    assert last["paid"]
    assert last["prompt_id"] == "p1"
    assert last["provider"] == provider
    # Claude 2 and Mistral say it in headers only, which the mock sends as well
    assert (answer.input_tokens, answer.output_tokens) == (last["input_tokens"], last["output_tokens"]) or not counted
    assert answer.output_tokens > 0


@pytest.mark.parametrize(("name", "params"), INVOKED, ids=[model for model, _ in INVOKED])
async def test_newer_families_can_still_be_invoked(mock: MockHandle, name: str, params: dict[str, Any]) -> None:
    """Claude 3 and Llama 3 have InvokeModel bodies of their own, used with ``api: invoke``."""
    answer = await call(entry(mock, "bedrock", name, params, api="invoke"))
    assert isinstance(answer, Answer), answer
    assert mock.records()[-1]["operation"].startswith("invoke:")


@pytest.mark.parametrize("name", STRUCTURED)
async def test_response_schema_is_asked_for_and_kept(mock: MockHandle, name: str) -> None:
    """A JSON schema reaches the server in its own form and comes back as JSON text that fits it."""
    provider = next(provider for provider, model, _ in MODELS if model == name)
    answer = await call(entry(mock, provider, name), schema=SCHEMA)
    assert isinstance(answer, Answer), answer
    assert schema_problem(SCHEMA, answer.text) is None
    assert set(json.loads(answer.text)) == {"sentiment", "score"}


@pytest.mark.parametrize(("provider", "name", "params"), MODELS, ids=[model for _, model, _ in MODELS])
async def test_short_max_tokens_reads_as_length(mock: MockHandle, provider: str, name: str, params: dict[str, Any]) -> None:
    """An answer that ran into max_tokens says so in the common word."""
    answer = await call(entry(mock, provider, name, {**params, "max_tokens": 3}))
    assert isinstance(answer, Answer), answer
    assert answer.finish_reason == "length"


@pytest.mark.parametrize(("provider", "name", "params"), MODELS, ids=[model for _, model, _ in MODELS])
async def test_extra_is_laid_over_the_body_and_strictly_judged(
    mock: MockHandle, provider: str, name: str, params: dict[str, Any]
) -> None:
    """``params.extra`` reaches the wire: an invented field is refused by the server as a wrong request, once."""
    failure = await call(entry(mock, provider, name, {**params, "extra": {"no_such_field": 1}}))
    assert isinstance(failure, Failure), failure
    assert failure.kind == "rejected"
    assert not failure.retryable


async def test_gemini_takes_safety_settings_through_extra(mock: MockHandle) -> None:
    """A provider-only parameter of the design's example is accepted."""
    settings = [{"category": "HARM_CATEGORY_DANGEROUS_CONTENT", "threshold": "BLOCK_ONLY_HIGH"}]
    answer = await call(entry(mock, "gemini", "gemini-2.5-flash", {**COMMON, "extra": {"safetySettings": settings}}))
    assert isinstance(answer, Answer), answer


@pytest.mark.parametrize(
    ("provider", "name", "texts"),
    [
        ("openai", "text-embedding-3-small", 3),
        ("azure", "my-embeddings", 3),
        ("bedrock", "amazon.titan-embed-text-v2:0", 1),
        ("bedrock", "cohere.embed-multilingual-v3", 3),
    ],
)
async def test_embeddings_come_back_in_order(mock: MockHandle, provider: str, name: str, texts: int) -> None:
    """Each text gets its own vector, the same alone and among others."""
    model = entry(mock, provider, name, {}, task="embed")
    asked = ["cat", "Hund", "물고기"][:texts]
    together = await call(model, Prompt.of_texts(asked))
    alone = await call(model, Prompt.of_texts(asked[-1:]))
    assert isinstance(together, Answer), together
    assert isinstance(alone, Answer)
    assert together.vectors is not None
    assert alone.vectors is not None
    assert len(together.vectors) == texts
    assert together.vectors[-1] == pytest.approx(alone.vectors[0])
    assert together.input_tokens > 0


PROVIDERS = [
    ("openai", "gpt-4o-mini"),
    ("azure", "my-deployment"),
    ("anthropic", "claude-sonnet-4-5"),
    ("gemini", "gemini-2.5-flash"),
    ("bedrock", "amazon.titan-text-express-v1"),
    ("bedrock", "us.amazon.nova-lite-v1:0"),
]
FAULTS = {
    "server_error": "overloaded",
    "unavailable": "overloaded",
    "overloaded": "overloaded",
    "gateway": "overloaded",
    "throttle": "throttled",
    "error_200": "overloaded",
    "cut": "bad_answer",
    "cut_body": "bad_answer",
    "truncated": "bad_answer",
    "empty": "bad_answer",
}


@pytest.mark.parametrize(("provider", "name"), PROVIDERS)
async def test_every_fault_gets_its_kind(mock: MockHandle, provider: str, name: str) -> None:
    """Broken answers of every sort become the failure that calls for the right action, all of them worth another try."""
    model = entry(mock, provider, name)
    kinds = {}
    for fault in FAULTS:
        mock.configure(MockConfig(faults=Faults(share={fault: 1.0})))
        result = await call(model)
        assert isinstance(result, Failure), (fault, result)
        assert result.retryable, (fault, result)
        kinds[fault] = result.kind
    mock.configure(MockConfig())
    # boto3 reads Converse's body itself, and can not tell an error with status 200 from an empty answer
    expected = {**FAULTS, "error_200": "bad_answer"} if provider == "bedrock" else FAULTS
    assert kinds == expected


@pytest.mark.parametrize(("provider", "name"), [*PROVIDERS[1:4], PROVIDERS[5]])
async def test_blocked_prompt_is_an_answer_with_a_reason(mock: MockHandle, provider: str, name: str) -> None:
    """A prompt or an answer that the provider withholds is no error: it is dropped with the provider's reason."""
    for fault in ("blocked", "filtered"):
        mock.configure(MockConfig(faults=Faults(share={fault: 1.0})))
        answer = await call(entry(mock, provider, name))
        assert isinstance(answer, Answer), (fault, answer)
        assert answer.finish_reason == "blocked"
        assert answer.blocked
    mock.configure(MockConfig())


@pytest.mark.parametrize(("provider", "name"), PROVIDERS)
async def test_wrong_key_and_unknown_model_are_hard(mock: MockHandle, provider: str, name: str) -> None:
    """Neither can be cured by another try, and both concern every further call."""
    for config, kind in ((MockConfig(keys=("other",)), "auth"), (MockConfig(models=("other",)), "not_found")):
        mock.configure(config)
        failure = await call(entry(mock, provider, name))
        assert isinstance(failure, Failure), failure
        assert failure.kind == kind
        assert failure.hard
        assert not failure.retryable
        assert KEY not in repr(failure)
    mock.configure(MockConfig())


@pytest.mark.parametrize(("provider", "name"), PROVIDERS)
async def test_prompt_beyond_the_context_is_too_long(mock: MockHandle, provider: str, name: str) -> None:
    """A prompt that does not fit is told from other wrong requests."""
    mock.configure(MockConfig(context_tokens=40))
    failure = await call(entry(mock, provider, name))
    mock.configure(MockConfig())
    assert isinstance(failure, Failure), failure
    assert failure.kind == "too_long"


@pytest.mark.parametrize(
    ("provider", "name", "hint", "wait_s"),
    [
        ("openai", "gpt-4o-mini", "usual", 2.5),
        ("openai", "gpt-4o-mini", "message", 2.5),
        ("openai", "gpt-4o-mini", "retry-after", 2.5),
        ("azure", "my-deployment", "usual", 2.5),
        ("anthropic", "claude-sonnet-4-5", "usual", 2.0),
        ("gemini", "gemini-2.5-flash", "usual", 3.0),
        ("bedrock", "us.amazon.nova-lite-v1:0", "usual", None),
    ],
)
async def test_throttle_hints_are_read_as_meant(
    mock: MockHandle, provider: str, name: str, hint: str, wait_s: float | None
) -> None:
    """Milliseconds before seconds, Gemini's cut delay plus one second, and nothing where nothing is said."""
    mock.configure(MockConfig(faults=Faults(share={"throttle": 1.0}, hint=hint, wait_s=2.5)))
    failure = await call(entry(mock, provider, name))
    mock.configure(MockConfig())
    assert isinstance(failure, Failure), failure
    assert failure.kind == "throttled"
    assert failure.retry_after_s == wait_s


@pytest.mark.parametrize(("provider", "name"), [PROVIDERS[0], PROVIDERS[3], PROVIDERS[5]])
async def test_daily_quota_is_told_from_a_minute(mock: MockHandle, provider: str, name: str) -> None:
    """A daily quota parks the model instead of retrying after the short delay that comes with it."""
    mock.configure(MockConfig(faults=Faults(share={"throttle": 1.0}, hint="per-day")))
    failure = await call(entry(mock, provider, name))
    mock.configure(MockConfig())
    assert isinstance(failure, Failure), failure
    assert failure.kind == "quota_day"
    assert not failure.retryable


async def test_limit_headers_follow_the_limiter(mock: MockHandle) -> None:
    """OpenAI's and Anthropic's headers tell what is left; Azure's -1 and 0 tell nothing."""
    mock.configure(MockConfig(limits={"*": Limit(rpm=100, tpm=10_000)}))
    seen = {}
    for provider, name in PROVIDERS[:3]:
        model = entry(mock, provider, name)
        form = provider_for(provider)
        sender = Sender(model, 1)
        response = await sender.send(form.build(model, CHAT, schema=None, sample=0, seed=1))
        await sender.close()
        assert not isinstance(response, Failure)
        seen[provider] = form.limits(response.headers)
    mock.configure(MockConfig())
    assert seen["openai"].requests is not None
    assert (seen["openai"].requests.limit, seen["openai"].requests.remaining) == (100, 99)
    assert seen["openai"].requests.reset_s == pytest.approx(0.6)
    assert seen["azure"].requests is None
    assert seen["azure"].tokens is not None
    assert seen["azure"].tokens.limit == 10_000
    assert seen["anthropic"].tokens is not None
    assert seen["anthropic"].tokens.remaining == 10_000


async def test_slow_server_times_out_in_both_clients(mock: MockHandle) -> None:
    """An answer that does not come within timeout_s is given up, by httpx and by boto3."""
    mock.configure(MockConfig(faults=Faults(share={"timeout": 1.0}, hang_s=30)))
    kinds = []
    for provider, name in (PROVIDERS[0], PROVIDERS[5]):
        failure = await call(entry(mock, provider, name, timeout_s=0.2))
        assert isinstance(failure, Failure), failure
        kinds.append(failure.kind)
    mock.configure(MockConfig())
    assert kinds == ["timeout", "timeout"]


async def test_boto3_makes_no_hidden_attempts(mock: MockHandle) -> None:
    """A throttled Bedrock call reaches the server once."""
    mock.configure(MockConfig(faults=Faults(share={"throttle": 1.0})))
    await call(entry(mock, *PROVIDERS[5]), Prompt.of("[[only-once]]"))
    mock.configure(MockConfig())
    assert [record["prompt_id"] for record in mock.records()].count("only-once") == 1


async def test_body_on_the_wire_is_the_hashed_body(mock: MockHandle) -> None:
    """What InvokeModel and HTTP send is byte for byte what the key is taken from."""
    import hashlib

    for provider, name in (PROVIDERS[0], PROVIDERS[4]):
        model = entry(mock, provider, name)
        _, wire = keyed_request(provider_for(provider), model, CHAT)
        await call(model)
        assert mock.records()[-1]["body"] == hashlib.blake2b(wire.body, digest_size=16).hexdigest()
