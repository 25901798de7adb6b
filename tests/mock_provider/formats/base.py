"""What every wire format must say, and the strict checking of bodies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["NUMBER", "Call", "Format", "LimitState", "Problem", "Reply", "check", "tokens_in"]

NUMBER = (int, float)
_NAMES = {int: "integer", float: "number", str: "string", list: "array", dict: "object", bool: "boolean"}


@dataclasses.dataclass(kw_only=True)
class Call:
    """A request that was understood."""

    provider: str
    operation: str
    model: str
    texts: list[str]
    max_tokens: int = 0
    schema: Mapping[str, Any] | None = None
    reserves_output: bool = False
    counts_output: bool = True
    input_tokens: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.input_tokens = sum(tokens_in(text) for text in self.texts)


@dataclasses.dataclass(kw_only=True)
class Reply:
    """A response."""

    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: Any = None


@dataclasses.dataclass(kw_only=True)
class LimitState:
    """What the limiter knows, for the headers."""

    limits: dict[str, float]
    remaining: dict[str, float]
    reset_s: dict[str, float]


class Problem(Exception):
    """A request that is refused: kind of refusal and message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Format(Protocol):
    """One provider's wire format."""

    name: str

    def key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        """The caller's key; "" where there is none; Problem where it is in a forbidden place."""

    def parse(self, model: str, operation: str, query: Mapping[str, str], body: Any) -> Call:
        """Check the body strictly; Problem for anything that the provider would refuse."""

    def answer(self, call: Call, text: str, reason: str, output_tokens: int) -> Reply:
        """A good answer; ``reason`` is stop or length."""

    def vectors(self, call: Call, vectors: list[list[float]]) -> Reply:
        """Embeddings."""

    def special(self, call: Call, what: str) -> Reply:
        """``empty`` (no choices), ``blocked`` (prompt) or ``filtered`` (answer)."""

    def error(self, kind: str, message: str, *, hint: str = "usual", wait_s: float = 1.0) -> Reply:
        """A refusal: invalid, too_long, auth, not_found, throttle, server_error, unavailable, overloaded."""

    def limit_headers(self, state: LimitState) -> dict[str, str]:
        """What a response says about limits."""


def tokens_in(text: str) -> int:
    """The mock's tokenizer: four characters a token."""
    return len(text) // 4 + 1


def check(body: Any, fields: Mapping[str, Any], *, required: tuple[str, ...] = (), where: str = "") -> None:
    """Refuse a body that is no object, lacks a field, has an unknown one or one of the wrong type.

    ``fields``: name -> type or tuple of types.
    """
    if not isinstance(body, dict):
        raise Problem("invalid", f"Invalid type for '{where or 'body'}': expected an object")
    for name in required:
        if name not in body:
            raise Problem("invalid", f"Missing required parameter: '{where}{name}'.")
    for name, value in body.items():
        if name not in fields:
            raise Problem("invalid", f"Unrecognized request argument supplied: {where}{name}")
        types = fields[name] if isinstance(fields[name], tuple) else (fields[name],)
        wrong_bool = isinstance(value, bool) and bool not in types
        if wrong_bool or not isinstance(value, types):
            raise Problem("invalid", f"Invalid type for '{where}{name}': expected {_NAMES.get(types[0], types[0])}")
