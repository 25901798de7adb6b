"""Configuration: what is checked, how it is said, and what counts as the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from tunemill.config import (
    build,
    difference,
    essential,
    field_docs,
    fingerprint,
    flags_of,
    load_yaml,
    operational,
    overlay,
    set_flag,
)
from tunemill.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A part."""

    rpm: Annotated[float, Field(gt=0)] | None = operational(None)
    """Requests a minute."""
    name: str = "x"
    """A name."""


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A toy config."""

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """How alike,
    over two lines."""
    mode: Literal["exact", "fast"] = "exact"
    """Which way."""
    columns: tuple[str, ...] = ("text",)
    """Columns."""
    models: tuple[Inner, ...] = ()
    """Parts."""
    one: Inner = field(default_factory=Inner)
    """One part."""

    def __post_init__(self) -> None:
        if self.mode == "fast" and self.threshold > 0.9:
            raise ConfigError("toy.threshold is above 0.9, which mode fast cannot do; use exact")


def test_values_become_a_frozen_config() -> None:
    """Plain YAML values are converted to the annotated types."""
    toy = build(Toy, {"threshold": "0.7", "columns": ["a", "b"], "models": [{"rpm": 60}]}, "file")
    assert toy.threshold == 0.7
    assert toy.columns == ("a", "b")
    assert toy.models[0].rpm == 60


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"treshold": 1}, r"file: unknown key 'treshold', did you mean 'threshold'\?"),
        ({"one": {"rmp": 1}}, r"file: unknown key 'one.rmp', did you mean 'rpm'\?"),
        ({"models": [{"nam": "a"}]}, r"unknown key 'models.0.nam', did you mean 'name'\?"),
        ({"threshold": 2}, r"file: threshold is 2, should be less than or equal to 1"),
        ({"threshold": "high"}, r'threshold is "high", should be a valid number'),
        ({"mode": "slow"}, r"mode is \"slow\", should be 'exact' or 'fast'"),
        ({"mode": "fast", "threshold": 0.95}, r"toy.threshold is above 0.9"),
    ],
)
def test_a_wrong_value_is_one_line_with_place_value_and_remedy(values: dict[str, Any], message: str) -> None:
    """Every kind of mistake names the field and what would be right, on one line."""
    with pytest.raises(ConfigError, match=message) as caught:
        build(Toy, values, "file")
    assert "\n" not in str(caught.value)


def test_the_text_beneath_a_field_is_its_help() -> None:
    """Field docs come from the docstrings and reach the flags with type and default."""
    assert field_docs(Toy)["threshold"] == "How alike, over two lines."
    flags = {flag.path: flag for flag in flags_of(Toy)}
    assert flags["threshold"].default == "0.5"
    assert flags["mode"].type_name == "exact|fast"
    assert flags["models.0.rpm"].doc == "Requests a minute."


def test_flags_reach_into_sections_and_lists() -> None:
    """Dashes, underscores and item numbers address any field."""
    values: dict[str, Any] = {"models": [{"name": "a"}, {"name": "b"}]}
    set_flag(Toy, values, "models.1.rpm", "60")
    set_flag(Toy, values, "columns", "prompt, answer")
    set_flag(Toy, values, "one.rpm", "null")
    assert values == {
        "models": [{"name": "a"}, {"name": "b", "rpm": "60"}],
        "columns": ["prompt", "answer"],
        "one": {"rpm": None},
    }
    assert build(Toy, values, "flags").models[1].rpm == 60


def test_flags_do_not_change_the_values_of_the_file_they_lie_over() -> None:
    """Laying a flag over nested values leaves the original mapping alone."""
    original = {"one": {"name": "a"}}
    values = dict(original)
    set_flag(Toy, values, "one.name", "b")
    assert original == {"one": {"name": "a"}}


@pytest.mark.parametrize("flag", ["treshold", "one.rmp", "models.7.name", "models.name"])
def test_an_unknown_flag_is_refused(flag: str) -> None:
    """A flag that leads nowhere is a ConfigError."""
    with pytest.raises(ConfigError, match="flag --"):
        set_flag(Toy, {"models": []}, flag, "1")


def test_operational_fields_are_outside_the_fingerprint() -> None:
    """Limits may change between runs without making the result another one."""
    assert fingerprint(Toy(one=Inner(rpm=1))) == fingerprint(Toy(one=Inner(rpm=2)))
    assert fingerprint(Toy(one=Inner(name="a"))) != fingerprint(Toy(one=Inner(name="b")))
    assert "rpm" not in essential(Toy())["one"]


def test_a_difference_shows_each_leaf() -> None:
    """What differs is listed with path, old and new value."""
    assert difference({"a": {"b": 1}, "c": [1, 2]}, {"a": {"b": 2}, "c": [1, 3]}) == ["a.b: 1 -> 2", "c.1: 2 -> 3"]


def test_overlay_merges_mapping_by_mapping() -> None:
    """Deeper values win without wiping their neighbours."""
    assert overlay({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}) == {"a": {"x": 1, "y": 3}}


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    """A YAML mistake is told with its line; a missing file by its name."""
    file = tmp_path / "c.yaml"
    file.write_text("a: 1\nb: [1, 2\n")
    with pytest.raises(ConfigError, match=r"c\.yaml line \d"):
        load_yaml(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_yaml(tmp_path / "none.yaml")
