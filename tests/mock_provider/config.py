"""What a mock server does, as plain data that travels to its process as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

__all__ = ["FAULTS", "HINTS", "Faults", "Latency", "Limit", "MockConfig", "from_json", "to_json"]

FAULTS = (
    "throttle",  # 429 though the limiter had room; not paid
    "server_error",  # 500; not paid
    "unavailable",  # 503; not paid
    "overloaded",  # 529 where the provider has it, else 503; not paid
    "gateway",  # 502 with an HTML body; not paid
    "error_200",  # an error as JSON body with status 200; not paid
    "timeout",  # paid, and never answered
    "cut",  # paid, then the connection is closed without an answer
    "cut_body",  # paid, then the connection is closed in the middle of the body
    "truncated",  # paid, complete response whose JSON ends in the middle
    "empty",  # paid, no choices
    "blocked",  # the prompt is blocked; its input is paid
    "filtered",  # the answer is withheld; paid
    "slow_first_byte",  # paid, answered after slow_s
)
HINTS = (
    "usual",  # what the provider sends
    "none",
    "retry-after",
    "retry-after-date",
    "retry-after-ms",
    "message",  # OpenAI: "Please try again in 20ms."
    "per-day",  # a daily quota
    "no-credit",  # insufficient_quota and its kin
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit:
    """What an account may do with a model; None is unlimited."""

    rpm: float | None = None
    tpm: float | None = None
    input_tpm: float | None = None
    output_tpm: float | None = None
    window_s: float = 60.0
    kind: Literal["sliding", "bucket", "both"] = "sliding"
    burst: float = 1.0
    """Capacity of the bucket as a share of a window's allowance (it starts full)."""
    request_window_s: float | None = None
    """Requests are also held to rpm over this shorter window (Azure: 1 or 10)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds from request to answer."""

    kind: Literal["constant", "lognormal", "slow_tail"] = "constant"
    mean_s: float = 0.0
    """Constant's value, else the median."""
    sigma: float = 0.5
    """Spread of the lognormal."""
    tail_share: float = 0.01
    """Share of slow answers (slow_tail)."""
    tail_s: float = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong. Which call is hit depends on the seed, its body and its attempt, not on the order of arrival."""

    share: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Fault name -> probability for each attempt."""
    script: tuple[str | None, ...] = ()
    """Faults of the first calls by order of arrival; None is a good answer."""
    each: tuple[str | None, ...] = ()
    """Faults of the first attempts of every body: ("server_error",) fails each once."""
    hint: str = "usual"
    """How throttled answers say when to come back."""
    wait_s: float = 1.0
    """What a thrown-in throttle's hint says."""
    slow_s: float = 5.0
    hang_s: float = 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MockConfig:
    """One server."""

    seed: int = 0
    limits: Mapping[str, Limit] = dataclasses.field(default_factory=dict)
    """Model name -> limits; "*" is every other model. Each (provider, key, model) is counted by itself."""
    latency: Latency = dataclasses.field(default_factory=Latency)
    faults: Faults = dataclasses.field(default_factory=Faults)
    answer_tokens: int = 20
    """Length of answers (cut at max_tokens)."""
    answers: tuple[str, ...] = ()
    """Texts to answer with in turn by attempt of a body; the last one stays. Empty: made-up words."""
    models: tuple[str, ...] = ()
    """Known models; empty knows all."""
    keys: tuple[str, ...] = ()
    """Accepted keys; empty accepts any that is not empty."""
    need_key: bool = True
    context_tokens: int = 1_000_000
    dimension: int = 8
    """Length of embedding vectors."""


def to_json(config: MockConfig) -> str:
    """For the command line of the server's process."""
    return json.dumps(dataclasses.asdict(config))


def from_json(text: str) -> MockConfig:
    """The inverse of `to_json`; missing fields take their defaults."""
    values: dict[str, Any] = json.loads(text)
    if "limits" in values:
        values["limits"] = {name: Limit(**limit) for name, limit in values["limits"].items()}
    if "latency" in values:
        values["latency"] = Latency(**values["latency"])
    if "faults" in values:
        faults = values["faults"]
        lists = {name: tuple(faults[name]) for name in ("script", "each") if name in faults}
        values["faults"] = Faults(**{**faults, **lists})
    for name in ("models", "keys", "answers"):
        if name in values:
            values[name] = tuple(values[name])
    config = MockConfig(**values)
    names = {*config.faults.share, *config.faults.script, *config.faults.each} - {None}
    if not names <= set(FAULTS) or config.faults.hint not in HINTS:
        raise ValueError(f"unknown fault or hint in {sorted(map(str, names))}, {config.faults.hint}; known: {FAULTS} {HINTS}")
    return config
