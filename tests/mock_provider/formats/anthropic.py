"""Anthropic's messages, and the message bodies that Bedrock shares with it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

from mock_provider.formats.base import NUMBER, Call, Format, LimitState, Problem, Reply, check, tokens_in
from mock_provider.formats.openai import hint_headers

__all__ = ["MESSAGE_FIELDS", "check_message_body", "message", "route"]

MESSAGE_FIELDS = {
    "max_tokens": int,
    "messages": list,
    "system": (str, list),
    "temperature": NUMBER,
    "top_p": NUMBER,
    "top_k": int,
    "stop_sequences": list,
    "tools": list,
    "tool_choice": dict,
}
_OWN = {"model": str, "metadata": dict, "service_tier": str, "thinking": dict, "stream": bool}
_STATUS = {
    "invalid": (400, "invalid_request_error"),
    "too_long": (400, "invalid_request_error"),
    "auth": (401, "authentication_error"),
    "not_found": (404, "not_found_error"),
    "throttle": (429, "rate_limit_error"),
    "server_error": (500, "api_error"),
    "unavailable": (503, "api_error"),
    "overloaded": (529, "overloaded_error"),
}


class Anthropic:
    """The public API; max_tokens is not reserved."""

    name = "anthropic"

    def key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        if headers.get("anthropic-version") != "2023-06-01":
            raise Problem("invalid", "anthropic-version: header is required")
        return headers.get("x-api-key", "").strip()

    def parse(self, model: str, operation: str, query: Mapping[str, str], body: Any) -> Call:
        check(body, {**MESSAGE_FIELDS, **_OWN}, required=("model", "messages", "max_tokens"))
        texts, schema = check_message_body(body)
        return Call(
            provider=self.name,
            operation="messages",
            model=body["model"],
            texts=texts,
            max_tokens=body["max_tokens"],
            schema=schema,
        )

    def answer(self, call: Call, text: str, reason: str, output_tokens: int) -> Reply:
        return Reply(body=message(call, text, reason, output_tokens))

    def vectors(self, call: Call, vectors: list[list[float]]) -> Reply:
        raise Problem("not_found", "no embeddings")

    def special(self, call: Call, what: str) -> Reply:
        body = message(call, "", "stop", 1)
        if what == "empty":
            del body["content"]
            return Reply(body=body)
        return Reply(body={**body, "content": [], "stop_reason": "refusal"})

    def error(self, kind: str, message: str, *, hint: str = "usual", wait_s: float = 1.0) -> Reply:
        status, type_ = _STATUS[kind]
        headers = {}
        if kind == "throttle":
            headers = {"retry-after": f"{max(1, round(wait_s))}"} if hint == "usual" else hint_headers(hint, wait_s)
            if hint == "no-credit":
                status, type_ = 400, "invalid_request_error"
                message = "Your credit balance is too low to access the Anthropic API."
        if kind == "too_long":
            message = f"prompt is too long: {message}"
        return Reply(status=status, headers=headers, body={"type": "error", "error": {"type": type_, "message": message}})

    def limit_headers(self, state: LimitState) -> dict[str, str]:
        headers = {}
        now = datetime.datetime.now(datetime.UTC)
        for name, value in state.limits.items():
            kind = name.replace("_", "-")
            reset = now + datetime.timedelta(seconds=state.reset_s[name])
            remaining = state.remaining[name]
            headers[f"anthropic-ratelimit-{kind}-limit"] = f"{value:.0f}"
            rounded = remaining if name == "requests" else round(remaining / 1000) * 1000
            headers[f"anthropic-ratelimit-{kind}-remaining"] = f"{rounded:.0f}"
            headers[f"anthropic-ratelimit-{kind}-reset"] = reset.strftime("%Y-%m-%dT%H:%M:%SZ")
        return headers


def check_message_body(body: Mapping[str, Any]) -> tuple[list[str], Mapping[str, Any] | None]:
    """(texts, schema of a forced tool) of a message body; Problem for what is wrong."""
    texts = []
    if isinstance(body.get("system"), str):
        texts.append(body["system"])
    for i, item in enumerate(body["messages"]):
        check(item, {"role": str, "content": (str, list)}, required=("role", "content"), where=f"messages.{i}.")
        if item["role"] not in ("user", "assistant"):
            raise Problem("invalid", f"messages.{i}.role: Input should be 'user' or 'assistant'")
        texts.append(item["content"] if isinstance(item["content"], str) else "".join(b["text"] for b in item["content"]))
    if not body["messages"]:
        raise Problem("invalid", "messages: at least one message is required")
    if not 0 <= body.get("temperature", 0) <= 1:
        raise Problem("invalid", f"temperature: range: 0..1, got {body['temperature']}")
    if body["max_tokens"] < 1:
        raise Problem("invalid", "max_tokens: must be greater than or equal to 1")
    schema = None
    for tool in body.get("tools", ()):
        check(tool, {"name": str, "description": str, "input_schema": dict}, required=("name", "input_schema"), where="tools.")
        schema = tool["input_schema"]
        if schema.get("type") != "object":
            raise Problem("invalid", "tools.0.input_schema.type: Input should be 'object'")
    return texts, schema


def message(call: Call, text: str, reason: str, output_tokens: int) -> dict[str, Any]:
    """A message object; the answer to a forced tool is its input."""
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    stop = "end_turn" if reason == "stop" else "max_tokens"
    if call.schema is not None and reason == "stop":
        content = [{"type": "tool_use", "id": "toolu_mock", "name": "answer", "input": json.loads(text)}]
        stop = "tool_use"
    usage = {"input_tokens": call.input_tokens, "output_tokens": output_tokens or tokens_in(text)}
    body = {"id": "msg_mock", "type": "message", "role": "assistant", "model": call.model, "content": content}
    return {**body, "stop_reason": stop, "stop_sequence": None, "usage": usage}


_ANTHROPIC = Anthropic()


def route(path: str) -> tuple[Format, str, str] | None:
    """(format, "", operation)."""
    return (_ANTHROPIC, "", "messages") if path == "/v1/messages" else None
