"""Bad input: one line that names file, field or row, value and remedy; exit code 2; nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunemill.cli import main

ROWS = "".join(json.dumps({"text": f"text {i}", "label": "ab"[i % 2]}) + "\n" for i in range(12))
GENERATE = {
    "template": "Write about {topic} in a {mood} mood.",
    "variables": {"topic": ["tea"], "mood": ["glad", "sad"]},
    "label": "mood",
    "models": [{"name": "m", "provider": "embedded"}],
}


def _fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must end with exit code 2, and return its one line."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    printed = capsys.readouterr()
    assert caught.value.code == 2, printed.err
    lines = [line for line in printed.err.splitlines() if line.startswith("tunemill: ")]
    assert len(lines) == 1, printed.err
    assert printed.err.rstrip().endswith(lines[0]), printed.err
    assert "Traceback" not in printed.err
    return lines[0]


def _config(folder: Path, values: dict[str, Any]) -> str:
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump({"run": {"output": str(folder / "out")}, **values}))
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "flags", "expected"),
    [
        ("none", None, [], "no such file, folder or glob"),
        ("a.jsonl", ROWS, ["--text-columns", "txt"], "column 'txt' is missing"),
        ("a.jsonl", '{"text": "a"}\n{"text"\n', [], "line 2: not valid JSON"),
        ("a.jsonl", "", [], "holds no rows"),
        ("a.csv", "text,label\na\n", [], "line 2: has 1 columns, the header has 2"),
        ("a.jsonl", ROWS, ["--treshold", "0.9"], "did you mean 'threshold'"),
        ("a.jsonl", ROWS, ["--threshold", "1.5"], "threshold is"),
        ("a.jsonl", ROWS, ["--id-column", "key"], "no column 'key'"),
        ("a.jsonl", ROWS, ["--id-column", "label"], "input row 3: id 'a' occurs twice"),
        ("a.jsonl", ROWS, ["--id-column", "label", "--shards", "2"], "input row 3: id 'a' occurs twice"),
    ],
)
def test_a_stage_refuses_what_it_cannot_read(
    ray_session: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | None,
    flags: list[str],
    expected: str,
) -> None:
    """A missing file, a broken line, a wrong column or flag is told before anything is written."""
    if content is not None:
        (tmp_path / name).write_text(content)
    argv = ["dedup", "--input", str(tmp_path / name), "--output", str(tmp_path / "out"), *flags]
    assert expected in _fails(argv, capsys)
    assert not list(tmp_path.glob("out/**/*.parquet"))
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"generate": {**GENERATE, "rowz": 3}}, "unknown key 'generate.rowz', did you mean 'rows'"),
        ({"generate": {**GENERATE, "rows": 0}}, "generate.rows is 0"),
        ({"generate": {**GENERATE, "variables": {"mood": ["glad", "sad"]}}}, "topic"),
        ({"generate": {**GENERATE, "variables": {"topic": [], "mood": ["glad"]}}}, "generate.variables.topic is empty"),
        ({"generate": {**GENERATE, "label": "colour"}}, "generate.label is 'colour'"),
        ({"generate": {**GENERATE, "models": []}}, "generate.models is empty"),
        ({"generate": GENERATE, "evaluate": {"labels": ["glad"]}}, "at least two labels"),
        ({"generate": GENERATE, "split": {"test_fraction": 0.7, "validation_fraction": 0.4}}, "sum should be below 1"),
        ({"generate": GENERATE, "finetune": {"base_model": "./no/such/model"}}, "no/such/model"),
        ({"generate": GENERATE, "input": {"path": "a.jsonl"}}, "not both"),
        ({"input": {"path": "no-such.jsonl"}, "embed": {"model": "./no-such-model"}}, "no-such"),
        ({"generate": GENERATE, "run": {"output": "/proc/nowhere/run"}}, "cannot be written"),
        (
            {"generate": {**GENERATE, "models": [{"name": "m", "provider": "gemini", "model": "g", "api_key_env": "NO_KEY"}]}},
            "NO_KEY",
        ),
        ({"generate": {**GENERATE, "models": [{"name": "m", "provider": "openai", "model": "g", "limits": {"rpm": 0}}]}}, "rpm"),
        (
            {"generate": {**GENERATE, "models": [{"name": "m", "provider": "openai", "model": "g", "price": {"input": -1}}]}},
            "input",
        ),
    ],
)
def test_a_run_refuses_what_cannot_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], expected: str
) -> None:
    """A configuration that cannot work is told before the first stage."""
    assert expected in _fails(["run", "--config", _config(tmp_path, change)], capsys)
    assert not list(tmp_path.glob("out/*/manifest.json"))


def test_evaluate_refuses_a_label_that_never_occurs(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A label of the configuration that no row has is a typo more often than not."""
    (tmp_path / "a.jsonl").write_text(ROWS)
    argv = ["evaluate", "--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out"), "--labels", "a,b,c"]
    assert "'c'" in _fails([*argv, "--base-model", "embedded/smollm2-135m"], capsys)


def test_finetune_refuses_before_training_what_it_cannot_learn_from(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that never went through the template stage are told, with the stage to run."""
    (tmp_path / "a.jsonl").write_text(ROWS)
    argv = ["finetune", "--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out")]
    assert "template" in _fails(argv, capsys)
