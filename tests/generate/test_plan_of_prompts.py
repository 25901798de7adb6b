"""The prompt plan: balance, prefix stability, no needless repeats, exact variables."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunemill.config import build
from tunemill.errors import ConfigError
from tunemill.generate.config import GenerateConfig
from tunemill.generate.prompts import make_plan
from tunemill.generate.rows import PlanSource
from tunemill.generate.shuffle import permuted

SMALL = {"name": "small", "provider": "embedded"}


def config(**values: Any) -> GenerateConfig:
    """A generate config as a YAML file would make it."""
    return build(GenerateConfig, {"models": [SMALL], **values}, "config file test.yaml")


def topics_file(folder: Path, categories: int = 5, topics: int = 4) -> str:
    """A topics file whose topics name their category."""
    data = [{"category": f"c{c}", "topics": [f"c{c}-t{t}" for t in range(topics)]} for c in range(categories)]
    (folder / "topics.json").write_text(json.dumps({"data": data}), encoding="utf-8")
    return str(folder / "topics.json")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.text(max_size=5))
def test_permutation_visits_every_place_once(size: int, key: str) -> None:
    """The seeded order of a range holds each number exactly once."""
    assert sorted(permuted(i, size, key) for i in range(size)) == list(range(size))


def test_order_depends_on_the_seed() -> None:
    """Another seed draws other combinations; the same seed draws the same."""
    values = {"template": "{a}{b}", "variables": {"a": list("uvwxyz"), "b": list("123456")}}
    first, again, other = ([make_plan(config(**values), seed).at(i).prompt for i in range(36)] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


@pytest.mark.parametrize("labels", [["positive", "negative"], ["a", "b", "c"], ["only"]])
def test_labels_are_balanced_in_every_prefix(labels: list[str]) -> None:
    """However many prompts are taken, no label is ahead of another by more than one."""
    plan = make_plan(config(template="{mood} on {day}", variables={"mood": labels, "day": list("1234567")}, label="mood"), 3)
    counts: Counter[str] = Counter(dict.fromkeys(labels, 0))
    for i in range(100):
        counts[plan.at(i).label or ""] += 1
        assert max(counts.values()) - min(counts.values()) <= 1
    assert set(counts) == set(labels)


def test_combinations_repeat_only_when_all_were_used() -> None:
    """With 12 combinations for each of 2 labels, 24 prompts differ, and the 25th is the first repeat."""
    plan = make_plan(
        config(
            template="{mood} {day} {place}",
            variables={"mood": ["up", "down"], "day": list("1234"), "place": list("xyz")},
            label="mood",
        ),
        0,
    )
    prompts = [plan.at(i) for i in range(48)]
    assert len({p.prompt for p in prompts[:24]}) == 24
    assert [p.repeat for p in prompts] == [0] * 24 + [1] * 24


def test_larger_plan_begins_with_the_smaller(tmp_path: Path) -> None:
    """The rows of a plan of 7 prompts are the first 7 of a plan of 50, in table form too."""
    values = {
        "template": "A {mood} line about {topics}",
        "variables": {"mood": ["up", "down"], "topics": {"file": topics_file(tmp_path), "pick": 2}},
        "label": "mood",
    }
    small, large = (PlanSource.of(config(**values, rows=rows), 5) for rows in (7, 50))
    assert large.table({"id": range(50)}).slice(0, 7).to_pylist() == small.table({"id": range(7)}).to_pylist()
    assert small.describe["fingerprint"] == large.describe["fingerprint"]


def test_pick_draws_one_topic_from_each_of_different_categories(tmp_path: Path) -> None:
    """`pick: 3` names three topics of three categories, each category and each order about equally often."""
    plan = make_plan(config(template="On {topics}", variables={"topics": {"file": topics_file(tmp_path), "pick": 3}}), 0)
    assert plan.combinations == 10 * 4**3
    drawn = [plan.at(i).variables["topics"].split(", ") for i in range(640)]
    assert all(len({topic[:2] for topic in topics}) == 3 for topics in drawn)
    assert len({frozenset(topics) for topics in drawn}) == 640
    last = Counter(topics[-1][:2] for topics in drawn)
    assert min(last.values()) > 640 / 5 * 0.6


def test_variables_of_a_row_are_exactly_those_of_its_prompt(tmp_path: Path) -> None:
    """Putting the stored variables into the template gives the stored prompt; braces stay as written."""
    (tmp_path / "places.txt").write_text("אילת\n\n  서울  \nParis\n", encoding="utf-8")
    template = 'Say {mood} in {place}: {{"text": ...}}'
    plan = make_plan(
        config(template=template, variables={"mood": ["up", "{down}"], "place": {"file": str(tmp_path / "places.txt")}}), 0
    )
    for i in range(6):
        row = plan.at(i)
        assert set(row.variables) == {"mood", "place"}
        assert row.prompt == f'Say {row.variables["mood"]} in {row.variables["place"]}: {{"text": ...}}'
    assert {plan.at(i).variables["place"] for i in range(6)} == {"אילת", "서울", "Paris"}


def test_prompt_id_depends_on_the_system_text() -> None:
    """The same user text under another system text is another prompt."""
    ids = [
        make_plan(config(template="Hi {a}", variables={"a": ["x"]}, system=system), 0).at(0).prompt_id
        for system in (None, "Be kind.")
    ]
    assert ids[0] != ids[1]


GOOD = {"template": "A {mood} line", "variables": {"mood": ["up", "down"]}, "label": "mood"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"template": ""}, ["template is missing"]),
        ({"template": "A {mood} {place}"}, ["variables.place", "missing"]),
        ({"variables": {"mood": ["up"], "place": ["x"]}}, ["variables.place", "no {place}", "mood"]),
        ({"variables": {"mood": []}}, ["variables.mood", "empty"]),
        ({"variables": {"mood": "up"}}, ["variables.mood", "list"]),
        ({"variables": {"mood": [True, False]}}, ["variables.mood", "quotes"]),
        ({"variables": {"mood": ["up", "up"]}}, ["variables.mood", "'up' twice"]),
        ({"variables": {"mood": {"file": "nowhere.json"}}}, ["variables.mood", "nowhere.json", "no such file"]),
        ({"variables": {"mood": {"file": "x.json", "pik": 3}}}, ["variables.mood", "'pik'"]),
        ({"variables": {"mood": {"file": "x.json", "pick": 0}}}, ["variables.mood.pick", "0"]),
        ({"variables": {"mood": {"file": "x.json", "pick": 2}}}, ["variables.mood.pick", "label"]),
        ({"label": "topic"}, ["label", "'topic'", "mood"]),
        ({"rows": 0}, ["rows", "0"]),
        ({"samples": 0}, ["samples", "0"]),
        ({"models": []}, ["models", "empty"]),
        ({"models": [SMALL, SMALL]}, ["models.1.name", "'small'"]),
        ({"models": [SMALL, {**SMALL, "name": "twin"}]}, ["models.1", "twin", "small"]),
        ({"template": "A {mood:>10}"}, ["template", "{mood:>10}"]),
        ({"template": "A {mood} {"}, ["template", "{{"]),
        ({"template": "A {mood} {0}"}, ["template", "{0}"]),
        ({"budget_usd": -1}, ["budget_usd", "-1"]),
        ({"templat": "x"}, ["templat", "template"]),
    ],
)
def test_bad_configuration_is_one_line_that_names_the_field(change: dict[str, Any], words: list[str]) -> None:
    """Whatever is wrong is said in one line, before any call."""

    def prepare() -> None:
        made = config(**{**GOOD, **change})
        made.check_models()
        make_plan(made, 0)

    with pytest.raises(ConfigError) as caught:
        prepare()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["not valid JSON"]),
        ('{"data": 3}', ['"data"']),
        ('{"data": [{"category": "a", "topics": []}]}', ["data[0]"]),
        ('{"data": [{"category": "a", "topics": ["x"]}]}', ["pick is 2", "only 1"]),
        ('{"data": []}', ["no values"]),
        ('["x", "x"]', ["'x' twice"]),
    ],
)
def test_bad_topics_file_is_one_line_that_names_the_file(tmp_path: Path, text: str, words: list[str]) -> None:
    """A topics file that cannot be used is refused with its name and what would be right."""
    (tmp_path / "t.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        make_plan(config(template="{t}", variables={"t": {"file": str(tmp_path / "t.json"), "pick": 2}}), 0)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in [*words, "t.json"])


def test_file_paths_start_where_the_command_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative values file is found from the typed folder, also when the process runs elsewhere."""
    (tmp_path / "v.txt").write_text("x\n", encoding="utf-8")
    monkeypatch.setenv("TUNEMILL_CWD", str(tmp_path))
    assert make_plan(config(template="{v}", variables={"v": {"file": "v.txt"}}), 0).at(0).prompt == "x"
