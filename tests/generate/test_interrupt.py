"""Ctrl-C on a real `tunemill generate` process, as a terminal sends it: to the command and to all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from mock_provider import Latency, MockConfig, MockHandle, start_mock

ROWS = 60
_PATIENCE_S = 120


@pytest.fixture
def mock() -> Iterator[MockHandle]:
    """A mock of its own, so that its log holds the calls of one test."""
    with start_mock() as handle:
        yield handle


def start(folder: Path, mock: MockHandle) -> subprocess.Popen[bytes]:
    """The command, in a process group of its own."""
    model = {
        "name": "m",
        "provider": "openai",
        "model": "m-1",
        "base_url": f"{mock.url}/v1",
        "api_key_env": "MOCK_KEY",
        "limits": {"concurrency": 4},
    }
    section = {"rows": ROWS, "template": "[[{n}]] Say.", "variables": {"n": [str(i) for i in range(ROWS)]}, "models": [model]}
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump({"run": {"output": str(folder / "run")}, "generate": section}), encoding="utf-8")
    command = [sys.executable, "-c", "from tunemill.cli import main; main()", "generate", "--config", str(config)]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "MOCK_KEY": "mock-secret-key"}, start_new_session=True
        )


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once something has come true while the command runs."""
    deadline = time.monotonic() + _PATIENCE_S
    while not reached():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def interrupted(folder: Path, mock: MockHandle, *, mean_s: float, requests: int) -> subprocess.Popen[bytes]:
    """The command, with one SIGINT sent once the mock has seen so many requests of ``mean_s`` seconds each."""
    mock.configure(MockConfig(latency=Latency(mean_s=mean_s)))
    process = start(folder, mock)
    wait_until(lambda: mock.stats().get("requests", 0) >= requests, process, folder / "log")
    os.killpg(process.pid, signal.SIGINT)
    return process


@pytest.mark.timeout(400)
def test_the_first_interrupt_keeps_what_is_paid_and_the_same_command_finishes(mock: MockHandle, tmp_path: Path) -> None:
    """No new calls, those in flight are kept, the last line says how to go on; the next run pays only for the rest."""
    log = tmp_path / "log"
    process = interrupted(tmp_path, mock, mean_s=0.2, requests=8)
    assert process.wait(_PATIENCE_S) == 1
    assert "the same command goes on" in log.read_text().splitlines()[-1]
    assert "Traceback" not in log.read_text()
    paid = mock.stats()["paid"]
    assert 8 <= paid < ROWS
    assert not (tmp_path / "run" / "generate" / "manifest.json").exists()
    mock.configure(MockConfig())
    again = start(tmp_path, mock)
    assert again.wait(_PATIENCE_S) == 0, log.read_text()
    assert sorted(mock.paid_prompts().items()) == sorted((str(i), 1) for i in range(ROWS))


@pytest.mark.timeout(200)
def test_the_second_interrupt_leaves_at_once(mock: MockHandle, tmp_path: Path) -> None:
    """While calls hang, a second Ctrl-C ends the command without waiting for them, and it says how to go on."""
    log = tmp_path / "log"
    process = interrupted(tmp_path, mock, mean_s=3600.0, requests=4)
    wait_until(lambda: "no new calls" in log.read_text(), process, log)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(_PATIENCE_S) == 1
    assert "go on with the same command" in log.read_text().splitlines()[-1]
