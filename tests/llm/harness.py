"""A caller with its budget and ledger in this process: the whole path of a call without Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tunemill.llm.budget import BudgetService, LedgerService
from tunemill.llm.config import Limits, ModelConfig, Params, Price
from tunemill.llm.journal import JournalWriter, open_journal
from tunemill.llm.retry import RetryPolicy
from tunemill.llm.worker import CallWorker, Job

QUICK = RetryPolicy(base_s=0.02, longest_s=0.2, patience_s=20.0)


def model_at(url: str, **changes: Any) -> ModelConfig:
    """An OpenAI-compatible model behind a mock's address."""
    base = ModelConfig(
        name="m",
        provider="openai",
        model="mock-1",
        base_url=f"{url}/v1",
        api_key_env="MOCK_KEY",
        params=Params(max_tokens=50),
        limits=Limits(concurrency=32),
        price=Price(input=1.0, output=2.0),
        timeout_s=5.0,
    )
    return dataclasses.replace(base, **changes)


def rows_for(count: int, model: str = "m", start: int = 0) -> list[dict[str, Any]]:
    """Rows whose prompts carry ids that the mock logs."""
    return [
        {"prompt_id": f"p{i}", "model": model, "prompt": f"[[p{i}]] Say something.", "system": None, "sample": 0}
        for i in range(start, start + count)
    ]


@asynccontextmanager
async def open_worker(
    folder: Path | str,
    *models: ModelConfig,
    budget: BudgetService | None = None,
    ledger: LedgerService | None = None,
    budget_usd: float | None = None,
    policy: RetryPolicy = QUICK,
    name: str = "t",
    writer: JournalWriter | None = None,
    **job: Any,
) -> AsyncIterator[CallWorker]:
    """A worker on a journal; closes it at the end."""
    journal = open_journal(str(folder))
    journal.prepare()
    shared = budget or BudgetService()
    purse = ledger or LedgerService(budget_usd, journal.summary().spent_usd)
    worker = CallWorker(
        Job(name="job", models=models, capped=budget_usd is not None or ledger is not None, **job),
        budgets={model.name: shared for model in models},
        ledger=purse,
        writer=writer or journal.writer(name),
        reader=journal.reader(journal.open()[0]),
        policy=policy,
    )
    try:
        yield worker
    finally:
        await worker.close()
