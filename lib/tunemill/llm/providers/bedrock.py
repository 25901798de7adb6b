"""Amazon Bedrock: requests, answers, errors. `tunemill.llm.providers.bedrock_client` sends them with boto3.

Quotas reserve input + max_tokens at the start and settle when the answer is there; InvokeModel and Converse share
them. There is no Retry-After.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from tunemill.errors import ConfigError
from tunemill.llm.config import ModelConfig
from tunemill.llm.providers import hints
from tunemill.llm.providers.anthropic import read_message
from tunemill.llm.providers.bedrock_bodies import body_of, family_of, takes
from tunemill.llm.providers.failures import bad_answer, error_facts, failure, kind_of_status, says_too_long
from tunemill.llm.providers.wire import JSON_HEADERS, check_params, dump, merged, normal_url, parse
from tunemill.llm.request import Answer, Failure, FailureKind, LimitHeaders, Prompt, WireRequest

__all__ = ["EMBEDDINGS", "PROVIDER", "Bedrock", "BedrockEmbeddings", "region_of"]

_KINDS: Mapping[str, FailureKind] = {
    "ThrottlingException": "throttled",
    "Throttling": "throttled",
    "TooManyRequestsException": "throttled",
    "RequestLimitExceeded": "throttled",
    "ServiceQuotaExceededException": "throttled",
    "ModelNotReadyException": "overloaded",
    "ServiceUnavailableException": "overloaded",
    "InternalServerException": "overloaded",
    "InternalFailure": "overloaded",
    "ModelErrorException": "overloaded",
    "ModelTimeoutException": "timeout",
    "ResourceNotFoundException": "not_found",
    "AccessDeniedException": "auth",
    "UnrecognizedClientException": "auth",
    "ExpiredTokenException": "auth",
    "InvalidSignatureException": "auth",
    "InvalidClientTokenId": "auth",
    "MissingAuthenticationTokenException": "auth",
    "ValidationException": "rejected",
}
_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "stop": "stop",
    "tool_use": "stop",
    "endoftext": "stop",
    "finish": "stop",
    "finished": "stop",
    "stop_criteria_met": "stop",
    "max_tokens": "length",
    "length": "length",
    "model_context_window_exceeded": "length",
}
_BLOCKED = frozenset({"guardrail_intervened", "content_filtered", "refusal"})


class _BedrockBase:
    """Address, errors and limits."""

    name = "bedrock"
    reserves_output = True

    def endpoint(self, model: ModelConfig) -> str:
        """The runtime's address in the region."""
        return normal_url(model, f"https://bedrock-runtime.{region_of(model)}.amazonaws.com")

    def auth_headers(self, model: ModelConfig) -> dict[str, str]:
        """None here: boto3 signs with the usual AWS credentials."""
        return {}

    def limits(self, headers: Mapping[str, str]) -> LimitHeaders:
        """Bedrock sends none; a proxy may send retry-after."""
        return LimitHeaders(retry_after_s=hints.retry_after_s(hints.lower(headers)))

    def output_weight(self, model: ModelConfig) -> float:
        """Output of Claude 3.7 and the 4 class burns the quota five times as fast."""
        return 5.0 if re.search(r"claude-(?:3-7|(?:opus|sonnet|haiku)-[4-9])", model.model) else 1.0

    def error(self, status: int, headers: Mapping[str, str], body: bytes, value: Any) -> Failure:
        """Sort by the exception's name, which stands in a header or in the body."""
        found = hints.lower(headers)
        inside = value.get("__type", "") if isinstance(value, dict) else ""
        name = (found.get("x-amzn-errortype") or str(inside)).partition(":")[0].rpartition("#")[2]
        _, _, message = error_facts(value, body)
        kind = _KINDS.get(name, kind_of_status(status))
        if kind == "throttled" and "per day" in message:
            kind = "quota_day"
        elif kind == "rejected" and says_too_long(message):
            kind = "too_long"
        elif kind == "rejected" and re.search(r"model identifier is invalid|on-demand throughput isn.t supported", message):
            kind = "not_found"
        return failure(kind, f"{name}: {message}" if name else message, status=status, retry_after_s=hints.retry_after_s(found))

    def wire(self, model: ModelConfig, operation: str, body: Mapping[str, Any]) -> WireRequest:
        """The request, with ``params.extra`` laid over its body."""
        path = "converse" if operation == "converse" else "invoke"
        return WireRequest(
            method="POST",
            url=f"{self.endpoint(model)}/model/{model.model}/{path}",
            headers=JSON_HEADERS,
            body=dump(merged(body, model.params.extra)),
            operation=operation,
        )


class Bedrock(_BedrockBase):
    """InvokeModel for the older families, Converse for the rest."""

    def check(self, model: ModelConfig) -> None:
        """Parameters, body format, region and address; credentials are boto3's and are checked when its client is made."""
        check_params(model, takes(model))
        if model.api_key_env is not None:
            raise ConfigError(f"models.{model.name}: api_key_env is set, but bedrock uses AWS credentials; leave it out")
        self.endpoint(model)

    def build(
        self, model: ModelConfig, prompt: Prompt, *, schema: Mapping[str, Any] | None, sample: int, seed: int | None
    ) -> WireRequest:
        """The request; none of Bedrock's bodies takes a seed."""
        family = family_of(model)
        return self.wire(model, "converse" if family == "converse" else "invoke_model", body_of(family, model, prompt, schema))

    def read(self, status: int, headers: Mapping[str, str], body: bytes) -> Answer | Failure:
        """The answer in any family's shape."""
        value = parse(body)
        if status >= 400:
            return self.error(status, headers, body, value)
        if not isinstance(value, dict):
            return bad_answer("the body is not JSON", status, body)
        found = hints.lower(headers)
        if "content" in value:
            return read_message(status, body, value)
        reader = next((reader for key, reader in _READERS.items() if key in value), None)
        if reader is None:
            return bad_answer("the body has no answer", status, body)
        try:
            text, reason, input_tokens, output_tokens = reader(value)
        except (KeyError, IndexError, TypeError):
            return bad_answer("the body has no answer", status, body)
        reason = reason.lower()
        blocked = reason if reason in _BLOCKED else None
        return Answer(
            text=text,
            finish_reason="blocked" if blocked else _REASONS.get(reason, reason),
            input_tokens=_header_count(found, "input", input_tokens),
            output_tokens=_header_count(found, "output", output_tokens),
            blocked=blocked,
        )


class BedrockEmbeddings(_BedrockBase):
    """Titan embeddings (one text a call) and Cohere's (96 texts a call)."""

    reserves_output = False

    def check(self, model: ModelConfig) -> None:
        """Region, address and family."""
        check_params(model, ())
        self.texts_per_call(model)
        self.endpoint(model)

    def texts_per_call(self, model: ModelConfig) -> int:
        """By family; ConfigError for one that is not known."""
        if re.search(r"amazon\.titan-embed", model.model):
            return 1
        if re.search(r"cohere\.embed", model.model):
            return 96
        raise ConfigError(f"models.{model.name}: model is {model.model}, should be amazon.titan-embed-* or cohere.embed-*")

    def build(
        self, model: ModelConfig, prompt: Prompt, *, schema: Mapping[str, Any] | None, sample: int, seed: int | None
    ) -> WireRequest:
        """InvokeModel; input_type of Cohere and dimensions of Titan can be set in params.extra."""
        texts = [m.content for m in prompt.messages]
        bound = self.texts_per_call(model)
        if len(texts) > bound:
            raise ConfigError(f"models.{model.name}: {len(texts)} texts in one call, but {model.model} takes {bound}")
        if bound == 1:
            return self.wire(model, "invoke_model", {"inputText": texts[0]})
        return self.wire(model, "invoke_model", {"texts": texts, "input_type": "search_document"})

    def read(self, status: int, headers: Mapping[str, str], body: bytes) -> Answer | Failure:
        """One vector, or one for each text."""
        value = parse(body)
        if status >= 400:
            return self.error(status, headers, body, value)
        if not isinstance(value, dict):
            return bad_answer("the body is not JSON", status, body)
        vectors = [value["embedding"]] if value.get("embedding") else value.get("embeddings")
        if isinstance(vectors, dict):
            vectors = vectors.get("float")
        if not vectors:
            return bad_answer("the body has no embeddings", status, body)
        tokens = _header_count(hints.lower(headers), "input", int(value.get("inputTextTokenCount") or 0))
        return Answer(text="", finish_reason="stop", input_tokens=tokens, output_tokens=0, vectors=vectors)


def region_of(model: ModelConfig) -> str:
    """The AWS region; ConfigError where neither the entry nor the environment names one."""
    region = model.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region:
        raise ConfigError(f"models.{model.name}: region is missing, should be an AWS region like us-east-1 (or set AWS_REGION)")
    return region


def _header_count(headers: Mapping[str, str], kind: str, otherwise: int) -> int:
    text = headers.get(f"x-amzn-bedrock-{kind}-token-count", "")
    return int(text) if text.isdigit() else otherwise


def _read_j2(value: Mapping[str, Any]) -> tuple[str, str, int, int]:
    first = value["completions"][0]
    # no token counts are sent: the arrays are counted
    tokens = first["data"].get("tokens") or ()
    return first["data"]["text"], first["finishReason"]["reason"], len(value["prompt"].get("tokens") or ()), len(tokens)


def _read_titan(value: Mapping[str, Any]) -> tuple[str, str, int, int]:
    first = value["results"][0]
    return first["outputText"], first["completionReason"], int(value.get("inputTextTokenCount") or 0), int(first["tokenCount"])


def _read_claude2(value: Mapping[str, Any]) -> tuple[str, str, int, int]:
    return value["completion"], value["stop_reason"], 0, 0


def _read_llama(value: Mapping[str, Any]) -> tuple[str, str, int, int]:
    counts = (int(value.get(f"{kind}_token_count") or 0) for kind in ("prompt", "generation"))
    input_tokens, output_tokens = counts
    return value["generation"], value["stop_reason"], input_tokens, output_tokens


def _read_mistral(value: Mapping[str, Any]) -> tuple[str, str, int, int]:
    first = value["outputs"][0]
    return first["text"], first["stop_reason"], 0, 0


def _read_converse(value: Mapping[str, Any]) -> tuple[str, str, int, int]:
    content = value["output"]["message"]["content"]
    calls = [json.dumps(block["toolUse"]["input"], ensure_ascii=False) for block in content if "toolUse" in block]
    text = calls[0] if calls else "".join(block["text"] for block in content if "text" in block)
    usage = value.get("usage") or {}
    return text, value["stopReason"], int(usage.get("inputTokens") or 0), int(usage.get("outputTokens") or 0)


_READERS: Mapping[str, Callable[[Mapping[str, Any]], tuple[str, str, int, int]]] = {
    "completions": _read_j2,
    "results": _read_titan,
    "completion": _read_claude2,
    "generation": _read_llama,
    "outputs": _read_mistral,
    "output": _read_converse,
}

PROVIDER = Bedrock()
EMBEDDINGS = BedrockEmbeddings()
