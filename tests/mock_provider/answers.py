"""Made-up answers: words, JSON that fits a schema, unit vectors. All follow from the body."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from typing import Any

from mock_provider.formats.base import tokens_in

__all__ = ["cut_to", "fitting", "vector", "words"]

_STORY = (
    "the mill turns slowly under bright quiet water and grain falls into warm stone hands while morning light comes over "
    "a long low hill where nobody has ever counted how many sacks were carried down before the bread was cold again "
)


def words(body_hash: str, tokens: int) -> str:
    """``tokens`` tokens of text that differs from body to body."""
    start = int(body_hash[:4], 16) % len(_STORY)
    story = _STORY[start:] + _STORY * (tokens * 4 // len(_STORY) + 1)
    return f"{body_hash[:8]} {story}"[: max(1, tokens * 4 - 1)].strip()


def cut_to(text: str, tokens: int) -> tuple[str, str]:
    """(text cut at ``tokens``, finish reason)."""
    return (text, "stop") if tokens_in(text) <= tokens else (text[: max(0, tokens * 4 - 1)], "length")


def fitting(schema: Mapping[str, Any]) -> str:
    """JSON text that fits a simple schema."""
    return json.dumps(_value(schema))


def vector(text: str, dimension: int) -> list[float]:
    """A unit vector that belongs to a text."""
    chance = random.Random(text)
    values = [chance.gauss(0, 1) for _ in range(dimension)]
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return [value / length for value in values]


def _value(schema: Mapping[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    kind = str(schema.get("type", "object")).lower()
    if kind == "object":
        return {name: _value(part) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [_value(schema["items"])] * max(1, schema.get("minItems", 1))
    made: dict[str, Any] = {"string": "mock", "integer": schema.get("minimum", 1), "number": 0.5, "boolean": True}
    return made.get(kind)
