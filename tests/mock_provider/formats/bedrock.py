"""Bedrock runtime: InvokeModel with a body for each family, embeddings, and Converse. Requests must be signed."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from mock_provider.formats import anthropic
from mock_provider.formats.base import NUMBER, Call, Format, LimitState, Problem, Reply, check
from mock_provider.formats.bedrock_families import FAMILIES, Family, family_of

__all__ = ["route"]

_PATH = re.compile(r"/model/(.+)/(invoke|converse)")
_SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/\d{8}/([\w-]+)/bedrock/aws4_request, SignedHeaders=.+, Signature=\w{64}"
)
_CONVERSE = {
    "messages": list,
    "system": list,
    "inferenceConfig": dict,
    "additionalModelRequestFields": dict,
    "toolConfig": dict,
    "guardrailConfig": dict,
    "performanceConfig": dict,
    "requestMetadata": dict,
}
_INFERENCE = {"maxTokens": int, "temperature": NUMBER, "topP": NUMBER, "stopSequences": list}
_STATUS = {
    "invalid": (400, "ValidationException"),
    "too_long": (400, "ValidationException"),
    "auth": (403, "UnrecognizedClientException"),
    "not_found": (404, "ResourceNotFoundException"),
    "throttle": (429, "ThrottlingException"),
    "server_error": (500, "InternalServerException"),
    "unavailable": (503, "ServiceUnavailableException"),
    "overloaded": (503, "ServiceUnavailableException"),
}


class Bedrock:
    """One region; the quota reserves input + max_tokens."""

    name = "bedrock"

    def key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        found = _SIGNED.fullmatch(headers.get("authorization", ""))
        return "" if found is None else f"{found[1]}/{found[2]}"

    def parse(self, model: str, operation: str, query: Mapping[str, str], body: Any) -> Call:
        if operation == "converse":
            return self._parse_converse(model, body)
        family = family_of(model)
        if family is None:
            raise Problem("invalid", "The provided model identifier is invalid.")
        texts, limit, schema = family.parse(body)
        return Call(
            provider=self.name,
            operation="embeddings" if family.embeds else f"invoke:{family.name}",
            model=model,
            texts=texts,
            max_tokens=limit,
            schema=schema,
            reserves_output=True,
        )

    def answer(self, call: Call, text: str, reason: str, output_tokens: int) -> Reply:
        headers = _token_headers(call, output_tokens)
        if call.operation == "converse":
            content, stop = self._content(call, text, reason)
            return Reply(headers=headers, body=self._converse(call, content, stop, output_tokens))
        family = self._family(call)
        body = family.answer(call, text, reason == "stop", output_tokens)
        return Reply(headers={} if family.name == "j2" else headers, body=body)

    def vectors(self, call: Call, vectors: list[list[float]]) -> Reply:
        if "titan" in call.model:
            body: dict[str, Any] = {"embedding": vectors[0], "inputTextTokenCount": call.input_tokens}
        else:
            body = {"embeddings": vectors, "id": "mock", "response_type": "embeddings_floats", "texts": call.texts}
        return Reply(headers=_token_headers(call, 0), body=body)

    def special(self, call: Call, what: str) -> Reply:
        if call.operation == "converse":
            content: list[Any] = [] if what == "empty" else [{"text": ""}]
            stop = {"empty": "end_turn", "blocked": "guardrail_intervened", "filtered": "content_filtered"}[what]
            body = self._converse(call, content, stop, 1)
            return Reply(body={**body, "output": {}} if what == "empty" else body)
        if what == "filtered" and "titan" in call.model:
            result = {"tokenCount": 0, "outputText": "", "completionReason": "CONTENT_FILTERED"}
            return Reply(body={"inputTextTokenCount": call.input_tokens, "results": [result]})
        return Reply(body={"completions": []} if "j2" in call.model else {})

    def error(self, kind: str, message: str, *, hint: str = "usual", wait_s: float = 1.0) -> Reply:
        status, name = _STATUS[kind]
        if kind == "throttle":
            message = "Too many requests, please wait before trying again."
            if hint == "per-day":
                message = "Too many tokens per day, please wait before trying again."
        if kind == "too_long":
            message = f"Input is too long for requested model. {message}"
        return Reply(
            status=status, headers={"x-amzn-errortype": f"{name}:http://internal.amazon.com/"}, body={"message": message}
        )

    def limit_headers(self, state: LimitState) -> dict[str, str]:
        return {}

    def _parse_converse(self, model: str, body: Any) -> Call:
        check(body, _CONVERSE, required=("messages",))
        texts = [block["text"] for block in body.get("system", ())]
        for i, item in enumerate(body["messages"]):
            check(item, {"role": str, "content": list}, required=("role", "content"), where=f"messages.{i}.")
            if item["role"] != ("user", "assistant")[i % 2]:
                raise Problem("invalid", "A conversation must alternate between user and assistant roles, and start with user.")
            texts += [block["text"] for block in item["content"]]
        config = body.get("inferenceConfig", {})
        check(config, _INFERENCE, where="inferenceConfig.")
        schema = None
        for tool in body.get("toolConfig", {}).get("tools", ()):
            schema = tool["toolSpec"]["inputSchema"]["json"]
        return Call(
            provider=self.name,
            operation="converse",
            model=model,
            texts=texts,
            max_tokens=config.get("maxTokens", 4096),
            schema=schema,
            reserves_output=True,
        )

    def _content(self, call: Call, text: str, reason: str) -> tuple[list[Any], str]:
        if call.schema is not None and reason == "stop":
            block = anthropic.message(call, text, reason, 0)["content"][0]
            return [{"toolUse": {"toolUseId": block["id"], "name": block["name"], "input": block["input"]}}], "tool_use"
        return [{"text": text}], "end_turn" if reason == "stop" else "max_tokens"

    def _converse(self, call: Call, content: list[Any], stop: str, output_tokens: int) -> dict[str, Any]:
        used = call.input_tokens
        usage = {"inputTokens": used, "outputTokens": output_tokens, "totalTokens": used + output_tokens}
        output = {"message": {"role": "assistant", "content": content}}
        return {"output": output, "stopReason": stop, "usage": usage, "metrics": {"latencyMs": 10}}

    def _family(self, call: Call) -> Family:
        return FAMILIES[call.operation.removeprefix("invoke:")]


def _token_headers(call: Call, output_tokens: int) -> dict[str, str]:
    prefix = "x-amzn-bedrock"
    counts = {"input-token-count": call.input_tokens, "output-token-count": output_tokens, "invocation-latency": 10}
    return {f"{prefix}-{name}": str(value) for name, value in counts.items()}


_BEDROCK = Bedrock()


def route(path: str) -> tuple[Format, str, str] | None:
    """(format, model id, operation)."""
    found = _PATH.fullmatch(path)
    return None if found is None else (_BEDROCK, urllib.parse.unquote(found[1]), found[2])
