"""The clean stage on Ray with the real sentence model, on a user's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tunemill.clean.config import CleanConfig
from tunemill.clean.keywords import Patterns, load_patterns
from tunemill.clean.stage import STAGE
from tunemill.config import build
from tunemill.errors import ConfigError, DataError
from tunemill.progress import Progress
from tunemill.stage import new_context, run_stage
from tunemill.store import Location, Manifest, StageStore
from tunemill.tables import FileSource, InputConfig

WANTED = [
    "The soup was cold and the waiter never came back.",
    "My new bicycle glides through the park like a dream.",
    "הרכבת לחיפה איחרה בשעתיים ואיש לא התנצל.",
    "새 이웃이 케이크를 구워 와서 정말 기뻤어요.",
    "这家书店的老板总是记得我喜欢什么。",
    "El concierto terminó tarde y perdimos el último tren.",
    "The exam was fair and I finished with time to spare.",
    "Our roof leaks whenever a cloud so much as appears.",
    "The museum guide made the old stones speak to us.",
    "Nobody told me that the swimming pool was closed again.",
]
PADDED = ["Sure! Here is a sentence with a strong feeling:\n{}\nLet me know if you want another one!", "{}"]


def answers() -> list[dict[str, str]]:
    """Forty answers, every other one padded."""
    return [
        {"answer": PADDED[i % 2].format(f"{day} – {text}"), "wanted": f"{day} – {text}"}
        for day in ("Monday", "Friday")
        for text in WANTED
        for i in range(2)
    ]


def write(folder: Path, rows: list[dict[str, Any]], name: str = "a.jsonl") -> str:
    """Rows as a JSONL file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(folder)


def run(path: str, out: Path, **values: Any) -> Manifest:
    """The stage on a user's file or folder."""
    config = build(CleanConfig, {"text_column": "answer", **values}, "test")
    context = new_context(StageStore(Location(str(out))), seed=0, progress=Progress(quiet=True))
    return run_stage(STAGE, FileSource(InputConfig(path=path)), config, context, overwrite=False)


def rows(out: Path, manifest: Manifest, kind: str = "data") -> list[dict[str, Any]]:
    """Committed rows in order."""
    return [row for name in manifest.files[kind] for row in pq.read_table(out / name).to_pylist()]


@pytest.mark.usefixtures("ray_session")
def test_padding_goes_in_every_language_and_each_answer_ends_once(tmp_path: Path) -> None:
    """The wanted sentence stays, whole answers pass untouched, empty ones are dropped, and the counts add up."""
    extra = [{"answer": text, "wanted": ""} for text in ("", "  \n", None)]
    manifest = run(write(tmp_path / "in", [*answers(), *extra]), tmp_path / "out")
    kept = rows(tmp_path / "out", manifest)
    right = sum(row["text"] == row["wanted"] for row in kept)
    assert right >= 38
    assert manifest.rows_dropped["empty"] == 3
    assert manifest.rows_in == manifest.rows_kept + sum(manifest.rows_dropped.values()) == 43
    assert all(row["text"] == row["wanted"] for row in kept if "Sure!" not in row["answer"])
    details = manifest.details
    assert sum(c["target"] for c in details["clusters"]) == 1
    side = rows(tmp_path / "out", manifest, "segments")
    assert {"id", "segment", "cluster", "x", "y", "target", "kept"} <= set(side[0])
    assert sum(row["kept"] for row in side) == manifest.rows_kept
    split = [write(tmp_path / "split", answers()[:7], "a.jsonl"), write(tmp_path / "split", [*answers()[7:], *extra], "b.jsonl")]
    again = run(split[0], tmp_path / "out2")
    assert rows(tmp_path / "out2", again) == kept


@pytest.mark.usefixtures("ray_session")
def test_answers_outside_the_fitted_sample_are_cleaned_alike(tmp_path: Path) -> None:
    """With clusters fitted on a part of the answers, the others are placed by the same model."""
    many = [
        {"answer": row["answer"].replace("Monday", f"day {day}").replace("Friday", f"night {day}")}
        for day in range(4)
        for row in answers()
    ]
    manifest = run(write(tmp_path / "in", many), tmp_path / "out", fit_segments=120)
    kept = rows(tmp_path / "out", manifest)
    assert manifest.details["fitted_segments"] < manifest.details["segments"]
    assert manifest.rows_kept >= 155
    assert sum("Let me know" in row["text"] or "Sure" in row["text"] for row in kept) <= 4


@pytest.mark.usefixtures("ray_session")
def test_method_none_only_drops_what_is_empty_or_too_short(tmp_path: Path) -> None:
    """Without a method every answer with enough characters stays as it is."""
    manifest = run(
        write(tmp_path / "in", [*answers()[:2], {"answer": "Ok"}, {"answer": ""}]), tmp_path / "out", method="none", min_chars=3
    )
    assert [row["text"] for row in rows(tmp_path / "out", manifest)] == [row["answer"] for row in answers()[:2]]
    assert manifest.rows_dropped == {"empty": 1, "too_short": 1}


def test_missing_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    """A wrong text column is bad input, before anything is written."""
    with pytest.raises(DataError, match=r"'answr', did you mean 'answer'"):
        run(write(tmp_path / "in", answers()), tmp_path / "out", text_column="answr")
    assert not (tmp_path / "out" / "data").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"keyword_patterns": ["("]}, ["keyword_patterns", "'('"]),
        ({"keyword_patterns": ["a"], "keyword_file": "b"}, ["keyword_patterns", "keyword_file"]),
        ({"clusters": 0}, ["clusters", "0"]),
        ({"coverage": 1.5}, ["coverage", "1.5"]),
        ({"method": "magic"}, ["method", "magic"]),
        ({"keyword_file": "nowhere.txt"}, ["nowhere.txt"]),
    ],
)
def test_bad_configuration_is_one_line(values: dict[str, Any], words: list[str]) -> None:
    """The field and the value are named."""
    with pytest.raises(ConfigError) as caught:
        load_patterns(build(CleanConfig, values, "test"))
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_patterns_come_from_a_file_or_from_the_package(tmp_path: Path) -> None:
    """One pattern a line, comments left out; the packaged list knows several languages."""
    (tmp_path / "p.txt").write_text("# mine\n\nfoo+\n", encoding="utf-8")
    assert load_patterns(CleanConfig(keyword_file=str(tmp_path / "p.txt"))) == ("foo+",)
    packaged = Patterns(load_patterns(CleanConfig()))
    for chatter in (
        "Let me know if you need more!",
        "希望这对您有帮助！",
        "아래에 더 필요하시면 말씀해 주세요.",
        "אשמח לעזור בעוד משפט.",
        "No dudes en preguntar.",
        "A night train with a dash of joy:",
        "**다음 문장：**",
    ):
        assert packaged.hit(chatter)
    assert not any(packaged.hit(text) for text in WANTED)
    assert packaged.cut_lead_in("Here is one: The soup was cold.") == ["Here is one:", "The soup was cold."]
    assert packaged.cut_lead_in("One rule: never stop.") == ["One rule: never stop."]
