"""Anthropic's messages API. Its message bodies are also what Bedrock's InvokeModel takes for Claude 3 and later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tunemill.errors import ConfigError
from tunemill.llm.config import ModelConfig
from tunemill.llm.providers import hints
from tunemill.llm.providers.failures import bad_answer, error_facts, failure, kind_of_status, says_too_long
from tunemill.llm.providers.wire import (
    JSON_HEADERS,
    api_key,
    check_extra,
    check_params,
    dump,
    key_name,
    merged,
    normal_url,
    parse,
)
from tunemill.llm.request import Answer, Failure, FailureKind, LimitHeaders, LimitWindow, Prompt, WireRequest

__all__ = ["PROVIDER", "Anthropic", "messages_body", "read_message"]

_OFFICIAL = "https://api.anthropic.com"
_VERSION = "2023-06-01"
_NAMES = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "stop_sequences": "stop"}
_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "tool_use": "stop", "max_tokens": "length"} | {
    "model_context_window_exceeded": "length"
}
_KINDS: dict[str, FailureKind] = {
    "authentication_error": "auth",
    "permission_error": "auth",
    "not_found_error": "not_found",
    "rate_limit_error": "throttled",
    "api_error": "overloaded",
    "overloaded_error": "overloaded",
    "timeout_error": "timeout",
    "request_too_large": "too_long",
    "billing_error": "no_credit",
}


class Anthropic:
    """POST /v1/messages."""

    name = "anthropic"
    # output tokens are counted as they are made; max_tokens is not reserved
    reserves_output = False

    def check(self, model: ModelConfig) -> None:
        """Parameters, address and key."""
        check_params(model, _NAMES.values())
        check_extra(model, _NAMES)
        if model.params.temperature is not None and model.params.temperature > 1:
            raise ConfigError(f"models.{model.name}: params.temperature is {model.params.temperature}, anthropic takes 0 to 1")
        self.endpoint(model)
        self.auth_headers(model)

    def build(
        self, model: ModelConfig, prompt: Prompt, *, schema: Mapping[str, Any] | None, sample: int, seed: int | None
    ) -> WireRequest:
        """The request; Anthropic takes no seed."""
        body = {"model": model.model, **messages_body(model, prompt, schema)}
        return WireRequest(
            method="POST",
            url=f"{self.endpoint(model)}/v1/messages",
            headers={**JSON_HEADERS, "anthropic-version": _VERSION},
            body=dump(merged(body, model.params.extra)),
        )

    def endpoint(self, model: ModelConfig) -> str:
        """The server's base address."""
        return normal_url(model, _OFFICIAL, cut=("/v1/messages", "/v1"))

    def auth_headers(self, model: ModelConfig) -> dict[str, str]:
        """``x-api-key``."""
        key = api_key(model, key_name(model, "ANTHROPIC_API_KEY"))
        return {} if key is None else {"x-api-key": key}

    def read(self, status: int, headers: Mapping[str, str], body: bytes) -> Answer | Failure:
        """The joined text blocks, or what went wrong."""
        value = parse(body)
        if status >= 400 or (isinstance(value, dict) and value.get("type") == "error"):
            return self._error(status, headers, body, value)
        return read_message(status, body, value)

    def limits(self, headers: Mapping[str, str]) -> LimitHeaders:
        """anthropic-ratelimit-*; resets are moments, ``remaining`` is rounded to thousands of tokens."""
        found = hints.lower(headers)
        return LimitHeaders(
            requests=_window(found, "requests"),
            tokens=_window(found, "tokens"),
            input_tokens=_window(found, "input-tokens"),
            output_tokens=_window(found, "output-tokens"),
            retry_after_s=hints.retry_after_s(found),
        )

    def output_weight(self, model: ModelConfig) -> float:
        """Every token counts once."""
        return 1.0

    def _error(self, status: int, headers: Mapping[str, str], body: bytes, value: Any) -> Failure:
        _, type_, message = error_facts(value, body)
        kind = _KINDS.get(type_, kind_of_status(status) if status >= 400 else "overloaded")
        if "credit balance is too low" in message:
            kind = "no_credit"
        elif kind == "rejected" and says_too_long(message):
            kind = "too_long"
        wait = None
        if kind in ("throttled", "overloaded"):
            limits = self.limits(headers)
            wait = limits.retry_after_s
            if wait is None and kind == "throttled":
                wait = hints.exhausted_reset_s(limits)
        return failure(kind, f"{type_}: {message}" if type_ else message, status=status, retry_after_s=wait)


def messages_body(model: ModelConfig, prompt: Prompt, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """Everything but the model's name. Structured output is a forced call of a tool whose input is the answer."""
    params = model.params
    body: dict[str, Any] = {"max_tokens": params.max_tokens}
    system = "\n\n".join(m.content for m in prompt.messages if m.role == "system")
    if system:
        body["system"] = system
    body["messages"] = [{"role": m.role, "content": m.content} for m in prompt.messages if m.role != "system"]
    for wire, name in _NAMES.items():
        value = getattr(params, name)
        if value is not None and value != ():
            body[wire] = list(value) if name == "stop" else value
    if schema is not None:
        if schema.get("type") != "object":
            raise ConfigError(
                f"models.{model.name}: response_schema has type {schema.get('type')!r}, {model.provider} takes object"
            )
        body["tools"] = [{"name": "answer", "description": "Give the answer in this form.", "input_schema": schema}]
        body["tool_choice"] = {"type": "tool", "name": "answer"}
    return body


def read_message(status: int, body: bytes, value: Any) -> Answer | Failure:
    """The answer inside a message object; a forced tool's input is given as JSON text."""
    if not isinstance(value, dict):
        return bad_answer("the body is not JSON", status, body)
    usage = value.get("usage") or {}
    cached = sum(int(usage.get(f"cache_{kind}_input_tokens") or 0) for kind in ("creation", "read"))
    used: dict[str, Any] = {
        "input_tokens": int(usage.get("input_tokens") or 0) + cached,
        "output_tokens": int(usage.get("output_tokens") or 0),
    }
    content, reason = value.get("content"), str(value.get("stop_reason") or "")
    if reason == "refusal":
        return Answer(text="", finish_reason="blocked", blocked=reason, **used)
    if not isinstance(content, list) or not reason:
        return bad_answer("the body has no content", status, body, **used)
    calls = [json.dumps(block.get("input"), ensure_ascii=False) for block in content if block.get("type") == "tool_use"]
    texts = [str(block.get("text", "")) for block in content if block.get("type") == "text"]
    return Answer(text=calls[0] if calls else "".join(texts), finish_reason=_REASONS.get(reason, reason), **used)


def _window(headers: Mapping[str, str], kind: str) -> LimitWindow | None:
    parts = [headers.get(f"anthropic-ratelimit-{kind}-{field}", "") for field in ("limit", "remaining", "reset")]
    if not any(parts):
        return None
    limit, remaining = (float(part) if part.strip().isdigit() else None for part in parts[:2])
    return LimitWindow(limit=limit, remaining=remaining, reset_s=hints.rfc3339_s(parts[2], headers) if parts[2] else None)


PROVIDER = Anthropic()
