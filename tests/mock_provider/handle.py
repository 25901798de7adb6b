"""Starting and stopping a mock in its own process."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from mock_provider.config import MockConfig, to_json

__all__ = ["MockHandle", "start_mock"]


@dataclasses.dataclass
class MockHandle:
    """A running mock. Also a context manager."""

    url: str
    """``http://127.0.0.1:PORT``; OpenAI's base_url is this plus ``/v1``."""
    log: Path
    process: subprocess.Popen[bytes]

    def records(self) -> list[dict[str, Any]]:
        """Every request so far, in order of arrival."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def paid(self) -> collections.Counter[str]:
        """Body hash (blake2b, 16 bytes, hex) -> how often it was paid."""
        return collections.Counter(record["body"] for record in self.records() if record["paid"])

    def paid_prompts(self) -> collections.Counter[str]:
        """Prompt id (a ``[[id]]`` in the text) -> how often it was paid."""
        return collections.Counter(record["prompt_id"] for record in self.records() if record["paid"])

    def stats(self) -> dict[str, int]:
        """Counters: requests, paid, answered, throttled, fault:..., in_flight, peak_in_flight, tokens."""
        with urllib.request.urlopen(f"{self.url}/_stats") as response:
            return dict(json.load(response))

    def configure(self, config: MockConfig) -> None:
        """Change limits, latency or faults while it runs."""
        request = urllib.request.Request(f"{self.url}/_config", data=to_json(config).encode(), method="POST")
        urllib.request.urlopen(request).close()

    def stop(self) -> None:
        """End the process; the log stays."""
        self.process.terminate()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> MockHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_mock(config: MockConfig | None = None, *, log: Path | None = None, port: int = 0) -> MockHandle:
    """Start a mock that also ends when the calling process does. ``log`` defaults to a new temporary file."""
    if log is None:
        number, name = tempfile.mkstemp(prefix="mock_provider_", suffix=".jsonl")
        os.close(number)
        log = Path(name)
    command = [sys.executable, "-m", "mock_provider", "--port", str(port), "--log", str(log), "--until-stdin-closes"]
    command += ["--config", to_json(config or MockConfig())]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    line = process.stdout.readline().decode().split() if process.stdout else []
    if len(line) != 2:
        process.kill()
        raise RuntimeError(f"the mock did not start: {line}")
    return MockHandle(url=line[1], log=log, process=process)
