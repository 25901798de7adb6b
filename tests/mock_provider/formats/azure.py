"""Azure OpenAI: OpenAI's bodies under a deployment's path, its own header for the key and for limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mock_provider.formats.base import Call, Format, LimitState, Problem, Reply
from mock_provider.formats.openai import OpenAI, hint_headers

__all__ = ["route"]

_PATH = re.compile(r"/openai/deployments/([^/]+)/(chat/completions|embeddings)")
_VERSIONS = re.compile(r"\d{4}-\d\d-\d\d(-preview)?")
_STATUS = {
    "invalid": (400, "BadRequest"),
    "too_long": (400, "context_length_exceeded"),
    "auth": (401, "401"),
    "not_found": (404, "DeploymentNotFound"),
    "server_error": (500, "InternalServerError"),
    "unavailable": (503, "ServiceUnavailable"),
    "overloaded": (503, "ServiceUnavailable"),
}


class Azure(OpenAI):
    """A resource with deployments; the token limit counts max_tokens from the start."""

    name = "azure"

    def key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        if "authorization" in headers:
            raise Problem("invalid", "Send the key as api-key.")
        return headers.get("api-key", "").strip()

    def parse(self, model: str, operation: str, query: Mapping[str, str], body: Any) -> Call:
        if not _VERSIONS.fullmatch(query.get("api-version", "")):
            raise Problem("not_found", "Resource not found: api-version is missing or unknown.")
        return super().parse(model, operation, query, body)

    def special(self, call: Call, what: str) -> Reply:
        if what != "blocked":
            return super().special(call, what)
        verdict = {"hate": {"filtered": False, "severity": "safe"}, "violence": {"filtered": True, "severity": "medium"}}
        inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": verdict}
        error = {
            "message": "The response was filtered.",
            "type": None,
            "param": "prompt",
            "code": "content_filter",
            "status": 400,
        }
        return Reply(status=400, body={"error": {**error, "innererror": inner}})

    def error(self, kind: str, message: str, *, hint: str = "usual", wait_s: float = 1.0) -> Reply:
        if kind == "throttle":
            headers = hint_headers(hint, wait_s)
            if hint == "usual":
                # whole seconds beside exact milliseconds: a client that reads only the first waits too long
                headers = {"retry-after-ms": f"{wait_s * 1000:.0f}", "retry-after": f"{int(wait_s) + 1}"}
            text = f"Requests have exceeded call rate limit. Please retry after {int(wait_s) + 1} seconds."
            return Reply(status=429, headers=headers, body={"error": {"code": "429", "message": text}})
        status, code = _STATUS[kind]
        return Reply(status=status, body={"error": {"code": code, "message": message}})

    def limit_headers(self, state: LimitState) -> dict[str, str]:
        headers = {"x-ratelimit-limit-requests": "-1", "x-ratelimit-remaining-requests": "0"}
        if "tokens" in state.limits:
            headers["x-ratelimit-limit-tokens"] = f"{state.limits['tokens']:.0f}"
            headers["x-ratelimit-remaining-tokens"] = f"{state.remaining['tokens']:.0f}"
        return headers


_AZURE = Azure()


def route(path: str) -> tuple[Format, str, str] | None:
    """(format, deployment, operation)."""
    found = _PATH.fullmatch(path)
    return None if found is None else (_AZURE, found[1], "chat" if found[2] == "chat/completions" else "embeddings")
