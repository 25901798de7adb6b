"""Gemini's generateContent. The key travels in a header, never in the URL, since URLs are logged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tunemill.errors import ConfigError
from tunemill.llm.config import ModelConfig
from tunemill.llm.providers import hints
from tunemill.llm.providers.failures import bad_answer, error_facts, failure, kind_of_status, says_too_long
from tunemill.llm.providers.wire import (
    JSON_HEADERS,
    api_key,
    check_params,
    dump,
    key_name,
    merged,
    normal_url,
    parse,
    sample_seed,
)
from tunemill.llm.request import Answer, Failure, FailureKind, LimitHeaders, Prompt, WireRequest

__all__ = ["PROVIDER", "Gemini"]

_OFFICIAL = "https://generativelanguage.googleapis.com"
_NAMES = {
    "temperature": "temperature",
    "topP": "top_p",
    "topK": "top_k",
    "stopSequences": "stop",
    "presencePenalty": "presence_penalty",
    "frequencyPenalty": "frequency_penalty",
}
_BLOCKED = frozenset(
    {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE", "IMAGE_SAFETY", "MODEL_ARMOR"}
)
_REASONS = {"STOP": "stop", "MAX_TOKENS": "length"}
# what responseSchema (a subset of OpenAPI) understands; a schema with more goes into responseJsonSchema
_SCHEMA_KEYS = frozenset(
    re.findall(
        r"\w+",
        "type format title description nullable enum items properties required propertyOrdering minItems maxItems minimum "
        "maximum minLength maxLength pattern anyOf minProperties maxProperties default example",
    )
)


class Gemini:
    """POST /v1beta/models/{model}:generateContent."""

    name = "gemini"
    # the token limit counts input only
    reserves_output = False

    def check(self, model: ModelConfig) -> None:
        """Parameters, address and key."""
        check_params(model, (*_NAMES.values(), "seed"))
        own = model.params.extra.get("generationConfig")
        count = own.get("candidateCount", 1) if isinstance(own, Mapping) else 1
        if count != 1:
            raise ConfigError(
                f"models.{model.name}: params.extra.generationConfig.candidateCount is {count!r}, but one call is one answer"
            )
        self.endpoint(model)
        self.auth_headers(model)

    def build(
        self, model: ModelConfig, prompt: Prompt, *, schema: Mapping[str, Any] | None, sample: int, seed: int | None
    ) -> WireRequest:
        """The request; safetySettings and the like come from params.extra."""
        params = model.params
        config: dict[str, Any] = {"maxOutputTokens": params.max_tokens}
        for wire, name in _NAMES.items():
            value = getattr(params, name)
            if value is not None and value != ():
                config[wire] = list(value) if name == "stop" else value
        seed = sample_seed(model, sample, seed)
        if seed is not None:
            config["seed"] = seed
        if schema is not None:
            config["responseMimeType"] = "application/json"
            converted = _openapi(schema)
            config |= {"responseJsonSchema": schema} if converted is None else {"responseSchema": converted}
        body: dict[str, Any] = {"contents": _contents(prompt)}
        system = "\n\n".join(m.content for m in prompt.messages if m.role == "system")
        if system:
            body["systemInstruction"] = {"parts": [{"text": system}]}
        body["generationConfig"] = config
        name = model.model.removeprefix("models/")
        return WireRequest(
            method="POST",
            url=f"{self.endpoint(model)}/v1beta/models/{name}:generateContent",
            headers=JSON_HEADERS,
            body=dump(merged(body, params.extra)),
        )

    def endpoint(self, model: ModelConfig) -> str:
        """The server's base address."""
        return normal_url(model, _OFFICIAL, cut=("/v1beta/models", "/v1beta"))

    def auth_headers(self, model: ModelConfig) -> dict[str, str]:
        """``x-goog-api-key``."""
        key = api_key(model, key_name(model, "GEMINI_API_KEY"))
        return {} if key is None else {"x-goog-api-key": key}

    def read(self, status: int, headers: Mapping[str, str], body: bytes) -> Answer | Failure:
        """The first candidate without its thoughts, a block with its reason, or what went wrong."""
        value = parse(body)
        if isinstance(value, list) and value:
            value = value[0]
        if status >= 400 or (isinstance(value, dict) and value.get("error")):
            return _error(status, headers, body, value)
        if not isinstance(value, dict):
            return bad_answer("the body is not JSON", status, body)
        usage = value.get("usageMetadata") or {}
        used: dict[str, Any] = {
            "input_tokens": int(usage.get("promptTokenCount") or 0),
            "output_tokens": int(usage.get("candidatesTokenCount") or 0) + int(usage.get("thoughtsTokenCount") or 0),
        }
        candidates = value.get("candidates")
        if not candidates:
            blocked = (value.get("promptFeedback") or {}).get("blockReason")
            if blocked:
                return Answer(text="", finish_reason="blocked", blocked=str(blocked), **used)
            return bad_answer("the body has no candidates", status, body, **used)
        parts = (candidates[0].get("content") or {}).get("parts") or []
        text = "".join(str(part.get("text", "")) for part in parts if not part.get("thought"))
        reason = str(candidates[0].get("finishReason") or "")
        if reason in _BLOCKED:
            return Answer(text=text, finish_reason="blocked", blocked=reason, **used)
        if not reason:
            return bad_answer("the candidate has no finishReason", status, body, **used)
        return Answer(text=text, finish_reason=_REASONS.get(reason, reason.lower()), **used)

    def limits(self, headers: Mapping[str, str]) -> LimitHeaders:
        """Gemini sends none; a proxy may send retry-after."""
        return LimitHeaders(retry_after_s=hints.retry_after_s(hints.lower(headers)))

    def output_weight(self, model: ModelConfig) -> float:
        """Output tokens are not limited."""
        return 0.0


def _contents(prompt: Prompt) -> list[dict[str, Any]]:
    roles = {"user": "user", "assistant": "model"}
    return [{"role": roles[m.role], "parts": [{"text": m.content}]} for m in prompt.messages if m.role != "system"]


def _openapi(schema: Any) -> Any:
    """``schema`` in Gemini's subset, or None where the subset cannot say it."""
    if not isinstance(schema, Mapping):
        return None
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("$schema", "additionalProperties", "$id"):
            continue
        if key == "const":
            result["enum"] = [value]
        elif key not in _SCHEMA_KEYS or (key == "type" and not isinstance(value, str)):
            return None
        elif key == "properties":
            result[key] = {name: _openapi(part) for name, part in value.items()}
            if None in result[key].values():
                return None
        elif key in ("items", "anyOf"):
            result[key] = [_openapi(part) for part in value] if key == "anyOf" else _openapi(value)
            if result[key] is None or (isinstance(result[key], list) and None in result[key]):
                return None
        else:
            result[key] = value
    return result


def _error(status: int, headers: Mapping[str, str], body: bytes, value: Any) -> Failure:
    code, _, message = error_facts(value, body)
    error = value.get("error") if isinstance(value, dict) else None
    error = error if isinstance(error, dict) else {}
    if status < 400:
        status = int(code) if code.isdigit() and 400 <= int(code) < 600 else 502
    state = str(error.get("status") or "")
    details = [item for item in error.get("details") or () if isinstance(item, dict)]
    kind = _kind(status, state, message, details)
    wait = None
    if kind in ("throttled", "overloaded"):
        delays = [hints.duration_s(str(item["retryDelay"])) for item in details if "retryDelay" in item]
        # retryDelay is cut to whole seconds
        wait = delays[0] + 1.0 if delays and delays[0] is not None else hints.retry_after_s(hints.lower(headers))
    return failure(kind, f"{state}: {message}" if state else message, status=status, retry_after_s=wait)


def _kind(status: int, state: str, message: str, details: list[dict[str, Any]]) -> FailureKind:
    if any(item.get("reason") == "API_KEY_INVALID" for item in details) or "API key not valid" in message:
        return "auth"
    if state == "FAILED_PRECONDITION":
        return "auth"  # no billing, or a country that is not served: no call will succeed
    if status == 429:
        quotas = [str(v.get("quotaId", "")) for item in details for v in item.get("violations") or () if isinstance(v, dict)]
        # a daily quota also comes with a short retryDelay, which would only be refused again
        return "quota_day" if any("PerDay" in quota for quota in quotas) else "throttled"
    if status == 400 and says_too_long(message):
        return "too_long"
    return "timeout" if state == "DEADLINE_EXCEEDED" else kind_of_status(status)


PROVIDER = Gemini()
