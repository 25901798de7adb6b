"""Gemini's generateContent. A key in the URL is refused: URLs are logged."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from mock_provider.formats.base import NUMBER, Call, Format, LimitState, Problem, Reply, check, tokens_in
from mock_provider.formats.openai import hint_headers

__all__ = ["route"]

_PATH = re.compile(r"/v1beta/models/([^/:]+):generateContent")
_BODY = {
    "contents": list,
    "systemInstruction": dict,
    "generationConfig": dict,
    "safetySettings": list,
    "tools": list,
    "toolConfig": dict,
    "cachedContent": str,
}
_CONFIG = {
    "stopSequences": list,
    "temperature": NUMBER,
    "maxOutputTokens": int,
    "topP": NUMBER,
    "topK": int,
    "seed": int,
    "presencePenalty": NUMBER,
    "frequencyPenalty": NUMBER,
    "responseMimeType": str,
    "responseSchema": dict,
    "responseJsonSchema": dict,
    "candidateCount": int,
    "thinkingConfig": dict,
}
_SCHEMA_FIELDS = frozenset({"type", "format", "title", "description", "nullable", "enum", "items", "properties", "required"}) | {
    *("minItems", "maxItems", "minimum", "maximum", "minLength", "maxLength", "pattern", "anyOf", "propertyOrdering")
}
_THRESHOLDS = {"BLOCK_NONE", "BLOCK_ONLY_HIGH", "BLOCK_MEDIUM_AND_ABOVE", "BLOCK_LOW_AND_ABOVE", "OFF"}
_STATUS = {
    "invalid": (400, "INVALID_ARGUMENT"),
    "too_long": (400, "INVALID_ARGUMENT"),
    "auth": (400, "INVALID_ARGUMENT"),
    "not_found": (404, "NOT_FOUND"),
    "server_error": (500, "INTERNAL"),
    "unavailable": (503, "UNAVAILABLE"),
    "overloaded": (503, "UNAVAILABLE"),
}
_QUOTAS = "type.googleapis.com/google.rpc."


class Gemini:
    """The public API; its token limit counts input only."""

    name = "gemini"

    def key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        if "key" in query:
            raise Problem("invalid", "The mock refuses keys in the URL.")
        return headers.get("x-goog-api-key", "").strip()

    def parse(self, model: str, operation: str, query: Mapping[str, str], body: Any) -> Call:
        check(body, _BODY, required=("contents",))
        texts = []
        system = [body["systemInstruction"]] if "systemInstruction" in body else []
        for i, item in enumerate([*system, *body["contents"]]):
            check(item, {"role": str, "parts": list}, required=("parts",), where=f"contents[{i}].")
            if item.get("role", "user") not in ("user", "model"):
                raise Problem("invalid", "Please use a valid role: user, model.")
            for part in item["parts"]:
                check(part, {"text": str}, required=("text",), where=f"contents[{i}].parts.")
                texts.append(part["text"])
        config = body.get("generationConfig", {})
        check(config, _CONFIG, where="generation_config.")
        for setting in body.get("safetySettings", ()):
            check(setting, {"category": str, "threshold": str}, required=("category", "threshold"), where="safety_settings.")
            if not setting["category"].startswith("HARM_CATEGORY_") or setting["threshold"] not in _THRESHOLDS:
                raise Problem("invalid", f"Invalid value at 'safety_settings': {setting}")
        schema = config.get("responseSchema")
        if schema is not None:
            _check_schema(schema)
        schema = schema or config.get("responseJsonSchema")
        if schema is not None and config.get("responseMimeType") != "application/json":
            raise Problem("invalid", "responseSchema needs responseMimeType application/json")
        return Call(
            provider=self.name,
            operation=operation,
            model=model,
            texts=texts,
            max_tokens=config.get("maxOutputTokens", 8192),
            schema=schema,
            counts_output=False,
        )

    def answer(self, call: Call, text: str, reason: str, output_tokens: int) -> Reply:
        finish = "STOP" if reason == "stop" else "MAX_TOKENS"
        candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": finish, "index": 0}
        return Reply(body={"candidates": [candidate], **_usage(call, output_tokens or tokens_in(text))})

    def vectors(self, call: Call, vectors: list[list[float]]) -> Reply:
        raise Problem("not_found", "no embeddings")

    def special(self, call: Call, what: str) -> Reply:
        if what == "blocked":
            feedback = {"blockReason": "PROHIBITED_CONTENT", "safetyRatings": []}
            return Reply(body={"promptFeedback": feedback, **_usage(call, 0)})
        if what == "filtered":
            return Reply(body={"candidates": [{"finishReason": "SAFETY", "index": 0, "safetyRatings": []}], **_usage(call, 5)})
        return Reply(body=_usage(call, 0))

    def error(self, kind: str, message: str, *, hint: str = "usual", wait_s: float = 1.0) -> Reply:
        details: list[dict[str, Any]] = []
        headers: dict[str, str] = {}
        if kind == "throttle":
            status, state = 429, "RESOURCE_EXHAUSTED"
            quota = (
                "GenerateRequestsPerDayPerProjectPerModel" if hint == "per-day" else "GenerateRequestsPerMinutePerProjectPerModel"
            )
            details.append({"@type": f"{_QUOTAS}QuotaFailure", "violations": [{"quotaMetric": "requests", "quotaId": quota}]})
            if hint in ("usual", "per-day"):
                # the delay is cut to whole seconds, as the real one is
                details.append({"@type": f"{_QUOTAS}RetryInfo", "retryDelay": f"{math.floor(wait_s)}s"})
            headers = hint_headers(hint, wait_s)
        else:
            status, state = _STATUS[kind]
        if kind == "auth":
            message = "API key not valid. Please pass a valid API key."
            details.append({"@type": f"{_QUOTAS}ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"})
        if kind == "too_long":
            message = f"The input token count exceeds the maximum number of tokens allowed. {message}"
        error = {"code": status, "message": message, "status": state, "details": details}
        return Reply(status=status, headers=headers, body={"error": error})

    def limit_headers(self, state: LimitState) -> dict[str, str]:
        return {}


def _usage(call: Call, output_tokens: int) -> dict[str, Any]:
    total = call.input_tokens + output_tokens
    usage = {"promptTokenCount": call.input_tokens, "candidatesTokenCount": output_tokens, "totalTokenCount": total}
    return {"usageMetadata": usage, "modelVersion": call.model}


def _check_schema(schema: Any) -> None:
    for name, value in schema.items():
        if name not in _SCHEMA_FIELDS:
            raise Problem("invalid", f'Invalid JSON payload received. Unknown name "{name}" at generation_config.response_schema')
        if name == "properties":
            for part in value.values():
                _check_schema(part)
        elif name == "items":
            _check_schema(value)
    json.dumps(schema)


_GEMINI = Gemini()


def route(path: str) -> tuple[Format, str, str] | None:
    """(format, model, operation)."""
    found = _PATH.fullmatch(path)
    return None if found is None else (_GEMINI, found[1], "generateContent")
