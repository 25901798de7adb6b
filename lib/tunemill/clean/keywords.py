"""Patterns of padding: read from data, matched against segments. The languages are the data's business."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Sequence

from tunemill.clean.config import CleanConfig
from tunemill.errors import ConfigError
from tunemill.store import Location

__all__ = ["Patterns", "load_patterns"]

_LEAST_REST = 3
_CLOSING = " *_\"'”»"


class Patterns:
    """Compiled patterns, matched without regard to case."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]

    def hit(self, segment: str) -> bool:
        """True where a pattern matches somewhere in the segment, or where it ends in a colon and so announces another."""
        announces = segment.rstrip(_CLOSING).endswith((":", "："))
        return announces or any(pattern.search(segment) for pattern in self._patterns)

    def cut_lead_in(self, segment: str) -> list[str]:
        """``Here is one: I love olives.`` in two, where a pattern matches a beginning that ends in a colon."""
        for mark in re.finditer(r"[:：]\s*", segment):
            lead, rest = segment[: mark.end()].rstrip(), segment[mark.end() :]
            if len(rest) >= _LEAST_REST and any(p.search(lead) for p in self._patterns):
                return [lead, rest]
        return [segment]


def load_patterns(config: CleanConfig) -> tuple[str, ...]:
    """The patterns of a configuration; ConfigError for a file that cannot be read or a line that is no pattern."""
    if config.keyword_patterns is not None:
        return config.keyword_patterns
    if config.keyword_file is None:
        text, where = (
            importlib.resources.files("tunemill.clean").joinpath("keywords.txt").read_text(encoding="utf-8"),
            "keywords.txt",
        )
    else:
        where = f"clean.keyword_file {config.keyword_file}"
        try:
            text = Location.of(config.keyword_file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: cannot be read as UTF-8 text ({error})") from error
    patterns = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            re.compile(line.strip())
        except re.error as error:
            raise ConfigError(f"{where} line {number}: {line.strip()!r} is not a regular expression ({error})") from error
        patterns.append(line.strip())
    return tuple(patterns)
