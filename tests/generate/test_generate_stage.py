"""The generate stage on Ray, against a real HTTP server that counts what was paid."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mock_provider import Latency, MockConfig, MockHandle, start_mock
from tunemill.config import build
from tunemill.errors import ConfigError, DataError, ResumeRefused
from tunemill.generate.config import GenerateConfig
from tunemill.generate.rows import PlanSource, file_prompts
from tunemill.generate.stage import STAGE
from tunemill.progress import Progress
from tunemill.stage import new_context, run_stage
from tunemill.store import Location, Manifest, StageStore
from tunemill.tables import FileSource, InputConfig

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def mock() -> Iterator[MockHandle]:
    """One mock for all tests."""
    with start_mock() as handle:
        yield handle


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOCK_KEY", "mock-secret-key")


def model(mock: MockHandle, name: str, **values: Any) -> dict[str, Any]:
    """A model behind the mock."""
    place = {"base_url": f"{mock.url}/v1", "api_key_env": "MOCK_KEY", "price": {"input": 1.0, "output": 2.0}}
    return {"name": name, "provider": "openai", "model": f"{name}-1", "params": {"max_tokens": 30}, **place, **values}


def config(mock: MockHandle, *models: str, **values: Any) -> GenerateConfig:
    """Labelled lines from the named models."""
    base = {
        "rows": 10,
        "template": "[[{mood}-{day}]] A {mood} line on {day}.",
        "variables": {"mood": ["up", "down"], "day": [str(i) for i in range(40)]},
        "label": "mood",
        "models": [model(mock, name) for name in models],
    }
    return build(GenerateConfig, {**base, **values}, "test")


def run(folder: Path, config: GenerateConfig, source: Any = None, *, overwrite: bool = False) -> Manifest:
    """The stage as a command would run it."""
    context = new_context(StageStore(Location(str(folder))), seed=0, progress=Progress(quiet=True))
    return run_stage(STAGE, source or PlanSource.of(config, 0), config, context, overwrite=overwrite)


def rows(folder: Path, manifest: Manifest, kind: str = "data") -> list[dict[str, Any]]:
    """The committed rows in order."""
    return [row for file in manifest.files[kind] for row in pq.read_table(folder / file).to_pylist()]


def test_every_model_gets_every_prompt_and_growth_buys_only_what_is_new(mock: MockHandle, tmp_path: Path) -> None:
    """Rows come in (prompt, model) order whatever answers first; more rows and a further model keep what was paid."""
    mock.configure(MockConfig(latency=Latency(kind="lognormal", mean_s=0.05, sigma=1.0)))
    first = run(tmp_path, config(mock, "a"))
    small = rows(tmp_path, first)
    grown = run(tmp_path, config(mock, "a", "b", rows=24))
    large = rows(tmp_path, grown)
    assert set(mock.paid_prompts().values()) == {2}
    assert (grown.rows_in, grown.rows_kept) == (48, 48)
    assert [row["model"] for row in large] == ["a", "b"] * 24
    assert [row["request_id"] for row in large if row["model"] == "a"][:10] == [row["request_id"] for row in small]
    plan = PlanSource.of(config(mock, "a", rows=24), 0).table({"id": range(24)}).to_pylist()
    assert [row["prompt"] for row in large[::2]] == [row["prompt"] for row in plan]
    assert [row["variables"] for row in large[1::2]] == [row["variables"] for row in plan]
    assert all(row["variables"]["mood"] == row["label"] and row["text"] for row in large)
    assert Counter(row["label"] for row in large) == {"up": 24, "down": 24}
    figures = grown.details["models"]["b"]
    assert (figures["calls"], figures["kept"], figures["dropped"]) == (24, 24, {})
    assert figures["cost_usd"] == pytest.approx(sum(row["cost_usd"] for row in large[1::2]))
    assert figures["latency_p50_s"] > 0
    foreseen = grown.details["foreseen"]["models"]["b"]
    assert foreseen["calls"] == figures["calls"]
    assert foreseen["output_tokens"]["low"] <= figures["output_tokens"] <= foreseen["output_tokens"]["high"]
    before = mock.stats()["requests"]
    assert run(tmp_path, config(mock, "a", "b", rows=24)).attempt == grown.attempt
    with pytest.raises(ResumeRefused, match="rows: 24 -> 10"):
        run(tmp_path, config(mock, "a", "b"))
    with pytest.raises(ResumeRefused, match="template"):
        run(tmp_path, config(mock, "a", "b", rows=24, template="Other {mood} {day}"))
    back = run(tmp_path, config(mock, "a"), overwrite=True)
    assert rows(tmp_path, back) == small
    assert mock.stats()["requests"] == before


def test_held_back_rows_run_when_the_cap_is_raised_and_dead_letters_when_asked(mock: MockHandle, tmp_path: Path) -> None:
    """Rows beyond the budget are pending, not lost; those that failed are called again only with replay_failed."""
    mock.configure(MockConfig())
    capped = run(tmp_path, config(mock, "c", rows=30, budget_usd=0.0005))
    answered = capped.rows_kept
    assert 0 < answered < 30
    assert capped.rows_dropped == {"over_budget": 30 - answered}
    assert {row["reason"] for row in rows(tmp_path, capped, "dropped")} == {"over_budget"}
    assert run(tmp_path, config(mock, "c", rows=30, budget_usd=0.0005)).attempt == capped.attempt
    mock.configure(MockConfig(context_tokens=5))
    raised = run(tmp_path, config(mock, "c", rows=30, budget_usd=5))
    assert (raised.rows_kept, raised.rows_dropped) == (answered, {"too_long": 30 - answered})
    assert all(row["error"] and row["prompt"] for row in rows(tmp_path, raised, "dropped"))
    mock.configure(MockConfig())
    assert run(tmp_path, config(mock, "c", rows=30, budget_usd=5)).attempt == raised.attempt
    replayed = run(tmp_path, config(mock, "c", rows=30, budget_usd=5, replay_failed=True))
    assert (replayed.rows_kept, replayed.rows_dropped) == (30, {})


def own_file(folder: Path, lines: list[list[str]]) -> FileSource:
    """A CSV file of the user."""
    with (folder / "mine.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)
    return FileSource(InputConfig(path=str(folder / "mine.csv")))


def test_prompts_come_from_the_users_own_columns(mock: MockHandle, tmp_path: Path) -> None:
    """The template's names are columns, other columns go along, and the same prompt twice is asked twice."""
    mock.configure(MockConfig())
    source = own_file(tmp_path, [["city", "label", "note"], ["서울", "up", "1"], ["חיפה", "down", "2"], ["서울", "up", "3"]])
    made = config(mock, "d", template="Praise {city}.", variables={}, label=None, samples=2)
    manifest = run(tmp_path / "out", made, source)
    found = rows(tmp_path / "out", manifest)
    assert [(row["prompt"], row["label"], row["note"], row["sample"]) for row in found] == [
        ("Praise 서울.", "up", "1", 0),
        ("Praise 서울.", "up", "1", 1),
        ("Praise חיפה.", "down", "2", 0),
        ("Praise חיפה.", "down", "2", 1),
        ("Praise 서울.", "up", "3", 2),
        ("Praise 서울.", "up", "3", 3),
    ]
    assert found[0]["variables"] == {"city": "서울"}
    assert len({row["request_id"] for row in found}) == 6
    assert len({row["source_id"] for row in found}) == 3


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"template": "Praise {cite}."}, DataError, ["'cite'", "'city'"]),
        ({"template": ""}, DataError, ["no column 'prompt'"]),
        ({"label": "lable"}, DataError, ["label", "'lable'"]),
        ({"variables": {"city": ["x"]}}, ConfigError, ["variables", "--input"]),
        ({}, DataError, ["'city'", "nothing"]),
    ],
)
def test_unusable_prompt_files_are_refused_before_any_call(
    mock: MockHandle, tmp_path: Path, change: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    """A missing column or an empty value is named in one line."""
    made = config(mock, "e", **{"template": "Praise {city}.", "variables": {}, "label": None, **change})
    with pytest.raises(Exception, match="generate") as caught:
        file_prompts(own_file(tmp_path, [["city", "x"], ["Rome", "1"], ["  ", "2"]]), made).take_all()
    message = str(caught.value)
    assert isinstance(caught.value, error) or error.__name__ in message
    assert all(word in message for word in words)


def test_missing_key_and_missing_model_stop_the_stage_at_once(
    mock: MockHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is called or written when no call could succeed."""
    monkeypatch.delenv("MOCK_KEY")
    with pytest.raises(ConfigError, match="MOCK_KEY"):
        run(tmp_path / "out", config(mock, "f"))
    with pytest.raises(ConfigError, match="models is empty"):
        run(tmp_path / "out", config(mock))
    assert not (tmp_path / "out").exists()
