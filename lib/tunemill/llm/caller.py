"""Calls for every row of a Ray Dataset: an actor pool of async workers behind one budget and one journal.

:func:`open_calls` checks everything that can be known before a call, then yields :class:`Calls`, whose
``rows`` turns a Dataset of prompts into a Dataset of answers. Blocks are small, so that one slow answer
holds back few rows; a block whose worker died is taken up by another, which finds in the journal what was
already answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import signal
import threading
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tunemill.llm.checks import Environment, check_models, check_shared, environment_for, placed
from tunemill.llm.config import ModelConfig
from tunemill.llm.journal import Journal, Summary, open_journal
from tunemill.llm.providers import provider_for
from tunemill.progress import Progress

if TYPE_CHECKING:
    import ray.data

    from tunemill.llm.worker import Job

__all__ = ["Calls", "open_calls"]

_LEAST_ROWS, _MOST_ROWS = 4, 512
_THREADS = 16
_POLL_S = 1.0


@dataclasses.dataclass(frozen=True)
class Calls:
    """Calls of one job that is under way."""

    job: Job
    journal: Journal
    index: Any
    before: Summary
    """What the journal said before this attempt; its ``maybe_paid`` calls will be made again."""
    workers: int
    environment: Environment

    def rows(self, rows: ray.data.Dataset) -> ray.data.Dataset:
        """Answer every row, lazily.

        Needs ``prompt_id, model`` (a ModelConfig's name), ``prompt, system, sample`` (or ``texts``, a list,
        for a model whose task is embed); carries every column. Adds ``request_id, provider, text,
        finish_reason, input_tokens, output_tokens, cost_usd, latency_s, attempts, created_at`` (and
        ``vectors``), and ``reason, status, error``, null where the row was answered.
        """
        import ray.data

        blocks = rows.repartition(target_num_rows_per_block=_block_rows(self.job.models, self.workers))
        return blocks.map_batches(
            _CallBlocks,
            fn_constructor_args=(self.job, self.journal, ray.put(self.index), self.environment),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=self.workers,
                max_concurrent_calls_per_actor=_THREADS,
                max_tasks_in_flight_per_actor=_THREADS + 4,
                enable_true_multi_threading=True,
            ),
            num_cpus=0.25,
        )

    def summary(self) -> Summary:
        """The journal's totals, read now."""
        return self.journal.summary()

    def stop(self, message: str = "stopped by the user") -> None:
        """Take no new calls; rows that are left end as ``interrupted``."""
        from tunemill.llm.budget import ledger_handle

        with contextlib.suppress(ValueError):
            ledger_handle(self.job.name, find=True).stop.remote("interrupted", message)


@contextlib.contextmanager
def open_calls(
    *,
    models: tuple[ModelConfig, ...],
    journal: str,
    budget_usd: float | None = None,
    workers: int | None = None,
    replay_failed: bool = False,
    schema: Mapping[str, Any] | None = None,
    job: str,
    progress: Progress,
) -> Iterator[Calls]:
    """Open the journal, the budgets and the purse of a job; closes them at the end of the block.

    Raises ConfigError, before any call, for models, keys, prices or a journal that can not work. While the
    block runs, the first Ctrl-C stops new calls and lets the rest end as ``interrupted``; a second one
    interrupts as usual.
    """
    from tunemill.llm.budget import ledger_handle
    from tunemill.llm.worker import Job

    servers = sum(model.provider == "embedded" for model in models)
    at_work = tuple(placed(model, servers) for model in models)
    check_models(at_work, budget_usd)
    kept = open_journal(journal, job=job)
    kept.prepare()
    check_shared(kept)
    kept.compact()
    index, before = kept.open()
    named = Job(
        name=f"{job}#{uuid.uuid4().hex[:8]}",
        models=at_work,
        schema=schema,
        capped=budget_usd is not None,
        replay_failed=replay_failed,
        late_s=1.0 if journal.startswith(("s3://", "gs://", "gcs://", "dynamodb://")) else 0.25,
    )
    if before.unanswered:
        progress.note(
            f"{before.unanswered} calls were in flight when an earlier run ended; they may have been paid and are made again"
        )
    ledger = ledger_handle(named.name, budget_usd=budget_usd, spent_usd=before.spent_usd)
    calls = Calls(named, kept, index, before, workers or _fitting_workers(), environment_for(at_work, journal))
    done = threading.Event()
    watcher = threading.Thread(target=_show, args=(ledger, progress, before.spent_usd, done), daemon=True, name="call-figures")
    watcher.start()
    try:
        with _gentle_interrupt(calls, progress):
            yield calls
    finally:
        done.set()
        watcher.join(timeout=5)
        _close(named)
        with contextlib.suppress(OSError):  # the run is over; the next one merges what is left
            kept.compact()


class _CallBlocks:
    """The actor of the pool: threads that bring blocks to one event loop, on which all calls run."""

    def __init__(self, job: Job, journal: Journal, index: Any, environment: Environment) -> None:
        import ray

        for name, value in environment.values.items():
            os.environ.setdefault(name, value)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="calls").start()
        self._job, self._journal = job, journal
        self._index = ray.get(index) if isinstance(index, ray.ObjectRef) else index
        self._worker = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    async def _open(self) -> Any:
        from tunemill.llm.budget import budget_handle, budget_name, ledger_handle
        from tunemill.llm.clients import RayBudget, RayLedger
        from tunemill.llm.worker import CallWorker

        budgets = {}
        for model in self._job.models:
            name = budget_name(model, provider_for(model.provider, model.task).endpoint(model))
            budgets[model.name] = RayBudget(functools.partial(budget_handle, name))
        reader = self._journal.reader(self._index)
        await asyncio.to_thread(reader.refresh)
        caller = f"{uuid.uuid4().hex[:12]}"
        return CallWorker(
            self._job,
            budgets=budgets,
            ledger=RayLedger(lambda: ledger_handle(self._job.name, find=True)),
            writer=self._journal.writer(f"{self._job.name.rsplit('#', 1)[-1]}-{caller}"),
            reader=reader,
            name=caller,
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        rows = block.to_pylist()
        answers = asyncio.run_coroutine_threadsafe(self._worker.call(rows), self._loop).result()
        return _table(answers, block.schema)


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows with fixed types, so that blocks without any answer or without any failure still agree."""
    added = {
        "request_id": pa.string(),
        "provider": pa.string(),
        "text": pa.string(),
        "finish_reason": pa.string(),
        "input_tokens": pa.int64(),
        "output_tokens": pa.int64(),
        "cost_usd": pa.float64(),
        "latency_s": pa.float64(),
        "attempts": pa.int64(),
        "created_at": pa.string(),
        "reason": pa.string(),
        "status": pa.int64(),
        "error": pa.string(),
    }
    if rows and "vectors" in rows[0]:
        added["vectors"] = pa.list_(pa.list_(pa.float32()))
    fields = [field for field in schema if field.name not in added]
    fields += [pa.field(name, kind) for name, kind in added.items()]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def _fitting_workers() -> int:
    """One worker on each node: it does about a thousand calls a second."""
    import ray

    return max(1, sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0))


def _block_rows(models: tuple[ModelConfig, ...], workers: int) -> int:
    """About a second's work of one caller: small blocks where limits are low, few blocks where they are not."""
    per_s = 0.0
    for model in models:
        limits = model.limits
        known = [limits.rpm, limits.tpm and limits.tpm / (50 + model.params.max_tokens)]
        per_s += min([limit / limits.window_s for limit in known if limit is not None] + [2.0 * limits.concurrency])
    return max(_LEAST_ROWS, min(_MOST_ROWS, int(per_s / workers)))


def _show(ledger: Any, progress: Progress, spent_before_usd: float, done: threading.Event) -> None:
    """Keep the progress line's figures fresh while calls run."""
    import ray

    calls_before = 0
    while not done.wait(_POLL_S):
        try:
            tallies, stopped, _ = ray.get(ledger.figures.remote(), timeout=10)
        except ray.exceptions.RayError:
            continue
        except RuntimeError:  # Ray was shut down beneath us
            return
        calls = sum(tally.calls for tally in tallies.values())
        cost = sum(tally.cost_usd for tally in tallies.values())
        tokens = sum(tally.output_tokens for tally in tallies.values())
        figures = {"cost": f"${spent_before_usd + cost:,.4f}", "calls": f"{(calls - calls_before) / _POLL_S:,.0f}/s"}
        figures["tokens out"] = f"{tokens:,}"
        throttled, failures = (sum(getattr(tally, name) for tally in tallies.values()) for name in ("throttled", "failures"))
        if throttled:
            figures["429s"] = f"{throttled:,}"
        if failures:
            figures["errors"] = f"{failures:,}"
        progress.reached(sum(tally.answers + tally.reused for tally in tallies.values()))
        if stopped:
            figures["stopping"] = stopped
        calls_before = calls
        progress.figures(**figures)


@contextlib.contextmanager
def _gentle_interrupt(calls: Calls, progress: Progress) -> Iterator[None]:
    """First Ctrl-C: no new calls. Second: the usual KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        # in a thread: the interrupted code may hold what Ray or the log need
        threading.Thread(target=stop, daemon=True, name="stop").start()

    def stop() -> None:
        progress.note("no new calls; waiting for those in flight (Ctrl-C again leaves at once)")
        calls.stop("stopped by Ctrl-C; run the same command again to go on")

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _close(job: Job) -> None:
    import ray

    from tunemill.llm.budget import NAMESPACE, budget_name, forget_ledger

    if not ray.is_initialized():
        return
    forget_ledger(job.name)
    for model in job.models:
        name = budget_name(model, provider_for(model.provider, model.task).endpoint(model))
        with contextlib.suppress(ValueError):  # never called
            ray.get_actor(name, namespace=NAMESPACE).end_job.remote(job.name)
