"""The cluster's one budget for each account and model, and each job's purse, as named detached Ray actors.

:class:`BudgetService` and :class:`LedgerService` wrap the pure state machines in waiting and need no Ray
(tests run them in process); :func:`budget_handle` and :func:`ledger_handle` find or make the actors in
namespace ``tunemill``. Every job on the cluster that calls the same account finds the same actor, which
outlives drivers and restarts by itself: a restarted budget assumes that the window was used up to now, a
restarted ledger reads back every lease, since a lease is written to Ray's control store before it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import pickle
import time
import uuid
from collections.abc import Callable
from typing import Any

from tunemill.llm.allocator import Allocator, Waiter
from tunemill.llm.config import ModelConfig
from tunemill.llm.ledger import Ledger, Purse, Tally
from tunemill.llm.messages import Ask, Grant, Report, Terms

__all__ = ["BudgetService", "LedgerService", "budget_handle", "budget_name", "ledger_handle", "ledger_name"]

NAMESPACE = "tunemill"
PATIENCE_S = 0.5
"""A question for permits is answered after this time, with or without."""
IDLE_EXIT_S = 120.0
Clock = Callable[[], float]


class BudgetService:
    """Deals one account's limits to callers; all methods run on one event loop."""

    def __init__(self, *, fresh: bool = True, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._allocator = Allocator(uuid.uuid4().hex[:12], clock(), fresh=fresh)
        self._waiting: dict[int, tuple[Waiter, asyncio.Future[None]]] = {}
        self._changed = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._used = clock()

    async def join(self, job: str, caller: str, terms: Terms) -> Grant:
        """Make a caller known; it has to be called again after a restart."""
        self._allocator.join(job, caller, terms, self._clock())
        self._changed.set()
        return self._allocator.grant(caller, self._clock())

    async def leave(self, caller: str) -> None:
        """Forget a caller."""
        self._allocator.leave(caller, self._clock())
        self._changed.set()

    async def end_job(self, job: str) -> None:
        """Forget all callers of a job that has ended."""
        self._allocator.end_job(job, self._clock())
        self._changed.set()

    async def report(self, report: Report) -> Grant:
        """Take in what happened at a caller and say what it may do."""
        now = self._used = self._clock()
        self._allocator.expire(now)
        if not self._allocator.note(report, now):
            return Grant("unknown")
        if report.settled or report.cancelled:
            self._changed.set()
        return self._allocator.grant(report.caller, now)

    async def lease(self, ask: Ask) -> Grant:
        """Like :meth:`report`, then wait up to half a second for permits where calls need them."""
        now = self._used = self._clock()
        self._allocator.expire(now)
        if not self._allocator.note(ask.report, now):
            return Grant("unknown")
        if not ask.costs or not self._allocator.limiter.limited or self._allocator.limiter.parked_until > now:
            return self._allocator.grant(ask.report.caller, now)
        waiter = self._allocator.wait(ask, now, PATIENCE_S)
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiter.key] = (waiter, answered)
        self._changed.set()
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._deal())
        try:
            await answered
        finally:
            if self._waiting.pop(waiter.key, None) is not None:
                self._allocator.withdraw(waiter)
        return self._allocator.grant(ask.report.caller, self._clock(), waiter)

    def idle_for(self, seconds: float) -> bool:
        """True when nobody has asked for so long."""
        self._allocator.expire(self._clock())
        return self._allocator.idle and self._clock() - self._used > seconds

    async def state(self) -> dict[str, Any]:
        """Figures for tests and for people."""
        allocator = self._allocator
        return {
            "epoch": allocator.epoch,
            "jobs": sorted(allocator.terms),
            "concurrency": allocator.concurrency.allowed if allocator.concurrency else 0,
            "rates": dataclasses.asdict(allocator.limiter.rates),
            "idle_s": self._clock() - self._used,
        }

    async def _deal(self) -> None:
        while self._waiting:
            self._changed.clear()
            now = self._clock()
            self._allocator.expire(now)
            done, wake = self._allocator.deal(now)
            for waiter in done:
                entry = self._waiting.pop(waiter.key, None)
                if entry is not None and not entry[1].done():
                    entry[1].set_result(None)
            if not self._waiting:
                return
            pause_s = max(0.001, (wake if wake is not None else now + PATIENCE_S) - self._clock())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), pause_s)


class LedgerService:
    """One job's purse, counts and stop sign. ``save`` is called with a snapshot before a lease is given."""

    def __init__(
        self,
        budget_usd: float | None,
        spent_usd: float,
        *,
        snapshot: dict[str, Any] | None = None,
        save: Callable[[dict[str, Any]], None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._clock = clock
        self._save = save
        self._ledger = Ledger.restored(snapshot, clock()) if snapshot else Ledger(budget_usd, spent_usd)
        self._used = clock()
        self._keep()

    async def lease(self, caller: str, need_usd: float, reserved_usd: float, spent_usd: float) -> Purse:
        """Money for a caller's next calls."""
        self._used = self._clock()
        purse = self._ledger.lease(caller, need_usd, reserved_usd, spent_usd, self._used)
        if self._ledger.budget_usd is not None:
            self._keep()
        return purse

    async def report(self, caller: str, spent_usd: float, leased_usd: float | None, tallies: dict[str, Tally]) -> str | None:
        """Take in a caller's totals; returns the stop sign."""
        self._used = self._clock()
        return self._ledger.report(caller, spent_usd, leased_usd, tallies, self._used)

    async def begin(self, block: str) -> bool:
        """True when this block of rows may have been worked on before."""
        return self._ledger.begin(block)

    async def stop(self, kind: str, message: str) -> None:
        """Stop the job everywhere; rows not yet answered end as pending."""
        self._ledger.stop(kind, message)
        self._keep()

    async def figures(self) -> tuple[dict[str, Tally], str | None, str]:
        """Counts by model, the stop sign and its kind."""
        return self._ledger.totals(), self._ledger.stopped, self._ledger.stop_kind

    async def spent_usd(self) -> float:
        """USD spent in this and earlier runs of the job, as far as reported."""
        return self._ledger.spent_before_usd + sum(tally.cost_usd for tally in self._ledger.totals().values())

    def _keep(self) -> None:
        if self._save is not None:
            self._save(self._ledger.snapshot())


def budget_name(model: ModelConfig, endpoint: str) -> str:
    """The actor's name: who is billed, for which model, where."""
    where = hashlib.blake2b(endpoint.encode(), digest_size=4).hexdigest()
    return f"budget/{model.provider}/{model.account}/{model.region or '-'}/{model.model or model.name}/{where}"


def ledger_name(job: str) -> str:
    """The actor's name of a job's purse."""
    return f"ledger/{job}"


def budget_handle(name: str) -> Any:
    """Find or make the budget of an account and model; works from any driver or worker of the cluster."""
    import ray

    options = {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True, "num_cpus": 0}
    return ray.remote(_BudgetActor).options(**options, max_restarts=-1, max_concurrency=10_000).remote(name)


def ledger_handle(job: str, *, budget_usd: float | None = None, spent_usd: float = 0.0, find: bool = False) -> Any:
    """Find (``find``) or make a job's ledger."""
    import ray

    if find:
        return ray.get_actor(ledger_name(job), namespace=NAMESPACE)
    options = {"name": ledger_name(job), "namespace": NAMESPACE, "get_if_exists": True, "num_cpus": 0}
    actor = ray.remote(_LedgerActor).options(**options, max_restarts=-1, max_concurrency=10_000)
    return actor.remote(job, budget_usd, spent_usd)


def forget_ledger(job: str) -> None:
    """End a job's ledger and what it kept, so that the next run starts from the journal."""
    import ray

    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(ledger_name(job), namespace=NAMESPACE), no_restart=True)
    _kv_delete(ledger_name(job))


class _BudgetActor(BudgetService):
    def __init__(self, name: str) -> None:
        marker = f"{name}/lives"
        super().__init__(fresh=_kv_get(marker) is None)
        _kv_put(marker, b"1")
        self._watch: asyncio.Task[None] | None = None

    async def join(self, job: str, caller: str, terms: Terms) -> Grant:
        """Make a caller known; from then on watch for the time when nobody needs this actor."""
        if self._watch is None:
            self._watch = asyncio.create_task(self._end_when_idle())
        return await super().join(job, caller, terms)

    async def _end_when_idle(self) -> None:
        import ray

        while not self.idle_for(IDLE_EXIT_S):
            await asyncio.sleep(IDLE_EXIT_S / 10)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


class _LedgerActor(LedgerService):
    def __init__(self, job: str, budget_usd: float | None, spent_usd: float) -> None:
        name = ledger_name(job)
        kept = _kv_get(name)
        super().__init__(
            budget_usd,
            spent_usd,
            snapshot=pickle.loads(kept) if kept else None,
            save=lambda snapshot: _kv_put(name, pickle.dumps(snapshot)),
        )


def _kv_get(key: str) -> bytes | None:
    from ray.experimental.internal_kv import _internal_kv_get

    return _internal_kv_get(key.encode(), namespace=NAMESPACE.encode())


def _kv_put(key: str, value: bytes) -> None:
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key.encode(), value, overwrite=True, namespace=NAMESPACE.encode())


def _kv_delete(key: str) -> None:
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(key.encode(), namespace=NAMESPACE.encode())
