"""Helpers that every wire format shares: JSON bodies, addresses, keys from the environment, parameter checks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from tunemill.errors import ConfigError
from tunemill.llm.config import ModelConfig, Params

__all__ = [
    "JSON_HEADERS",
    "api_key",
    "check_extra",
    "check_params",
    "dump",
    "key_name",
    "merged",
    "normal_url",
    "parse",
    "sample_seed",
    "scrub",
    "secrets_of",
]

JSON_HEADERS = {"content-type": "application/json", "accept": "application/json"}
_USUAL_KEYS = (
    "OPENAI_API_KEY",
    "AZURE_OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "GEMINI_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_BEARER_TOKEN_BEDROCK",
)
_COMMON = ("temperature", "top_p", "top_k", "stop", "seed", "presence_penalty", "frequency_penalty")


def dump(body: Mapping[str, Any]) -> bytes:
    """The wire body. Key order is kept: structured output follows the order of a schema's properties."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def parse(body: bytes) -> Any:
    """The JSON value of a response body, or None where it is not JSON (cut off, HTML of a proxy, ...)."""
    try:
        return json.loads(body)
    except ValueError:
        return None


def merged(body: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """``body`` with ``extra`` laid over it at every depth; null removes a key (RFC 7386)."""
    result = dict(body)
    for key, value in extra.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, Mapping) else {}, value)
        else:
            result[key] = value
    return result


def normal_url(model: ModelConfig, default: str | None, *, cut: Iterable[str] = ()) -> str:
    """The server's base address without trailing slash and without the path endings in ``cut`` (longest first).

    Raises ConfigError where there is none, where it is no http(s) address, or where it could carry a secret.
    """
    where = f"models.{model.name}: base_url"
    text = (model.base_url or default or "").strip()
    if not text:
        raise ConfigError(f"{where} is missing, should be the address of the server, like https://NAME.openai.azure.com")
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{where} is {text.split('?')[0]!r}, should start with http:// or https:// and name a host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(f"{where} holds more than an address; a key belongs into the environment variable of api_key_env")
    path = parts.path.rstrip("/")
    for ending in sorted(cut, key=len, reverse=True):
        if path.endswith(ending):
            path = path[: -len(ending)].rstrip("/")
            break
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def key_name(model: ModelConfig, usual: str) -> str | None:
    """The environment variable that holds the key; None where no key is sent.

    A server given by ``base_url`` gets a key only when ``api_key_env`` names one: the usual key is never
    sent to a stranger.
    """
    if model.api_key_env is not None:
        return model.api_key_env
    return None if model.base_url else usual


def api_key(model: ModelConfig, variable: str | None) -> str | None:
    """The key, read now; ConfigError (naming the variable, never a value) where it is not set."""
    if variable is None:
        return None
    value = os.environ.get(variable, "").strip()
    if not value:
        raise ConfigError(f"models.{model.name}: no key for {model.provider}: set the environment variable {variable}")
    return value


def secrets_of(model: ModelConfig, usual: Iterable[str] = ()) -> list[str]:
    """Values that must not appear in anything written: the model's key, and every key under a usual name."""
    names = {name for name in (model.api_key_env, *usual, *_USUAL_KEYS) if name}
    return [value for name in names if len(value := os.environ.get(name, "").strip()) >= 6]


def scrub(text: str, secrets: Iterable[str] = ()) -> str:
    """``text`` without the given secrets and without anything that looks like a key."""
    for secret in secrets:
        text = text.replace(secret, "[key]")
    return _KEY_LIKE.sub("[key]", text)


_KEY_LIKE = re.compile(r"\b(?:sk-[\w*-]{6,}|AIza[\w-]{10,}|AKIA[A-Z0-9]{12,}|ASIA[A-Z0-9]{12,})|(?<=Bearer )[\w.~+/=-]{8,}")


def check_params(model: ModelConfig, takes: Iterable[str]) -> None:
    """ConfigError for a common parameter that is set though this provider does not take it."""
    taken = set(takes)
    unset = Params()
    for name in _COMMON:
        value = getattr(model.params, name)
        if value != getattr(unset, name) and name not in taken:
            names = ", ".join(n for n in (*_COMMON, "max_tokens") if n in taken or n == "max_tokens")
            raise ConfigError(
                f"models.{model.name}: params.{name} is {value!r}, but {model.provider} {model.model} does not take it; "
                f"it takes {names} (and anything of its own in params.extra)"
            )


def check_extra(model: ModelConfig, common: Mapping[str, str]) -> None:
    """ConfigError for what ``params.extra`` must not hold: streaming, several answers, a second spelling.

    ``common`` maps the wire's top-level names to the common names that already set them.
    """
    where = f"models.{model.name}: params.extra"
    if model.params.extra.get("stream"):
        raise ConfigError(f"{where}.stream is true, but answers are read whole; leave it out")
    if model.params.extra.get("n", 1) != 1:
        raise ConfigError(f"{where}.n is {model.params.extra['n']!r}, but one call is one answer; ask for samples instead")
    for wire, name in common.items():
        value = getattr(model.params, name)
        if model.params.extra.get(wire) is not None and value not in (None, ()) and name != "max_tokens":
            raise ConfigError(f"{where}.{wire} is set together with params.{name}; keep one of them")


def sample_seed(model: ModelConfig, sample: int, seed: int | None) -> int | None:
    """The seed on the wire: the user's for sample 0 and the next ones for further samples, else the derived one."""
    return seed if model.params.seed is None else (model.params.seed + sample) & 0x7FFFFFFF
