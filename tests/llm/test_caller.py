"""Calls end to end against the mock over real HTTP, without Ray."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm.harness import model_at, open_worker, rows_for
from mock_provider import Faults, Latency, Limit, MockConfig, MockHandle, start_mock
from tunemill.errors import ConfigError
from tunemill.llm.budget import BudgetService, LedgerService
from tunemill.llm.config import Limits, Params
from tunemill.llm.journal import open_journal

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def mock() -> Iterator[MockHandle]:
    """One mock for all tests, configured by each."""
    os.environ["MOCK_KEY"] = "mock-secret-key"
    with start_mock() as handle:
        yield handle


async def test_every_row_is_answered_once(mock: MockHandle, tmp_path: Path) -> None:
    """Rows come back with text, usage and cost, and each was paid once."""
    mock.configure(MockConfig(latency=Latency(mean_s=0.01)))
    before = mock.paid_prompts()
    async with open_worker(tmp_path, model_at(mock.url)) as worker:
        rows = await worker.call(rows_for(100))
    assert [row["prompt_id"] for row in rows] == [f"p{i}" for i in range(100)]
    assert all(row["reason"] is None and row["text"] and row["cost_usd"] > 0 for row in rows)
    assert len({row["request_id"] for row in rows}) == 100
    assert set((mock.paid_prompts() - before).values()) == {1}
    summary = open_journal(str(tmp_path)).summary()
    assert (summary.answers, summary.maybe_paid) == (100, ())
    assert summary.spent_usd == pytest.approx(sum(row["cost_usd"] for row in rows))


async def test_answered_requests_cost_nothing_again(mock: MockHandle, tmp_path: Path) -> None:
    """A second worker on the same journal answers from it; more rows call only what is new."""
    mock.configure(MockConfig())
    async with open_worker(tmp_path, model_at(mock.url), name="a") as worker:
        first = await worker.call(rows_for(20, start=1000))
    async with open_worker(tmp_path, model_at(mock.url), name="b") as worker:
        second = await worker.call(rows_for(30, start=1000))
    paid = mock.paid_prompts()
    assert second[:20] == first
    assert [paid[f"p{i}"] for i in range(1000, 1030)] == [1] * 30


async def test_changed_parameters_are_other_requests(mock: MockHandle, tmp_path: Path) -> None:
    """Another max_tokens or sample number is called anew."""
    mock.configure(MockConfig())
    row = rows_for(1, start=2000)[0]
    async with open_worker(tmp_path, model_at(mock.url), name="a") as worker:
        one = await worker.call([row, {**row, "sample": 1}])
    async with open_worker(tmp_path, model_at(mock.url, params=Params(max_tokens=51)), name="b") as worker:
        two = await worker.call([row])
    assert len({item["request_id"] for item in [*one, *two]}) == 3
    assert mock.paid_prompts()["p2000"] == 3


async def test_rows_with_one_key_share_one_call(mock: MockHandle, tmp_path: Path) -> None:
    """The same request twice in a block is paid once."""
    mock.configure(MockConfig(latency=Latency(mean_s=0.05)))
    row = rows_for(1, start=2100)[0]
    async with open_worker(tmp_path, model_at(mock.url)) as worker:
        rows = await worker.call([row, dict(row)])
    assert rows[0]["text"] == rows[1]["text"]
    assert mock.paid_prompts()["p2100"] == 1


async def test_mixed_faults_end_as_answers(mock: MockHandle, tmp_path: Path) -> None:
    """With a fifth of all calls failing in mixed ways every row is answered, and what was paid is counted."""
    share = dict.fromkeys(
        ("server_error", "unavailable", "cut", "cut_body", "truncated", "throttle", "empty", "error_200"), 0.025
    )
    mock.configure(MockConfig(faults=Faults(share=share, hint="retry-after-ms", wait_s=0.05)))
    async with open_worker(tmp_path, model_at(mock.url)) as worker:
        rows = await worker.call(rows_for(200, start=3000))
    assert Counter(row["reason"] for row in rows) == {None: 200}
    assert max(row["attempts"] for row in rows) > 1
    summary = open_journal(str(tmp_path)).summary()
    assert summary.failures > 10
    assert summary.maybe_paid == ()


async def test_hopeless_rows_end_as_dead_letters_and_replay(mock: MockHandle, tmp_path: Path) -> None:
    """A row that fails every time is dropped, stays dropped for free, and runs again with replay_failed."""
    mock.configure(MockConfig(faults=Faults(share={"server_error": 1.0})))
    async with open_worker(tmp_path, model_at(mock.url), name="a") as worker:
        rows = await worker.call(rows_for(3, start=4000))
    assert {row["reason"] for row in rows} == {"gave_up"}
    assert all(row["error"] for row in rows)
    calls = mock.stats().get("requests", 0)
    async with open_worker(tmp_path, model_at(mock.url), name="b") as worker:
        assert await worker.call(rows_for(3, start=4000)) == rows
    assert mock.stats().get("requests", 0) == calls
    mock.configure(MockConfig())
    async with open_worker(tmp_path, model_at(mock.url), name="c", replay_failed=True) as worker:
        rows = await worker.call(rows_for(3, start=4000))
    assert {row["reason"] for row in rows} == {None}
    async with open_worker(tmp_path, model_at(mock.url), name="d") as worker:
        assert {row["reason"] for row in await worker.call(rows_for(3, start=4000))} == {None}


async def test_blocked_prompts_are_a_reason(mock: MockHandle, tmp_path: Path) -> None:
    """What the provider withholds is dropped as blocked, without another try."""
    mock.configure(MockConfig(faults=Faults(share={"filtered": 1.0})))
    async with open_worker(tmp_path, model_at(mock.url)) as worker:
        rows = await worker.call(rows_for(2, start=5000))
    assert {(row["reason"], row["text"]) for row in rows} == {("blocked", None)}


@pytest.mark.parametrize("callers", [1, 4])
async def test_the_cap_is_hard_and_nearly_used(mock: MockHandle, tmp_path: Path, callers: int) -> None:
    """However many callers share it, spending stays within budget_usd; the rest is pending and runs with a higher cap."""
    mock.configure(MockConfig(latency=Latency(mean_s=0.005)))
    model = model_at(mock.url)
    start = 6000 + 1000 * callers
    cap = 0.0015
    ledger, budget = LedgerService(cap, 0.0), BudgetService()
    blocks = [rows_for(50, start=start + 50 * i) for i in range(callers)]

    async def one(i: int) -> list[dict[str, object]]:
        async with open_worker(tmp_path, model, ledger=ledger, budget=budget, name=f"c{i}") as worker:
            return await worker.call(blocks[i])

    rows = [row for block in await asyncio.gather(*(one(i) for i in range(callers))) for row in block]
    spent = sum(row["cost_usd"] for row in rows if row["reason"] is None)  # type: ignore[misc]
    reasons = Counter(row["reason"] for row in rows)
    assert set(reasons) == {None, "over_budget"}
    one_call = 0.000_25
    assert cap - one_call < spent <= cap
    assert open_journal(str(tmp_path)).summary().spent_usd == pytest.approx(spent)
    async with open_worker(tmp_path, model, name="later", budget_usd=1.0) as worker:
        assert {row["reason"] for block in blocks for row in await worker.call(block)} == {None}
    paid = mock.paid_prompts()
    assert all(paid[str(row["prompt_id"])] == 1 for row in rows)


async def test_a_refused_key_stops_at_once(mock: MockHandle, tmp_path: Path) -> None:
    """A bad key stops the job with one line that names the variable and not the key, after few calls."""
    mock.configure(MockConfig(keys=("another",)))
    before = mock.stats().get("requests", 0)
    async with open_worker(tmp_path, model_at(mock.url)) as worker:
        with pytest.raises(ConfigError, match="MOCK_KEY") as caught:
            await worker.call(rows_for(200, start=7500))
    assert "mock-secret-key" not in str(caught.value)
    assert mock.stats().get("requests", 0) - before <= 32
    assert b"mock-secret-key" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


async def test_a_server_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    """A dead address ends the job instead of trying for ever."""
    os.environ["MOCK_KEY"] = "mock-secret-key"
    async with open_worker(tmp_path, model_at("http://127.0.0.1:9")) as worker:
        with pytest.raises(ConfigError, match="can not be reached"):
            await worker.call(rows_for(3))


async def test_a_used_up_day_parks_the_model(mock: MockHandle, tmp_path: Path) -> None:
    """A per-day quota ends the rows as pending, after few calls."""
    mock.configure(MockConfig(faults=Faults(share={"throttle": 1.0}, hint="per-day")))
    before = mock.stats().get("requests", 0)
    async with open_worker(tmp_path, model_at(mock.url)) as worker:
        rows = await worker.call(rows_for(60, start=8000))
    assert {row["reason"] for row in rows} == {"quota_day"}
    assert mock.stats().get("requests", 0) - before <= 32


async def test_limits_are_used_and_kept(mock: MockHandle, tmp_path: Path) -> None:
    """Against the mock's own sliding window a saturated caller uses the window and is hardly ever throttled."""
    mock.configure(MockConfig(limits={"*": Limit(rpm=120, window_s=4.0)}, latency=Latency(mean_s=0.05)))
    before = mock.stats().get("throttled", 0)
    model = model_at(mock.url, limits=Limits(rpm=114, window_s=4.0, concurrency=64))
    loop = asyncio.get_running_loop()
    async with open_worker(tmp_path, model) as worker:
        began = loop.time()
        rows = await worker.call(rows_for(240, start=9000))
        took_s = loop.time() - began
    assert {row["reason"] for row in rows} == {None}
    assert mock.stats().get("throttled", 0) - before <= 12
    assert 6.0 < took_s < 16.0


async def test_two_jobs_share_evenly(mock: MockHandle, tmp_path: Path) -> None:
    """Two jobs on one account each get about half while both have work."""
    mock.configure(MockConfig(latency=Latency(mean_s=0.01)))
    budget = BudgetService()
    model = model_at(mock.url, limits=Limits(rpm=300, window_s=3.0, concurrency=64))
    order: list[str] = []

    async def job(name: str, start: int) -> None:
        async with open_worker(tmp_path / name, model, budget=budget, name=name) as worker:
            object.__setattr__(worker._job, "name", name)
            worker._lanes["m"].gate._job = name
            for block in range(10):
                await worker.call(rows_for(20, start=start + 20 * block))
                order.append(name)

    await asyncio.gather(job("a", 10_000), job("b", 20_000))
    assert 7 <= order[:16].count("a") <= 9
