"""The values of a template variable: loaded from a list or a file, counted, and drawn by number.

An `Axis` numbers every value that a variable can take, so that a prompt plan can draw the i-th prompt
without drawing those before it. With ``pick`` above 1 a value is a choice of that many groups
(categories of a topics file) and one member of each.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from tunemill.errors import ConfigError
from tunemill.generate.shuffle import shuffled
from tunemill.store import Location

__all__ = ["Axis", "load_axis"]


@dataclasses.dataclass(frozen=True)
class Axis:
    """All values of one variable."""

    name: str
    groups: tuple[tuple[str, ...], ...]
    """A plain list has one group for each value."""
    pick: int = 1
    join: str = ", "

    @cached_property
    def _ways(self) -> list[list[int]]:
        """ways[g][k]: number of choices of k members of different groups among groups g, g+1, ..."""
        ways = [[1] + [0] * self.pick]
        for group in reversed(self.groups):
            below = ways[0]
            ways.insert(0, [1] + [below[k] + len(group) * below[k - 1] for k in range(1, self.pick + 1)])
        return ways

    @property
    def size(self) -> int:
        """How many values there are (orders of the same picks count once)."""
        return self._ways[0][self.pick]

    def value(self, index: int) -> str:
        """The value with this number, 0 <= index < size."""
        picked: list[str] = []
        for g, group in enumerate(self.groups):
            wanted = self.pick - len(picked)
            if not wanted:
                break
            without = self._ways[g + 1][wanted]
            if index < without:
                continue
            member, index = divmod(index - without, self._ways[g + 1][wanted - 1])
            picked.append(group[member])
        if len(picked) > 1:
            # In the order of the file, the last category would always be named last.
            picked = shuffled(picked, f"{self.name}:{picked}")
        return self.join.join(picked)

    def values(self) -> tuple[str, ...]:
        """All single values, for a label."""
        return tuple(text for group in self.groups for text in group)


def load_axis(name: str, spec: Any) -> Axis:
    """Read a variable's values; ConfigError when its file cannot be read or has too few values."""
    if not isinstance(spec, Mapping):
        return Axis(name, tuple((str(value),) for value in spec))
    path, pick = str(spec["file"]), int(spec.get("pick", 1))
    where = f"generate.variables.{name}: file {path}"
    groups = _read_groups(path, where)
    if len(groups) < pick:
        raise ConfigError(f"{where}: pick is {pick}, but it has only {len(groups)} categories or values to pick from")
    return Axis(name, groups, pick, str(spec.get("join", ", ")))


def _read_groups(path: str, where: str) -> tuple[tuple[str, ...], ...]:
    try:
        text = Location.of(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{where}: no such file (relative paths start where the command is typed)") from error
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 text at byte {error.start}") from error
    groups = (
        _json_groups(text, where)
        if path.endswith(".json")
        else tuple((line.strip(),) for line in text.splitlines() if line.strip())
    )
    if not groups:
        raise ConfigError(f"{where}: holds no values")
    seen: set[str] = set()
    for value in (value for group in groups for value in group):
        if value in seen:
            raise ConfigError(f"{where}: holds {value!r} twice; list each value once")
        seen.add(value)
    return groups


def _json_groups(text: str, where: str) -> tuple[tuple[str, ...], ...]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: not valid JSON ({error})") from error
    if isinstance(content, list) and all(isinstance(value, str) and value.strip() for value in content):
        return tuple((value,) for value in content)
    right = 'should be {"data": [{"category": "...", "topics": ["...", ...]}, ...]} or a list of texts'
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list):
        raise ConfigError(f"{where}: {right}")
    groups = []
    for i, entry in enumerate(data):
        topics = entry.get("topics") if isinstance(entry, dict) else None
        if not isinstance(topics, list) or not topics or not all(isinstance(topic, str) and topic.strip() for topic in topics):
            raise ConfigError(f"{where}: data[{i}] has no list of topics; {right}")
        groups.append(tuple(topics))
    return tuple(groups)
