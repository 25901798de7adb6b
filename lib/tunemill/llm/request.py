"""What goes to a provider and what comes back, as plain values: no I/O, no secrets, no provider's names.

A `Provider` turns a `Prompt` into a `WireRequest` and the raw response into an `Answer` or a `Failure`.
Sending is the caller's affair; a `WireRequest` never holds a key, so it may be logged, journalled and hashed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from tunemill.llm.config import ModelConfig

__all__ = [
    "Answer",
    "EmbeddingProvider",
    "Failure",
    "FailureKind",
    "LimitHeaders",
    "LimitWindow",
    "Message",
    "Prompt",
    "Provider",
    "WireRequest",
    "WireResponse",
    "derived_seed",
    "keyed_request",
    "request_key",
]

FailureKind = Literal[
    "throttled",  # a limit per minute: wait and try again
    "overloaded",  # the server's fault (5xx): back off and try again
    "timeout",
    "connection",
    "bad_answer",  # broken or empty body with a good status: may have been paid
    "rejected",  # this request is wrong and will stay so
    "too_long",  # prompt + answer do not fit the context
    "auth",  # hard: every further call would fail as well
    "not_found",  # hard: no such model, deployment or path
    "no_credit",  # hard: the account cannot pay
    "quota_day",  # park the model until the quota returns
]
_HARD = frozenset({"auth", "not_found", "no_credit"})


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """The messages of one call; for an embedding model, one message for each text."""

    messages: tuple[Message, ...]

    @classmethod
    def of(cls, text: str, system: str | None = None) -> Prompt:
        """A single user turn, with a system text before it when there is one."""
        head = (Message("system", system),) if system else ()
        return cls((*head, Message("user", text)))

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> Prompt:
        """Texts to embed in one call."""
        return cls(tuple(Message("user", text) for text in texts))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WireRequest:
    """The request as it is sent, without its secrets."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    operation: str | None = None
    """The boto3 operation (``invoke_model``, ``converse``); None means plain HTTP."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WireResponse:
    """The raw response: what the journal keeps."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the model said and what it took."""

    text: str
    finish_reason: str
    """``stop``, ``length`` or ``blocked``; anything else is the provider's own word in lower case."""
    input_tokens: int
    output_tokens: int
    blocked: str | None = None
    """Why the provider withheld the answer (``SAFETY``, ``content_filter``, ...); None when it did not."""
    vectors: Sequence[Sequence[float]] | None = None
    """Embedding models only: one vector for each text, in order."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a call gave no answer, and what to do about it."""

    kind: FailureKind
    message: str
    status: int | None = None
    """HTTP status; None when there was no response."""
    retry_after_s: float | None = None
    """How long the provider asks to wait; None when it does not say."""
    retryable: bool
    input_tokens: int = 0
    output_tokens: int = 0
    """Tokens that the failed call is known to have used."""

    @property
    def hard(self) -> bool:
        """Every further call to this model would fail as well: stop at once and say so."""
        return self.kind in _HARD


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LimitWindow:
    """One limit as the provider's headers state it; None where it says nothing."""

    limit: float | None = None
    remaining: float | None = None
    reset_s: float | None = None
    """Seconds until ``remaining`` is back at ``limit``."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LimitHeaders:
    """What a response says about the account's limits."""

    requests: LimitWindow | None = None
    tokens: LimitWindow | None = None
    input_tokens: LimitWindow | None = None
    output_tokens: LimitWindow | None = None
    retry_after_s: float | None = None


class Provider(Protocol):
    """One wire format. Instances hold no state."""

    name: str
    reserves_output: bool
    """True when the provider takes input + max_tokens from the token limit at the start and settles later."""

    def check(self, model: ModelConfig) -> None:
        """Raise ConfigError for what can be known to be wrong before any call: parameters, address, missing key."""

    def build(
        self, model: ModelConfig, prompt: Prompt, *, schema: Mapping[str, Any] | None, sample: int, seed: int | None
    ) -> WireRequest:
        """The request; ``seed`` goes into the body where the server takes one."""

    def endpoint(self, model: ModelConfig) -> str:
        """The part of the request's identity that says whose model answers."""

    def auth_headers(self, model: ModelConfig) -> dict[str, str]:
        """The secret headers, read from the environment at this moment; never log or keep them."""

    def read(self, status: int, headers: Mapping[str, str], body: bytes) -> Answer | Failure:
        """What the raw response means."""

    def limits(self, headers: Mapping[str, str]) -> LimitHeaders:
        """What the response's headers say about limits."""

    def output_weight(self, model: ModelConfig) -> float:
        """How many tokens of the token limit one output token takes when usage is settled (0 where output is not counted)."""


class EmbeddingProvider(Provider, Protocol):
    """A wire format for texts to vectors: a `Prompt` of texts in, an `Answer` with ``vectors`` out."""

    def texts_per_call(self, model: ModelConfig) -> int:
        """The most texts that one call takes."""


def request_key(wire: WireRequest, endpoint: str, model: str, sample: int) -> str:
    """Identity of a request: hash (32 hex digits) of its wire body, endpoint, model and sample number."""
    state = hashlib.blake2b(digest_size=16)
    for part in (wire.body, endpoint.encode(), model.encode(), str(sample).encode()):
        state.update(len(part).to_bytes(8, "big") + part)
    return state.hexdigest()


def derived_seed(key: str) -> int:
    """A seed (31 bits, which every server accepts) that belongs to one request."""
    return int(key[:8], 16) & 0x7FFFFFFF


def keyed_request(
    provider: Provider, model: ModelConfig, prompt: Prompt, *, schema: Mapping[str, Any] | None = None, sample: int = 0
) -> tuple[str, WireRequest]:
    """The key of a request and the request with the seed that is derived from it.

    The key is taken from the body before that seed is put in, since the seed follows from the key.
    """
    bare = provider.build(model, prompt, schema=schema, sample=sample, seed=None)
    key = request_key(bare, provider.endpoint(model), model.model, sample)
    return key, provider.build(model, prompt, schema=schema, sample=sample, seed=derived_seed(key))
