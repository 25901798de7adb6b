"""How records become durable: group commit to a file, or objects written whole.

While one group is on its way the next one gathers, so the number of writes follows the speed of the
storage and not the number of calls.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from tunemill.errors import RunFailed
from tunemill.llm.journal.base import Entry, encode
from tunemill.store import Location

__all__ = ["DiskWriter", "GroupCommit", "ObjectWriter"]

T = TypeVar("T")
OBJECT_WINDOW_S = 0.5
"""Outcomes gather for this long before their object is written; with the write itself this stays below a second."""


class GroupCommit(Generic[T]):
    """Hands gathered records to ``write`` in a thread, one group at a time; ``write`` raises OSError or RunFailed."""

    def __init__(self, write: Callable[[list[T]], None], *, window_s: float = 0.0) -> None:
        self._write = write
        self._window_s = window_s
        self._gathered: list[T] = []
        self._durable: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="journal")

    async def add(self, records: list[T]) -> None:
        """Return when the records are durable."""
        loop = asyncio.get_running_loop()
        self._gathered += records
        if self._durable is None:
            self._durable = loop.create_future()
        durable = self._durable
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._commit())
        await asyncio.shield(durable)

    async def close(self) -> None:
        """Write what is left."""
        if self._task is not None:
            await asyncio.wait([self._task])
        self._pool.shutdown(wait=True)

    async def _commit(self) -> None:
        loop = asyncio.get_running_loop()
        while self._durable is not None:
            if self._window_s:
                await asyncio.sleep(self._window_s)
            group, durable = self._gathered, self._durable
            self._gathered, self._durable = [], None
            try:
                await loop.run_in_executor(self._pool, self._write, group)
            except (OSError, RunFailed) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else error
                durable.set_exception(
                    RunFailed(f"journal: cannot be written ({reason}); calling stops, what was written is kept")
                )
                durable.exception()
            else:
                durable.set_result(None)


class DiskWriter:
    """Appends to one file: one write and one fdatasync for a group."""

    def __init__(self, file: Location) -> None:
        self._path = file.path
        self._descriptor: int | None = None
        self._commit = GroupCommit(self._append)

    async def intend(self, entries: Sequence[Entry]) -> None:
        """Append intents."""
        await self._commit.add([encode(entry) for entry in entries])

    async def record(self, entries: Sequence[Entry]) -> None:
        """Append outcomes."""
        await self._commit.add([encode(entry) for entry in entries])

    async def close(self) -> None:
        """Flush and close the file."""
        await self._commit.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _append(self, group: list[bytes]) -> None:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            folder = os.open(os.path.dirname(self._path), os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        data = memoryview(b"".join(group))
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fdatasync(self._descriptor)


class ObjectWriter:
    """Writes each group as an object of its own; intents at once, outcomes gathered for half a second."""

    def __init__(self, folder: Location, name: str) -> None:
        self._folder = folder
        self._name = name
        self._number = 0
        self._intents: GroupCommit[bytes] = GroupCommit(lambda group: self._put("intents", group))
        self._outcomes: GroupCommit[bytes] = GroupCommit(lambda group: self._put("outcomes", group), window_s=OBJECT_WINDOW_S)

    async def intend(self, entries: Sequence[Entry]) -> None:
        """Put the intents of a lease as one object."""
        await self._intents.add([encode(entry) for entry in entries])

    async def record(self, entries: Sequence[Entry]) -> None:
        """Put outcomes; they count when this returns."""
        await self._outcomes.add([encode(entry) for entry in entries])

    async def close(self) -> None:
        """Write what is left."""
        await self._intents.close()
        await self._outcomes.close()

    def _put(self, kind: str, group: list[bytes]) -> None:
        self._number += 1
        name = f"{self._name}-{time.time_ns():x}-{self._number:06d}-{kind}.jsonl"
        self._folder.join(name).write_bytes(b"".join(group))
