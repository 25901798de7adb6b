"""OpenAI's chat completions and embeddings, and every server that speaks them (vLLM, llama.cpp, OpenRouter, ...)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

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
    sample_seed,
)
from tunemill.llm.request import Answer, Failure, FailureKind, LimitHeaders, Prompt, WireRequest

__all__ = ["EMBEDDINGS", "PROVIDER", "OpenAI", "OpenAIEmbeddings", "chat_body", "schema_format"]

_OFFICIAL = "https://api.openai.com/v1"
_ENDINGS = ("/chat/completions", "/embeddings", "/completions", "/models")
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_TRY_AGAIN = re.compile(r"try again in ((?:[\d.]+(?:ms|µs|us|ns|d|h|m|s))+)")
_WIRE_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "stop": "stop",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}


class _OpenAIBase:
    """Address, key and limit headers."""

    name = "openai"
    usual_key = "OPENAI_API_KEY"
    # OpenAI charges the larger of max_tokens and an estimate by characters at the start of a call
    reserves_output = True

    def base(self, model: ModelConfig) -> str:
        """The address that paths such as /chat/completions are put behind."""
        url = normal_url(model, _OFFICIAL, cut=_ENDINGS)
        return url if "/" in url.partition("://")[2] else f"{url}/v1"

    def endpoint(self, model: ModelConfig) -> str:
        """The server's base address."""
        return self.base(model)

    def auth_headers(self, model: ModelConfig) -> dict[str, str]:
        """Bearer token; nothing for a server given by base_url without api_key_env."""
        key = api_key(model, key_name(model, self.usual_key))
        return {} if key is None else {"authorization": f"Bearer {key}"}

    def limits(self, headers: Mapping[str, str]) -> LimitHeaders:
        """x-ratelimit-* and retry-after."""
        return hints.rate_limit_headers(hints.lower(headers))

    def output_weight(self, model: ModelConfig) -> float:
        """Every token counts once."""
        return 1.0

    def error(self, status: int, headers: Mapping[str, str], body: bytes, value: Any) -> Failure:
        """Sort an error body; ``status`` may come from the body where the HTTP status was 200."""
        code, type_, message = error_facts(value, body)
        kind = _kind(status, code, type_, message)
        wait = None
        if kind in ("throttled", "overloaded", "quota_day"):
            limits = self.limits(headers)
            told = _TRY_AGAIN.search(message)
            wait = limits.retry_after_s
            if wait is None and told:
                wait = hints.duration_s(told.group(1).rstrip("."))
            if wait is None and kind == "throttled":
                wait = hints.exhausted_reset_s(limits)
        label = code or type_
        return failure(kind, f"{label}: {message}" if label else message, status=status, retry_after_s=wait)


class OpenAI(_OpenAIBase):
    """Chat completions."""

    def check(self, model: ModelConfig) -> None:
        """Parameters, address and key."""
        takes = {*_WIRE_NAMES} - (set() if model.base_url else {"top_k"})
        check_params(model, takes)
        check_extra(model, _WIRE_NAMES)
        self.base(model)
        self.auth_headers(model)

    def build(
        self, model: ModelConfig, prompt: Prompt, *, schema: Mapping[str, Any] | None, sample: int, seed: int | None
    ) -> WireRequest:
        """POST {base}/chat/completions."""
        limit = "max_tokens" if model.base_url else "max_completion_tokens"
        body = chat_body(model, prompt, schema=schema, seed=sample_seed(model, sample, seed), limit=limit)
        return WireRequest(
            method="POST",
            url=f"{self.base(model)}/chat/completions",
            headers=JSON_HEADERS,
            body=dump(merged(body, model.params.extra)),
        )

    def read(self, status: int, headers: Mapping[str, str], body: bytes) -> Answer | Failure:
        """The first choice's message, or what went wrong."""
        value = parse(body)
        if status >= 400:
            return self.error(status, headers, body, value)
        if status != 200:
            return failure("rejected", f"unexpected status {status} (is base_url right?)", status=status)
        if not isinstance(value, dict):
            return bad_answer("the body is not JSON", status, body)
        if value.get("error"):
            return self.error(_status_inside(value["error"]), headers, body, value)
        used = _usage(value)
        choices = value.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0].get("message"), dict):
            return bad_answer("the body has no choices", status, body, **used)
        message, reason = choices[0]["message"], str(choices[0].get("finish_reason") or "stop")
        if message.get("refusal"):
            return Answer(text="", finish_reason="blocked", blocked="refusal", **used)
        if reason == "content_filter":
            return Answer(text=_text(message), finish_reason="blocked", blocked=reason, **used)
        return Answer(text=_text(message), finish_reason=reason, **used)


class OpenAIEmbeddings(_OpenAIBase):
    """/v1/embeddings."""

    reserves_output = False

    def check(self, model: ModelConfig) -> None:
        """Address and key; sampling parameters mean nothing here."""
        check_params(model, ())
        self.base(model)
        self.auth_headers(model)

    def texts_per_call(self, model: ModelConfig) -> int:
        """OpenAI's bound; other servers may take fewer."""
        return 2048

    def build(
        self, model: ModelConfig, prompt: Prompt, *, schema: Mapping[str, Any] | None, sample: int, seed: int | None
    ) -> WireRequest:
        """POST {base}/embeddings."""
        body = {"model": model.model, "input": [m.content for m in prompt.messages], "encoding_format": "float"}
        return WireRequest(
            method="POST",
            url=f"{self.base(model)}/embeddings",
            headers=JSON_HEADERS,
            body=dump(merged(body, model.params.extra)),
        )

    def read(self, status: int, headers: Mapping[str, str], body: bytes) -> Answer | Failure:
        """Vectors in the order of the texts."""
        value = parse(body)
        if status >= 400:
            return self.error(status, headers, body, value)
        if not isinstance(value, dict):
            return bad_answer("the body is not JSON", status, body)
        if value.get("error"):
            return self.error(_status_inside(value["error"]), headers, body, value)
        tokens = int((value.get("usage") or {}).get("prompt_tokens") or 0)
        data = value.get("data")
        if not isinstance(data, list) or not data or not all(item.get("embedding") for item in data):
            return bad_answer("the body has no embeddings", status, body, input_tokens=tokens)
        vectors = [item["embedding"] for item in sorted(data, key=lambda item: item.get("index", 0))]
        return Answer(text="", finish_reason="stop", input_tokens=tokens, output_tokens=0, vectors=vectors)


def chat_body(
    model: ModelConfig, prompt: Prompt, *, schema: Mapping[str, Any] | None, seed: int | None, limit: str
) -> dict[str, Any]:
    """The body of a chat completion; ``limit`` is the server's name for max_tokens."""
    params = model.params
    body: dict[str, Any] = {
        "model": model.model,
        "messages": [{"role": m.role, "content": m.content} for m in prompt.messages],
        limit: params.max_tokens,
    }
    for wire, name in _WIRE_NAMES.items():
        value = getattr(params, name)
        if value is not None and value != () and name != "seed":
            body[wire] = list(value) if name == "stop" else value
    if seed is not None:
        body["seed"] = seed
    if schema is not None:
        body["response_format"] = schema_format(schema)
    return body


def schema_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """response_format; ``strict`` only where the schema keeps strict mode's rules, since it is refused otherwise."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": _is_strict(schema)}}


def _is_strict(schema: Any) -> bool:
    if isinstance(schema, list):
        return all(_is_strict(item) for item in schema)
    if not isinstance(schema, Mapping):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        properties = schema.get("properties", {})
        if schema.get("additionalProperties") is not False or set(schema.get("required", ())) != set(properties):
            return False
        return all(_is_strict(item) for item in properties.values())
    return all(_is_strict(value) for key, value in schema.items() if key not in ("enum", "const", "default", "examples"))


def _kind(status: int, code: str, type_: str, message: str) -> FailureKind:
    if {code, type_} & _NO_CREDIT:
        return "no_credit"
    if code == "context_length_exceeded" or type_ == "exceed_context_size_error":
        return "too_long"
    if status == 429:
        if "request too large" in message.lower():
            return "too_long"  # asks for more than a whole minute allows: no wait helps
        return "quota_day" if re.search(r"per day|\b[RT]PD\b", message) else "throttled"
    if status in (400, 413, 422) and says_too_long(message):
        return "too_long"
    if status == 400 and code == "model_not_found":
        return "not_found"
    return kind_of_status(status)


def _status_inside(error: Any) -> int:
    """The status that an error body with status 200 stands for; 502 where it does not say."""
    code = error.get("code") if isinstance(error, dict) else None
    number = int(code) if isinstance(code, int) or (isinstance(code, str) and code.isdigit()) else 0
    if 400 <= number < 600:
        return number
    return 429 if code == "rate_limit_exceeded" else 502


def _usage(value: Mapping[str, Any]) -> dict[str, Any]:
    usage = value.get("usage") or {}
    return {
        "input_tokens": int(usage.get("prompt_tokens") or 0),
        "output_tokens": int(usage.get("completion_tokens") or 0),
    }


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content)


PROVIDER = OpenAI()
EMBEDDINGS = OpenAIEmbeddings()
