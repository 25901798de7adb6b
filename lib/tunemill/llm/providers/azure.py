"""Azure OpenAI: OpenAI's bodies, with the deployment in the path, an ``api-key`` header and its own limit headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tunemill.llm.config import ModelConfig
from tunemill.llm.providers import hints
from tunemill.llm.providers.failures import error_facts
from tunemill.llm.providers.openai import OpenAI, OpenAIEmbeddings, chat_body
from tunemill.llm.providers.wire import (
    JSON_HEADERS,
    api_key,
    check_extra,
    check_params,
    dump,
    merged,
    normal_url,
    parse,
    sample_seed,
)
from tunemill.llm.request import Answer, Failure, LimitHeaders, Prompt, WireRequest

__all__ = ["EMBEDDINGS", "PROVIDER", "Azure", "AzureEmbeddings"]

_REASONING = re.compile(r"^(o\d|gpt-5)")
_NAMES = {
    name: name for name in ("temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty")
}  # Azure spells the common names as they are


class _AzureAddress:
    """What chat and embeddings share."""

    name = "azure"
    usual_key = "AZURE_OPENAI_API_KEY"

    def base(self, model: ModelConfig) -> str:
        """The resource's address: ``https://NAME.openai.azure.com``, or that with ``/openai/v1`` for the versionless API."""
        return re.sub(r"/openai(?:/deployments(?:/.*)?)?$", "", normal_url(model, None))

    def url(self, model: ModelConfig, path: str) -> str:
        """The address of one deployment's operation."""
        base = self.base(model)
        if base.endswith("/openai/v1"):
            return f"{base}/{path}"
        return f"{base}/openai/deployments/{model.model}/{path}?api-version={model.api_version}"

    def auth_headers(self, model: ModelConfig) -> dict[str, str]:
        """``api-key``."""
        key = api_key(model, model.api_key_env or self.usual_key)
        return {} if key is None else {"api-key": key}

    def limits(self, headers: Mapping[str, str]) -> LimitHeaders:
        """x-ratelimit-* where they are positive, retry-after-ms before retry-after."""
        return hints.rate_limit_headers(hints.lower(headers), zero_is_absent=True)


class Azure(_AzureAddress, OpenAI):
    """Chat completions. The token limit counts the prompt's estimate and max_tokens."""

    def check(self, model: ModelConfig) -> None:
        """Parameters, address and key."""
        check_params(model, _NAMES)
        check_extra(model, _NAMES)
        self.base(model)
        self.auth_headers(model)

    def build(
        self, model: ModelConfig, prompt: Prompt, *, schema: Mapping[str, Any] | None, sample: int, seed: int | None
    ) -> WireRequest:
        """POST {resource}/openai/deployments/{deployment}/chat/completions."""
        limit = "max_completion_tokens" if _REASONING.match(model.model) else "max_tokens"
        body = chat_body(model, prompt, schema=schema, seed=sample_seed(model, sample, seed), limit=limit)
        return WireRequest(
            method="POST",
            url=self.url(model, "chat/completions"),
            headers=JSON_HEADERS,
            body=dump(merged(body, model.params.extra)),
        )

    def read(self, status: int, headers: Mapping[str, str], body: bytes) -> Answer | Failure:
        """As OpenAI, but a prompt that the content filter stopped comes as status 400."""
        if status == 400:
            value = parse(body)
            code, _, _ = error_facts(value, body)
            if code in ("content_filter", "ResponsibleAIPolicyViolation"):
                return Answer(text="", finish_reason="blocked", blocked=_filters(value), input_tokens=0, output_tokens=0)
        return super().read(status, headers, body)


class AzureEmbeddings(_AzureAddress, OpenAIEmbeddings):
    """Embeddings of a deployment."""

    def build(
        self, model: ModelConfig, prompt: Prompt, *, schema: Mapping[str, Any] | None, sample: int, seed: int | None
    ) -> WireRequest:
        """POST {resource}/openai/deployments/{deployment}/embeddings."""
        body = {"model": model.model, "input": [m.content for m in prompt.messages], "encoding_format": "float"}
        return WireRequest(
            method="POST",
            url=self.url(model, "embeddings"),
            headers=JSON_HEADERS,
            body=dump(merged(body, model.params.extra)),
        )


def _filters(value: Any) -> str:
    """``content_filter`` with the categories that fired."""
    error = value.get("error") if isinstance(value, dict) else None
    inner = (error.get("innererror") if isinstance(error, dict) else None) or {}
    results = inner.get("content_filter_result") or {}
    fired = [name for name, verdict in results.items() if isinstance(verdict, dict) and verdict.get("filtered")]
    return "content_filter" + (f" ({', '.join(fired)})" if fired else "")


PROVIDER = Azure()
EMBEDDINGS = AzureEmbeddings()
