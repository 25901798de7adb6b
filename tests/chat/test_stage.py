"""The template stage on files: counts that add up, named reasons, lengths, proof and samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from chat.toy import GOOD, real_conversations, toy_tokenizer
from tunemill.chat.config import TemplateConfig
from tunemill.chat.probes import conversation
from tunemill.chat.show import sample_of, show_samples
from tunemill.chat.stage import STAGE
from tunemill.chat.tokenizer import load
from tunemill.errors import ConfigError, DataError, TemplateError
from tunemill.progress import Progress
from tunemill.stage import new_context, run_stage
from tunemill.store import Location, Manifest, StageStore
from tunemill.tables import FileSource, InputConfig

GOOD_TURNS = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Here."}]

LONG_TURNS = [{"from": role, "value": "word " * 30} for role in ("human", "gpt")]


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def run(folder: Path, path: str, **options: Any) -> tuple[Manifest, StageStore]:
    store = StageStore(Location.of(str(folder / "out")))
    config = TemplateConfig(**{"tokenizer": "mistral-common/v3", **options})
    context = new_context(store, seed=0, progress=Progress(quiet=True))
    return run_stage(STAGE, FileSource(InputConfig(path=path)), config, context, overwrite=True), store


def table_of(store: StageStore, kind: str) -> list[dict[str, Any]]:
    return [row for file in store.committed(kind) for row in pq.read_table(file.path).to_pylist()]


@pytest.mark.usefixtures("ray_session")
def test_every_row_is_kept_or_dropped_by_name(tmp_path: Path) -> None:
    """Good, faulty, too long and truncated rows add up; lengths cover all that have tokens."""
    rows = [
        {"id": "good", "conversations": GOOD_TURNS},
        {"id": "roles", "conversations": GOOD_TURNS[::-1]},
        {"id": "empty", "conversations": [GOOD_TURNS[0], {"from": "gpt", "value": " "}]},
        {"id": "long", "conversations": LONG_TURNS},
        {"id": "shortened", "conversations": GOOD_TURNS + LONG_TURNS},
    ]
    manifest, store = run(tmp_path, write_rows(tmp_path, rows), max_length=40, too_long="truncate")
    assert manifest.rows_dropped == {"bad_roles": 1, "empty_turn": 1, "too_long": 1}
    kept = {row["id"]: row for row in table_of(store, "data")}
    assert set(kept) == {"good", "shortened"}
    assert kept["shortened"]["input_ids"] == kept["good"]["input_ids"]
    assert (kept["good"]["turns_removed"], kept["shortened"]["turns_removed"]) == (0, 2)
    assert len(kept["good"]["loss_weights"]) == kept["good"]["n_tokens"]
    assert {row["id"]: row["kept"] for row in table_of(store, "lengths")} == {"good": True, "shortened": True, "long": False}
    assert manifest.details["truncated_rows"] == 1
    assert len(manifest.details["proof"]) == 10
    assert [part["trained"] for part in manifest.details["samples"][0]["parts"]] == [False, True]


@pytest.mark.usefixtures("ray_session")
def test_columns_of_a_run_are_carried(tmp_path: Path) -> None:
    """split, label, text and group stay; classify answers with the label."""
    rows = [{"id": str(i), "text": f"t{i}", "label": "yes", "split": "train", "group": i, "other": 1} for i in range(3)]
    _, store = run(tmp_path, write_rows(tmp_path, rows), task="classify")
    first = min(table_of(store, "data"), key=lambda row: str(row["id"]))
    assert (first["split"], first["label"], first["text"], first["group"]) == ("train", "yes", "t0", 0)
    assert first["messages"][-1] == {"role": "assistant", "content": "yes"}
    assert "other" not in first


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("rows", "options", "error", "says"),
    [
        ([{"body": "x"}], {}, DataError, "should have one of: conversations"),
        ([{"text": "x"}], {}, DataError, "should also have prompt"),
        ([{"text": "x", "prompt": "y"}], {"task": "classify"}, DataError, "should also have label"),
        ([{"conversations": GOOD_TURNS}], {"tokenizer": None}, ConfigError, "template.tokenizer is null"),
        ([{"conversations": LONG_TURNS}], {"max_length": 8}, DataError, "max_length is 8, the shortest example has 65 tokens"),
        ([{"conversations": GOOD_TURNS[:1]}], {}, DataError, "no row is left to train on: all were dropped .no_answer 1"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, rows: list[Any], options: dict[str, Any], error: type[Exception], says: str
) -> None:
    """Wrong columns, no tokenizer, nothing that fits: said before anything is committed."""
    with pytest.raises(error, match=says):
        run(tmp_path, write_rows(tmp_path, rows), **options)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.usefixtures("ray_session")
def test_a_template_that_cannot_be_proven_stops_the_stage(tmp_path: Path) -> None:
    """The proof runs before any row is written."""
    toy_tokenizer(GOOD.replace("'<bos>'", "'<bos><bos>'")).save_pretrained(tmp_path / "bad")
    with pytest.raises(TemplateError, match="beginning of sequence not doubled"):
        run(tmp_path, write_rows(tmp_path, [{"conversations": GOOD_TURNS}]), tokenizer=str(tmp_path / "bad"))


@pytest.mark.usefixtures("ray_session")
def test_the_same_rows_give_the_same_table(tmp_path: Path) -> None:
    """Whatever the blocks, ids and tokens are the same."""
    rows = [{"id": str(i), "messages": list(messages)} for i, messages in enumerate(real_conversations(40))]
    tables = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _, store = run(tmp_path / name, write_rows(tmp_path / name, rows if name == "one" else rows[::-1]))
        tables.append({row["id"]: row["input_ids"] for row in table_of(store, "data")})
    assert tables[0] == tables[1]
    assert len(tables[0]) == 40


def test_shown_samples_mark_the_trained_tokens() -> None:
    """Trained text stands in colour, or between signs; with a prompt weight of 1 too only answers count as trained."""
    tokenizer = load("mistral-common/v3", prompt_loss_weight=1.0)
    sample = sample_of(tokenizer, "a", tokenizer.encode(conversation("Where?", "Here.", "x", "y")))
    text = "# a: 13 tokens, 5 trained\n<s>[INST]Where?[/INST]»Here.</s>«[INST]x[/INST]»y</s>«"
    assert show_samples([sample, sample], colour=False) == f"{text}\n\n{text}"
    assert "\x1b[30;42mHere.</s>\x1b[0m" in show_samples([sample])
