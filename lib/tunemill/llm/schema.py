"""Structured output: a JSON schema is checked before any call, and each answer is checked against it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from tunemill.errors import ConfigError

__all__ = ["check_schema", "schema_problem"]


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise ConfigError where ``schema`` is no JSON schema of an object (which is what all providers can be held to)."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise ConfigError(f"response_schema{_place(error)}: {error.message}") from error
    if schema.get("type") != "object" or not schema.get("properties"):
        raise ConfigError(f"response_schema: type is {schema.get('type')!r}, should be object with properties")


def schema_problem(schema: Mapping[str, Any], text: str) -> str | None:
    """Why ``text`` is not JSON that fits ``schema``; None where it fits."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"the answer is not JSON ({error})"
    first = next(iter(_validator(json.dumps(schema)).iter_errors(value)), None)
    return None if first is None else f"the answer's JSON{_place(first)}: {first.message[:200]}"


@functools.lru_cache(maxsize=16)
def _validator(schema: str) -> Any:
    from jsonschema.validators import validator_for

    parsed = json.loads(schema)
    return validator_for(parsed)(parsed)


def _place(error: Any) -> str:
    path = ".".join(str(part) for part in error.absolute_path)
    return f" at {path}" if path else ""
