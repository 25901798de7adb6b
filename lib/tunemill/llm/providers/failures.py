"""Sorting error responses into the few kinds that call for different actions."""

from __future__ import annotations

import re
from typing import Any

from tunemill.llm.providers.wire import scrub
from tunemill.llm.request import Failure, FailureKind

__all__ = ["bad_answer", "error_facts", "failure", "kind_of_status", "says_too_long"]

_RETRYABLE = frozenset({"throttled", "overloaded", "timeout", "connection", "bad_answer"})
_TOO_LONG = re.compile(
    r"context[ _]length|context size|context window|prompt is too long|input is too long|too many (?:input )?tokens"
    r"|input token count.{0,40}exceeds|request too large|maximum (?:input|prompt) length|exceed_context_size",
    re.IGNORECASE,
)


def failure(
    kind: FailureKind,
    message: str,
    *,
    status: int | None,
    retry_after_s: float | None = None,
    input_tokens: int = 0,
    output_tokens: int = 0,
) -> Failure:
    """A Failure whose ``retryable`` follows from its kind and whose message is one short line without keys."""
    line = scrub(" ".join(message.split()))
    return Failure(
        kind=kind,
        message=line if len(line) <= 300 else f"{line[:297]}...",
        status=status,
        retry_after_s=retry_after_s,
        retryable=kind in _RETRYABLE,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )


def bad_answer(message: str, status: int, body: bytes, *, input_tokens: int = 0, output_tokens: int = 0) -> Failure:
    """A good status with a body that holds no answer; its beginning goes into the message."""
    start = body[:120].decode("utf-8", "replace")
    return failure("bad_answer", f"{message}: {start!r}", status=status, input_tokens=input_tokens, output_tokens=output_tokens)


def kind_of_status(status: int) -> FailureKind:
    """The kind that an HTTP status means where the body says nothing more."""
    named: dict[int, FailureKind] = {
        401: "auth",
        402: "no_credit",
        403: "auth",
        404: "not_found",
        408: "timeout",
        409: "overloaded",
        413: "too_long",
        425: "overloaded",
        429: "throttled",
        504: "timeout",
    }
    return named.get(status, "overloaded" if status >= 500 else "rejected")


def error_facts(value: Any, body: bytes) -> tuple[str, str, str]:
    """(code, type, message) of an error body in any of the shapes in use; empty strings for what is missing."""
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return "", "", body[:200].decode("utf-8", "replace").strip() or "empty body"
    error = value.get("error", value)
    if isinstance(error, dict):
        message = error.get("message") or error.get("detail") or body[:200].decode("utf-8", "replace")
        code = error.get("code")
        return "" if code is None else str(code), str(error.get("type") or ""), str(message)
    return "", "", str(error)


def says_too_long(message: str) -> bool:
    """True for the ways in which servers say that prompt and answer do not fit."""
    return _TOO_LONG.search(message) is not None
