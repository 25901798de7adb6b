"""Calls through Ray Data: the actor pool, the named actors, and errors that cross processes."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm.harness import model_at, rows_for
from mock_provider import Faults, Latency, MockConfig, MockHandle, start_mock
from tunemill.errors import ConfigError, root_cause
from tunemill.llm import checks
from tunemill.llm.caller import open_calls
from tunemill.llm.config import Limits, Price
from tunemill.llm.journal import open_journal
from tunemill.progress import Progress

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def mock() -> Iterator[MockHandle]:
    """One mock for all tests, configured by each."""
    os.environ["MOCK_KEY"] = "mock-secret-key"
    with start_mock() as handle:
        yield handle


def answer(folder: Path, rows: list[dict[str, Any]], *models: Any, **options: Any) -> list[dict[str, Any]]:
    """All rows through Ray Data."""
    import ray.data

    with open_calls(models=models, journal=str(folder / "journal"), job=str(folder), progress=QUIET, **options) as calls:
        return list(calls.rows(ray.data.from_items(rows)).take_all())


@pytest.mark.usefixtures("ray_session")
def test_rows_go_through_two_models_and_come_back_once(mock: MockHandle, tmp_path: Path) -> None:
    """Each row is answered by its model, carries its columns, and a second run pays nothing."""
    mock.configure(MockConfig(latency=Latency(mean_s=0.01)))
    before = mock.stats().get("requests", 0)
    models = (model_at(mock.url), model_at(mock.url, name="n", model="mock-2"))
    rows = [{**row, "extra": i} for name in ("m", "n") for i, row in enumerate(rows_for(20, name))]
    first = answer(tmp_path, rows, *models)
    assert Counter((row["model"], row["reason"]) for row in first) == {("m", None): 20, ("n", None): 20}
    assert sorted(row["extra"] for row in first) == sorted([*range(20)] * 2)
    second = answer(tmp_path, rows, *models, workers=2)
    by_id = {row["request_id"]: row for row in first}
    assert {row["request_id"]: row for row in second} == by_id
    assert mock.stats().get("requests", 0) - before == 40


@pytest.mark.usefixtures("ray_session")
def test_a_refused_key_crosses_processes_as_one_clear_error(mock: MockHandle, tmp_path: Path) -> None:
    """The worker's error is found inside Ray's, and never shows the key."""
    mock.configure(MockConfig(keys=("another",)))
    with pytest.raises(Exception, match="MOCK_KEY") as caught:
        answer(tmp_path, rows_for(40), model_at(mock.url))
    found = root_cause(caught.value)
    assert isinstance(found, ConfigError)
    assert "mock-secret-key" not in str(caught.value)


@pytest.mark.usefixtures("ray_session")
def test_a_stopped_job_ends_soon_with_what_it_has(mock: MockHandle, tmp_path: Path) -> None:
    """After a stop, rows that were not called end as interrupted, and the next run calls only those."""
    import ray.data

    mock.configure(MockConfig(latency=Latency(mean_s=0.1)))
    before = mock.stats().get("requests", 0)
    model = model_at(mock.url, limits=Limits(concurrency=2))
    rows = rows_for(300, start=400)
    with open_calls(models=(model,), journal=str(tmp_path / "journal"), job=str(tmp_path), progress=QUIET) as calls:
        threading.Thread(target=lambda: (wait_for(mock, before + 5), calls.stop()), daemon=True).start()
        got = list(calls.rows(ray.data.from_items(rows)).take_all())
    reasons = Counter(row["reason"] for row in got)
    assert set(reasons) == {None, "interrupted"}
    assert sum(reasons.values()) == 300
    mock.configure(MockConfig())
    again = answer(tmp_path, rows, model_at(mock.url))
    assert {row["reason"] for row in again} == {None}
    assert mock.stats().get("requests", 0) - before == 300
    assert open_journal(str(tmp_path / "journal")).summary().maybe_paid == ()


def wait_for(mock: MockHandle, requests: int) -> None:
    """Return when the mock has seen so many requests."""
    while mock.stats().get("requests", 0) < requests:
        pass


@pytest.mark.usefixtures("ray_session")
def test_failed_rows_have_their_reasons_and_types(mock: MockHandle, tmp_path: Path) -> None:
    """A block without any answer has the same columns as others."""
    mock.configure(MockConfig(faults=Faults(share={"filtered": 1.0})))
    rows = answer(tmp_path, rows_for(3, start=900), model_at(mock.url))
    assert {(row["reason"], row["text"], row["status"]) for row in rows} == {("blocked", None, 200)}


def test_a_cap_needs_a_price(mock: MockHandle, tmp_path: Path) -> None:
    """A cap on a paid model without a price could never hold, so it is refused."""
    os.environ["OPENAI_API_KEY"] = "sk-not-a-real-key"
    model = model_at(mock.url, base_url=None, price=Price(), api_key_env=None)
    with pytest.raises(ConfigError, match="price"):
        answer(tmp_path, [], model, budget_usd=1.0)


@pytest.mark.usefixtures("ray_session")
def test_a_node_local_journal_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On several nodes a folder that one of them does not see is refused; a shared one is taken."""
    import ray

    nodes = ray.nodes()
    monkeypatch.setattr(ray, "nodes", lambda: nodes * 2)
    journal = open_journal(str(tmp_path))
    checks.check_shared(journal)
    monkeypatch.setattr(checks, "_sees", lambda path, nonce: False)
    with pytest.raises(ConfigError, match="does not see this folder"):
        checks.check_shared(journal)
    checks.check_shared(open_journal("s3://bucket/journal"))
    assert list(tmp_path.iterdir()) == []
