"""One caller: turns rows into answers, each call in this order.

Look the request up in the journal; set money aside; wait for a permit; write the intent; send; free the
place; write the outcome; only then does the row count. A retry waits outside and queues up again.
Every row ends as an answer or with a named reason. Knows nothing of Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from tunemill.errors import ConfigError, RunFailed, TunemillError
from tunemill.llm.config import ModelConfig
from tunemill.llm.gate import BudgetClient, BudgetLost, Parked, Permit, Stopped, Unreachable
from tunemill.llm.journal import Entry, JournalReader, JournalWriter
from tunemill.llm.lane import Lane, Request, billed_usd, stop_message
from tunemill.llm.providers.failures import failure
from tunemill.llm.purse import LedgerClient, PurseKeeper
from tunemill.llm.request import Answer, Failure, Prompt, keyed_request
from tunemill.llm.retry import GiveUp, RetryBudget, RetryPolicy
from tunemill.llm.rows import Result, as_row, dead_letter, intent_of, outcome_of, unsent
from tunemill.llm.schema import schema_problem

__all__ = ["PENDING", "CallWorker", "Job"]

PENDING = ("over_budget", "quota_day", "interrupted")
"""Reasons of rows that were not called yet: they run when the same command is run again."""
SCHEMA_ASKS = 3
_ASK_STRIDE = 1_000_000
_REPORT_S = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What all callers of one job share."""

    name: str
    models: tuple[ModelConfig, ...]
    schema: Mapping[str, Any] | None = None
    capped: bool = False
    """A spending cap is set."""
    replay_failed: bool = False
    late_s: float = 0.25
    """A permit that is used later than this would crowd its successors: it is given back instead."""


class CallWorker:
    """Calls models for one process, on one event loop."""

    def __init__(
        self,
        job: Job,
        *,
        budgets: Mapping[str, BudgetClient],
        ledger: LedgerClient,
        writer: JournalWriter,
        reader: JournalReader,
        policy: RetryPolicy | None = None,
        name: str | None = None,
    ) -> None:
        caller = name or f"caller-{uuid.uuid4().hex[:10]}"
        self._job = job
        self._writer, self._reader = writer, reader
        self._policy, self._retries = policy or RetryPolicy(), RetryBudget()
        self._purse = PurseKeeper(ledger, caller, capped=job.capped)
        self._lanes = {model.name: Lane(model, budgets[model.name], job.name, caller) for model in job.models}
        self._running: dict[str, asyncio.Future[Result]] = {}
        self._reading = asyncio.Lock()
        self._order = 0
        self._fatal: TunemillError | None = None
        self._stop_seen = asyncio.Event()
        self._reporter: asyncio.Task[None] | None = None

    async def call(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answer a block of rows; raises the job's error when it has to stop."""
        if self._reporter is None:
            self._reporter = asyncio.create_task(self._keep_reporting())
        first, self._order = self._order, self._order + len(rows)
        requests = [self._request(row, first + i) for i, row in enumerate(rows)]
        keys = [request.key for request in requests]
        known = await self._look_up(keys, refresh=bool(keys) and await self._begun_before(keys))
        calls = [self._row(row, request, known.get(request.key)) for row, request in zip(rows, requests, strict=True)]
        done = await asyncio.gather(*calls, return_exceptions=True)
        answered = []
        for item in done:
            if isinstance(item, BaseException):
                raise item
            answered.append(item)
        return answered

    async def close(self) -> None:
        """Leave the budgets, flush the journal, close connections."""
        if self._reporter is not None:
            self._reporter.cancel()
        await self._purse.report()
        for lane in self._lanes.values():
            await lane.close()
        await self._writer.close()

    def _request(self, row: Mapping[str, Any], order: int, ask: int = 0) -> Request:
        lane = self._lanes.get(row["model"])
        if lane is None:
            raise ConfigError(f"model {row['model']!r} stands in the rows but not in models ({', '.join(self._lanes)})")
        if lane.model.task == "embed":
            prompt = Prompt.of_texts(list(row["texts"]))
        else:
            prompt = Prompt.of(row["prompt"], row.get("system"))
        sample = int(row.get("sample") or 0) + ask * _ASK_STRIDE
        key, wire = keyed_request(lane.provider, lane.model, prompt, schema=self._job.schema, sample=sample)
        return lane.request(key, wire, prompt, order)

    async def _begun_before(self, keys: list[str]) -> bool:
        try:
            return await self._purse.ledger.begin(f"{keys[0]}{len(keys)}")
        except BudgetLost:
            return True

    async def _look_up(self, keys: list[str], *, refresh: bool = False) -> dict[str, Entry]:
        async with self._reading:
            if refresh:
                await asyncio.to_thread(self._reader.refresh)
            return await asyncio.to_thread(self._reader.find, keys)

    async def _row(self, row: Mapping[str, Any], request: Request, known: Entry | None) -> dict[str, Any]:
        results: list[Result] = []
        schema = self._job.schema
        for ask in range(SCHEMA_ASKS if schema is not None else 1):
            if ask:
                request = self._request(row, request.order, ask)
                known = (await self._look_up([request.key])).get(request.key)
            result = await self._result(request, known)
            problem = schema_problem(schema, result.answer.text) if schema is not None and result.answer is not None else None
            if problem is not None:
                result = dataclasses.replace(result, answer=None, reason="bad_schema", error=problem)
            results.append(result)
            if problem is None:
                break
        return as_row(row, request.lane.model, request.key, results)

    async def _result(self, request: Request, known: Entry | None) -> Result:
        """From the journal, or by calling; rows with one key share one call."""
        if known is not None and (known.type == "answer" or not self._job.replay_failed):
            self._purse.tally(request.lane.model.name).reused += 1
            return Result.of(request.lane.provider, known)
        under_way = self._running.get(request.key)
        if under_way is not None:
            return await asyncio.shield(under_way)
        mine = self._running[request.key] = asyncio.get_running_loop().create_future()
        try:
            result = await self._call(request)
        except BaseException as error:
            mine.set_exception(error if isinstance(error, Exception) else Stopped())
            mine.exception()  # nobody else may be waiting for it
            raise
        finally:
            del self._running[request.key]
        mine.set_result(result)
        return result

    async def _call(self, request: Request) -> Result:
        """Call until there is an answer or a reason for none."""
        began = time.monotonic()
        attempt = failures = free_failures = 0
        failed: Failure | None = None
        while not self._stopped:
            try:
                if not await self._purse.reserve(request.most_usd):
                    return Result(reason="over_budget", error="the cap of budget_usd is reached; raise it to call this row")
                attempt += 1
                outcome, entry = await self._attempt(request, attempt)
            except Parked as parked:
                return Result(reason="quota_day", error=f"the day's quota is used up; run again in {parked.wait_s / 60:.0f} min")
            except Stopped:
                break
            except Unreachable:
                await self._stop(request.lane.model, failed or failure("connection", "no answer at all", status=None))
                break
            if isinstance(outcome, Answer):
                return Result.answered(entry, outcome)
            failed = outcome
            if outcome.hard:
                await self._stop(request.lane.model, outcome)
                break
            if outcome.kind == "quota_day":
                continue
            free = outcome.kind in ("throttled", "connection")
            failures, free_failures = failures + (not free), free_failures + free
            elapsed_s, draw = time.monotonic() - began, random.random()
            decision = self._policy.decide(outcome, failures=failures, throttles=free_failures, elapsed_s=elapsed_s, draw=draw)
            if isinstance(decision, GiveUp):
                letter = dead_letter(request, attempt, decision.reason, outcome)
                await self._writer.record([letter])
                return Result.of(request.lane.provider, letter)
            await self._rest(max(decision.delay_s, self._retries.delay_s(time.monotonic())))
        if self._fatal is not None:
            raise self._fatal
        return Result(reason="interrupted", error=self._purse.stopped or "the run was stopped before this call")

    async def _attempt(self, request: Request, attempt: int) -> tuple[Answer | Failure, Entry]:
        """One call from permit to durable outcome; what was set aside for it is settled in any case."""
        lane, usd = request.lane, 0.0
        try:
            permit, call = await self._permitted(request, attempt)
            if attempt == 1:
                self._retries.earn()
            sent = time.monotonic()
            response = await lane.sender.send(request.wire)
            latency_s = time.monotonic() - sent
            tally = self._purse.tally(lane.model.name)
            outcome = lane.end(permit, response, latency_s, request.estimate, tally)
            usd = billed_usd(request, outcome)
            tally.cost_usd += usd
        finally:
            self._purse.settle(request.most_usd, usd)
        entry = outcome_of(request, call, attempt, response, outcome=outcome, usd=usd, latency_s=latency_s)
        await self._writer.record([entry])
        return outcome, entry

    async def _permitted(self, request: Request, attempt: int) -> tuple[Permit, str]:
        """A permit whose time has come, with the intent written; its call's id."""
        gate = request.lane.gate
        intent: Entry | None = None
        try:
            while True:
                permit = await gate.acquire(request.lane.reserve(request.estimate), request.order)
                try:
                    if self._stopped:
                        raise Stopped
                    if intent is None:
                        intent = intent_of(request, attempt)
                        await self._writer.intend([intent])
                    wait_s = permit.send_at - time.monotonic()
                    if wait_s > 0:
                        await asyncio.sleep(wait_s)
                except BaseException:
                    gate.cancel(permit)
                    raise
                if permit.at is None or wait_s > -self._job.late_s:
                    return permit, intent.call
                gate.cancel(permit)
        except (Parked, Stopped, Unreachable):
            if intent is not None:
                await self._writer.record([unsent(intent)])
            raise

    @property
    def _stopped(self) -> bool:
        return self._fatal is not None or self._purse.stopped is not None

    async def _stop(self, model: ModelConfig, failure: Failure) -> None:
        """A failure that every further call would share: stop this job everywhere, with one message."""
        answered = any(tally.answers for tally in self._purse.tallies.values())
        message = stop_message(model, failure)
        self._fatal = RunFailed(f"{message}; answers so far are kept") if answered else ConfigError(message)
        self._wake_all()
        with contextlib.suppress(BudgetLost):
            await self._purse.ledger.stop(failure.kind, message)

    async def _rest(self, delay_s: float) -> None:
        """Wait outside any place, but not longer than the job runs."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop_seen.wait(), delay_s)

    def _wake_all(self) -> None:
        self._stop_seen.set()
        for lane in self._lanes.values():
            lane.gate.stop()

    async def _keep_reporting(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            await self._purse.report()
            if self._purse.stopped is not None:
                self._wake_all()
