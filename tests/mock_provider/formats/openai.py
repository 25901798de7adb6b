"""OpenAI: chat completions and embeddings."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from typing import Any

from mock_provider.formats.base import NUMBER, Call, Format, LimitState, Problem, Reply, check

__all__ = ["OpenAI", "duration", "route"]

_PATHS = {"/v1/chat/completions": "chat", "/v1/embeddings": "embeddings"}
_CHAT = {
    "model": str,
    "messages": list,
    "max_tokens": int,
    "max_completion_tokens": int,
    "temperature": NUMBER,
    "top_p": NUMBER,
    "stop": (list, str),
    "seed": int,
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "response_format": dict,
    "n": int,
    "user": str,
    "logit_bias": dict,
    "logprobs": bool,
    "top_logprobs": int,
    "reasoning_effort": str,
    "service_tier": str,
    "metadata": dict,
    "store": bool,
    "tools": list,
    "tool_choice": (str, dict),
}
_FORMAT = {"type": str, "json_schema": dict}
_SCHEMA = {"name": str, "schema": dict, "strict": bool, "description": str}
_STATUS = {
    "invalid": (400, "invalid_request_error", None),
    "too_long": (400, "invalid_request_error", "context_length_exceeded"),
    "auth": (401, "invalid_request_error", "invalid_api_key"),
    "not_found": (404, "invalid_request_error", "model_not_found"),
    "server_error": (500, "server_error", None),
    "unavailable": (503, "service_unavailable", None),
    "overloaded": (503, "server_error", "engine_overloaded"),
}


class OpenAI:
    """The public API."""

    name = "openai"
    reserves_output = True

    def key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        return headers.get("authorization", "").removeprefix("Bearer ").strip()

    def parse(self, model: str, operation: str, query: Mapping[str, str], body: Any) -> Call:
        if operation == "embeddings":
            return self.parse_embeddings(model, body)
        check(body, _CHAT, required=("messages",) if model else ("model", "messages"))
        texts = [_message(item, i) for i, item in enumerate(body["messages"])]
        if not texts:
            raise Problem("invalid", "Invalid 'messages': empty array.")
        if "max_tokens" in body and "max_completion_tokens" in body:
            raise Problem("invalid", "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.")
        for name, low, high in (
            ("temperature", 0, 2),
            ("top_p", 0, 1),
            ("presence_penalty", -2, 2),
            ("frequency_penalty", -2, 2),
        ):
            if not low <= body.get(name, 1) <= high:
                raise Problem("invalid", f"Invalid '{name}': {body[name]} is not between {low} and {high}.")
        if isinstance(body.get("stop"), list) and not 1 <= len(body["stop"]) <= 4:
            raise Problem("invalid", "Invalid 'stop': expected an array of 1 to 4 strings.")
        schema = None
        if "response_format" in body:
            check(body["response_format"], _FORMAT, required=("type",), where="response_format.")
            inside = body["response_format"].get("json_schema", {})
            check(inside, _SCHEMA, where="response_format.json_schema.")
            schema = inside.get("schema")
            if inside.get("strict") and schema and schema.get("additionalProperties") is not False:
                raise Problem("invalid", "Invalid schema for response_format: 'additionalProperties' is required to be false.")
        limit = body.get("max_tokens", body.get("max_completion_tokens", 4096))
        if limit < 1:
            raise Problem("invalid", f"Invalid 'max_tokens': {limit} is less than the minimum of 1.")
        return Call(
            provider=self.name,
            operation=operation,
            model=model or body["model"],
            texts=texts,
            max_tokens=limit,
            schema=schema,
            reserves_output=self.reserves_output,
        )

    def parse_embeddings(self, model: str, body: Any) -> Call:
        fields = {"model": str, "input": (list, str), "encoding_format": str, "dimensions": int, "user": str}
        check(body, fields, required=("input",) if model else ("input", "model"))
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        if not texts or not all(isinstance(text, str) and text for text in texts) or len(texts) > 2048:
            raise Problem("invalid", "'$.input' is invalid: expected 1 to 2048 non-empty strings.")
        return Call(provider=self.name, operation="embeddings", model=model or body["model"], texts=texts)

    def answer(self, call: Call, text: str, reason: str, output_tokens: int) -> Reply:
        choice = {"index": 0, "message": {"role": "assistant", "content": text, "refusal": None}, "finish_reason": reason}
        return self._completion(call, [choice], output_tokens)

    def vectors(self, call: Call, vectors: list[list[float]]) -> Reply:
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        usage = {"prompt_tokens": call.input_tokens, "total_tokens": call.input_tokens}
        return Reply(body={"object": "list", "data": data, "model": call.model, "usage": usage})

    def special(self, call: Call, what: str) -> Reply:
        if what == "empty":
            return self._completion(call, [], 0)
        if what == "blocked":  # OpenAI refuses in the message
            message = {"role": "assistant", "content": None, "refusal": "I'm sorry, I cannot assist with that request."}
            return self._completion(call, [{"index": 0, "message": message, "finish_reason": "stop"}], 5)
        message = {"role": "assistant", "content": "", "refusal": None}
        return self._completion(call, [{"index": 0, "message": message, "finish_reason": "content_filter"}], 5)

    def error(self, kind: str, message: str, *, hint: str = "usual", wait_s: float = 1.0) -> Reply:
        if kind == "throttle":
            return self._throttled(message, hint, wait_s)
        status, type_, code = _STATUS[kind]
        return Reply(status=status, body={"error": {"message": message, "type": type_, "param": None, "code": code}})

    def limit_headers(self, state: LimitState) -> dict[str, str]:
        headers = {}
        for kind in ("requests", "tokens"):
            if kind in state.limits:
                headers[f"x-ratelimit-limit-{kind}"] = f"{state.limits[kind]:.0f}"
                headers[f"x-ratelimit-remaining-{kind}"] = f"{state.remaining[kind]:.0f}"
                headers[f"x-ratelimit-reset-{kind}"] = duration(state.reset_s[kind])
        return headers

    def _throttled(self, message: str, hint: str, wait_s: float) -> Reply:
        type_, code, headers = "requests", "rate_limit_exceeded", hint_headers(hint, wait_s)
        if hint in ("usual", "message"):
            message += f" Please try again in {duration(wait_s)}."
        if hint == "usual":
            headers = {"retry-after": f"{max(1, round(wait_s))}", "retry-after-ms": f"{wait_s * 1000:.0f}"}
        if hint == "per-day":
            message = (
                "Rate limit reached for requests per day (RPD): Limit 200, Used 200, Requested 1. Please try again in 7m12s."
            )
        if hint == "no-credit":
            type_ = code = "insufficient_quota"
            message = "You exceeded your current quota, please check your plan and billing details."
        body = {"error": {"message": message, "type": type_, "param": None, "code": code}}
        return Reply(status=429, headers=headers, body=body)

    def _completion(self, call: Call, choices: list[Any], output_tokens: int) -> Reply:
        used = call.input_tokens
        usage = {"prompt_tokens": used, "completion_tokens": output_tokens, "total_tokens": used + output_tokens}
        body = {"id": "chatcmpl-mock", "object": "chat.completion", "created": int(time.time()), "model": call.model}
        return Reply(body={**body, "choices": choices, "usage": usage, "system_fingerprint": "fp_mock"})


def hint_headers(hint: str, wait_s: float) -> dict[str, str]:
    """The hints that are plain headers."""
    if hint == "retry-after":
        return {"retry-after": f"{wait_s:g}"}
    if hint == "retry-after-ms":
        return {"retry-after-ms": f"{wait_s * 1000:.0f}"}
    if hint == "retry-after-date":
        return {"retry-after": email.utils.formatdate(time.time() + wait_s, usegmt=True)}
    return {}


def duration(seconds: float) -> str:
    """OpenAI's way: 12ms, 1s, 6m0s."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{int(seconds // 60)}m{seconds % 60:.0f}s"


def _message(item: Any, index: int) -> str:
    where = f"messages[{index}]."
    check(item, {"role": str, "content": (str, list), "name": str}, required=("role", "content"), where=where)
    if item["role"] not in ("system", "developer", "user", "assistant"):
        raise Problem("invalid", f"Invalid value: '{item['role']}'. Supported values are: 'system', 'assistant', 'user'.")
    if isinstance(item["content"], list):
        return "".join(part["text"] for part in item["content"])
    return str(item["content"])


_FORMAT_OBJECT = OpenAI()


def route(path: str) -> tuple[Format, str, str] | None:
    """(format, model, operation)."""
    operation = _PATHS.get(re.sub(r"^/[\w-]+(?=/v1/)", "", path))
    return None if operation is None else (_FORMAT_OBJECT, "", operation)
