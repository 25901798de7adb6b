"""A caller's side of the budget: calls queue here, the oldest first, until they may be sent.

It asks the budget for permits in small batches while it has free places, tells it what happened, and
joins again when the budget was restarted. Retries queue like new calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import heapq
import itertools
import time
from collections.abc import Awaitable
from typing import Protocol

from tunemill.llm.allocator import PARK_S
from tunemill.llm.limiter import Cost
from tunemill.llm.messages import Ask, Grant, Report, Terms
from tunemill.llm.request import Failure, LimitHeaders

__all__ = ["BudgetClient", "BudgetLost", "Gate", "Parked", "Permit", "Stopped", "Unreachable"]

REPORT_S = 0.2
HEARTBEAT_S = 2.0
_BATCH = 64
_GATHER_S = 0.005
"""Between two questions, so that calls which end together ask together."""


class BudgetLost(Exception):
    """The budget did not answer; it may be restarting. The gate asks again."""


class Parked(Exception):
    """The quota of the day is used up; ``wait_s`` says for how long."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(wait_s)
        self.wait_s = wait_s


class Unreachable(Exception):
    """The server never answered at all."""


class Stopped(Exception):
    """The job was stopped while a call waited."""


class BudgetClient(Protocol):
    """How the gate reaches its budget; raises BudgetLost."""

    def join(self, job: str, caller: str, terms: Terms) -> Awaitable[Grant]: ...

    def report(self, report: Report) -> Awaitable[Grant]: ...

    def lease(self, ask: Ask) -> Awaitable[Grant]: ...

    def leave(self, caller: str) -> Awaitable[None]: ...


@dataclasses.dataclass(slots=True)
class Permit:
    """Leave to send one call at ``send_at`` (this process's monotonic clock)."""

    reserved: Cost
    send_at: float = 0.0
    at: float | None = None
    """The budget's time of it; None where no rate is limited."""
    epoch: str = ""


@dataclasses.dataclass(slots=True)
class _Waiting:
    cost: Cost
    ready: asyncio.Future[Permit]


class Gate:
    """The queue before one model; used on one event loop."""

    def __init__(self, budget: BudgetClient, job: str, caller: str, terms: Terms) -> None:
        self._budget = budget
        self._job, self._caller, self._terms = job, caller, terms
        self._queue: list[tuple[float, int, _Waiting]] = []
        self._numbers = itertools.count()
        self._grant = Grant("unknown")
        self._report = Report(job, caller)
        self._latency_sum = 0.0
        self._in_flight = 0
        self._asked = 0
        self._wake = asyncio.Event()
        self._reported = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False

    @property
    def in_flight(self) -> int:
        """Calls between their permit and their end."""
        return self._in_flight

    async def acquire(self, cost: Cost, order: float) -> Permit:
        """Wait for leave to send a call; lower ``order`` first. Raises Parked, Stopped and Unreachable."""
        if self._stopped:
            raise Stopped
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._ask()), asyncio.create_task(self._tell())]
        refusal = self._refusal()
        if refusal is not None:
            self._wake.set()
            raise refusal
        waiting = _Waiting(cost, asyncio.get_running_loop().create_future())
        heapq.heappush(self._queue, (order, next(self._numbers), waiting))
        self._admit()
        if not waiting.ready.done():
            self._wake.set()
        try:
            return await waiting.ready
        except asyncio.CancelledError:
            if waiting.ready.done() and not waiting.ready.cancelled() and waiting.ready.exception() is None:
                self.cancel(waiting.ready.result())
            raise

    def stop(self) -> None:
        """Send away everything that waits, from now on."""
        self._stopped = True
        for _, _, waiting in self._queue:
            if not waiting.ready.done():
                waiting.ready.set_exception(Stopped())
        self._queue.clear()

    def cancel(self, permit: Permit) -> None:
        """Give a permit back unused."""
        self._in_flight -= 1
        if permit.at is not None and permit.epoch == self._grant.epoch:
            self._report.cancelled.append((permit.at, permit.reserved.input_tokens, permit.reserved.output_tokens))
        self._admit()
        self._wake.set()

    def end(
        self, permit: Permit, latency_s: float, real: Cost | None, failure: Failure | None, headers: LimitHeaders | None
    ) -> None:
        """Note how a call ended; ``real`` is what it took from the limits, where known."""
        self._in_flight -= 1
        report = self._report
        if real is not None and permit.at is not None and permit.epoch == self._grant.epoch and real != permit.reserved:
            reserved = permit.reserved
            report.settled.append(
                (permit.at, reserved.input_tokens, reserved.output_tokens, real.input_tokens, real.output_tokens)
            )
        if failure is None:
            report.answered += 1
            self._latency_sum += latency_s
        elif failure.kind == "throttled":
            report.throttled.append((latency_s, failure.retry_after_s))
        elif failure.kind == "quota_day":
            report.day_quota_s = failure.retry_after_s or 0.0
            self._take_over(dataclasses.replace(self._grant, state="parked", wait_s=failure.retry_after_s or PARK_S))
            self._wake.set()
        elif failure.status is None:
            report.failed += 1
        elif failure.kind == "overloaded":
            report.overloaded += 1
        if headers is not None:
            report.headers = headers
        self._admit()
        if self._queue:
            self._wake.set()

    async def close(self) -> None:
        """Stop asking, and leave."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(BudgetLost):
            await self._budget.leave(self._caller)

    def _free(self) -> int:
        return self._grant.quota - self._in_flight - self._asked

    def _admit(self) -> None:
        """Let calls go on the quota alone, where no rate is limited."""
        if self._grant.limited or self._grant.state != "open":
            return
        while self._queue and self._free() > 0:
            waiting = heapq.heappop(self._queue)[2]
            if not waiting.ready.done():
                self._let_go(waiting, Permit(waiting.cost, time.monotonic()))

    def _let_go(self, waiting: _Waiting, permit: Permit) -> None:
        self._in_flight += 1
        self._report.peak = max(self._report.peak, self._in_flight)
        waiting.ready.set_result(permit)

    async def _ask(self) -> None:
        """Ask for permits while calls wait and places are free."""
        while True:
            self._wake.clear()
            if not self._queue and self._grant.state != "unknown":
                await self._wake.wait()
                continue
            batch = self._take_batch() if self._grant.limited else []
            began = time.monotonic()
            try:
                grant = await self._exchange(batch)
            except BudgetLost:
                self._put_back(batch)
                self._grant = Grant("unknown")
                await asyncio.sleep(REPORT_S)
                continue
            self._asked = 0
            self._accept(grant, batch, began)
            if not grant.limited or grant.state != "open":
                await asyncio.sleep(0.01 if self._quotaless(grant) else REPORT_S / 2)
            elif not batch:  # every place is taken
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), REPORT_S / 2)
            else:
                await asyncio.sleep(_GATHER_S)

    def _quotaless(self, grant: Grant) -> bool:
        """Just joined: no place has been asked for yet."""
        return grant.state == "open" and grant.quota == 0 and self._in_flight == 0

    async def _exchange(self, batch: list[tuple[float, int, _Waiting]]) -> Grant:
        if self._grant.state == "unknown":
            return await self._budget.join(self._job, self._caller, self._terms)
        costs = [(entry[2].cost.input_tokens, entry[2].cost.output_tokens) for entry in batch]
        return await self._budget.lease(Ask(self._take_report(), costs))

    def _take_batch(self) -> list[tuple[float, int, _Waiting]]:
        batch: list[tuple[float, int, _Waiting]] = []
        while self._queue and len(batch) < min(self._free(), _BATCH):
            entry = heapq.heappop(self._queue)
            if not entry[2].ready.done():
                batch.append(entry)
        self._asked = len(batch)
        return batch

    def _put_back(self, batch: list[tuple[float, int, _Waiting]]) -> None:
        self._asked = 0
        for entry in batch:
            if self._stopped and not entry[2].ready.done():
                entry[2].ready.set_exception(Stopped())
            heapq.heappush(self._queue, entry)

    def _accept(self, grant: Grant, batch: list[tuple[float, int, _Waiting]], began: float) -> None:
        now = time.monotonic()
        self._grant = grant
        # the answer may have travelled for all of the time that the budget did not hold it
        base = min(now, began + grant.held_s) if grant.permits else now
        for (delay_s, at), entry in zip(grant.permits, batch, strict=False):
            permit = Permit(entry[2].cost, base + delay_s, at, grant.epoch)
            if entry[2].ready.done():
                self._in_flight += 1
                self.cancel(permit)
            else:
                self._let_go(entry[2], permit)
        self._put_back(batch[len(grant.permits) :])
        self._take_over(grant)

    def _take_over(self, grant: Grant) -> None:
        """Act on what the budget says: send calls away, or let them go."""
        self._grant = grant
        if self._refusal() is not None:
            for _, _, waiting in self._queue:
                if not waiting.ready.done():
                    waiting.ready.set_exception(self._refusal() or Stopped())
            self._queue.clear()
        self._admit()

    def _refusal(self) -> Exception | None:
        """Why no call may wait here, if so."""
        if self._grant.state == "parked":
            return Parked(self._grant.wait_s)
        return Unreachable() if self._grant.state == "dead" else None

    async def _tell(self) -> None:
        """Report what happened while a question is held, and that this caller lives."""
        while True:
            await asyncio.sleep(REPORT_S)
            quiet = not (
                self._report.answered
                or self._report.settled
                or self._report.throttled
                or self._report.failed
                or self._report.overloaded
            )
            now = time.monotonic()
            if self._grant.state == "unknown" or (quiet and now - self._reported < HEARTBEAT_S):
                continue
            with contextlib.suppress(BudgetLost):
                self._take_over(await self._budget.report(self._take_report()))
                self._wake.set()

    def _take_report(self) -> Report:
        report, self._report = self._report, Report(self._job, self._caller)
        report.waiting = len(self._queue) + self._asked
        report.in_flight = self._in_flight
        report.peak = max(report.peak, self._in_flight)
        report.epoch = self._grant.epoch
        report.latency_s = self._latency_sum / report.answered if report.answered else 0.0
        self._latency_sum = 0.0
        self._report.peak = self._in_flight
        self._reported = time.monotonic()
        return report
