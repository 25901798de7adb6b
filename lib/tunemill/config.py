"""Configuration: frozen dataclasses filled from YAML and flags, with errors that fit on one line.

A config class is a ``@dataclass(frozen=True, kw_only=True)`` whose fields each carry a docstring
beneath themselves; that text is the ``--help`` text. Ranges are pydantic constraints in the
annotation (``Annotated[float, Field(gt=0, le=1)]``). Fields made with :func:`operational` steer how
a run is carried out, not what it yields, and are left out of the fingerprint.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import hashlib
import inspect
import itertools
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from tunemill.errors import ConfigError

__all__ = [
    "Flag",
    "build",
    "difference",
    "field_docs",
    "fingerprint",
    "flags_of",
    "load_yaml",
    "operational",
    "overlay",
    "set_flag",
    "to_plain",
]

C = TypeVar("C")


def operational(default: Any = dataclasses.MISSING, *, factory: Any = dataclasses.MISSING) -> Any:
    """A dataclass field outside the fingerprint: it changes speed, cost or display, never the rows."""
    metadata = {"operational": True}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML mapping; raises ConfigError naming the file and the line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"config file {path}: cannot be read ({error.strerror})") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"config file {path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"config file {path}: holds a {type(values).__name__}, should hold sections like 'dedup:'")
    return values


def build(config_type: type[C], values: Mapping[str, Any], where: str) -> C:
    """Check ``values`` against ``config_type`` and build it.

    ``where`` names the source for the message ("config file x.yaml", "flags"). Raises ConfigError with
    one line: the field's dotted path, the offending value and what would be right.
    """
    try:
        return typing.cast(C, _adapter(typing.cast(Any, config_type)).validate_python(dict(values)))
    except ValidationError as error:
        raise ConfigError(_one_line(config_type, error, where)) from error


def to_plain(config: Any) -> Any:
    """The configuration as plain dicts, lists and scalars (for YAML, JSON and comparison)."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_plain(item) for item in config]
    return str(config) if isinstance(config, Path) else config


def essential(config: Any) -> Any:
    """Like :func:`to_plain`, without the operational fields at any depth."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = (f for f in dataclasses.fields(config) if not f.metadata.get("operational"))
        return {f.name: essential(getattr(config, f.name)) for f in fields}
    if isinstance(config, Mapping):
        return {str(key): essential(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [essential(item) for item in config]
    return str(config) if isinstance(config, Path) else config


def fingerprint(value: Any) -> str:
    """A short stable hash of plain data, or of a config's non-operational fields."""
    text = json.dumps(essential(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def difference(old: Any, new: Any, path: str = "") -> list[str]:
    """The leaves that differ between two plain values, each as ``path: old -> new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for i, (a, b) in enumerate(zip(old, new, strict=True)) for line in difference(a, b, f"{path}.{i}")]
    return [] if old == new else [f"{path}: {_short(old)} -> {_short(new)}"]


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``top`` laid over it, mapping by mapping."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = overlay(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """One field as a command-line flag."""

    path: str
    type_name: str
    default: str
    doc: str


def flags_of(config_type: type, prefix: str = "") -> Iterator[Flag]:
    """Every leaf field of a config as a flag; items of lists show as ``models.0.name``."""
    docs = field_docs(config_type)
    hints = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        path = f"{prefix}{field.name}"
        inner, repeated = _config_inside(hints[field.name])
        if inner is not None:
            yield from flags_of(inner, f"{path}.0." if repeated else f"{path}.")
            continue
        default = field.default if field.default is not dataclasses.MISSING else None
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        yield Flag(
            path=path,
            type_name=_type_name(hints[field.name]),
            default="required" if required else _short(to_plain(default)),
            doc=docs.get(field.name, ""),
        )


@functools.cache
def field_docs(config_type: type) -> dict[str, str]:
    """The docstring beneath each field of a config class and of its bases."""
    docs: dict[str, str] = {}
    for base in reversed(config_type.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]).body
        for above, below in itertools.pairwise(body):
            if (
                isinstance(above, ast.AnnAssign)
                and isinstance(above.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                docs[above.target.id] = " ".join(str(below.value.value).split())
    return docs


def set_flag(config_type: type, values: dict[str, Any], flag: str, text: str) -> None:
    """Lay one flag (``dedup.threshold``, dashes allowed, list items by number) over ``values`` in place.

    Raises ConfigError with the nearest valid name when the flag is unknown.
    """
    parts = [part.replace("-", "_") for part in flag.split(".")]
    hint: Any = config_type
    node: Any = values
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        step = _step(hint, part, flag)
        key: Any = int(part) if isinstance(node, list) else part
        if isinstance(node, list):
            if not 0 <= key <= len(node):
                raise ConfigError(f"flag --{flag}: there are {len(node)} items, so {part} should be 0 to {len(node)}")
            if key == len(node):
                node.append({})
        if last:
            node[key] = _parse(step, text)
            return
        present = node[key] if isinstance(node, list) else node.get(key)
        if not isinstance(present, (dict, list)):
            present = [] if _config_inside(step)[1] else {}
        elif isinstance(present, dict):
            present = dict(present)
        else:
            present = list(present)
        node[key] = present
        node, hint = present, step


@functools.cache
def _adapter(config_type: Any) -> TypeAdapter[Any]:
    for part in _config_types(config_type):
        part.__pydantic_config__ = ConfigDict(extra="forbid", strict=False, coerce_numbers_to_str=True)
    return TypeAdapter(config_type)


def _config_types(config_type: type) -> Iterator[Any]:
    yield config_type
    for hint in typing.get_type_hints(config_type).values():
        inner, _ = _config_inside(hint)
        if inner is not None:
            yield from _config_types(inner)


def _config_inside(hint: Any) -> tuple[type | None, bool]:
    """The config class within an annotation, and whether it stands in a sequence."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint, False
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        for argument in typing.get_args(hint):
            found, repeated = _config_inside(argument)
            if found is not None:
                return found, repeated
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        found, _ = _config_inside(typing.get_args(hint)[0])
        return found, found is not None
    return None, False


def _step(hint: Any, part: str, flag: str) -> Any:
    inner, repeated = _config_inside(hint)
    if repeated and part.isdigit():
        return inner
    if repeated:
        raise ConfigError(f"flag --{flag}: name an item by its number, as in --{flag.replace(part, '0.' + part)}")
    if inner is None:
        return Any
    hints = typing.get_type_hints(inner)
    if part not in hints:
        raise ConfigError(f"flag --{flag}: unknown{_nearest(part, hints)}")
    return hints[part]


def _parse(hint: Any, text: str) -> Any:
    origin = typing.get_origin(hint)
    names = [origin, *(typing.get_origin(argument) for argument in typing.get_args(hint))]
    if text.lower() in ("null", "none") and type(None) in typing.get_args(hint):
        return None
    if text[:1] in "[{" and hint is not str:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"flag value {text!r}: starts like a list or mapping but is not valid YAML") from error
    if tuple in names or list in names:
        return [part.strip() for part in text.split(",") if part.strip()]
    return yaml.safe_load(text) if hint is Any else text


def _nearest(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {matches[0]!r}?" if matches else f"; known: {', '.join(sorted(known))}"


def _one_line(config_type: type, error: ValidationError, where: str) -> str:
    first = min(error.errors(), key=lambda item: item["type"] not in ("unexpected_keyword_argument", "missing"))
    names = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "lax-", "constrained-"))]
    path = ".".join(names)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{where}: unknown key {path!r}{_nearest(names[-1], _known_at(config_type, names[:-1]))}"
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{where}: {path} is missing and has no default"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{where}: {path} is {_short(first['input'])}, {message}" if path else f"{where}: {message}"


def _known_at(config_type: type, names: Sequence[str]) -> list[str]:
    current: Any = config_type
    for name in names:
        inner, repeated = _config_inside(current)
        if inner is None:
            return []
        current = inner if repeated and name.isdigit() else typing.get_type_hints(inner).get(name, Any)
    inner, _ = _config_inside(current)
    return [field.name for field in dataclasses.fields(inner)] if inner is not None else []


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _type_name(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _type_name(typing.get_args(hint)[0])
    if origin is typing.Literal:
        return "|".join(str(choice) for choice in typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return "|".join(_type_name(part) for part in typing.get_args(hint))
    if origin in (tuple, list):
        return f"{_type_name(typing.get_args(hint)[0])},..."
    if origin is not None:
        return "mapping" if issubclass(origin, Mapping) else str(origin.__name__)
    return "null" if hint is type(None) else str(getattr(hint, "__name__", hint))
