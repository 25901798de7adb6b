"""The whole pipeline with real models: undisturbed, again, changed, and killed in every stage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tunemill.pipeline import ORDER
from tunemill.store import Location, StageStore

ROOT = Path(__file__).parents[1]
CONFIG: dict[str, Any] = {
    "run": {"seed": 1},
    "generate": {
        "rows": 10,
        "template": "Write one short sentence with a {sentiment} sentiment about {topics}.",
        "variables": {
            "sentiment": ["positive", "negative"],
            "topics": {"file": str(ROOT / "jobs/configs/topics.json"), "pick": 1},
        },
        "label": "sentiment",
        "models": [
            {"name": "calm", "provider": "embedded", "params": {"max_tokens": 16, "temperature": 0.8}},
            {"name": "lively", "provider": "embedded", "params": {"max_tokens": 16, "top_p": 0.9}},
        ],
    },
    "split": {"test_fraction": 0.3, "validation_fraction": 0.2},
    "template": {"max_length": 128},
    "finetune": {"base_model": "embedded/smollm2-135m", "lora": {"r": 4}, "epochs": 1, "batch_size": 4, "save_steps": 1},
    "evaluate": {"labels": ["positive", "negative"], "bootstrap": 200},
}


def _command(config: Path, *flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "jobs/pipeline.py"), "--config", str(config), *flags]


def _run(config: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(config, *flags), capture_output=True, text=True, timeout=280, cwd=config.parent)


def _config(folder: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "run": {"seed": 1, "output": "out"}}))
    return path


def _rows(run: Path, stage: str, columns: list[str]) -> list[dict[str, Any]]:
    store = StageStore(Location(str(run / stage)))
    kind = "predictions" if stage == "evaluate" else "data"
    rows = [row for file in store.committed(kind) for row in pq.read_table(file.path, columns=columns).to_pylist()]
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True, default=str))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration file of a run that went through undisturbed."""
    config = _config(tmp_path_factory.mktemp("undisturbed"))
    done = _run(config)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(config.parent / "out" / "report.html")
    return config


def test_every_stage_accounts_for_its_rows(finished: Path) -> None:
    """Rows in are rows kept and dropped, and each stage reads what the one before kept."""
    kept = 20
    for stage in ORDER[:6]:
        manifest = StageStore(Location(str(finished.parent / "out" / stage))).read_manifest()
        assert manifest is not None
        assert manifest.rows_in == kept
        assert manifest.rows_kept == len(_rows(finished.parent / "out", stage, ["label"]))
        kept = manifest.rows_kept


def test_the_result_is_complete(finished: Path) -> None:
    """Adapter, metrics of both variants, report and resolved configuration are there."""
    out = finished.parent / "out"
    metrics = json.loads((out / "evaluate" / "metrics.json").read_text())
    assert set(metrics) >= {"base", "tuned", "difference"}
    assert (out / "finetune" / "adapter" / "adapter_model.safetensors").exists()
    assert "<svg" in (out / "report.html").read_text()
    assert yaml.safe_load((out / "run.yaml").read_text())["template"]["tokenizer"] == "embedded/smollm2-135m"


def test_the_same_command_again_changes_nothing(finished: Path) -> None:
    """Every stage is found done, and no file of data is written."""
    before = {p: p.stat().st_mtime_ns for p in (finished.parent / "out").rglob("*.parquet")}
    again = _run(finished)
    assert again.returncode == 0
    assert all(f"{stage}: already done" in again.stderr for stage in ORDER)
    assert before == {p: p.stat().st_mtime_ns for p in (finished.parent / "out").rglob("*.parquet")}


def test_a_changed_setting_is_refused_before_anything_runs(finished: Path) -> None:
    """The difference is shown on one line, with exit code 2."""
    refused = _run(finished, "--dedup.threshold", "0.9")
    assert refused.returncode == 2
    lines = refused.stderr.strip().splitlines()
    assert len(lines) == 1
    assert "threshold: 0.95 -> 0.9" in lines[0]
    assert "--overwrite" in lines[0]


def _kill_when(config: Path, line: str) -> None:
    """Start the run and ``kill -9`` it as soon as it prints ``line``."""
    process = subprocess.Popen(_command(config), stderr=subprocess.PIPE, text=True, cwd=config.parent, start_new_session=True)
    assert process.stderr is not None
    seen = []
    for printed in process.stderr:
        seen.append(printed)
        if line in printed:
            break
    else:
        pytest.fail(f"the run ended before {line!r}: {''.join(seen)}")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()


COMPARED = {
    "generate": ["prompt_id", "model", "label", "text"],
    "clean": ["id", "text", "label"],
    "dedup": ["id", "group"],
    "split": ["id", "split"],
    "template": ["id", "input_ids", "loss_weights"],
    "evaluate": ["id", "variant", "predicted"],
}


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The configuration file of a run that was killed in every stage and then finished."""
    config = _config(tmp_path)
    for stage in ORDER:
        _kill_when(config, f"{stage}: started")
    done = _run(config)
    assert done.returncode == 0, done.stderr
    return config


@pytest.mark.timeout(600)
def test_a_run_killed_in_every_stage_ends_with_the_same_rows(finished: Path, killed: Path) -> None:
    """kill -9 in each stage and the same command again give the rows of an undisturbed run."""
    for stage, columns in COMPARED.items():
        assert _rows(killed.parent / "out", stage, columns) == _rows(finished.parent / "out", stage, columns), stage
