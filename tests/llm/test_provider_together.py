"""All wire formats at once through the whole caller: faults, blocks and keys."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llm.harness import QUICK, model_at, open_worker, rows_for
from mock_provider import Faults, MockConfig, start_mock
from tunemill.llm.config import ModelConfig

KEY = "plain-looking-key-4711-0815"
NAMES = {
    "openai": "gpt-4o-mini",
    "azure": "my-deployment",
    "anthropic": "claude-sonnet-4-5",
    "gemini": "gemini-2.5-flash",
    "bedrock": "amazon.titan-text-express-v1",
}
PATIENT = dataclasses.replace(QUICK, patience_s=120.0)
MIXED = {"server_error": 0.04, "throttle": 0.02, "cut": 0.02, "truncated": 0.02, "empty": 0.02, "gateway": 0.02, "blocked": 0.05}


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOCK_KEY", KEY)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)


def models(url: str) -> list[ModelConfig]:
    """One model of each format, and Bedrock's second API."""
    found = []
    for provider, name in NAMES.items():
        changes: dict[str, Any] = {"name": provider, "provider": provider, "model": name, "base_url": url, "timeout_s": 60.0}
        if provider == "bedrock":
            changes |= {"region": "us-east-1", "api_key_env": None}
        found.append(model_at(url, **changes))
    converse = {
        "name": "converse",
        "provider": "bedrock",
        "model": "us.amazon.nova-lite-v1:0",
        "base_url": url,
        "timeout_s": 60.0,
    }
    return [*found, model_at(url, **converse, region="us-east-1", api_key_env=None)]


async def test_every_row_of_every_format_ends_answered_or_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """With mixed faults each prompt ends with a text or a reason, each answer is paid once, and the key is nowhere."""
    caplog.set_level(logging.INFO)
    with start_mock(MockConfig(faults=Faults(share=MIXED, wait_s=0.05, hint="retry-after-ms"))) as mock:
        entries = models(mock.url)
        rows = [row for entry in entries for row in rows_for(10, entry.name)]
        async with open_worker(tmp_path, *entries, policy=PATIENT) as worker:
            answers = await worker.call(rows)
        answered = Counter(record["provider"] for record in mock.records() if record["outcome"] == "answered")
    reasons = Counter(row["reason"] for row in answers)
    assert len(answers) == len(rows)
    assert set(reasons) <= {None, "blocked"}, reasons
    kept = Counter(row["provider"] for row in answers if row["reason"] is None)
    assert kept == answered
    assert all(row["text"] and row["input_tokens"] and row["output_tokens"] for row in answers if row["reason"] is None)
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    said = "".join(capfd.readouterr()) + caplog.text + repr(answers)
    assert written
    assert KEY.encode() not in written
    assert KEY not in said


async def test_a_server_that_repeats_the_key_does_not_get_it_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A refused key stops the model at once, and the refusal's text reaches neither rows, nor logs, nor the journal."""
    caplog.set_level(logging.INFO)
    with start_mock(MockConfig(keys=("another",))) as mock:
        entries = [entry for entry in models(mock.url) if entry.provider != "bedrock"]
        rows = [row for entry in entries for row in rows_for(5, entry.name)]
        said = ""
        async with open_worker(tmp_path, *entries) as worker:
            try:
                said = repr(await worker.call(rows))
            except Exception as error:  # noqa: BLE001 - whatever stops the run, its text is what is tested
                said = f"{error!r} {error.__cause__!r}"
        assert mock.stats()["requests"] <= len(rows)
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert "auth" in said or "key" in said
    assert KEY.encode() not in written
    assert KEY not in said + "".join(capfd.readouterr()) + caplog.text
