"""Every error fact of the providers, as the raw response that states it and the failure that it must become."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunemill.llm.providers import provider_for
from tunemill.llm.request import Answer, Failure


def openai(code: str | None, message: str, type_: str = "invalid_request_error") -> dict[str, Any]:
    """OpenAI's error body."""
    return {"error": {"message": message, "type": type_, "param": None, "code": code}}


def gemini(status: str, message: str, *details: dict[str, Any], code: int = 429) -> dict[str, Any]:
    """Google's error body."""
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


def anthropic(type_: str, message: str) -> dict[str, Any]:
    """Anthropic's error body."""
    return {"type": "error", "error": {"type": type_, "message": message}}


def quota(name: str) -> dict[str, Any]:
    """A QuotaFailure detail."""
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": name}]}


RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "22s"}
MINUTE = quota("GenerateRequestsPerMinutePerProjectPerModel-FreeTier")
DAY = quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier")
RESETS = {"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-reset-tokens": "12ms"}
NO_REQUESTS = {**RESETS, "x-ratelimit-remaining-requests": "0", "x-ratelimit-remaining-tokens": "900"}
NO_TOKENS = {**RESETS, "x-ratelimit-remaining-requests": "5", "x-ratelimit-remaining-tokens": "0"}
DATES = {"date": "Fri, 20 Nov 2026 12:00:00 GMT", "retry-after": "Fri, 20 Nov 2026 12:00:30 GMT"}
LIMIT = openai("rate_limit_exceeded", "Rate limit reached for gpt-4o on requests per min (RPM)", "requests")
NAMED = {"x-amzn-errortype": "ThrottlingException:http://internal.amazon.com/coral/com.amazon.bedrock/"}


def aws(name: str, message: str = "?") -> dict[str, Any]:
    """A Bedrock error as boto3's client error states it."""
    return {"__type": name, "message": message}


FACTS: list[tuple[str, str, int, dict[str, str], Any, str, float | None]] = [
    # OpenAI and its kin
    ("limit with resets of both, no requests left", "openai", 429, NO_REQUESTS, LIMIT, "throttled", 360.0),
    ("limit with resets of both, no tokens left", "openai", 429, NO_TOKENS, LIMIT, "throttled", 0.012),
    ("limit with resets of both, neither exhausted", "openai", 429, RESETS, LIMIT, "throttled", None),
    ("retry-after before resets", "openai", 429, {**NO_REQUESTS, "retry-after": "3"}, LIMIT, "throttled", 3.0),
    ("retry-after as a date", "openai", 429, DATES, LIMIT, "throttled", 30.0),
    (
        "the message says when",
        "openai",
        429,
        {},
        openai("rate_limit_exceeded", "Limit 3, Used 3, Requested 1. Please try again in 1m2.5s. Visit ..."),
        "throttled",
        62.5,
    ),
    (
        "limit per day",
        "openai",
        429,
        {},
        openai("rate_limit_exceeded", "Rate limit reached on requests per day (RPD): Limit 200. Please try again in 7m12s."),
        "quota_day",
        432.0,
    ),
    (
        "more tokens than a minute allows",
        "openai",
        429,
        {},
        openai("rate_limit_exceeded", "Request too large for gpt-4o: Limit 30000, Requested 40000.", "tokens"),
        "too_long",
        None,
    ),
    ("no money", "openai", 429, {}, openai("insufficient_quota", "You exceeded your current quota"), "no_credit", None),
    ("no money, by type only", "openai", 429, {}, openai(None, "quota", "insufficient_quota"), "no_credit", None),
    ("bad key", "openai", 401, {}, openai("invalid_api_key", "Incorrect API key provided"), "auth", None),
    ("no such model", "openai", 404, {}, openai("model_not_found", "The model does not exist"), "not_found", None),
    ("context", "openai", 400, {}, openai("context_length_exceeded", "maximum context length is 8192"), "too_long", None),
    (
        "llama.cpp's context",
        "openai",
        400,
        {},
        {"error": {"code": 400, "message": "request (2031 tokens) exceeds ...", "type": "exceed_context_size_error"}},
        "too_long",
        None,
    ),
    ("wrong request", "openai", 400, {}, openai(None, "Unrecognized request argument supplied: x"), "rejected", None),
    (
        "vLLM's flat error",
        "openai",
        400,
        {},
        {"object": "error", "message": "context length is 10"},
        "too_long",
        None,
    ),
    ("FastAPI's validation", "openai", 422, {}, {"detail": [{"msg": "field required"}]}, "rejected", None),
    ("ollama's text", "openai", 404, {}, {"error": "model 'x' not found"}, "not_found", None),
    ("loading model", "openai", 503, {}, {"error": {"code": 503, "message": "Loading model"}}, "overloaded", None),
    ("error with status 200", "openai", 200, {}, {"error": {"code": 429, "message": "slow down"}}, "throttled", None),
    ("nameless error with status 200", "openai", 200, {}, {"error": {"message": "oops"}}, "overloaded", None),
    ("credit of a reseller", "openai", 402, {}, {"error": {"code": 402, "message": "Insufficient credits"}}, "no_credit", None),
    ("truncated JSON", "openai", 200, {}, b'{"choices": [{"message": {"con', "bad_answer", None),
    ("empty choices", "openai", 200, {}, {"choices": [], "usage": {"prompt_tokens": 7}}, "bad_answer", None),
    ("HTML of a proxy", "openai", 502, {}, b"<html>Bad Gateway</html>", "overloaded", None),
    ("redirect", "openai", 301, {}, b"", "rejected", None),
    # Azure
    ("milliseconds first", "azure", 429, {"retry-after-ms": "250", "retry-after": "1"}, LIMIT, "throttled", 0.25),
    ("number as code", "azure", 429, {}, {"error": {"code": "429", "message": "call rate limit"}}, "throttled", None),
    ("zero remaining says nothing", "azure", 429, NO_REQUESTS, LIMIT, "throttled", None),
    ("no such deployment", "azure", 404, {}, {"error": {"code": "DeploymentNotFound", "message": "?"}}, "not_found", None),
    # Gemini
    ("delay, cut to seconds", "gemini", 429, {}, gemini("RESOURCE_EXHAUSTED", "quota", MINUTE, RETRY), "throttled", 23.0),
    ("short delay of a daily quota", "gemini", 429, {}, gemini("RESOURCE_EXHAUSTED", "quota", DAY, RETRY), "quota_day", None),
    ("no details", "gemini", 429, {}, gemini("RESOURCE_EXHAUSTED", "quota"), "throttled", None),
    (
        "bad key comes as 400",
        "gemini",
        400,
        {},
        gemini("INVALID_ARGUMENT", "API key not valid.", {"reason": "API_KEY_INVALID"}, code=400),
        "auth",
        None,
    ),
    (
        "context",
        "gemini",
        400,
        {},
        gemini("INVALID_ARGUMENT", "The input token count (9) exceeds the maximum number of tokens allowed (8).", code=400),
        "too_long",
        None,
    ),
    ("overload", "gemini", 503, {}, gemini("UNAVAILABLE", "The model is overloaded.", code=503), "overloaded", None),
    ("deadline", "gemini", 504, {}, gemini("DEADLINE_EXCEEDED", "?", code=504), "timeout", None),
    ("error in a list", "gemini", 404, {}, [gemini("NOT_FOUND", "no such model", code=404)], "not_found", None),
    # Anthropic
    ("overload", "anthropic", 529, {}, anthropic("overloaded_error", "Overloaded"), "overloaded", None),
    ("limit", "anthropic", 429, {"retry-after": "7"}, anthropic("rate_limit_error", "limit"), "throttled", 7.0),
    ("prompt", "anthropic", 400, {}, anthropic("invalid_request_error", "prompt is too long: 9 tokens"), "too_long", None),
    ("body", "anthropic", 413, {}, anthropic("request_too_large", "Request exceeds the maximum size"), "too_long", None),
    ("no money", "anthropic", 400, {}, anthropic("invalid_request_error", "Your credit balance is too low"), "no_credit", None),
    ("bad key", "anthropic", 401, {}, anthropic("authentication_error", "invalid x-api-key"), "auth", None),
    ("error with status 200", "anthropic", 200, {}, anthropic("overloaded_error", "Overloaded"), "overloaded", None),
    # Bedrock
    ("throttle named in a header", "bedrock", 429, NAMED, {"message": "Too many requests"}, "throttled", None),
    ("daily tokens", "bedrock", 429, NAMED, {"message": "Too many tokens per day, please wait"}, "quota_day", None),
    *(
        (name, "bedrock", status, {}, aws(name), kind, None)
        for name, status, kind in [
            ("ThrottlingException", 429, "throttled"),
            ("TooManyRequestsException", 429, "throttled"),
            ("Throttling", 400, "throttled"),
            ("RequestLimitExceeded", 400, "throttled"),
            ("ServiceQuotaExceededException", 400, "throttled"),
            ("ModelNotReadyException", 429, "overloaded"),
            ("ServiceUnavailableException", 503, "overloaded"),
            ("InternalServerException", 500, "overloaded"),
            ("ModelTimeoutException", 408, "timeout"),
            ("ModelErrorException", 424, "overloaded"),
            ("ValidationException", 400, "rejected"),
            ("AccessDeniedException", 403, "auth"),
            ("ExpiredTokenException", 403, "auth"),
            ("ResourceNotFoundException", 404, "not_found"),
        ]
    ),
    ("context", "bedrock", 400, {}, aws("ValidationException", "Input is too long for requested model."), "too_long", None),
    (
        "no such model",
        "bedrock",
        400,
        {},
        aws("ValidationException", "The provided model identifier is invalid."),
        "not_found",
        None,
    ),
]
RETRYABLE = {"throttled", "overloaded", "timeout", "connection", "bad_answer"}


Fact = tuple[str, str, int, dict[str, str], Any, str, float | None]


@pytest.mark.parametrize("fact", FACTS, ids=[f"{fact[1]}-{fact[0]}".replace(" ", "_") for fact in FACTS])
def test_error_becomes_its_kind(fact: Fact) -> None:
    """A raw error response becomes the failure that calls for the right action, with the wait that the provider means."""
    _, provider, status, headers, body, kind, wait_s = fact
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    result = provider_for(provider).read(status, headers, raw)
    assert isinstance(result, Failure), result
    assert (result.kind, result.retry_after_s) == (kind, pytest.approx(wait_s) if wait_s is not None else None)
    assert result.retryable == (kind in RETRYABLE)
    assert result.message
    assert "\n" not in result.message


def test_used_tokens_of_a_paid_failure_are_known() -> None:
    """An empty answer was paid: its usage goes with the failure."""
    body = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    result = provider_for("openai").read(200, {}, json.dumps(body).encode())
    assert isinstance(result, Failure)
    assert (result.input_tokens, result.output_tokens) == (7, 3)


FILTERED = "content_filtered"
BLOCKED: list[tuple[str, int, Any, str]] = [
    ("gemini", 200, {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 4}}, "SAFETY"),
    ("gemini", 200, {"candidates": [{"finishReason": "RECITATION"}]}, "RECITATION"),
    (
        "azure",
        400,
        {
            "error": {
                "code": "content_filter",
                "message": "filtered",
                "innererror": {"content_filter_result": {"hate": {"filtered": False}, "violence": {"filtered": True}}},
            }
        },
        "content_filter (violence)",
    ),
    ("openai", 200, {"choices": [{"message": {"content": "He"}, "finish_reason": "content_filter"}]}, "content_filter"),
    ("openai", 200, {"choices": [{"message": {"content": None, "refusal": "Sorry"}, "finish_reason": "stop"}]}, "refusal"),
    ("anthropic", 200, {"content": [], "stop_reason": "refusal", "usage": {}}, "refusal"),
    (
        "bedrock",
        200,
        {"output": {"message": {"role": "assistant", "content": []}}, "stopReason": "guardrail_intervened"},
        "guardrail_intervened",
    ),
    (
        "bedrock",
        200,
        {"results": [{"tokenCount": 0, "outputText": "", "completionReason": "CONTENT_FILTERED"}]},
        "content_filtered",
    ),
]


@pytest.mark.parametrize(("provider", "status", "body", "reason"), BLOCKED, ids=[f"{b[0]}-{b[3]}" for b in BLOCKED])
def test_block_is_an_answer_with_the_providers_reason(provider: str, status: int, body: Any, reason: str) -> None:
    """Blocked prompts and answers are no errors and keep the provider's own word."""
    result = provider_for(provider).read(status, {}, json.dumps(body).encode())
    assert isinstance(result, Answer), result
    assert (result.finish_reason, result.blocked) == ("blocked", reason)


USED = {"input_tokens": 3, "output_tokens": 1}
ANSWERS: list[tuple[str, str, dict[str, str], Any, tuple[str, str, int, int]]] = [
    (
        "J2 is counted by its arrays",
        "bedrock",
        {},
        {
            "id": 1,
            "prompt": {"tokens": [{}] * 5},
            "completions": [{"data": {"text": "Hi", "tokens": [{}] * 3}, "finishReason": {"reason": "endoftext"}}],
        },
        ("Hi", "stop", 5, 3),
    ),
    (
        "Titan",
        "bedrock",
        {},
        {"inputTextTokenCount": 4, "results": [{"tokenCount": 9, "outputText": "Hi", "completionReason": "LENGTH"}]},
        ("Hi", "length", 4, 9),
    ),
    (
        "Claude 2 is counted by headers",
        "bedrock",
        {"X-Amzn-Bedrock-Input-Token-Count": "6", "X-Amzn-Bedrock-Output-Token-Count": "2"},
        {"completion": " Hi", "stop_reason": "stop_sequence", "stop": "\n\nHuman:"},
        (" Hi", "stop", 6, 2),
    ),
    (
        "Claude 3",
        "bedrock",
        {},
        {
            "content": [{"type": "text", "text": "Hi"}],
            "stop_reason": "max_tokens",
            "usage": {"input_tokens": 3, "output_tokens": 1},
        },
        ("Hi", "length", 3, 1),
    ),
    (
        "Llama",
        "bedrock",
        {},
        {"generation": "Hi", "prompt_token_count": 8, "generation_token_count": 2, "stop_reason": "length"},
        ("Hi", "length", 8, 2),
    ),
    (
        "Mistral is counted by headers",
        "bedrock",
        {"x-amzn-bedrock-input-token-count": "6", "x-amzn-bedrock-output-token-count": "2"},
        {"outputs": [{"text": "Hi", "stop_reason": "stop"}]},
        ("Hi", "stop", 6, 2),
    ),
    (
        "Gemini's thoughts are paid, not read",
        "gemini",
        {},
        {
            "candidates": [{"content": {"parts": [{"text": "hm", "thought": True}, {"text": "Hi"}]}, "finishReason": "STOP"}],
            "usageMetadata": {"promptTokenCount": 4, "candidatesTokenCount": 1, "thoughtsTokenCount": 30},
        },
        ("Hi", "stop", 4, 31),
    ),
    (
        "Anthropic's cached input is input",
        "anthropic",
        {},
        {
            "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 3, "cache_read_input_tokens": 10, "output_tokens": 1},
        },
        ("Hi", "stop", 13, 1),
    ),
    (
        "OpenAI without usage and with parts",
        "openai",
        {},
        {"choices": [{"message": {"content": [{"type": "text", "text": "Hi"}]}, "finish_reason": "length"}]},
        ("Hi", "length", 0, 0),
    ),
]


@pytest.mark.parametrize(
    ("provider", "headers", "body", "expected"), [a[1:] for a in ANSWERS], ids=[a[0].replace(" ", "_") for a in ANSWERS]
)
def test_answer_is_read_in_common_words(
    provider: str, headers: dict[str, str], body: Any, expected: tuple[str, str, int, int]
) -> None:
    """Text, finish reason and usage are read from each format's own places."""
    result = provider_for(provider).read(200, headers, json.dumps(body).encode())
    assert isinstance(result, Answer), result
    assert (result.text, result.finish_reason, result.input_tokens, result.output_tokens) == expected
