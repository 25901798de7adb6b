"""The one tree of errors. Each message says what was wrong, where, and what would be right.

Every class takes a single message, so that it survives pickling between Ray processes.
Errors of other libraries are mapped to these once, at the seam where they appear.
"""

from __future__ import annotations

import re

__all__ = [
    "BadInput",
    "ConfigError",
    "DataError",
    "Interrupted",
    "ResumeRefused",
    "RunFailed",
    "TemplateError",
    "TunemillError",
    "root_cause",
]

_RAYS_ADVICE = re.compile(r"\nFailed to [^\n]* after \d+/\d+ attempts \(total backoff.*", re.DOTALL)
"""What Ray Data appends to every error of a worker, about its own retries."""


class TunemillError(Exception):
    """Base of all errors that tunemill raises on purpose."""

    exit_code = 1


class BadInput(TunemillError):
    """The user's configuration or data is wrong; nothing was done. Exit code 2."""

    exit_code = 2


class ConfigError(BadInput):
    """A configuration file, flag or environment variable is wrong."""


class DataError(BadInput):
    """An input file, column, row or value is wrong."""


class TemplateError(BadInput):
    """A tokenizer's chat template cannot be shown to be right for training."""


class ResumeRefused(BadInput):
    """A finished stage was made with another configuration or input."""


class RunFailed(TunemillError):
    """The run stopped after it had begun; what is durable was kept. Exit code 1."""


class Interrupted(RunFailed):
    """The user stopped the run; the same command goes on from what was committed."""


def root_cause(error: BaseException) -> TunemillError | None:
    """Return the tunemill error inside a chain of wrappers (Ray wraps what workers raise), if any."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, TunemillError) and type(current).__module__ != "ray.exceptions":
            said = str(current)
            own = _RAYS_ADVICE.sub("", said)
            return current if own == said else type(current)(own)
        queue += [getattr(current, "cause", None), current.__cause__, current.__context__]
    return None
