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
from datetime import UTC, datetime, timedelta
from typing import Any

from tunemill.errors import ConfigError, RunFailed, TunemillError
from tunemill.llm.allocator import Terms
from tunemill.llm.config import ModelConfig
from tunemill.llm.gate import BudgetClient, BudgetLost, Gate, Parked, Permit, Stopped
from tunemill.llm.journal import Entry, JournalReader, JournalWriter
from tunemill.llm.limiter import Cost, Rates
from tunemill.llm.pricing import cost_usd, estimate_input_tokens, most_usd
from tunemill.llm.providers import provider_for
from tunemill.llm.purse import LedgerClient, PurseKeeper
from tunemill.llm.request import Answer, Failure, Prompt, Provider, WireRequest, WireResponse, keyed_request
from tunemill.llm.retry import GiveUp, RetryBudget, RetryPolicy
from tunemill.llm.send import Sender

__all__ = ["PENDING", "CallWorker", "Job"]

PENDING = ("over_budget", "quota_day", "interrupted")
"""Reasons of rows that were not called yet: they run when the same command is run again."""
SCHEMA_ASKS = 3
_ASK_STRIDE = 1_000_000
_LATE_S = 0.25
_KEPT_HEADERS = ("x-amzn-bedrock", "x-amzn-requestid", "x-request-id", "request-id", "apim-request-id", "content-type")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What all callers of one job share."""

    name: str
    models: tuple[ModelConfig, ...]
    schema: Mapping[str, Any] | None = None
    capped: bool = False
    """A spending cap is set."""
    replay_failed: bool = False
    late_s: float = _LATE_S
    """A permit older than this is given back instead of used."""


@dataclasses.dataclass(slots=True)
class _Model:
    config: ModelConfig
    provider: Provider
    gate: Gate
    sender: Sender
    endpoint: str
    input_ratio: float = 1.0
    """Real over estimated input tokens, as seen so far."""
    output_mean: float = -1.0
    """Mean output tokens, as seen so far; below 0: none seen."""


@dataclasses.dataclass(slots=True)
class _Result:
    """How a request ended: an outcome of the journal and what it means, or a reason why there is none."""

    entry: Entry | None = None
    answer: Answer | None = None
    reason: str | None = None
    error: str | None = None
    status: int | None = None
    reused: bool = False


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
        self._job = job
        self._name = name or f"caller-{uuid.uuid4().hex[:10]}"
        self._writer, self._reader = writer, reader
        self._policy, self._retries = policy or RetryPolicy(), RetryBudget()
        self._purse = PurseKeeper(ledger, self._name, capped=job.capped)
        self._models = {model.name: self._open(model, budgets[model.name]) for model in job.models}
        self._running: dict[str, asyncio.Task[_Result]] = {}
        self._reading = asyncio.Lock()
        self._order = 0
        self._fatal: TunemillError | None = None
        self._reporter: asyncio.Task[None] | None = None
        self._stop_seen = asyncio.Event()

    def _open(self, model: ModelConfig, budget: BudgetClient) -> _Model:
        provider = provider_for(model.provider, model.task)
        # Azure counts requests over one second or ten
        rates = Rates.of(model.limits, pace_s=1.0 if model.provider == "azure" else None)
        gate = Gate(budget, self._job.name, self._name, Terms(rates, model.limits.concurrency))
        return _Model(model, provider, gate, Sender(model, model.limits.concurrency), provider.endpoint(model))

    async def call(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answer a block of rows; raises the job's error when it has to stop."""
        if self._reporter is None:
            self._reporter = asyncio.create_task(self._keep_reporting())
        prepared = [self._prepare(row, ask=0) for row in rows]
        keys = [key for key, _, _ in prepared]
        if keys and await self._begin(keys):
            async with self._reading:
                await asyncio.to_thread(self._reader.refresh)
        async with self._reading:
            known = await asyncio.to_thread(self._reader.find, keys)
        first, self._order = self._order, self._order + len(rows)
        calls = [
            self._row(row, first + i, made, known.get(made[0])) for i, (row, made) in enumerate(zip(rows, prepared, strict=True))
        ]
        done = await asyncio.gather(*calls, return_exceptions=True)
        for item in done:
            if isinstance(item, BaseException):
                raise item
        await self._purse.report()
        return [item for item in done if not isinstance(item, BaseException)]

    async def close(self) -> None:
        """Leave the budgets, flush the journal, close connections."""
        if self._reporter is not None:
            self._reporter.cancel()
        await self._purse.report()
        for model in self._models.values():
            await model.gate.close()
            await model.sender.close()
        await self._writer.close()

    def _prepare(self, row: Mapping[str, Any], ask: int) -> tuple[str, WireRequest, Prompt]:
        model = self._model(row["model"])
        if model.config.task == "embed":
            prompt = Prompt.of_texts(list(row["texts"]))
        else:
            prompt = Prompt.of(row["prompt"], row.get("system"))
        sample = int(row.get("sample") or 0) + ask * _ASK_STRIDE
        key, wire = keyed_request(model.provider, model.config, prompt, schema=self._job.schema, sample=sample)
        return key, wire, prompt

    def _model(self, name: str) -> _Model:
        if name not in self._models:
            raise ConfigError(f"model {name!r} stands in the rows but not in models ({', '.join(self._models)})")
        return self._models[name]

    async def _begin(self, keys: list[str]) -> bool:
        try:
            return await self._purse.ledger.begin(f"{keys[0]}{len(keys)}")
        except BudgetLost:
            return True

    async def _row(
        self, row: Mapping[str, Any], order: int, made: tuple[str, WireRequest, Prompt], known: Entry | None
    ) -> dict[str, Any]:
        model = self._model(row["model"])
        attempts, spent = 0, 0.0
        for ask in range(SCHEMA_ASKS if self._job.schema is not None else 1):
            if ask:
                made = self._prepare(row, ask)
                async with self._reading:
                    known = (await asyncio.to_thread(self._reader.find, [made[0]])).get(made[0])
            result = await self._shared(model, made, order, known)
            entry = result.entry
            attempts += entry.attempt if entry is not None else 0
            spent += entry.usd if entry is not None else 0.0
            if result.answer is None or self._job.schema is None:
                break
            from tunemill.llm.schema import schema_problem

            problem = schema_problem(self._job.schema, result.answer.text)
            if problem is None:
                break
            result = dataclasses.replace(result, reason="bad_schema", error=problem)
        return _as_row(row, model.config, made[0], result, attempts, spent)

    async def _shared(
        self, model: _Model, made: tuple[str, WireRequest, Prompt], order: int, known: Entry | None
    ) -> _Result:
        """The result of a request; two rows with one key share one call."""
        key, wire, prompt = made
        if known is not None:
            result = self._from_journal(model, known)
            if result is not None:
                self._purse.tally(model.config.name).reused += 1
                return result
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._request(model, key, wire, prompt, order))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return await task

    def _from_journal(self, model: _Model, known: Entry) -> _Result | None:
        if known.type == "answer":
            return self._read(model, known, reused=True)
        if self._job.replay_failed:
            return None
        return _Result(entry=known, reason=known.kind, error=known.error, status=known.status, reused=True)

    def _read(self, model: _Model, entry: Entry, *, reused: bool = False) -> _Result:
        outcome = model.provider.read(entry.status or 200, entry.headers, entry.body)
        if isinstance(outcome, Failure):
            return _Result(entry=entry, reason=outcome.kind, error=outcome.message, status=entry.status, reused=reused)
        if outcome.blocked is not None:
            return _Result(entry=entry, reason="blocked", error=outcome.blocked, status=entry.status, reused=reused)
        return _Result(entry=entry, answer=outcome, reused=reused)

    async def _request(self, model: _Model, key: str, wire: WireRequest, prompt: Prompt, order: int) -> _Result:
        began = time.monotonic()
        attempt = failures = throttles = 0
        most = most_usd(model.config, prompt)
        self._retries.earn()
        while True:
            if self._stopped:
                return self._pending()
            if not await self._purse.reserve(most):
                return _Result(reason="over_budget", error="the cap of budget_usd is reached; raise it to call this row")
            attempt += 1
            try:
                outcome, entry = await self._attempt(model, key, wire, prompt, order, attempt, most)
            except Parked as parked:
                self._purse.settle(most, 0.0)
                return _Result(reason="quota_day", error=f"the day's quota is used up; run again in {parked.wait_s / 60:.0f} min")
            except Stopped:
                self._purse.settle(most, 0.0)
                return self._pending()
            if isinstance(outcome, Answer):
                return self._read(model, entry)
            if outcome.hard:
                await self._stop(model, outcome)
                return self._pending()
            if outcome.kind == "quota_day":
                continue
            throttles += outcome.kind in ("throttled", "connection")
            failures += outcome.kind not in ("throttled", "connection")
            decision = self._policy.decide(
                outcome, failures=failures, throttles=throttles, elapsed_s=time.monotonic() - began, draw=random.random()
            )
            if isinstance(decision, GiveUp):
                return await self._dead(model, key, attempt, decision.reason, outcome)
            if model.gate.dead:
                await self._stop(model, outcome)
                return self._pending()
            await self._rest(max(decision.delay_s, self._retries.delay_s(time.monotonic())))

    async def _attempt(
        self, model: _Model, key: str, wire: WireRequest, prompt: Prompt, order: int, attempt: int, most: float
    ) -> tuple[Answer | Failure, Entry]:
        """One call from permit to durable outcome."""
        call = uuid.uuid4().hex
        estimate = estimate_input_tokens(prompt)
        intended = False
        name = model.config.name
        while True:
            permit = await model.gate.acquire(self._reserve(model, estimate), order)
            if self._stopped:
                model.gate.cancel(permit)
                raise Stopped
            try:
                if not intended:
                    intent = Entry(
                        type="intent", key=key, call=call, model=name, attempt=attempt, usd=most, at=time.time(),
                        url=wire.url, body=wire.body if attempt == 1 else b"",
                    )  # fmt: skip
                    await self._writer.intend([intent])
                    intended = True
                wait_s = permit.send_at - time.monotonic()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                elif permit.at is not None and -wait_s > self._job.late_s:
                    model.gate.cancel(permit)
                    continue
            except BaseException:
                model.gate.cancel(permit)
                raise
            break
        sent = time.monotonic()
        response = await model.sender.send(wire)
        latency_s = time.monotonic() - sent
        outcome = self._ended(model, permit, response, latency_s, estimate)
        usd = cost_usd(model.config, outcome.input_tokens, outcome.output_tokens)
        entry = self._entry(key, call, name, attempt, response, outcome, usd, latency_s)
        self._purse.settle(most, usd)
        await self._writer.record([entry])
        return outcome, entry

    def _reserve(self, model: _Model, estimate: int) -> Cost:
        """What the provider will take from the limits at the start of a call."""
        config = model.config
        weight = model.provider.output_weight(config)
        if config.task == "embed":
            return Cost(estimate * model.input_ratio, 0.0)
        if model.provider.reserves_output or model.output_mean < 0:
            output = float(config.params.max_tokens)
        else:
            output = model.output_mean * weight
        return Cost(estimate * model.input_ratio, output)

    def _ended(
        self, model: _Model, permit: Permit, response: WireResponse | Failure, latency_s: float, estimate: int
    ) -> Answer | Failure:
        """Read a response, free its place and tell the gate; counts it."""
        tally = self._purse.tally(model.config.name)
        tally.calls += 1
        if isinstance(response, Failure):
            tally.failures += 1
            model.gate.end(permit, latency_s, None, response, None)
            return response
        outcome = model.provider.read(response.status, response.headers, response.body)
        headers = model.provider.limits(response.headers)
        tally.input_tokens += outcome.input_tokens
        tally.output_tokens += outcome.output_tokens
        tally.cost_usd += cost_usd(model.config, outcome.input_tokens, outcome.output_tokens)
        real: Cost | None = None
        failure = outcome if isinstance(outcome, Failure) else None
        if isinstance(outcome, Answer):
            tally.answers += 1
            weight = model.provider.output_weight(model.config)
            real = Cost(outcome.input_tokens, outcome.output_tokens * weight)
            model.input_ratio += 0.05 * (outcome.input_tokens / max(estimate, 1) - model.input_ratio)
            seen = model.output_mean
            model.output_mean = outcome.output_tokens if seen < 0 else seen + 0.05 * (outcome.output_tokens - seen)
        elif outcome.kind == "throttled":
            tally.throttled += 1
            real = Cost()
        else:
            tally.failures += 1
        model.gate.end(permit, latency_s, real, failure, headers)
        return outcome

    def _entry(
        self, key: str, call: str, name: str, attempt: int, response: WireResponse | Failure, outcome: Answer | Failure,
        usd: float, latency_s: float,
    ) -> Entry:  # fmt: skip
        good = isinstance(outcome, Answer)
        raw = isinstance(response, WireResponse)
        return Entry(
            type="answer" if good else "failure",
            key=key,
            call=call,
            model=name,
            attempt=attempt,
            usd=usd,
            at=time.time(),
            latency_s=round(latency_s, 4),
            status=response.status,
            input_tokens=outcome.input_tokens,
            output_tokens=outcome.output_tokens,
            kind="" if isinstance(outcome, Answer) else outcome.kind,
            error="" if isinstance(outcome, Answer) else outcome.message,
            headers={k: v for k, v in response.headers.items() if k.lower().startswith(_KEPT_HEADERS)} if raw else {},
            body=response.body if isinstance(response, WireResponse) else b"",
        )

    async def _dead(self, model: _Model, key: str, attempt: int, reason: str, failure: Failure) -> _Result:
        entry = Entry(
            type="dead", key=key, call="", model=model.config.name, attempt=attempt, usd=0.0, at=time.time(),
            status=failure.status, kind=reason, error=f"{failure.kind}: {failure.message}",
        )  # fmt: skip
        await self._writer.record([entry])
        return _Result(entry=entry, reason=reason, error=entry.error, status=failure.status)

    @property
    def _stopped(self) -> bool:
        return self._fatal is not None or self._purse.stopped is not None

    def _pending(self) -> _Result:
        if self._fatal is not None:
            raise self._fatal
        return _Result(reason="interrupted", error=self._purse.stopped or "the run was stopped before this call")

    async def _stop(self, model: _Model, failure: Failure) -> None:
        """A failure that every further call would share: stop this job everywhere, with one message."""
        answered = any(tally.answers for tally in self._purse.tallies.values())
        message = f"models.{model.config.name}: {_advice(model.config, failure)}"
        self._fatal = RunFailed(f"{message}; answers so far are kept") if answered else ConfigError(message)
        self._wake_all()
        await self._purse.ledger.stop(failure.kind, message)

    async def _rest(self, delay_s: float) -> None:
        """Wait outside any place, but not longer than the job runs."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop_seen.wait(), delay_s)

    def _wake_all(self) -> None:
        self._stop_seen.set()
        for model in self._models.values():
            model.gate.stop()

    async def _keep_reporting(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            await self._purse.report()
            if self._purse.stopped is not None:
                self._wake_all()


def _advice(model: ModelConfig, failure: Failure) -> str:
    where = model.base_url or model.provider
    if failure.kind == "auth":
        name = model.api_key_env or "its key"
        return f"{where} refused the key ({failure.message}); check {name}"
    if failure.kind == "not_found":
        return f"{where} has no {model.model!r} ({failure.message}); check model and base_url"
    if failure.kind == "no_credit":
        return f"{where} asks for payment ({failure.message}); top the account up and run the same command again"
    return f"{where} can not be reached ({failure.message}); check base_url and that the server runs"


def _iso(at: float) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=round(at * 1000))
    return moment.isoformat(timespec="milliseconds")


def _as_row(
    row: Mapping[str, Any], model: ModelConfig, key: str, result: _Result, attempts: int, spent_usd: float
) -> dict[str, Any]:
    entry, answer = result.entry, result.answer
    columns: dict[str, Any] = {
        **row,
        "request_id": key,
        "provider": model.provider,
        "text": answer.text if answer else None,
        "finish_reason": answer.finish_reason if answer else None,
        "input_tokens": entry.input_tokens if entry else None,
        "output_tokens": entry.output_tokens if entry else None,
        "cost_usd": spent_usd,
        "latency_s": entry.latency_s if entry else None,
        "attempts": attempts,
        "created_at": _iso(entry.at) if entry else None,
        "reason": result.reason,
        "status": result.status,
        "error": result.error,
    }
    if model.task == "embed":
        columns["vectors"] = [list(vector) for vector in answer.vectors] if answer and answer.vectors is not None else None
    return columns


