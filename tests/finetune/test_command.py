"""``tunemill finetune`` as a user calls it: a process with a Ray of its own, killed, called again, pushing its adapter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from chat.toy import GOOD, toy_tokenizer
from finetune.tiny import config, run, table, tiny_model
from hub import Hub, serve
from tunemill.finetune.metrics import read_metrics
from tunemill.store import Location

STEPS = 120


@dataclass(frozen=True)
class Setting:
    """Files of a command."""

    folder: Path
    hub: Hub
    output: Path
    """The command's ``--output``."""

    def start(self, **environment: str) -> subprocess.Popen[str]:
        """The command."""
        argv = [
            "finetune", "--input", str(self.folder / "rows.parquet"), "--output", str(self.output),
            "--base-model", str(self.folder / "model"), "--precision", "fp32", "--batch-size", "8", "--epochs", "40",
            "--learning-rate", "0.01", "--lora.r", "4", "--save-steps", "4", "--quiet", "--push-to-hub", "me/tuned",
        ]  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-c", "from tunemill.cli import main; main()", *argv],
            env={**os.environ, **self.hub.environment(), "OMP_NUM_THREADS": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def records(self) -> list[dict[str, float]]:
        """Lines of metrics.jsonl."""
        return read_metrics(Location.of(self.output / "metrics.jsonl"))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], limit_s: float = 240) -> None:
    """Until the condition holds; fails when the process ends before."""
    until = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """A tiny model, rows and a hub."""
    folder = tmp_path_factory.mktemp("command")
    tiny_model(folder / "model")
    toy_tokenizer(GOOD).save_pretrained(folder / "model")
    pq.write_table(table(21), folder / "rows.parquet")
    with serve() as hub:
        yield Setting(folder, hub, folder / "out")


@pytest.fixture(scope="module")
def finished(setting: Setting) -> Setting:
    """The command, killed in the middle and called again."""
    first = setting.start()
    # What Ray Train knows of, which is less than what lies there.
    known = setting.output / "checkpoints"
    wait_for(
        lambda: any("checkpoint-" in file.read_text() for file in known.glob("run-*/checkpoint_manager_snapshot.json")), first
    )
    below = psutil.Process(first.pid).children(recursive=True)
    workers = [process for process in below if any("RayTrainWorker" in part for part in process.cmdline())]
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert workers
    assert not psutil.wait_procs(workers, timeout=60)[1]
    assert len(setting.records()) < STEPS
    second = setting.start()
    printed = second.communicate(timeout=280)[0]
    assert second.returncode == 0, printed
    return setting


def test_after_kill_9_the_same_command_gives_the_undisturbed_losses(finished: Setting, tmp_path: Path) -> None:
    """Nothing of the killed attempt goes on, and the second one ends with the curve of a run that nobody killed."""
    expected = run(config(str(finished.folder / "model"), epochs=40), tmp_path, checked=None)
    records = [record for record in finished.records() if "loss" in record]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    np.testing.assert_allclose([record["loss"] for record in records], expected.losses, atol=1e-5)
    details = json.loads((finished.output / "manifest.json").read_text())["details"]
    assert details["steps"] == STEPS
    assert details["trained_steps"] < STEPS
    assert details["speed"]["restarts"] == 1
    assert details["speed"]["tokens"] == expected.outcome.speed["tokens"]
    assert details["speed"]["data_wait_share"] <= 0.02


def test_the_adapter_is_pushed(finished: Setting) -> None:
    """The repository holds the files of the adapter folder, sent with the token of the environment."""
    folder = finished.output / "adapter"
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert finished.hub.repositories == {"models/me/tuned": files}
    assert {"adapter_model.safetensors", "tokenizer.json", "README.md"} <= files.keys()
    assert finished.hub.strangers == []


def test_a_push_without_a_token_is_refused_before_training(setting: Setting, tmp_path: Path) -> None:
    """One line and exit code 2; nothing is trained."""
    elsewhere = Setting(setting.folder, setting.hub, tmp_path / "out")
    refused = elsewhere.start(HF_TOKEN="", HF_HOME=str(tmp_path / "home"))
    printed = refused.communicate(timeout=120)[0]
    assert refused.returncode == 2
    assert printed.strip().splitlines() == [
        "tunemill: error: finetune.push_to_hub 'me/tuned': there is no Hugging Face token; set HF_TOKEN or run: hf auth login"
    ]
